"""MobileNetV1 at ImageNet's size, and the network that AMC released for half of its MACs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphs.tracing import trace_network
from networks.mobilenet import mobilenet_v1
from pruning.cost import CostModel
from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer

DENSE = 568_740_352
RELEASED = (24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)
"""Input channels of the pointwise convolutions and of the classifier; those of the stem are 3."""

FULL = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


def by_hand(widths: tuple[int, ...]) -> int:
    """MACs from the widths alone: sides of the maps and where they shrink are the paper's."""
    sides = (112, 56, 56, 28, 28, 14, 14, 14, 14, 14, 14, 7, 7)
    stem = 112**2 * 9 * 3 * widths[0]
    blocks = sum(
        side**2 * (9 * before + before * after)
        for side, before, after in zip(sides, widths[:-1], widths[1:], strict=True)
    )
    return stem + blocks + widths[-1] * 1000


@pytest.fixture(scope="module")
def graph():
    return trace_network(mobilenet_v1().eval(), torch.zeros(1, 3, 224, 224))


def test_the_unpruned_network_has_the_known_cost(graph):
    cost = CostModel(graph)
    assert cost.base_macs == DENSE == by_hand(FULL)
    assert cost.base_params == 4_231_976
    assert [group.size for group in graph.groups] == list(FULL)


def test_the_released_channels_of_half_the_macs_leave_more_than_half(graph):
    macs = CostModel(graph).macs(KeepSet.from_counts(graph, RELEASED))
    assert macs == 293_870_000 == by_hand(RELEASED)
    assert macs / DENSE == pytest.approx(0.5167, abs=5e-5)


def test_depthwise_convolutions_are_pruned_with_their_pointwise_ones(graph):
    for group in graph.groups:
        members = set(group.units)
        cut = [operator for operator in graph.operators if set(operator.out_units) <= members]
        assert len(cut) == (1 if group is graph.groups[-1] else 2)  # behind the last: no depthwise


def test_a_narrow_network_is_really_cut_to_a_channel_list():
    network = mobilenet_v1(7, width=0.125, in_channels=1).eval()
    inputs = torch.rand(2, 1, 64, 64)
    graph = trace_network(network, inputs)
    sizes = [group.size for group in graph.groups]
    assert sizes == [width // 8 for width in FULL]
    counts = [max(1, size // 2) for size in sizes]
    small = Slimmer(network, graph).materialize(KeepSet.from_counts(graph, counts))
    assert small(inputs).shape == (2, 7)
    convolutions = [module for module in small.modules() if isinstance(module, nn.Conv2d)]
    assert [c.out_channels for c in convolutions if c.groups == 1] == counts


def test_a_width_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"network\.width must be positive, got 0"):
        mobilenet_v1(width=0)
