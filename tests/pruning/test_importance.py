"""Importance scores against numbers worked out by hand."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from graphs.network_graph import FROZEN, AxisSlice, Fold, Group, NetworkGraph, Operator
from graphs.tracing import trace_network
from networks.resnet import cifar_resnet
from pruning.importance import score_groups


def conv(name, in_units, out_units, *, depthwise=False, weight=None):
    return Operator(
        name, "conv", name, weight or f"{name}.weight", in_units, out_units,
        len(in_units) if depthwise else 1, depthwise, (1, 1), (1, 1), (4, 4), (4, 4), 16,
    )  # fmt: skip


def graph_of(groups, slices, operators, parameters, folds=()):
    return NetworkGraph(
        input_shapes=((1, 1, 4, 4),), parameters=parameters, aliases={}, groups=tuple(groups),
        slices=tuple(AxisSlice(*piece) for piece in slices), operators=tuple(operators),
        feature_maps=(), edges=(), patches=(), folds=tuple(folds), frozen={},
    )  # fmt: skip


class TwoConvs(nn.Module):
    """first (1 -> 2, bias) -> bn -> second (2 -> 1): one group of two channels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 1, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([-3.0, 2.0]).reshape(2, 1, 1, 1))
            self.first.bias.copy_(torch.tensor([10.0, -20.0]))
            self.bn.weight.copy_(torch.tensor([0.0, -0.5]))
            self.bn.bias.copy_(torch.tensor([1.0, 1.0]))
            self.second.weight.copy_(torch.tensor([4.0, -8.0]).reshape(1, 2, 1, 1))


TWO_CONVS_SLICES = [
    ("first.weight", 0, (0, 1)),
    ("first.bias", 0, (0, 1)),
    ("bn.weight", 0, (0, 1)),
    ("bn.bias", 0, (0, 1)),
    ("bn.running_mean", 0, (0, 1)),
    ("bn.running_var", 0, (0, 1)),
    ("second.weight", 1, (0, 1)),
]


FOLD = Fold("first", "bn")


def two_convs_graph(*, folds=(FOLD,), slices=TWO_CONVS_SLICES):
    network = TwoConvs()
    return graph_of(
        [Group("first", "channel", (0, 1), 1, ("first",), ("second",))],
        slices,
        [conv("first", (FROZEN,), (0, 1)), conv("second", (0, 1), (FROZEN,))],
        {name: tuple(tensor.shape) for name, tensor in network.named_parameters()},
        folds,
    )


@pytest.mark.parametrize(
    ("criterion", "scope", "expected"),
    [
        ("l1", "producer", [3.0, 2.0]),
        ("l1", "consumer", [4.0, 8.0]),
        # first.weight + first.bias + bn.weight + bn.bias + second.weight; no running statistics
        ("l1", "group", [3 + 10 + 0 + 1 + 4, 2 + 20 + 0.5 + 1 + 8]),
        ("l2", "producer", [3.0, 2.0]),
        ("l2", "consumer", [4.0, 8.0]),
        ("l2", "group", [np.sqrt(9 + 100 + 0 + 1 + 16), np.sqrt(4 + 400 + 0.25 + 1 + 64)]),
        ("bn_gamma", "producer", [0.0, 0.5]),
    ],
)
def test_scores_equal_the_numbers_worked_out_by_hand(criterion, scope, expected):
    scores = score_groups(TwoConvs(), two_convs_graph(), criterion, scope=scope)
    assert list(scores) == ["first"]
    assert scores["first"].dtype == np.float64
    np.testing.assert_allclose(scores["first"], expected)


def test_norms_sum_over_inputs_and_kernel():
    network = nn.Sequential(nn.Conv2d(2, 2, (1, 2), bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, -2, 3, 4, 0, 0, 0, -6]).reshape(2, 2, 1, 2))
    graph = graph_of(
        [Group("0", "channel", (0, 1), 1, ("0",), ())],
        [("0.weight", 0, (0, 1))],
        [conv("0", (FROZEN, FROZEN), (0, 1))],
        {"0.weight": (2, 2, 1, 2)},
    )
    np.testing.assert_allclose(score_groups(network, graph, "l1")["0"], [10, 6])
    np.testing.assert_allclose(score_groups(network, graph, "l2")["0"], [np.sqrt(30), 6])


def test_scores_follow_the_channel_order_of_the_group():
    network = TwoConvs()
    slices = [(name, axis, (1, 0)) for name, axis, _ in TWO_CONVS_SLICES]
    graph = graph_of(
        [Group("first", "channel", (1, 0), 1, ("first",), ("second",))],
        slices,
        [conv("first", (FROZEN,), (1, 0)), conv("second", (1, 0), (FROZEN,))],
        {name: tuple(tensor.shape) for name, tensor in network.named_parameters()},
    )
    np.testing.assert_allclose(score_groups(network, graph)["first"], [3.0, 2.0])


def test_a_unit_with_several_positions_sums_them_and_frozen_positions_count_nowhere():
    network = nn.Sequential(nn.Linear(1, 5, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0], [2.0], [4.0], [8.0], [100.0]]))
    units = (0, 1, 0, 1, FROZEN)
    graph = graph_of(
        [Group("0", "heads", (0, 1), 1, ("0",), ())],
        [("0.weight", 0, units)],
        [conv("0", (FROZEN,), units)],
        {"0.weight": (5, 1)},
    )
    np.testing.assert_allclose(score_groups(network, graph)["0"], [5, 10])


def test_a_residual_group_adds_its_producers_and_averages_its_batch_norms():
    network = nn.ModuleDict(
        {
            "a": nn.Conv2d(1, 2, 1, bias=False),
            "bn_a": nn.BatchNorm2d(2),
            "b": nn.Conv2d(2, 2, 1, bias=False),
            "bn_b": nn.BatchNorm2d(2),
        }
    )
    with torch.no_grad():
        network["a"].weight.copy_(torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1))
        network["b"].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1))
        network["bn_a"].weight.copy_(torch.tensor([1.0, 2.0]))
        network["bn_b"].weight.copy_(torch.tensor([-3.0, 0.0]))
    vectors = [
        (f"bn_{x}.{leaf}", 0, (0, 1)) for x in "ab" for leaf in ("weight", "bias", "running_var")
    ]
    graph = graph_of(
        [Group("a", "channel", (0, 1), 1, ("a", "b"), ("b",))],
        [("a.weight", 0, (0, 1)), ("b.weight", 0, (0, 1)), ("b.weight", 1, (0, 1)), *vectors],
        [conv("a", (FROZEN,), (0, 1)), conv("b", (0, 1), (0, 1))],
        {name: tuple(tensor.shape) for name, tensor in network.named_parameters()},
    )
    np.testing.assert_allclose(score_groups(network, graph)["a"], [1 + 3, 2 + 7])
    np.testing.assert_allclose(score_groups(network, graph, scope="consumer")["a"], [4, 6])
    np.testing.assert_allclose(score_groups(network, graph, "bn_gamma")["a"], [2, 1])


def test_a_transposed_convolution_produces_along_axis_one():
    network = nn.Sequential(nn.ConvTranspose2d(1, 2, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([5.0, -7.0]).reshape(1, 2, 1, 1))
    graph = graph_of(
        [Group("0", "channel", (0, 1), 1, ("0",), ())],
        [("0.weight", 1, (0, 1))],
        [conv("0", (FROZEN,), (0, 1))],
        {"0.weight": (1, 2, 1, 1)},
    )
    np.testing.assert_allclose(score_groups(network, graph)["0"], [5, 7])


def test_random_scores_repeat_with_the_seed():
    network, graph = TwoConvs(), two_convs_graph()
    first = score_groups(network, graph, "random", seed=3)["first"]
    assert (first == score_groups(network, graph, "random", seed=3)["first"]).all()
    assert (first != score_groups(network, graph, "random", seed=4)["first"]).all()


def test_the_network_is_only_read():
    network = TwoConvs()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for criterion in ("l1", "l2", "bn_gamma", "random"):
        score_groups(network, two_convs_graph(), criterion, scope="group")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "taylor9"}, "'taylor9'.*l1, l2, bn_gamma, random.*importance.criterion"),
        ({"scope": "all"}, "one of producer, consumer, group, got 'all'.*importance.scope"),
    ],
)
def test_an_unknown_choice_lists_the_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        score_groups(TwoConvs(), two_convs_graph(), **arguments)


def test_bn_gamma_without_a_batch_norm_names_the_group_and_the_key():
    # without statistics among the slices, bn.weight could be a layer norm or a PReLU
    slices = [piece for piece in TWO_CONVS_SLICES if "running" not in piece[0]]
    graph = two_convs_graph(folds=(), slices=slices)
    with pytest.raises(ValueError, match=r"'first' has no batch norm.*importance.criterion"):
        score_groups(TwoConvs(), graph, "bn_gamma")


def test_bn_gamma_finds_batch_norms_that_cannot_be_folded():
    scores = score_groups(TwoConvs(), two_convs_graph(folds=()), "bn_gamma")
    np.testing.assert_allclose(scores["first"], [0.0, 0.5])


def test_a_scope_that_reads_no_weight_of_a_group_is_refused():
    slices = [piece for piece in TWO_CONVS_SLICES if piece[0] != "second.weight"]
    with pytest.raises(ValueError, match=r"'first' has no weight.*importance.scope=consumer"):
        score_groups(TwoConvs(), two_convs_graph(slices=slices), scope="consumer")


def test_weights_that_are_not_finite_are_refused():
    network = TwoConvs()
    network.first.weight.data[1] = float("nan")
    with pytest.raises(ValueError, match=r"'first' are not finite.*network.checkpoint"):
        score_groups(network, two_convs_graph())


def test_the_deepest_network_of_the_papers_is_scored_in_milliseconds():
    network = cifar_resnet(depth=56).eval()
    graph = trace_network(network, torch.zeros(1, 3, 32, 32))
    scores = score_groups(network, graph)
    assert {name: len(values) for name, values in scores.items()} == {
        group.name: group.size for group in graph.groups
    }
    fastest = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        score_groups(network, graph)
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 0.1  # about 0.01 s on an idle core
