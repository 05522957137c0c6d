"""The families that zero weights: exact masks, densities, ties, refusals, and what they cost."""

import itertools
import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from patterns.connectivity import ConnectivityPattern
from patterns.filter import FilterPattern
from patterns.four_entry import CANDIDATES, FourEntryPattern, voted
from patterns.library import PatternLibrary
from patterns.n_m import NMPattern
from patterns.sparsity import keep_largest
from patterns.unstructured import UnstructuredPattern
from patterns.vector import VectorPattern

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


@dataclass(frozen=True)
class Shape:
    kind: str = "conv"
    kernel_size: tuple[int, ...] = (3, 3)
    depthwise: bool = False


def random_weight(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_bool(rows):
    return torch.tensor(rows).bool()


def test_unstructured_keeps_the_largest_magnitudes_of_all_rows_together():
    weight = torch.tensor([[1.0, -6.0, 2.0], [-5.0, 0.5, -4.0]])
    mask = UnstructuredPattern(0.5).mask(weight)
    assert torch.equal(mask, as_bool([[0, 1, 0], [1, 0, 1]]))


@pytest.mark.parametrize(
    ("sparsity", "kept"),
    [(0.25, 54), (0.5, 36), (0.9, 7), (0.99, 1), (0.999, 1), (0.001, 72), (1.5 / 72, 70)],
)
def test_unstructured_density_is_exact_and_half_a_weight_is_removed(sparsity, kept):
    mask = UnstructuredPattern(sparsity).mask(random_weight(4, 2, 3, 3))
    assert mask.count_nonzero() == kept


def test_rows_of_a_kernel_go_by_l2_over_the_whole_site():
    weight = torch.tensor(
        [
            [[[3.0, 0, 0], [2, 2, 0], [1, 1, 1]]],  # row energies 9, 8, 3
            [[[0.0, 0, 0], [0, 0, -4], [2, 2, 2]]],  # 0, 16, 12
        ]
    )
    mask = VectorPattern(0.5, "row").mask(weight)  # L1 would keep 2 2 0 and drop 3 0 0
    expected = [[[[1, 1, 1], [0, 0, 0], [0, 0, 0]]], [[[0, 0, 0], [1, 1, 1], [1, 1, 1]]]]
    assert torch.equal(mask, as_bool(expected))


def test_columns_of_a_kernel_go_by_l2():
    weight = torch.tensor([[[[1.0, 0, 5], [1, 0, 0], [1, 9, 0]]]])  # energies 3, 81, 25
    mask = VectorPattern(1 / 3, "column").mask(weight)
    assert torch.equal(mask, as_bool([[[[0, 1, 1]] * 3]]))


def test_vectors_of_kernels_that_are_not_square_have_their_own_count():
    weight = random_weight(2, 3, 2, 5)
    rows = VectorPattern(0.5, "row").mask(weight)
    columns = VectorPattern(0.5, "column").mask(weight)
    assert rows.count_nonzero() == 6 * 5
    assert columns.count_nonzero() == 15 * 2
    assert torch.equal(rows, rows[..., :1].expand(weight.shape))
    assert torch.equal(columns, columns[..., :1, :].expand(weight.shape))


def test_two_of_four_is_chosen_along_the_inputs_of_a_linear_layer():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 9.0, 8.0, 7.0, 6.0]])
    mask = NMPattern(2, 4).mask(weight)
    assert torch.equal(mask, as_bool([[0, 1, 1, 0, 1, 1, 0, 0]]))


def test_n_m_groups_run_along_channels_and_not_along_the_kernel():
    weight = torch.zeros(1, 4, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    weight[0, :, 0, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mask = NMPattern(1, 4).mask(weight)
    assert mask.nonzero().tolist() == [[0, 0, 0, 0], [0, 3, 0, 1]]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (5, 7)])
@pytest.mark.parametrize("shape", [(3, 56, 3, 3), (5, 56), (2, 56, 1)])
def test_every_group_of_m_keeps_exactly_n(n, m, shape):
    mask = NMPattern(n, m).mask(random_weight(*shape))
    groups = mask.movedim(1, -1).reshape(-1, m)
    assert (groups.sum(dim=1) == n).all()


@pytest.mark.parametrize(
    ("channels", "kept"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (6, 4), (7, 4)]
)
def test_a_tail_keeps_its_two_largest_or_all_it_has(channels, kept):
    weight = random_weight(3, channels, 3, 3)
    mask = NMPattern(2, 4).mask(weight)
    assert (mask.sum(dim=1) == kept).all()
    if channels == 7:
        smallest = weight[:, 4:].abs().argmin(dim=1, keepdim=True)
        assert not mask[:, 4:].gather(1, smallest).any()


def test_a_tail_of_zeros_is_kept_before_its_padding():
    assert NMPattern(2, 4).mask(torch.zeros(1, 6)).tolist() == [
        [True, True, False, False, True, True]
    ]


def test_four_entry_candidates_are_the_centre_with_every_three_of_the_other_eight():
    assert len(set(CANDIDATES)) == 56
    expected = [(0, 1, 2), (5, 6, 8)]
    for shape in CANDIDATES:
        assert 4 in shape
        assert len(set(shape)) == 4
    for three in expected:
        assert tuple(sorted((*three, 4))) in CANDIDATES


def test_with_all_shapes_a_kernel_keeps_its_centre_and_its_three_largest_others():
    weight = torch.tensor([[[[9.0, -8.0, 1.0], [2.0, 0.1, 3.0], [-7.0, 4.0, 5.0]]]])
    mask = FourEntryPattern(56).mask(weight)
    assert torch.equal(mask, as_bool([[[[1, 1, 0], [0, 1, 0], [1, 0, 0]]]]))


def test_the_voted_shape_is_given_to_the_kernel_that_was_outvoted():
    top = torch.tensor([[3.0, 3.0, 3.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    bottom = top.flip(0)
    weight = torch.stack([top, top, bottom])[:, None]
    drawn_top = as_bool([[1, 1, 1], [0, 1, 0], [0, 0, 0]])
    one = FourEntryPattern(1).mask(weight)
    assert (one == drawn_top).all()
    two = FourEntryPattern(2).mask(weight)
    assert torch.equal(two, torch.stack([drawn_top, drawn_top, drawn_top.flip(0)])[:, None])


def test_the_most_voted_shapes_match_a_count_by_hand():
    energies = random_weight(400, 9).double().square()
    votes = dict.fromkeys(CANDIDATES, 0)
    for kernel in energies.tolist():
        others = sorted((c for c in range(9) if c != 4), key=lambda c: -kernel[c])
        votes[tuple(sorted((4, *others[:3])))] += 1
    ranked = sorted(range(56), key=lambda index: (-votes[CANDIDATES[index]], index))
    assert voted(energies, 8).tolist() == sorted(ranked[:8])


@pytest.mark.parametrize("num_shapes", [1, 4, 8, 56])
def test_every_kernel_keeps_four_of_nine_and_its_centre_in_few_shapes(num_shapes):
    weight = random_weight(16, 8, 3, 3)
    mask = FourEntryPattern(num_shapes).mask(weight)
    assert (mask.sum(dim=(2, 3)) == 4).all()
    assert mask[:, :, 1, 1].all()
    shapes = mask.reshape(-1, 9).unique(dim=0)
    assert len(shapes) <= num_shapes
    kept = (weight.square() * mask).sum(dim=(2, 3)).flatten()
    others = weight.square().reshape(-1, 9) @ shapes.float().T
    torch.testing.assert_close(kept, others.max(dim=1).values)


def test_connectivity_removes_equally_many_kernels_from_every_filter():
    weight = torch.zeros(2, 4, 3, 3)
    weight[0, :, 1, 1] = torch.tensor([10.0, 40.0, 30.0, 20.0])  # all larger than the second filter
    weight[1, :, 0, 2] = torch.tensor([4.0, -3.0, 1.0, 2.0])
    mask = ConnectivityPattern(0.5).mask(weight)
    kernels = as_bool([[0, 1, 1, 0], [1, 1, 0, 0]])
    assert torch.equal(mask, kernels[:, :, None, None].expand(2, 4, 3, 3))


def test_kernels_go_by_l2_and_not_by_l1():
    weight = torch.tensor([[[[3.0, 0.0]], [[2.0, 2.0]], [[0.0, 2.9]], [[0.0, 0.0]]]])
    mask = ConnectivityPattern(0.5).mask(weight)  # energies 9, 8, 8.41, 0
    assert mask[0, :, 0, 0].tolist() == [True, False, True, False]


@pytest.mark.parametrize(("channels", "kept"), [(1, 1), (3, 1), (16, 2), (20, 2)])
def test_connectivity_leaves_every_filter_a_kernel(channels, kept):
    mask = ConnectivityPattern(0.875).mask(random_weight(6, channels, 3, 3))
    assert (mask[:, :, 0, 0].sum(dim=1) == kept).all()
    assert mask.count_nonzero() == 6 * kept * 9


def test_filters_go_whole_by_l1():
    weight = torch.tensor([[3.0, 0.0], [2.0, -2.0], [1.0, 1.0], [0.0, -5.0]])
    mask = FilterPattern(0.5).mask(weight)  # L2 would keep 3 0 before 2 -2
    assert torch.equal(mask, as_bool([[0, 0], [1, 1], [0, 0], [1, 1]]))


@pytest.mark.parametrize(("rows", "kept"), [(1, 1), (2, 1), (8, 1), (40, 4)])
def test_a_filter_pattern_never_removes_all_filters(rows, kept):
    mask = FilterPattern(0.9).mask(random_weight(rows, 3, 3, 3))
    assert mask.flatten(1).all(dim=1).sum() == kept
    assert mask.count_nonzero() == 27 * kept


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        (UnstructuredPattern(0.5), lambda o, i, y, x: o == 0),
        (VectorPattern(0.5, "row"), lambda o, i, y, x: o == 0),
        (VectorPattern(0.5, "column"), lambda o, i, y, x: o == 0),
        (NMPattern(2, 4), lambda o, i, y, x: i < 2),
        (FourEntryPattern(8), lambda o, i, y, x: 3 * y + x in (0, 1, 2, 4)),
        (ConnectivityPattern(0.5), lambda o, i, y, x: i < 2),
        (FilterPattern(0.5), lambda o, i, y, x: o == 0),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_of_equal_weights_those_of_lower_index_stay(pattern, kept, value):
    shape = (2, 4, 3, 3)
    expected = torch.tensor([kept(*c) for c in itertools.product(*map(range, shape))])
    assert torch.equal(pattern.mask(torch.full(shape, value)), expected.view(shape))


@pytest.mark.parametrize("pattern", MASKING, ids=NAMES)
def test_masks_are_boolean_repeatable_and_leave_the_weight_alone(pattern):
    weight = random_weight(6, 8, 3, 3)
    before = weight.clone()
    parameter = nn.Parameter(weight)
    mask = pattern.mask(parameter)
    assert mask.dtype == torch.bool
    assert mask.shape == weight.shape
    assert torch.equal(mask, pattern.mask(parameter))
    assert torch.equal(mask, pattern.mask(-weight))
    assert torch.equal(parameter, before)
    # transposed convolutions hand over weights that are not contiguous
    strided = weight.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(mask, pattern.mask(strided))
    assert pattern.mask(weight[:0]).shape == (0, 8, 3, 3)


@pytest.mark.parametrize(
    ("pattern", "applies"),
    [
        ("unstructured", "conv3 conv1 conv1d depthwise linear"),
        ("vector", "conv3 depthwise"),
        ("n_m", "conv3 conv1 conv1d linear"),
        ("four_entry", "conv3 depthwise"),
        ("connectivity", "conv3 conv1 conv1d"),
        ("filter", "conv3 conv1 conv1d depthwise linear"),
    ],
)
def test_each_family_applies_to_its_operators_only(pattern, applies):
    operators = {
        "conv3": Shape(),
        "conv1": Shape(kernel_size=(1, 1)),
        "conv1d": Shape(kernel_size=(3,)),
        "depthwise": Shape(depthwise=True),
        "linear": Shape("linear", ()),
        "attention": Shape("attention", ()),
    }
    for found in MASKING:
        if found.family == pattern:
            names = [name for name, operator in operators.items() if found.applies_to(operator)]
            assert names == applies.split()


def test_vectors_need_a_kernel_with_two_long_axes_and_four_entries_a_three_by_three_one():
    assert VectorPattern(0.5, "row").applies_to(Shape(kernel_size=(5, 3)))
    assert not VectorPattern(0.5, "row").applies_to(Shape(kernel_size=(1, 7)))
    assert not FourEntryPattern(8).applies_to(Shape(kernel_size=(5, 5)))


def test_specifications_survive_json_and_name_the_patterns():
    again = PatternLibrary.from_specs(json.loads(json.dumps(LIBRARY.specs)))
    assert again == LIBRARY
    assert again.specs == [{"family": "dense"}, *SPECS]
    expected = (
        "unstructured_0.75 vector_row_0.5 vector_column_0.25 n_m_2_4 four_entry_8 "
        "connectivity_0.5 filter_0.5"
    )
    assert expected.split() == NAMES
    assert all(pattern.channel_ratio == 0.0 for pattern in LIBRARY)
    assert UnstructuredPattern(0.5) != FilterPattern(0.5)


@pytest.mark.parametrize("family", ["unstructured", "vector", "connectivity", "filter"])
@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.5, float("nan"), True, "half", None])
def test_a_sparsity_outside_zero_to_one_is_refused(family, sparsity):
    spec = {"family": family, "sparsity": sparsity}
    if family == "vector":
        spec["axis"] = "row"
    message = rf"'{family}' must be a number in \(0, 1\), got '?{sparsity}.*patterns.specs"
    with pytest.raises(ValueError, match=message):
        PatternLibrary.from_specs([spec])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"family": "vector", "axis": "depth", "sparsity": 0.5}, "row, column, got 'depth'.*specs"),
        ({"family": "vector", "sparsity": 0.5}, r"keys \['axis', 'sparsity'\], got \['sparsity'\]"),
        ({"family": "unstructured", "ratio": 0.5}, r"keys \['sparsity'\], got \['ratio'\]"),
        ({"family": "n_m", "n": 4, "m": 4}, "1 <= n < m, got n=4, m=4.*patterns.specs"),
        ({"family": "n_m", "n": 0, "m": 4}, "1 <= n < m, got n=0, m=4"),
        ({"family": "n_m", "n": 2.0, "m": 4}, "integers 1 <= n < m, got n=2.0"),
        ({"family": "n_m", "n": True, "m": 4}, "got n=True"),
        ({"family": "n_m", "n": 2}, r"keys \['m', 'n'\], got \['n'\]"),
        ({"family": "four_entry", "num_shapes": 0}, r"integer in \[1, 56\], got 0.*patterns.specs"),
        ({"family": "four_entry", "num_shapes": 57}, r"in \[1, 56\], got 57"),
        ({"family": "four_entry", "num_shapes": 8.0}, r"in \[1, 56\], got 8.0"),
        ({"family": "four_entry"}, r"keys \['num_shapes'\], got \[\]"),
    ],
)
def test_a_wrong_specification_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        PatternLibrary.from_specs([spec])


def test_the_largest_scores_of_each_row_are_marked_first_come_first_served():
    scores = torch.tensor([[1, 2, 2, 2], [5, 4, 5, 5]])
    assert torch.equal(keep_largest(scores, 2), as_bool([[0, 1, 1, 0], [1, 0, 1, 0]]))
    assert not keep_largest(scores, 0).any()
    assert keep_largest(scores, 4).all()
