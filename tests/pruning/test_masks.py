"""Masks: which entries are zero, exactly, before and after training."""

import copy

import pytest
import torch
from torch import nn

from graphs.network_graph import FROZEN, AxisSlice, Group, NetworkGraph, Operator
from graphs.tracing import trace_network
from patterns.library import PatternLibrary
from pruning.keep_set import KeepSet
from pruning.masks import (
    MaskedWeights,
    PatternMasks,
    density,
    output_axes,
    parametrize_masks,
    remove_mask_parametrizations,
    slim_masks,
)

LIBRARY = PatternLibrary.from_specs(
    [
        {"family": "channel", "ratio": 0.5},
        {"family": "kernel_shape", "shape": "right_column"},
        {"family": "kernel_shape", "shape": "bottom_row"},
    ]
)
RIGHT_COLUMN = torch.tensor([[0, 0, 1]] * 3).bool()
BOTTOM_ROW = torch.tensor([[0] * 3, [0] * 3, [1] * 3]).bool()


def operator(name, kernel, in_units, out_units, kind="conv"):
    return Operator(
        name, kind, name.partition("#")[0], f"{name.partition('#')[0]}.weight", in_units,
        out_units, 1, False, kernel, (1,) * len(kernel), (4, 4), (4, 4), 16,
    )  # fmt: skip


class Network(nn.Module):
    """wide (2 -> 3, 3x3) makes two groups; point (1x1) also makes the first; last reads both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.point = nn.Conv2d(2, 2, 1, bias=False)
        self.last = nn.Conv2d(3, 1, 3, padding=1, bias=False)


GRAPH = NetworkGraph(
    input_shapes=((1, 2, 4, 4),),
    parameters={
        "wide.weight": (3, 2, 3, 3),
        "point.weight": (2, 2, 1, 1),
        "last.weight": (1, 3, 3, 3),
    },
    aliases={},
    groups=(
        Group("wide", "channel", (0, 1), 1, ("wide", "point", "wide#2"), ("last",)),
        Group("wide:2", "channel", (2,), 1, ("wide",), ("last",)),
        Group("point", "channel", (3,), 1, ("point",), ()),
    ),
    slices=(
        AxisSlice("wide.weight", 0, (0, 2, 1)),
        AxisSlice("point.weight", 0, (0, 1)),
        AxisSlice("last.weight", 1, (0, 2, 1)),
    ),
    operators=(
        operator("wide", (3, 3), (FROZEN, FROZEN), (0, 2, 1)),
        operator("point", (1, 1), (FROZEN, FROZEN), (0, 1)),
        operator("wide#2", (3, 3), (FROZEN, FROZEN), (0, 2, 1)),
        operator("last", (3, 3), (0, 2, 1), (FROZEN,)),
    ),
    feature_maps=(),
    edges=(),
    patches=(),
    folds=(),
    frozen={},
)  # fmt: skip


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def masks(network):
    return PatternMasks(network, GRAPH, LIBRARY)


def test_a_pattern_lands_on_the_producers_it_applies_to_and_once_per_weight(masks):
    wide, other, point = GRAPH.groups
    shape, channel = LIBRARY[2], LIBRARY[1]
    assert masks.where(wide, shape) == ("wide@wide",)  # not the 1x1, not the second call
    assert masks.where(other, shape) == ("wide@wide:2",)
    assert masks.where(point, shape) == ()
    assert masks.where(wide, channel) == ()


def test_a_mask_clears_the_rows_of_its_group_and_no_other(masks):
    made = masks.tensors([("wide@wide", "right_column")])
    assert list(made) == ["wide.weight"]
    mask = made["wide.weight"]
    assert mask.shape == (3, 2, 3, 3)
    assert (mask[[0, 2]] == RIGHT_COLUMN).all()  # units 0 and 1 are at positions 0 and 2
    assert mask[1].all()  # unit 2 is of the other group
    assert density(mask) == pytest.approx((2 * 3 / 9 + 1) / 3)


def test_two_groups_of_one_weight_carry_their_own_patterns_whatever_the_order(masks):
    choices = [("wide@wide", "right_column"), ("wide@wide:2", "bottom_row")]
    mask = masks.tensors(choices)["wide.weight"]
    assert (mask[[0, 2]] == RIGHT_COLUMN).all()
    assert (mask[1] == BOTTOM_ROW).all()
    assert masks.tensors(choices[::-1])["wide.weight"] is mask


def test_the_overlay_is_the_weight_with_exact_zeros_and_the_base_stays(network, masks):
    before = network.wide.weight.detach().clone()
    overlay = masks.overlay([("wide@wide", "right_column")])["wide.weight"]
    assert torch.equal(overlay[1], before[1])
    assert torch.equal(overlay[0][:, :, 2], before[0][:, :, 2])
    zeros = overlay[[0, 2]][:, :, :, :2]
    assert (zeros == 0).all()
    assert not torch.signbit(zeros).any()  # not -0.0, the product of a negative weight and zero
    assert torch.equal(network.wide.weight, before)
    assert masks.overlay([("wide@wide", "right_column")])["wide.weight"] is overlay


def test_an_infinite_weight_is_masked_to_zero(network):
    network.wide.weight.data[0, 0, 0, 0] = float("inf")
    masks = PatternMasks(network, GRAPH, LIBRARY)
    assert masks.overlay([("wide@wide", "right_column")])["wide.weight"].isfinite().all()


def test_no_choice_gives_no_mask(masks):
    assert masks.tensors([]) == {}
    assert masks.overlay([]) == {}


def test_the_cache_stays_within_its_size_and_results_do_not_depend_on_it(network):
    generous, mean = (PatternMasks(network, GRAPH, LIBRARY, cache_bytes=n) for n in (2**20, 1))
    for name in ("right_column", "bottom_row", "right_column"):
        choice = [("wide@wide", name)]
        expected = generous.overlay(choice)["wide.weight"]
        assert torch.equal(mean.overlay(choice)["wide.weight"], expected)
    assert len(generous._cache) == 4
    assert len(mean._cache) == 1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (("last@wide", "right_column"), "'last@wide'.*wide@wide, point@wide"),
        (("wide@wide", "star"), "'star'.*right_column"),
    ],
)
def test_an_unknown_place_or_pattern_is_refused(masks, choice, message):
    with pytest.raises(ValueError, match=message):
        masks.tensors([choice])


def test_slim_masks_are_the_masks_of_the_kept_channels(masks):
    full = masks.tensors([("wide@wide", "right_column"), ("wide@wide:2", "bottom_row")])
    full["last.weight"] = torch.arange(27).reshape(1, 3, 3, 3) % 2 == 0
    keep = KeepSet.from_indices(GRAPH, {"wide": [1]})  # unit 0 goes: position 0 of both axes
    slim = slim_masks(GRAPH, keep, full)
    assert slim["wide.weight"].shape == (2, 2, 3, 3)
    assert (slim["wide.weight"][0] == BOTTOM_ROW).all()
    assert (slim["wide.weight"][1] == RIGHT_COLUMN).all()
    assert torch.equal(slim["last.weight"], full["last.weight"][:, 1:])


def test_masked_weights_stay_zero_with_momentum_and_weight_decay(network, masks):
    tensors = masks.tensors([("wide@wide", "right_column")])
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True
    )
    inputs = torch.randn(4, 2, 4, 4)
    # a step before masking leaves momentum that would move the masked weights
    network.last(network.wide(inputs)).square().mean().backward()
    optimizer.step()
    removed = ~tensors["wide.weight"]
    masked = MaskedWeights(network, tensors)
    assert (network.wide.weight[removed] == 0).all()
    optimizer.register_step_post_hook(masked.after_step)
    kept_before = network.wide.weight[~removed].detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        network.last(network.wide(inputs)).square().mean().backward()
        optimizer.step()
        assert (network.wide.weight[removed] == 0).all()
    assert not torch.equal(network.wide.weight[~removed], kept_before)


def test_a_mask_that_does_not_fit_the_network_is_refused(network):
    with pytest.raises(ValueError, match=r"'wide.weight' has the shape \(2, 2, 3, 3\).*slim_masks"):
        MaskedWeights(network, {"wide.weight": torch.ones(2, 2, 3, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"'narrow.weight'.*no such parameter"):
        MaskedWeights(network, {"narrow.weight": torch.ones(1, dtype=torch.bool)})


def test_output_channels_are_on_axis_zero_unless_the_convolution_is_transposed():
    assert output_axes(GRAPH) == {"wide.weight": 0, "point.weight": 0, "last.weight": 0}
    transposed = NetworkGraph(
        **{
            **{field: getattr(GRAPH, field) for field in GRAPH.__dataclass_fields__},
            "slices": (AxisSlice("wide.weight", 1, (0, 2, 1)),),
            "operators": (operator("wide", (3, 3), (FROZEN, FROZEN), (0, 2, 1)),),
        }
    )
    assert output_axes(transposed) == {"wide.weight": 1}


def test_parametrised_masks_hold_through_training_and_copies_and_are_removable():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    generator = torch.Generator().manual_seed(0)
    masks = {
        "0.weight": torch.rand(4, 3, 3, 3, generator=generator) > 0.5,
        "2.weight": torch.rand(2, 16, generator=generator) > 0.5,
    }
    names = list(network.state_dict())
    parametrize_masks(network, masks)
    network = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = {name: network.get_parameter(f"{name[0]}.parametrizations.weight.original").clone()
              for name in masks}  # fmt: skip
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(2, 3, 4, 4, generator=generator)).square().sum().backward()
        optimizer.step()
    for name, mask in masks.items():
        weight = network[int(name[0])].weight
        assert not weight[~mask].any()
        assert (weight[mask] != before[name][mask]).all()
    trained = {name: network[int(name[0])].weight.clone() for name in masks}
    remove_mask_parametrizations(network)
    assert sorted(network.state_dict()) == sorted(names)
    for name in masks:
        assert torch.equal(network.get_parameter(name), trained[name])
        assert isinstance(network.get_parameter(name), nn.Parameter)


def test_a_parametrised_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask of 'weight' has the shape \(3,\)"):
        parametrize_masks(nn.Linear(2, 2), {"weight": torch.ones(3, dtype=torch.bool)})


def test_a_transposed_convolution_whose_outputs_all_stay_is_told_apart():
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 2, 2))
    graph = trace_network(network, torch.randn(1, 3, 4, 4))
    assert output_axes(graph) == {"0.weight": 0, "1.weight": 1}
