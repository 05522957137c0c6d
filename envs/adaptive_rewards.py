"""Rewards that change with what was found so far: self-competition, and a learned multiplier.

Their state lives in the object, and is a function of the transitions seen: a search that is
replayed from its beginning has the same rewards.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from envs.rewards import AdaptiveReward, Reward, Transition, check_quality, quality_kept

OPPONENTS = ("best", "percentile", "rank")


class SelfCompetitionReward:
    """Pays for beating one's own earlier results, whatever their scale.

    With r the result of another reward, and all earlier ones (`best`) or the last `window` of them:

        against=best:        sign(r - largest earlier result)
        against=percentile:  sign(r - percentile of the recent results)
        against=rank:        2 * rank - 1, rank in [0, 1] among the recent results

    A percentile is the opponent of ranked rewards ("Ranked Reward: Enabling Self-Play Reinforcement
    Learning for Combinatorial Optimization", R2, https://arxiv.org/abs/1807.01672), which decides
    ties by a coin where this pays 0, so that a search can be replayed. Beating oneself as a reward
    for pruning is named in https://arxiv.org/abs/2509.10526, without a formula in its abstract. The
    first result has no opponent and is paid 0. Plans are ranked by r itself.

    Args:
        inner: the reward whose results compete.
        against: one of OPPONENTS.
        percentile: in (0, 100), for against=percentile.
        window: recent results that count, at least 2, for percentile and rank.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "self_competition"
    bounds = (-1.0, 1.0)
    term_names = ("competition",)

    def __init__(
        self,
        inner: Reward,
        *,
        against: str = "percentile",
        percentile: float = 75.0,
        window: int = 100,
    ) -> None:
        if against not in OPPONENTS:
            raise ValueError(
                f"One competes against one of {', '.join(OPPONENTS)}, got {against!r}. "
                f"Change reward.against."
            )
        if not 0.0 < percentile < 100.0 or window < 2:
            raise ValueError(
                f"reward.percentile={percentile}, reward.window={window}: wanted are a percentile "
                f"in (0, 100) and a window of 2 or more."
            )
        if isinstance(inner, AdaptiveReward):
            raise ValueError(
                f"reward=self_competition compares results, and those of reward={inner.name} "
                f"change with time. Change reward@reward.inner."
            )
        self.inner = inner
        self.against = against
        self.percentile = percentile
        self.window = window
        self._best = -math.inf
        self._recent: deque[float] = deque(maxlen=window)
        self._state = {"result": 0.0, "opponent": 0.0}

    @property
    def pays_for_compression(self) -> bool:
        """As the reward whose results compete."""
        return self.inner.pays_for_compression

    @property
    def state(self) -> dict[str, float]:
        """The last `result`, and the `opponent` it was compared with (with ranks the median)."""
        return dict(self._state)

    def merit(self, transition: Transition) -> float:
        """The result itself."""
        return float(sum(self.inner(transition).values()))

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The term `competition` in [-1, 1]."""
        result = self.merit(transition)
        opponent = self._opponent(result)
        if self.against == "rank" and self._recent:
            known = np.asarray(self._recent)
            rank = ((known < result).mean() + (known <= result).mean()) / 2.0
            paid = float(2.0 * rank - 1.0)
        else:
            paid = float(np.sign(result - opponent))
        self._best = max(self._best, result)
        self._recent.append(result)
        self._state = {"result": result, "opponent": opponent}
        return {"competition": paid}

    def _opponent(self, result: float) -> float:
        if not self._recent:
            return result
        if self.against == "best":
            return self._best
        share = 50.0 if self.against == "rank" else self.percentile
        return float(np.percentile(np.asarray(self._recent), share))


class LagrangianReward:
    """Alpha that is learned, so that the cost meets a target.

    The constrained problem is to keep the most quality with `relative_macs <= target`. Its
    Lagrangian, divided by 1 + multiplier so that the reward stays bounded (as in
    https://arxiv.org/abs/2007.03964), is the alpha reward less a constant, with alpha = multiplier
    / (1 + multiplier):

        (1 - alpha) * min(1, quality / base quality) + alpha * (target - relative_macs)

    After every network that is paid for, the multiplier climbs the dual problem (reward-constrained
    policy optimisation, https://arxiv.org/abs/1805.11074):

        multiplier <- max(0, multiplier + step * (relative_macs - target))

    so that it grows while networks are too large and falls while they are smaller than need be. The
    "learnable alpha" of AutoSculpt (https://arxiv.org/abs/2412.18091) has no published formula and
    is not in its released code: this one is ours.

    Plans are ranked without the multiplier: those that meet the target by their quality, and below
    all of them the others by how far they miss it. Use it with budget=none; other budgets hold too.

    Args:
        target: most MACs left, as a fraction of the unpruned network's, in (0, 1).
        multiplier: the first one, at least 0.
        step: how fast it learns, above 0.
        quality: one of envs.rewards.QUALITIES.

    Attributes:
        multiplier: the present one.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "lagrangian"
    pays_for_compression = True
    term_names = ("quality", "cost")

    def __init__(
        self,
        *,
        target: float = 0.5,
        multiplier: float = 1.0,
        step: float = 0.1,
        quality: str = "likelihood",
    ) -> None:
        if not (0.0 < target < 1.0 and 0.0 <= multiplier < math.inf and 0.0 < step < math.inf):
            raise ValueError(
                f"reward.target={target}, reward.multiplier={multiplier}, reward.step={step}: "
                f"wanted are a target in (0, 1), a multiplier of 0 or more and a step above 0."
            )
        check_quality(quality)
        self.target = target
        self.multiplier = multiplier
        self.step = step
        self.quality = quality
        self._used = multiplier

    @property
    def bounds(self) -> tuple[float, float]:
        """All quality lost at full cost, or all kept for nothing, at any multiplier."""
        return self.target - 1.0, 1.0

    @property
    def state(self) -> dict[str, float]:
        """The `multiplier` of the last result, and the `alpha` that it amounts to."""
        return {"multiplier": self._used, "alpha": self._used / (1.0 + self._used)}

    def merit(self, transition: Transition) -> float:
        """The quality in [0, 1] when the target is met, else how far it is missed, below 0."""
        missed = transition.relative_macs - self.target
        return -missed if missed > 0.0 else quality_kept(self.quality, transition)

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The terms `quality` in [0, 1] and `cost` in [target - 1, target]."""
        kept = quality_kept(self.quality, transition)
        excess = transition.relative_macs - self.target
        self._used = self.multiplier
        alpha = self._used / (1.0 + self._used)
        self.multiplier = max(0.0, self.multiplier + self.step * excess)
        return {"quality": (1.0 - alpha) * kept, "cost": -alpha * excess}
