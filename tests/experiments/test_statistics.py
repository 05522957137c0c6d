"""Statistics of a few seeds, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.statistics import (
    bootstrap,
    improvement,
    interquartile_mean,
    mean,
    probability_of_improvement,
    relabelling_p,
    verdict,
)


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end():
    assert interquartile_mean(np.array([8.0, 1, 100, 3, 4, 5, 6, -50])) == 4.5  # of 3, 4, 5, 6
    assert interquartile_mean(np.array([1.0, 2, 6])) == 3  # a quarter of three, rounded down, is 0


def test_the_interval_of_two_seeds_is_their_range():
    # means of two draws out of {0, 1}: 0 and 1 with probability 1/4 each, far above 2.5 %
    estimate = bootstrap(mean, [np.array([0.0, 1.0])])
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


def test_the_bootstrap_never_mixes_tasks():
    estimate = bootstrap(mean, [np.array([5.0, 5.0]), np.array([7.0, 7.0])])
    assert (estimate.value, estimate.low, estimate.high) == (6.0, 6.0, 6.0)


def test_the_interval_of_many_seeds_is_that_of_the_normal_distribution():
    scores = np.random.default_rng(1).normal(0, 1, 400)
    estimate = bootstrap(mean, [scores])
    half = 1.96 * scores.std() / 20
    assert estimate.low == pytest.approx(scores.mean() - half, abs=0.01)
    assert estimate.high == pytest.approx(scores.mean() + half, abs=0.01)


def test_the_probability_of_improvement_counts_pairs_and_half_of_ties():
    ours, theirs = np.array([1.0, 2, 3]), np.array([2.0, 2])
    assert improvement([ours], [theirs]) == 0.5  # 0 0, half half, 1 1
    assert improvement([ours, ours], [theirs, np.array([0.0])]) == 0.75  # mean of the tasks
    estimate = probability_of_improvement([ours + 5], [theirs])
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_the_permutation_test_is_exact():
    ahead, behind = np.array([3.0, 4, 5]), np.array([0.0, 1, 2])
    assert relabelling_p(ahead, behind) == pytest.approx(1 / 20)  # one of 6 choose 3
    assert relabelling_p(behind, ahead) == pytest.approx(1)
    same = np.array([1.0, 1, 1])  # a deterministic rival: its seeds are ties
    assert relabelling_p(ahead, same) == pytest.approx(1 / 20)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([3, 4, 5], [0, 1, 2], "yes"),
        ([0, 1, 2], [3, 4, 5], "no"),
        ([3, 4, 5], [0, 1, 4.5], "not separated"),
        ([3, 4], [0, 1], "not separated"),  # two seeds prove nothing
        ([5], [0, 1, 2], "not separated"),
        ([1, 1, 1], [1, 1, 1], "not separated"),
    ],
)
def test_verdicts(ours, theirs, expected):
    assert verdict(np.array(ours, dtype=float), np.array(theirs, dtype=float)) == expected


def test_a_task_without_scores_is_refused():
    with pytest.raises(ValueError, match="at least one score per task"):
        bootstrap(mean, [np.array([1.0]), np.array([])])
