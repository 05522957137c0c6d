"""Local errors against outputs that are computed with the lost inputs alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphs.tracing import trace_network
from networks.data import SampleSet
from pruning.keep_set import KeepSet
from pruning.local_error import LocalErrors, measure_local_errors

EXACT = {"positions_per_image": 500}  # more than there are: all of them


class TwoReaders(nn.Module):
    """first (3 -> 6 channels), ReLU, and what reads it: a convolution, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.convolution = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.linear = nn.Linear(6 * 25, 4)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.convolution(x).mean((2, 3)) + self.linear(x.flatten(1))


@pytest.fixture
def traced():
    torch.manual_seed(0)
    network = TwoReaders().eval()
    images = SampleSet(torch.randn(40, 3, 5, 5), torch.zeros(40, dtype=torch.long))
    return network, trace_network(network, images.inputs[:1]), images


def share_of(layer, inputs, lost):
    """Variance of what the lost channels make of a layer's output, over that of the whole."""
    bare = torch.zeros_like(inputs)
    bare[:, lost] = inputs[:, lost]
    made, whole = (layer(x).detach().double() for x in (bare, inputs))
    axes = (0, 2, 3) if whole.dim() == 4 else (0,)
    return float(made.var(axes).sum() / whole.var(axes).sum())


def test_an_error_is_the_share_that_the_lost_channels_have_in_each_readers_output(traced):
    network, graph, images = traced
    scores = {"first": np.array([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])}
    (table,) = measure_local_errors(network, graph, scores, images, **EXACT).tables
    inputs = F.relu(network.first(images.inputs))
    for count, lost in ((6, []), (5, [1]), (4, [1, 2]), (2, [0, 1, 2, 5])):
        flat = lambda x: network.linear(x.flatten(1))  # noqa: E731
        expected = share_of(network.convolution, inputs, lost) + share_of(flat, inputs, lost)
        assert table[count] == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert table[0] == pytest.approx(2.0)  # nothing is left of either reader


class Grouped(nn.Module):
    """A grouped convolution, then a depthwise one, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.linear = nn.Linear(12, 4)

    def forward(self, x):
        x = F.relu(self.grouped(F.relu(self.first(x))))
        return self.linear(self.depthwise(x).mean((2, 3)))


def test_each_block_of_a_grouped_convolution_loses_its_own_channels(traced):
    _, _, images = traced
    torch.manual_seed(1)
    network = Grouped().eval()
    graph = trace_network(network, images.inputs[:1])
    generator = np.random.default_rng(0)
    scores = {group.name: generator.random(group.size) for group in graph.groups}
    tables = measure_local_errors(network, graph, scores, images, **EXACT).tables
    hidden = F.relu(network.first(images.inputs))
    pooled = network.depthwise(F.relu(network.grouped(hidden))).mean((2, 3))
    readers = {op.name: op for op in graph.operators}
    assert readers["grouped"].groups == 2
    for index, name, layer, inputs in (
        (0, "grouped", network.grouped, hidden),
        (1, "linear", network.linear, pooled),  # the depthwise convolution is not counted
    ):
        size = graph.groups[index].size
        for count in range(1, size + 1):
            counts = [group.size for group in graph.groups]
            counts[index] = count
            keep = KeepSet.from_counts(graph, counts, scores)
            lost = np.flatnonzero(~keep.mask[list(readers[name].in_units)])
            expected = share_of(layer, inputs, lost)
            assert tables[index][count] == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_channels_of_which_nothing_is_read_cost_nothing(traced):
    network, graph, images = traced
    with torch.no_grad():
        network.convolution.weight[:, 4] = 0
        network.linear.weight[:, 4 * 25 : 5 * 25] = 0
    scores = {"first": np.array([2.0, 2, 2, 2, 1, 2])}
    (table,) = measure_local_errors(network, graph, scores, images).tables
    assert table[5] == pytest.approx(0.0, abs=1e-12)
    assert table[4] > 0.01


def test_channels_of_equal_score_go_in_the_order_in_which_they_are_removed(traced):
    network, graph, images = traced
    scores = {"first": np.ones(6)}
    (table,) = measure_local_errors(network, graph, scores, images, **EXACT).tables
    keep = KeepSet.from_counts(graph, [3], scores)
    lost = np.flatnonzero(~keep.mask)
    inputs = F.relu(network.first(images.inputs))
    expected = share_of(network.convolution, inputs, lost)
    expected += share_of(lambda x: network.linear(x.flatten(1)), inputs, lost)
    assert table[3] == pytest.approx(expected, rel=1e-5)


def test_plans_between_whole_counts_lie_on_a_line():
    errors = LocalErrors((np.array([4.0, 1.0, 0.0]), np.array([2.0, 1.5, 1.0, 0.5, 0.0])))
    found = errors(np.array([[0.5, 1.0], [0.75, 0.25], [1.0, 0.125]]))
    np.testing.assert_allclose(found, [[1.0, 0.0], [0.5, 1.5], [0.0, 1.75]])


def test_the_network_stays_as_it_was(traced):
    network, graph, images = traced
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    measure_local_errors(network, graph, {"first": np.ones(6)}, images)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_without_images_nothing_can_be_said(traced):
    network, graph, images = traced
    with pytest.raises(ValueError, match=r"got no images.*data\.calibration_size"):
        measure_local_errors(network, graph, {"first": np.ones(6)}, images.subset(range(0)))
