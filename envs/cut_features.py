"""How much each site minds being cut, as features: estimated from activations, or measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.problem import Problem
from pruning.evaluation import NonFiniteAccuracy
from pruning.plan import Decision
from pruning.task import PruningTask

REMOVED = (0.25, 0.5, 0.75)
"""Fractions removed at which local errors become features."""


def check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    """The ratios of a scan as a tuple.

    Raises:
        ValueError: a ratio is out of range.
    """
    if not all(0.0 < ratio < 1.0 for ratio in ratios):
        raise ValueError(
            f"Sensitivities are measured at pruning ratios in (0, 1), got {list(ratios)}. "
            f"Change env.observation.sensitivities; [] measures none."
        )
    return tuple(float(ratio) for ratio in ratios)


def cut_features(problem: Problem, *, local_errors: bool, ratios: Sequence[float]) -> np.ndarray:
    """Static features of the sites, both kinds squashed by x / (1 + x).

    Args:
        problem: what is pruned.
        local_errors: whether the first columns are the local errors (`pruning.local_error`) with
            REMOVED of a site's channels gone; they need calibration images and no evaluation.
        ratios: further columns, how much the loss rises when the site alone loses these fractions
            of its channels: one counted evaluation each, unless it is known already.

    Returns:
        float64 (S, K) in [0, 1]; K = len(REMOVED) with local errors, plus len(ratios).

    Raises:
        ValueError: local errors cannot be measured.
    """
    columns = np.zeros((problem.num_sites, 0))
    if local_errors:
        kept = 1.0 - np.repeat(np.asarray(REMOVED)[:, None], problem.num_sites, axis=1)
        columns = problem.task.local_errors(kept).T
    rises = np.asarray(
        [[_loss_rise(problem.task, site.name, r) for r in ratios] for site in problem.task.sites]
    )
    values = np.concatenate([columns, rises.reshape(problem.num_sites, len(ratios))], axis=1)
    return 1.0 - 1.0 / (1.0 + values)  # 1 for a rise without end


def _loss_rise(task: PruningTask, site: str, ratio: float) -> float:
    """By how much the loss rises, at least 0, with one site pruned and all others whole."""
    candidate = task.candidate([Decision(site, None, ratio)])
    if candidate.keep.mask.all():
        return 0.0
    try:
        return max(0.0, task.evaluator.evaluate(candidate).loss - task.base.loss)
    except NonFiniteAccuracy:
        return np.inf
