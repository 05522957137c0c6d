"""Plans: JSON and back, applied to a network, and what they refuse."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from graphs.tracing import trace_network
from pruning.keep_set import KeepSet
from pruning.plan import Candidate, Decision, PruningPlan
from pruning.slimming import Slimmer

ROWS = ["##.", "##.", "..."]


class Block(nn.Module):
    """stem (3 -> 4) + residual block (4 -> 6 -> 4) -> head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 4, 1, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.outer(self.norm(self.inner(x)).relu())).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    return Block().eval()


@pytest.fixture(scope="module")
def graph(network):
    return trace_network(network, torch.zeros(1, 3, 5, 5))


def plan_for(graph, **changes):
    fields = {
        "graph": graph.fingerprint,
        "decisions": (Decision("stem", ratio=0.25), Decision("inner", pattern="corner")),
        "keep": {"stem": (0, 1, 3), "inner": (0, 1, 2, 3, 4, 5)},
        "masks": (("inner@inner", "corner"),),
        "patterns": ({"family": "kernel_shape", "name": "corner", "rows": ROWS},),
    }
    return PruningPlan(**{**fields, **changes})


def test_a_plan_survives_json(graph):
    plan = plan_for(graph)
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert again.candidate(graph) == plan.candidate(graph)


def test_a_decision_says_its_importance_only_where_it_names_one(graph):
    named = plan_for(graph, decisions=(Decision("stem", ratio=0.25, importance="l2"),))
    assert PruningPlan.from_json(named.to_json()) == named
    assert '"importance": "l2"' in named.to_json()
    assert "importance" not in plan_for(graph).to_json()  # as it was written before there was one


def test_numbers_of_numpy_are_written_too(graph):
    plan = plan_for(graph, decisions=(Decision("stem", ratio=np.float32(0.25)),))
    assert PruningPlan.from_json(plan.to_json()).decisions == (Decision("stem", ratio=0.25),)


def test_the_keep_set_has_the_named_channels(graph):
    keep = plan_for(graph).keep_set(graph)
    assert keep.kept("stem").tolist() == [0, 1, 3]
    assert keep.counts.tolist() == [3, 6]


def test_candidates_are_equal_and_hash_equally_by_value(graph):
    masks = (("inner@inner", "corner"),)
    first = Candidate(KeepSet.from_indices(graph, {"stem": [0, 1, 3]}), masks)
    assert first == plan_for(graph).candidate(graph)
    assert hash(first) == hash(plan_for(graph).candidate(graph))
    assert first != Candidate(first.keep)
    assert first != Candidate(KeepSet.from_indices(graph, {"stem": [0, 1, 2]}), masks)


def test_applying_a_plan_gives_an_independent_slim_network_with_exact_zeros(network, graph):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    slim = plan_for(graph).apply(network, graph)
    assert slim.stem.weight.shape == (3, 3, 3, 3)
    assert slim.inner.weight.shape == (6, 3, 3, 3)
    assert slim.outer.weight.shape == (3, 6, 1, 1)
    removed = torch.tensor([[cell == "." for cell in row] for row in ROWS])
    assert (slim.inner.weight[:, :, removed] == 0).all()
    kept = network.inner.weight[:, [0, 1, 3]][:, :, ~removed]
    assert torch.equal(slim.inner.weight[:, :, ~removed], kept)
    with torch.no_grad():
        for parameter in slim.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_the_slim_network_computes_what_the_masked_network_computes(network, graph):
    plan = plan_for(graph)
    inputs = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    overlay = plan.pattern_masks(network, graph).overlay(plan.masks)
    with (
        torch.no_grad(),
        Slimmer(network, graph).masked(plan.keep_set(graph), overlay=overlay) as m,
    ):
        expected = m(inputs)
    with torch.no_grad():
        found = plan.apply(network, graph)(inputs)
        assert not torch.allclose(found, network(inputs), atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_a_plan_without_masks_needs_no_patterns(network, graph):
    slim = plan_for(graph, masks=(), patterns=()).apply(network, graph)
    assert torch.equal(slim.inner.weight, network.inner.weight[:, [0, 1, 3]])


def test_a_plan_for_another_graph_is_refused(network, graph):
    larger = trace_network(network, torch.zeros(1, 3, 9, 9))
    message = f"graph {graph.fingerprint}, this network's graph is {larger.fingerprint}"
    with pytest.raises(ValueError, match=message):
        plan_for(graph).apply(network, larger)
    with pytest.raises(ValueError, match=message):
        plan_for(graph).candidate(larger)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plan", "not JSON"),
        ("[1]", "'topiary-plan-1': found 'list'"),
        ('{"format": 1}', "'topiary-plan-1': found 1"),
        ('{"format": "topiary-plan-0"}', "found 'topiary-plan-0'"),
        ('{"format": "topiary-plan-1"}', "Not a complete pruning plan: KeyError: 'graph'"),
    ],
)
def test_text_of_another_format_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        PruningPlan.from_json(text)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("decisions", [{"place": "stem"}], "TypeError"),
        ("decisions", [{"site": "stem", "pattern": None, "ratio": 1.0}], r"in \[0, 1\), got 1.0"),
        ("keep", [1, 2], "AttributeError"),
        ("masks", ["abc"], "too many values"),
        ("patterns", None, "TypeError"),
    ],
)
def test_a_damaged_plan_is_refused(graph, field, value, message):
    data = json.loads(plan_for(graph).to_json())
    with pytest.raises(ValueError, match=message):
        PruningPlan.from_json(json.dumps({**data, field: value}))


def test_a_graph_is_not_a_plan(graph):
    with pytest.raises(ValueError, match="found 2"):
        PruningPlan.from_json(graph.to_json())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either a pattern or a ratio"),
        ({"pattern": "plus", "ratio": 0.5}, "either a pattern or a ratio"),
        ({"ratio": 1.0}, r"in \[0, 1\), got 1.0 at site 'stem'"),
        ({"ratio": -0.1}, r"in \[0, 1\), got -0.1"),
        ({"ratio": float("nan")}, r"in \[0, 1\), got nan"),
    ],
)
def test_a_decision_has_one_pattern_or_one_ratio_in_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Decision("stem", **arguments)
