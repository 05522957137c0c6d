"""How well a reward model predicts plans that it was not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, spearmanr

from agents.reward_model import RewardModel, lowest_reward


@dataclass(frozen=True)
class HeldOutQuality:
    """Predictions of the plans measured later, by a model fitted to those measured before.

    Attributes:
        measured: plans that the model was fitted to.
        rank_correlation: Spearman's, between predicted and measured rewards, in [-1, 1].
        rmse: root mean squared error, in units of the reward.
        log_likelihood: mean log density of a measured reward under the prediction, a normal
            distribution, in nats; says whether the standard deviations are right.
    """

    measured: int
    rank_correlation: float
    rmse: float
    log_likelihood: float


def held_out_quality(
    models: Mapping[str, RewardModel],
    plans: np.ndarray,
    rewards: np.ndarray,
    measured: Sequence[int],
    *,
    floor: float = 2.0,
) -> dict[str, tuple[HeldOutQuality, ...]]:
    """Fits every model to the first plans of a search, and compares it on all later ones.

    The fits follow each other as in a search, so a model may go on from the last one. Rewards are
    floored as in the models, at the level that the plans fitted so far set: by how much a plan is
    ruined counts for nothing.

    Args:
        models: by name, each bound to the graph of the plans.
        plans: kept fractions in the order of the measurements, shape (n, S).
        rewards: shape (n,).
        measured: numbers of first plans, rising, each at least 2 and at most n - 3.
        floor: see `agents.reward_model.lowest_reward`.

    Returns:
        For every model one quality per entry of `measured`.

    Raises:
        ValueError: `measured` is not such a list.
    """
    counts = list(measured)
    if not counts or counts != sorted(set(counts)) or counts[0] < 2 or counts[-1] > len(plans) - 3:
        raise ValueError(
            f"measured={counts}: wanted are rising numbers from 2 to {len(plans) - 3}, as there "
            f"are {len(plans)} plans and at least 3 are held out."
        )
    return {
        name: tuple(_quality(model, plans, rewards, count, floor) for count in counts)
        for name, model in models.items()
    }


def _quality(
    model: RewardModel, plans: np.ndarray, rewards: np.ndarray, count: int, floor: float
) -> HeldOutQuality:
    model.fit(plans[:count], rewards[:count])
    mean, deviation = model.predict(plans[count:])
    truth = np.maximum(rewards[count:], lowest_reward(rewards[:count], floor))
    return HeldOutQuality(
        count,
        float(spearmanr(mean, truth).statistic),
        float(np.sqrt(np.mean((mean - truth) ** 2))),
        float(norm.logpdf(truth, mean, deviation).mean()),
    )
