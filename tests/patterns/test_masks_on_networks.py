"""Masks on a network: which rows they reach, that they hold through training, what they cost."""

from math import prod

import pytest
import torch
from torch import nn

from graphs.tracing import trace_network
from patterns.library import PatternLibrary
from patterns.pattern import NetworkWidePattern
from pruning.cost import CostModel
from pruning.keep_set import KeepSet
from pruning.masks import MaskedWeights, PatternMasks, slim_masks

SPECS = [
    {"family": "unstructured", "sparsity": 0.75},
    {"family": "vector", "axis": "row", "sparsity": 0.5},
    {"family": "vector", "axis": "column", "sparsity": 0.25},
    {"family": "n_m", "n": 2, "m": 4},
    {"family": "four_entry", "num_shapes": 8},
    {"family": "connectivity", "sparsity": 0.5},
    {"family": "filter", "sparsity": 0.5},
]
LIBRARY = PatternLibrary.from_specs(SPECS)
MASKING = LIBRARY.patterns[1:]
NAMES = [pattern.name for pattern in MASKING]


class Network(nn.Module):
    """One 3x3 convolution whose halves feed a linear layer and an addition: two groups."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.split = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.side = nn.Conv2d(8, 4, 1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        left, right = self.split(x).chunk(2, dim=1)
        joined = left + self.side(x)
        return self.head(torch.cat([joined, right], dim=1).mean((2, 3)))


def masks_of(network, patterns=MASKING):
    """Graph, masks object and, by pattern, every choice that it has at any site."""
    graph = trace_network(network, torch.zeros(1, 3, 4, 4))
    masks = PatternMasks(network, graph, LIBRARY)
    choices = {
        pattern.name: [
            (key, pattern.name) for group in graph.groups for key in masks.where(group, pattern)
        ]
        for pattern in patterns
    }
    return graph, masks, choices


@pytest.mark.parametrize("pattern", MASKING, ids=NAMES)
def test_a_site_that_owns_some_rows_masks_those_and_ranks_them_alone(pattern):
    network = Network()
    graph, masks, _ = masks_of(network)
    shared = {
        key: group
        for group in graph.groups
        for key in masks.where(group, pattern)
        if key.startswith("split@")
    }
    assert len(shared) == 2
    alone = pattern
    if isinstance(pattern, NetworkWidePattern):  # its vote is that of all 3x3 kernels
        alone = pattern.fitted([network.stem.weight, network.split.weight])
    units = next(s.units for s in graph.slices if s.tensor == "split.weight" and s.axis == 0)
    for key, group in shared.items():
        rows = [row for row, unit in enumerate(units) if unit in group.units]
        others = [row for row in range(8) if row not in rows]
        assert len(rows) == 4
        mask = masks.tensors([(key, pattern.name)])["split.weight"]
        assert mask[others].all()
        assert torch.equal(mask[rows], alone.mask(network.split.weight[rows]))
        assert 0 < mask[rows].count_nonzero() < mask[rows].numel()


@pytest.mark.parametrize("pattern", MASKING, ids=NAMES)
def test_masked_weights_stay_exactly_zero_through_steps_of_sgd(pattern):
    network = Network()
    _, masks, choices = masks_of(network)
    tensors = masks.tensors(choices[pattern.name])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    dense_step = network(torch.randn(4, 3, 4, 4)).square().mean()
    dense_step.backward()
    optimizer.step()  # momentum is already there when the masks come
    masked = MaskedWeights(network, tensors)
    optimizer.register_step_post_hook(masked.after_step)
    start = {name: network.get_parameter(name).detach().clone() for name in tensors}
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 4, 4)).square().mean().backward()
        optimizer.step()
        for name, mask in tensors.items():
            assert torch.equal(network.get_parameter(name).detach() != 0, mask)
    for name, mask in tensors.items():
        moved = network.get_parameter(name).detach() != start[name]
        assert moved[mask].any()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        # stem 3 -> 8 (216 weights), split 8 -> 4 + 4 (288 each), side 8 -> 4 (32); head is no site
        pytest.param("unstructured_0.75", (54, 144, 8), id="unstructured"),
        pytest.param("vector_row_0.5", (108, 288, 32), id="row"),
        pytest.param("vector_column_0.25", (162, 432, 32), id="column"),
        pytest.param("n_m_2_4", (144, 288, 16), id="n_m"),
        pytest.param("four_entry_8", (96, 256, 32), id="four_entry"),
        pytest.param("connectivity_0.5", (72, 288, 16), id="connectivity"),
        pytest.param("filter_0.5", (108, 288, 16), id="filter"),
    ],
)
def test_only_the_nonzero_macs_fall_and_by_the_hand_count(name, kept):
    network = Network()
    graph, masks, choices = masks_of(network)
    cost = CostModel(graph)
    keep = KeepSet.full(graph)
    tensors = masks.tensors(choices[name])
    assert cost.macs(keep) == 16 * (216 + 576 + 32) + 40
    assert cost.nonzero_macs(keep, tensors) == 16 * sum(kept) + 40
    assert cost.nonzero_params(keep, tensors) == sum(kept) + 40 + 5


def test_channels_removed_under_a_mask_are_not_counted_twice():
    network = Network()
    graph, masks, choices = masks_of(network)
    stem = next(group for group in graph.groups if "stem" in group.producers)
    keep = KeepSet.from_indices(graph, {stem.name: [4, 5, 6, 7]})
    tensors = masks.tensors([c for c in choices["n_m_2_4"] if c[0].startswith("split@")])
    slim = slim_masks(graph, keep, tensors)["split.weight"]
    assert slim.shape == (8, 4, 3, 3)
    assert (slim.sum(dim=1) == 2).all()  # a whole group of four channels went
    dense = 16 * (prod((4, 3, 9)) + prod((4, 4))) + 40
    assert CostModel(graph).nonzero_macs(keep, tensors) == dense + 16 * prod((8, 2, 9))


class UnequalConvs(nn.Module):
    """Two 3x3 convolutions of one filter each way, with weights that are told apart by hand."""

    def __init__(self, first, second):
        super().__init__()
        self.first = nn.Conv2d(1, len(first), 3, padding=1, bias=False)
        self.second = nn.Conv2d(len(first), 2, 3, padding=1, bias=False)
        self.third = nn.Conv2d(2, 1, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.stack(first)[:, None])
            self.second.weight.copy_(torch.stack(second)[:, None].expand(-1, len(first), 3, 3))

    def forward(self, x):
        return self.third(self.second(self.first(x).relu()).relu())


def all_masks(network, spec):
    """Masks of a pattern at every site that it can be laid on."""
    library = PatternLibrary.from_specs([spec])
    graph = trace_network(network, torch.zeros(1, 1, 4, 4))
    masks = PatternMasks(network, graph, library)
    pattern = library[1]
    keys = [key for group in graph.groups for key in masks.where(group, pattern)]
    return masks.tensors([(key, pattern.name) for key in keys])


def test_four_entry_shapes_are_voted_by_the_whole_network():
    top = torch.tensor([[3.0, 3.0, 3.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    # two kernels vote for the top, four for the bottom: the first layer alone would keep its top
    network = UnequalConvs([top, top], [top.flip(0), top.flip(0)])
    masks = all_masks(network, {"family": "four_entry", "num_shapes": 1})
    bottom = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.bool)
    assert (masks["first.weight"] == bottom).all()
    assert (masks["second.weight"] == bottom).all()
    both = all_masks(network, {"family": "four_entry", "num_shapes": 2})
    assert (both["first.weight"] == bottom.flip(0)).all()


def test_global_magnitude_takes_more_from_a_layer_of_small_weights():
    ones = torch.arange(1.0, 10.0).reshape(3, 3)
    network = UnequalConvs([ones, ones + 9], [20 * ones, 20 * ones + 1])
    # prunable: 18 weights of 1 to 18 and 36 of 20 and more, beside the last layer's outputs
    half = all_masks(network, {"family": "unstructured_global", "sparsity": 0.5})
    weights = torch.cat([network.first.weight.flatten(), network.second.weight.flatten()])
    threshold = weights.sort(descending=True).values[26]
    assert sum(int(mask.sum()) for mask in half.values()) == (weights >= threshold).sum()
    assert not half["first.weight"].any()
    sixth = all_masks(network, {"family": "unstructured_global", "sparsity": 1 / 6})
    assert torch.equal(sixth["first.weight"], network.first.weight > 9)
    assert sixth["second.weight"].all()
