"""What users can tell the tracer: rules of their own, channels that stay, how heads are cut."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hard_cases import build_case
from torch import nn

from graphs.network_graph import FROZEN
from graphs.tracing import RULES, UnsupportedOp, rule, trace_network
from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer


@pytest.fixture(autouse=True)
def own_rules():
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Opaque(nn.Module):
    """Leaves torch for numpy; only a rule can say what it does."""

    def forward(self, x):
        return torch.from_numpy(np.tanh(x.detach().numpy()))


def around(middle):
    return nn.Sequential(nn.Conv2d(3, 6, 1), middle, nn.Conv2d(6, 4, 1)).eval()


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def unary(tracer, func, args, kwargs, out):
    x = args[0]
    tracer.put(out, tracer.labels(x))
    tracer.same_node([out], x)


X = torch.randn(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("target", "middle", "message"),
    [
        (torch.special.expit, Applied(torch.special.expit), r"No channel rule for .*expit"),
        (Doubled, Applied(Doubled.apply), r"No channel rule for .*Doubled.*'1' .Applied"),
    ],
)
def test_a_rule_of_the_users_lifts_the_refusal(target, middle, message):
    network = around(middle)
    RULES.pop("special_expit", None)
    with pytest.raises(UnsupportedOp, match=message):
        trace_network(network, X)
    rule(target)(unary)
    graph = trace_network(network, X)
    assert [(group.name, group.size) for group in graph.groups] == [("0", 6)]
    assert Slimmer(network, graph).verify() < 1e-6


def test_a_module_with_a_rule_is_one_call():
    network = around(Opaque())
    with pytest.raises(UnsupportedOp, match=r"\(2, 6, 4, 4\).*cannot see, such as numpy"):
        trace_network(network, X)
    rule(Opaque)(RULES["tanh"])  # works on every channel by itself, as tanh does
    graph = trace_network(network, X)
    assert [(group.name, group.size) for group in graph.groups] == [("0", 6)]
    assert Slimmer(network, graph).verify() < 1e-6
    assert "forward" not in vars(network[1])


def test_operators_that_the_user_freezes_keep_their_channels():
    network, inputs = build_case("bottleneck")
    every = trace_network(network, inputs)
    graph = trace_network(network, inputs, frozen=("layers.0.*",))
    gone = {group.name for group in every.groups} - {group.name for group in graph.groups}
    assert gone == {group.name for group in every.groups
                    if any(name.startswith("layers.0.") for name in group.producers)}  # fmt: skip
    for name, operator in graph.operator_by_name.items():
        if name.startswith("layers.0."):
            assert set(operator.out_units) == {FROZEN}
            assert graph.frozen[name] == "frozen by 'layers.0.*'"


def test_a_pattern_that_freezes_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'nope.*no operator.*are: 0, 2.*Change frozen"):
        trace_network(around(nn.ReLU()), X, frozen=("nope*",))


def test_an_unknown_way_to_cut_heads_is_refused():
    with pytest.raises(ValueError, match="attention must be one of heads, head_dims, none"):
        trace_network(around(nn.ReLU()), X, attention="tails")


@pytest.mark.parametrize("name", ["vit_fused", "vit_manual", "vit_einsum", "vit_separate", "gpt"])
def test_the_same_channels_of_every_head_can_go(name):
    network, inputs = build_case(name)
    graph = trace_network(network, inputs, attention="head_dims")
    assert all(group.kind == "channel" for group in graph.groups)
    heads, head_dim = 3, 4
    cut = [g for g in graph.groups if "qkv" in g.name or ".q" in g.name or ".v" in g.name]
    assert cut
    assert all(group.size == head_dim for group in cut)
    owned = {s.tensor: s.units for s in graph.slices if s.axis == 0}
    first = owned[f"{cut[0].producers[0]}.weight"]
    parts = 3 if "qkv" in cut[0].name else 1  # one projection for q, k and v, or one each
    assert [first.count(unit) for unit in cut[0].units] == [parts * heads] * head_dim
    slimmer = Slimmer(network, graph)
    for seed in range(5):
        keep = KeepSet.random(graph, np.random.default_rng(seed))
        with slimmer.masked(keep) as masked, torch.no_grad():
            expected = masked(*inputs)
        with slimmer.applied(keep) as slim, torch.no_grad():
            torch.testing.assert_close(slim(*inputs), expected, rtol=0, atol=1e-10)


def test_attention_none_leaves_heads_alone():
    network, inputs = build_case("vit_fused")
    graph = trace_network(network, inputs, attention="none")
    assert not any("qkv" in group.name for group in graph.groups)
    assert "attention=none" in graph.frozen.values()


class RotaryAttention(nn.Module):
    """Norms of queries and keys per head, sines of positions, and a learned scale per channel."""

    def __init__(self, dim=12, heads=3):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.embed, self.qkv = nn.Linear(5, dim), nn.Linear(dim, 3 * dim)
        self.norm_q, self.norm_k = nn.LayerNorm(self.head_dim), nn.RMSNorm(self.head_dim)
        self.scale = nn.Parameter(torch.rand(self.head_dim))
        self.project, self.fc = nn.Linear(dim, dim), nn.Linear(dim, 2)
        angles = torch.arange(7)[:, None] * torch.rand(self.head_dim // 2)
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", angles.sin().repeat(1, 2))

    def rotated(self, x):
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, x):
        x = self.embed(x)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = self.rotated(self.norm_q(q) * self.scale), self.rotated(self.norm_k(k))
        positions = torch.linspace(0, 1, self.head_dim)  # a constant, made in the forward pass
        mixed = F.scaled_dot_product_attention(q + positions, k, v)
        return self.fc(x + self.project(mixed.transpose(1, 2).flatten(2)))


def test_what_every_head_shares_ties_no_heads():
    torch.manual_seed(0)
    network, x = RotaryAttention().double().eval(), torch.randn(2, 7, 5).double()
    graph = trace_network(network, x)
    assert [(g.name, g.kind, g.size) for g in graph.groups] == [
        ("embed", "channel", 12),
        ("qkv", "heads", 3),
    ]
    assert not {"cos", "sin", "scale", "norm_q.weight"} & {s.tensor for s in graph.slices}
    assert Slimmer(network, graph).verify() < 1e-10
