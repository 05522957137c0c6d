"""Statistics of a few seeds: interquartile mean, bootstrap intervals, probability of improvement.

Definitions of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (https://arxiv.org/abs/2108.13264), as in their library rliable. Scores are one array per
task (a network, a budget); each holds one number per seed, and higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Scores = Sequence[np.ndarray]
"""One array of shape (seeds,) per task; tasks may have different numbers of seeds."""

RESAMPLES = 5000
CONFIDENCE = 0.95
EXACT_UP_TO = 10_000
"""Most relabellings of two samples that are all tried; above, as many are drawn."""


@dataclass(frozen=True)
class Estimate:
    """A number and its bootstrap interval.

    Attributes:
        value: the number.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half of the scores; the quarter at each end is left out, rounded down.

    Args:
        scores: of all tasks, shape (..., scores).
    """
    ordered = np.sort(scores, axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean of all scores.

    Args:
        scores: of all tasks, shape (..., scores).
    """
    return scores.mean(axis=-1)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], scores: Scores, *, resamples: int = RESAMPLES
) -> Estimate:
    """A statistic with its stratified percentile bootstrap interval of 95 %.

    Seeds are drawn with replacement within each task, never across tasks.

    Args:
        statistic: of the scores of all tasks, over the last axis.
        scores: per task.
        resamples: bootstrap samples, at least 1.

    Raises:
        ValueError: a task has no score.
    """
    rng = np.random.default_rng(0)
    tasks = _checked(scores)
    draws = [rng.choice(task, (resamples, len(task))) for task in tasks]
    low, high = _interval(statistic(np.concatenate(draws, axis=-1)))
    return Estimate(float(statistic(np.concatenate(tasks))), low, high)


def improvement(ours: Scores, theirs: Scores) -> float:
    """Probability that a run of ours beats one of theirs on a random task; ties count half.

    The Mann-Whitney statistic over the number of pairs, averaged over tasks.

    Args:
        ours: scores per task.
        theirs: scores of the same tasks.
    """
    return float(
        np.mean([_wins(a, b) for a, b in zip(_checked(ours), _checked(theirs), strict=True)])
    )


def probability_of_improvement(
    ours: Scores, theirs: Scores, *, resamples: int = RESAMPLES
) -> Estimate:
    """`improvement` with its stratified percentile bootstrap interval; both sides are resampled.

    Args:
        ours: scores per task.
        theirs: scores of the same tasks.
        resamples: bootstrap samples, at least 1.
    """
    rng = np.random.default_rng(0)
    per_task = []
    for a, b in zip(_checked(ours), _checked(theirs), strict=True):
        left = rng.choice(a, (resamples, len(a)))
        per_task.append(_wins(left, rng.choice(b, (resamples, len(b)))))
    low, high = _interval(np.mean(per_task, axis=0))
    return Estimate(improvement(ours, theirs), low, high)


def verdict(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Whether one policy beats another: "yes", "no" (the other way round) or "not separated".

    A bootstrap interval of three seeds is too sure of itself, so the seeds are relabelled as well:
    the probability that chance alone separates the two so far must be 5 % at most. Two seeds
    against two can never reach that, three against three only when every run of one is ahead.

    Args:
        ours: shape (seeds,).
        theirs: shape (seeds,).
    """
    wins = float(_wins(ours, theirs))
    if relabelling_p(ours, theirs) <= 0.05 and wins > 0.5:
        return "yes"
    if relabelling_p(theirs, ours) <= 0.05 and wins < 0.5:
        return "no"
    return "not separated"


def relabelling_p(ours: np.ndarray, theirs: np.ndarray) -> float:
    """One-sided p-value of the permutation test whose statistic is `improvement`.

    Exact for few seeds: every way to divide the runs between the two policies is tried. 1 where a
    policy has a single run.

    Args:
        ours: shape (seeds,).
        theirs: shape (seeds,).
    """
    if min(len(ours), len(theirs)) < 2:  # a single run separates nothing
        return 1.0
    from scipy.stats import permutation_test

    result = permutation_test(
        (np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)),
        _wins,
        vectorized=True,
        n_resamples=EXACT_UP_TO,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _wins(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    """Share of pairs that a wins, over the last axis of both; ties count half."""
    assert axis == -1
    difference = a[..., :, None] - b[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1))


def _checked(scores: Scores) -> list[np.ndarray]:
    tasks = [np.asarray(task, dtype=float) for task in scores]
    if not tasks or any(len(task) == 0 for task in tasks):
        raise ValueError("A statistic needs at least one score per task; one task has none.")
    return tasks


def _interval(draws: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
