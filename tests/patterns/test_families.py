"""The pattern families: what each removes, and what it refuses."""

from dataclasses import dataclass

import pytest
import torch

from patterns.channel import ChannelPattern
from patterns.dense import DensePattern
from patterns.kernel_shape import AUTOSCULPT_FIGURE, AUTOSCULPT_SIX, SHAPES, KernelShapePattern


@dataclass(frozen=True)
class Shape:
    kind: str = "conv"
    kernel_size: tuple[int, ...] = (3, 3)
    depthwise: bool = False


def shape(name):
    return KernelShapePattern.from_spec({"family": "kernel_shape", "shape": name})


def test_dense_and_channel_patterns_mask_nothing_and_apply_everywhere():
    weight = torch.ones(4, 2, 3, 3)
    for pattern in (DensePattern(), ChannelPattern(0.25)):
        assert pattern.mask(weight) is None
        assert pattern.applies_to(Shape("linear", ()))
    assert DensePattern().channel_ratio == 0.0
    assert ChannelPattern(0.25).channel_ratio == 0.25
    assert ChannelPattern(0.25).name == "channel_0.25"


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, float("nan"), True, "half"])
def test_a_channel_ratio_outside_zero_to_one_is_refused(ratio):
    with pytest.raises(ValueError, match=rf"in \(0, 1\), got '?{ratio}.*patterns.specs"):
        ChannelPattern(ratio)


def test_a_kernel_shape_keeps_the_drawn_cells_of_every_kernel():
    mask = shape("l_shape").mask(torch.zeros(2, 5, 3, 3))
    assert mask.shape == (2, 5, 3, 3)
    assert mask.dtype == torch.bool
    drawn = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 0]]).bool()
    assert (mask == drawn).all()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("none_kept", []),
        ("right_column", [(0, 2), (1, 2), (2, 2)]),
        ("bottom_row", [(2, 0), (2, 1), (2, 2)]),
        ("two_right_columns", [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]),
        ("two_bottom_rows", [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]),
    ],
)
def test_the_shapes_of_the_released_code_keep_their_rows_and_columns(name, kept):
    mask = shape(name).mask(torch.zeros(1, 1, 3, 3))[0, 0]
    assert [tuple(cell) for cell in mask.nonzero().tolist()] == kept
    assert shape(name).density == pytest.approx(len(kept) / 9)


def test_the_figure_shapes_are_eight_different_ones_that_zero_four_or_five_cells():
    assert len(AUTOSCULPT_SIX) == 5  # the sixth is dense
    assert len(AUTOSCULPT_FIGURE) == 8
    assert len(set(SHAPES.values())) == 13
    for name in AUTOSCULPT_FIGURE:
        assert round(9 * (1 - shape(name).density)) in (4, 5)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        pytest.param(Shape(), True, id="conv3x3"),
        pytest.param(Shape(depthwise=True), True, id="depthwise3x3"),
        pytest.param(Shape(kernel_size=(1, 1)), False, id="conv1x1"),
        pytest.param(Shape(kernel_size=(5, 5)), False, id="conv5x5"),
        pytest.param(Shape(kernel_size=(3,)), False, id="conv1d"),
        pytest.param(Shape("linear", ()), False, id="linear"),
        pytest.param(Shape("attention", ()), False, id="attention"),
    ],
)
def test_kernel_shapes_apply_to_three_by_three_convolutions_only(operator, expected):
    assert shape("plus").applies_to(operator) is expected


def test_a_drawing_of_your_own_is_read():
    spec = {"family": "kernel_shape", "name": "centre", "rows": ["...", ".#.", "..."]}
    pattern = KernelShapePattern.from_spec(spec)
    assert pattern.mask(torch.zeros(3, 3)).nonzero().tolist() == [[1, 1]]
    assert pattern.spec == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"shape": "star"}, r"'star'.*none_kept.*row_and_column.*patterns.specs"),
        ({"name": "a", "rows": ["##", "##"]}, "three strings of three cells"),
        ({"name": "a", "rows": ["##x", "###", "###"]}, "three strings of three cells"),
        ({"name": "a", "rows": "..."}, "list of three strings"),
        ({"name": "a", "rows": ["###", "###", "###"]}, "'a' keeps all nine cells"),
        ({"shape": "plus", "ratio": 0.5}, r"takes the keys \['shape'\], got \['ratio', 'shape'\]"),
        ({}, r"takes the keys \['shape'\], got \[\]"),
    ],
)
def test_a_wrong_kernel_shape_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        KernelShapePattern.from_spec({"family": "kernel_shape", **spec})
