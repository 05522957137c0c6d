"""Counts, order and refusals of keep-sets."""

import numpy as np
import pytest
from zoo import build

from graphs.network_graph import Group
from graphs.tracing import trace_network
from pruning.keep_set import InfeasibleKeep, KeepSet, kept_count


@pytest.fixture
def graph():
    network, inputs = build("Residual")  # groups stem.0 (6 channels) and a.0 (4)
    return trace_network(network, inputs)


@pytest.mark.parametrize(
    ("ratio", "kept"), [(0.0, 8), (0.06, 8), (0.0625, 7), (0.5, 4), (0.99, 1), (1.0, 1)]
)
def test_half_a_channel_rounds_to_removal_and_one_channel_stays(ratio, kept):
    group = Group("g", "channel", tuple(range(8)), 1, (), ())
    assert kept_count(group, ratio) == kept


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_ratios_outside_zero_to_one_are_refused(graph, ratio):
    with pytest.raises(ValueError, match=r"in \[0, 1\].*'stem.0'"):
        KeepSet.from_ratios(graph, {"stem.0": ratio})


def test_the_lowest_scores_go_first_and_ties_keep_the_lower_index(graph):
    scores = {"stem.0": np.array([3.0, 1.0, 2.0, 1.0, 5.0, 0.0]), "a.0": np.ones(4)}
    keep = KeepSet.from_counts(graph, {"stem.0": 4, "a.0": 2}, scores)
    assert keep.kept("stem.0").tolist() == [0, 1, 2, 4]
    assert keep.kept("a.0").tolist() == [0, 1]
    assert keep.counts.tolist() == [4, 2]


def test_equal_keep_sets_have_equal_hashes_and_different_ones_differ(graph):
    by_count = KeepSet.from_counts(graph, [6, 3])
    by_index = KeepSet.from_indices(graph, {"a.0": [0, 1, 2]})
    assert by_count == by_index
    assert hash(by_count) == hash(by_index)
    assert KeepSet.from_indices(graph, {"a.0": [0, 1, 3]}) != by_count
    assert len({by_count, by_index, KeepSet.full(graph)}) == 2


def test_a_keep_set_cannot_be_changed(graph):
    with pytest.raises(ValueError, match="read-only"):
        KeepSet.full(graph).mask[0] = False


@pytest.mark.parametrize("count", [0, 7])
def test_counts_outside_the_group_are_refused(graph, count):
    with pytest.raises(InfeasibleKeep, match=f"between 1 and 6 channels, got {count}"):
        KeepSet.from_counts(graph, {"stem.0": count})


def test_indices_that_do_not_exist_are_refused(graph):
    with pytest.raises(InfeasibleKeep, match="channels 0 to 5"):
        KeepSet.from_indices(graph, {"stem.0": [0, 6]})
    with pytest.raises(InfeasibleKeep, match="at least 1"):
        KeepSet.from_indices(graph, {"stem.0": []})


def test_scores_of_a_wrong_shape_or_with_nan_are_refused(graph):
    with pytest.raises(ValueError, match=r"shape \(6,\), got \(4,\)"):
        KeepSet.from_counts(graph, {"stem.0": 3}, {"stem.0": np.ones(4)})
    with pytest.raises(ValueError, match="must be finite"):
        KeepSet.from_counts(graph, {"stem.0": 3}, {"stem.0": np.full(6, np.nan)})
