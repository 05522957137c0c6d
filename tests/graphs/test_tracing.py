"""Groups are the true ones, hand-written for each network; what cannot be traced is refused."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import ZOO, build

from graphs.network_graph import FROZEN, NetworkGraph
from graphs.tracing import UnsupportedOp, trace_network
from networks.mobilenet import mobilenet_v2
from networks.resnet import cifar_resnet
from networks.vgg import vgg16_bn
from networks.vit import vit

GOLDEN_GROUPS = {
    "Residual": {"stem.0": 6, "a.0": 4},
    "DenseConcat": {"a.0": 6, "b.0": 4, "c.0": 5},
    "TwiceTheSame": {"a.0": 6, "b.0": 4},
    "FlattenSpatial": {"a.0": 6, "fc1": 7},
    "SqueezeExcite": {"a.0": 8, "squeeze": 3},
    "SpatialGate": {"a.0": 6, "b.0": 4},
    "Depthwise": {"a.0": 6, "point": 4},
    "GroupedConv": {"a.0": 2, "grouped.0": 4, "c.0": 4},
    "Gated": {"a.0": 6, "b.0": 4},
    "SharedConv": {"a.0": 6},
    "Normed": {"a": 8, "b": 4},
    "Moved": {"a.0": 6},
    "TinyUNet": {"enter.0": 6, "down.0": 8, "up": 5},
    "ManualAttention": {"embed": 12, "qkv": 3},
    "EncoderLayer": {"embed": 12, "layer.self_attn": 3, "layer.linear1": 20},
    "TwoInputsDictOutput": {"left.0": 6, "body.0.0": 6, "body.1.0": 6},
}


@pytest.mark.parametrize("name", ZOO)
def test_groups_are_minimal_and_named_after_their_first_producer(name):
    network, inputs = build(name)
    graph = trace_network(network, inputs)
    assert {group.name: group.size for group in graph.groups} == GOLDEN_GROUPS[name]


@pytest.mark.parametrize("name", ZOO)
def test_graph_json_gives_an_equal_graph(name):
    network, inputs = build(name)
    graph = trace_network(network, inputs)
    again = NetworkGraph.from_json(graph.to_json())
    assert again == graph
    assert again.fingerprint == graph.fingerprint


def test_option_a_residual_stream_falls_into_three_groups():
    graph = trace_network(cifar_resnet(20, shortcut="A"), torch.randn(1, 3, 32, 32))
    sizes = {group.name: group.size for group in graph.groups}
    assert len(sizes) == 12
    assert (sizes["conv1"], sizes["layer2.0.conv2"], sizes["layer3.0.conv2"]) == (16, 16, 32)
    stream = graph.group("conv1")
    assert stream.producers == (
        "conv1",
        *(f"layer{stage}.{block}.conv2" for stage in (1, 2, 3) for block in range(3)),
    )
    # stage-1 channel i is stage-2 channel i + 8 and stage-3 channel i + 24
    first = graph.operator_by_name["layer1.0.conv2"].out_units
    second = graph.operator_by_name["layer2.0.conv2"].out_units
    third = graph.operator_by_name["layer3.0.conv2"].out_units
    assert second[8:24] == first
    assert third[16:48] == second


@pytest.mark.parametrize(
    ("network", "num_groups"),
    [
        pytest.param(cifar_resnet(56, shortcut="A"), 30, id="resnet56-A"),
        pytest.param(cifar_resnet(56, shortcut="B"), 30, id="resnet56-B"),
        pytest.param(cifar_resnet(20, shortcut="B"), 12, id="resnet20-B"),
        pytest.param(mobilenet_v2(), 25, id="mobilenetv2"),
        pytest.param(vgg16_bn(), 13, id="vgg16"),
    ],
)
def test_number_of_groups(network, num_groups):
    assert len(trace_network(network, torch.randn(1, 3, 32, 32)).groups) == num_groups


def test_a_vit_has_head_mlp_and_embedding_groups():
    graph = trace_network(vit(depth=2, dim=48, heads=3), torch.randn(1, 3, 32, 32))
    kinds = [(group.kind, group.size) for group in graph.groups]
    assert kinds.count(("heads", 3)) == 2
    assert sum(kind == "channel" for kind, _ in kinds) == 3  # embedding and two MLP widths
    heads = next(group for group in graph.groups if group.kind == "heads")
    qkv = next(s for s in graph.slices if s.tensor.endswith("qkv.weight") and s.axis == 0)
    assert [qkv.units.count(unit) for unit in heads.units] == [48] * 3  # q, k and v of 16 channels


def test_network_inputs_and_outputs_are_frozen():
    network, inputs = build("Residual")
    graph = trace_network(network, inputs)
    assert graph.operators[0].in_units == (FROZEN,) * 3
    assert graph.operators[-1].out_units == (FROZEN,) * 5


def test_batch_norms_fold_only_where_nothing_else_reads_the_convolution():
    class Tapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm_a = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.b, self.norm_b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = F.relu(self.norm_a(self.a(x)))
            y = self.b(x)
            return self.norm_b(y) + y  # y is read twice

    graph = trace_network(Tapped().eval(), torch.randn(1, 3, 8, 8))
    assert [(fold.conv, fold.norm) for fold in graph.folds] == [("a", "norm_a")]


def test_the_graph_has_one_edge_per_operator_and_joins_at_the_addition():
    network, inputs = build("Residual")
    graph = trace_network(network, inputs)
    kinds = [edge.kind for edge in graph.edges]
    assert kinds == ["conv", "conv", "conv", "add", "add", "pool", "linear"]
    addition = next(edge.target for edge in graph.edges if edge.kind == "add")
    sources = [edge.source for edge in graph.edges if edge.target == addition]
    assert [graph.feature_maps[node].name for node in sources] == ["stem.0", "b.0"]


def test_tracing_leaves_modes_hooks_and_random_state_alone():
    network, inputs = build("DenseConcat")
    network.train()
    network.a[1].eval()
    before = torch.random.get_rng_state()
    modes = [module.training for module in network.modules()]
    statistics = network.a[1].running_mean.clone()
    trace_network(network, inputs)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(network.a[1].running_mean, statistics)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_frozen_parameters_are_traced_like_any_other():
    network, inputs = build("Residual")
    expected = trace_network(network, inputs)
    network.requires_grad_(False)
    assert trace_network(network, inputs) == expected


class CallsUnknown(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.block = nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.block(x))


def test_an_unknown_operation_is_refused_with_module_path_and_source_line():
    network = nn.Sequential(CallsUnknown(lambda x: torch.fft.fft(x).real))
    with pytest.raises(
        UnsupportedOp,
        match=r"No channel rule for .*fft.*'0' \(CallsUnknown\) at .*test_tracing.py:\d+",
    ):
        trace_network(network, torch.randn(1, 3, 4, 4))


def test_assignment_into_a_tensor_is_refused():
    def assign(x):
        x = x.clone()
        x[:, 0] = 1.0
        return x

    with pytest.raises(UnsupportedOp, match=r"Assigning into a tensor"):
        trace_network(CallsUnknown(assign), torch.randn(1, 3, 4, 4))


def test_a_computed_weight_is_refused():
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)))
    with pytest.raises(UnsupportedOp, match=r"computed in the forward pass"):
        trace_network(network, torch.randn(1, 3, 4, 4))


def test_channels_that_are_mixed_stay_with_the_reason():
    class Softmaxed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.b(torch.softmax(self.a(x), 1))

    graph = trace_network(Softmaxed(), torch.randn(1, 3, 4, 4))
    assert graph.groups == ()
    assert "softmax mixes channels" in " ".join(graph.frozen.values())


def test_a_mean_over_channels_ties_them_all():
    class ChannelMean(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return self.b(self.a(x).mean(1, keepdim=True))

    assert trace_network(ChannelMean(), torch.randn(1, 3, 4, 4)).groups == ()


def test_inputs_that_are_no_tensors_are_refused():
    with pytest.raises(ValueError, match="example_inputs must be a tensor"):
        trace_network(nn.Linear(2, 2), [1, 2])


@pytest.mark.parametrize("text", ["[]", "{", '{"format": 99}'])
def test_foreign_graph_files_are_refused(text):
    with pytest.raises(ValueError, match="Not a network graph"):
        NetworkGraph.from_json(text)


def test_the_fingerprint_does_not_depend_on_where_the_code_lies():
    network, inputs = build("Residual")
    graph = trace_network(network, inputs)
    moved = dataclasses.replace(graph, frozen={"a": "softmax mixes channels at /elsewhere.py:1"})
    assert moved.fingerprint == graph.fingerprint
    assert dataclasses.replace(graph, folds=()).fingerprint != graph.fingerprint


def test_an_unknown_group_name_lists_the_groups():
    network, inputs = build("Residual")
    with pytest.raises(ValueError, match=r"'nope'.*stem\.0, a\.0"):
        trace_network(network, inputs).group("nope")
