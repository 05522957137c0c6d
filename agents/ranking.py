"""What an outcome is worth by its rank among others, whatever the scale of rewards."""

from __future__ import annotations

import math

import numpy as np


def rank_utilities(outcomes: np.ndarray, known: np.ndarray, power: float) -> np.ndarray:
    """Utilities `u ** power`, scaled to mean 0 and variance 1 for uniform u.

    u in (0, 1) is the rank of an outcome among the known ones, ties at their middle (ranked
    rewards, https://arxiv.org/abs/1807.01672, with the utilities of
    https://arxiv.org/abs/1106.4487 in mind: the best outcomes differ a lot, the others hardly).

    Args:
        outcomes: higher is better, any shape.
        known: the outcomes to rank among, shape (K,); with none of them all utilities are 0.
        power: exponent of the rank, above 0; higher cares for the best outcomes only.

    Returns:
        float32 array of the shape of `outcomes`.
    """
    if not len(known):
        return np.zeros(np.shape(outcomes), dtype=np.float32)
    ordered = np.sort(np.asarray(known, dtype=np.float64))
    below = np.searchsorted(ordered, outcomes, side="left")
    not_above = np.searchsorted(ordered, outcomes, side="right")
    rank = (below + not_above) / (2 * len(ordered))  # in (0, 1); a lone outcome has 1/2
    mean, deviation = moments(power)
    return ((rank**power - mean) / deviation).astype(np.float32)


def moments(power: float) -> tuple[float, float]:
    """Mean and standard deviation of `u ** power` for uniform u in (0, 1)."""
    mean = 1 / (power + 1)
    return mean, math.sqrt(1 / (2 * power + 1) - mean**2)
