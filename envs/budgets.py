"""The budget part: how much may be left, and what happens to actions that would leave more.

`budget.relative_macs` is an upper bound on the cost in every one of them but `Tolerance`, where it
is the target inside the band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from envs.problem import Assignment, Problem

COSTS = ("macs", "nonzero_macs")

RELAXED_STEPS = 20
"""Bisections of a projection without rounding; the range is a few units of a logarithm."""


@dataclass(frozen=True)
class Limits:
    """A budget in MACs of one network; both ends are within budget.

    Attributes:
        lower: fewest MACs.
        upper: most MACs.
        base: MACs of the unpruned network.
    """

    lower: int
    upper: int
    base: int

    def distance(self, cost: int) -> float:
        """How far a cost lies outside, as a fraction of the unpruned network's; 0 when inside."""
        return max(self.lower - cost, cost - self.upper, 0) / self.base

    def met(self, cost: int) -> bool:
        """Whether a cost is within budget."""
        return self.lower <= cost <= self.upper


class Budget(Protocol):
    """How much of the network may be left."""

    @property
    def name(self) -> str:
        """Name of the option in conf/budget."""

    @property
    def cost(self) -> str:
        """What is counted, one of COSTS."""

    @property
    def relative_macs(self) -> float:
        """Most MACs that may be left over those of the unpruned network, in (0, 1]."""

    @property
    def can_be_missed(self) -> bool:
        """Whether an episode may end outside the budget."""

    @property
    def evaluate_outside(self) -> bool:
        """Whether networks outside the budget are measured."""

    def limits(self, base: int, smallest: int) -> Limits:
        """The budget in MACs.

        Args:
            base: MACs of the unpruned network.
            smallest: MACs of the cheapest network that actions can reach.

        Raises:
            ValueError: the budget is below what can be reached.
        """

    def largest_count(self, problem: Problem, counts: np.ndarray, site: int, wanted: int) -> int:
        """The kept count of one site, `wanted` or fewer, that the other `counts` leave room for."""

    def allowed(self, problem: Problem, options: Sequence[Assignment]) -> np.ndarray:
        """Which of several assignments may be chosen, bool (len(options),)."""

    def fit(self, problem: Problem, fractions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Kept counts (S,) for kept fractions (S,) whose plain rounding is `wanted`."""

    def relax(self, problem: Problem, fractions: np.ndarray) -> np.ndarray:
        """What `fit` makes of a batch of kept fractions, before rounding, (batch, S)."""

    def scales(self, problem: Problem, plan: Assignment) -> bool:
        """Whether a whole plan is scaled to the upper limit."""


def _any_count(self: Budget, problem: Problem, counts: np.ndarray, site: int, wanted: int) -> int:
    """As wanted."""
    return wanted


def _any_option(self: Budget, problem: Problem, options: Sequence[Assignment]) -> np.ndarray:
    """All are allowed."""
    return np.ones(len(options), dtype=bool)


def _as_wanted(
    self: Budget, problem: Problem, fractions: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Plain rounding."""
    return wanted


def _as_asked(self: Budget, problem: Problem, fractions: np.ndarray) -> np.ndarray:
    """Within what a group can keep."""
    return np.clip(fractions, problem.smallest.counts / problem.sizes, 1.0)


def _never(self: Budget, problem: Problem, plan: Assignment) -> bool:
    """Plans stay as they are."""
    return False


@dataclass(frozen=True)
class Unlimited:
    """No budget: the reward alone says what compression is worth. `budget=none`."""

    name = "none"
    cost = "macs"
    relative_macs = 1.0
    can_be_missed = False
    evaluate_outside = True
    largest_count = _any_count
    allowed = _any_option
    fit = _as_wanted
    relax = _as_asked
    scales = _never

    def limits(self, base: int, smallest: int) -> Limits:
        """Everything is within budget."""
        return Limits(0, base, base)


@dataclass(frozen=True)
class Wall:
    """AMC's bound on the action, so that every finished episode is within budget.

    The current site may keep at most so many channels that the undecided ones, pruned as far as
    they go, still fit (Algorithm 1 of "AMC: AutoML for Model Compression and Acceleration on Mobile
    Devices", https://arxiv.org/abs/1802.03494, in channels instead of ratios). The bound is
    computed after rounding to channels; the released code rounds afterwards and can overshoot.

    Args:
        relative_macs: most MACs left, as a fraction of the unpruned network's, in (0, 1].
        cost: "macs" of dense hardware, or "nonzero_macs" of the weights that are not masked.
    """

    relative_macs: float = 0.5
    cost: str = "macs"

    name = "wall"
    can_be_missed = False
    evaluate_outside = True
    fit = _as_wanted
    relax = _as_asked
    scales = _never

    def __post_init__(self) -> None:
        _check(self.relative_macs, self.cost)

    def limits(self, base: int, smallest: int) -> Limits:
        """At most the budget."""
        return Limits(0, _reachable(self.relative_macs, self.cost, base, smallest), base)

    def largest_count(self, problem: Problem, counts: np.ndarray, site: int, wanted: int) -> int:
        """At most what leaves room for the undecided sites."""
        most = problem.task.cost.max_keep(counts, site, problem.limits.upper)
        assert most >= problem.smallest.counts[site], "the wall has shut out the smallest choice"
        return min(wanted, most)

    def allowed(self, problem: Problem, options: Sequence[Assignment]) -> np.ndarray:
        """Those within budget."""
        return problem.meter.of_options(options) <= problem.limits.upper


@dataclass(frozen=True)
class Band:
    """AutoSculpt's target +- delta, with `relative_macs` as the upper edge.

    The band is [relative_macs - 2 * delta, relative_macs]: the target is relative_macs - delta, so
    that `budget.relative_macs` bounds the cost from above here as in every other budget. A whole
    plan that lies outside is scaled to the upper edge, as `Project` does it, so an agent learns
    what to cut and not first how much. Without `project` such a network is not measured (its cost
    is analytic and free) unless `evaluate_outside`; its reward is `envs.rewards.BandPenalty`. That
    is also what becomes of one that actions are too coarse to bring inside.

    Args:
        relative_macs: upper edge, as a fraction of the unpruned network's MACs, in (0, 1].
        delta: half the width of the band, at least 0.
        cost: "macs" of dense hardware, or "nonzero_macs" of the weights that are not masked.
        evaluate_outside: whether networks outside the band are measured too.
        project: whether whole plans outside the band are scaled to its upper edge.
    """

    relative_macs: float = 0.5
    delta: float = 0.05
    cost: str = "macs"
    evaluate_outside: bool = False
    project: bool = True

    name = "band"
    can_be_missed = True
    largest_count = _any_count
    allowed = _any_option

    def __post_init__(self) -> None:
        _check(self.relative_macs, self.cost)
        if not 0.0 <= self.delta < 1.0:
            raise ValueError(
                f"Half the width of the band must be in [0, 1), got {self.delta}. "
                f"Change budget.delta."
            )

    def limits(self, base: int, smallest: int) -> Limits:
        """The band in MACs."""
        upper = _reachable(self.relative_macs, self.cost, base, smallest)
        lower = math.ceil((self.relative_macs - 2.0 * self.delta) * base - 1e-6)
        return Limits(max(0, min(lower, upper)), upper, base)

    def fit(self, problem: Problem, fractions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Plain rounding inside the band, else the projected counts."""
        plan = Assignment(wanted, np.zeros_like(wanted))
        return _scaled(problem, fractions) if self.scales(problem, plan) else wanted

    def relax(self, problem: Problem, fractions: np.ndarray) -> np.ndarray:
        """The same without rounding."""
        asked = _as_asked(self, problem, fractions)
        if not self.project:
            return asked
        macs = np.asarray(problem.task.cost.macs_of_counts(asked * problem.sizes))
        is_inside = (macs >= problem.limits.lower) & (macs <= problem.limits.upper)
        return np.where(is_inside[:, None], asked, _scaled_relaxed(problem, fractions))

    def scales(self, problem: Problem, plan: Assignment) -> bool:
        """Plans outside the band are scaled, with `project`."""
        return self.project and not problem.limits.met(problem.meter(plan))


@dataclass(frozen=True)
class Tolerance:
    """A target that may be missed by a fraction of it: above by little, below by more.

    The band of AgenticPruner (https://arxiv.org/abs/2601.12272): the error (macs - target) / target
    is in [-below, above]. A network outside the band is not measured: its cost is analytic and
    free. So the search is for the shape and for the size of a plan; nothing is scaled.

    Args:
        relative_macs: the target, as a fraction of the unpruned network's MACs, in (0, 1].
        above: how much more there may be, as a fraction of the target, in [0, 1).
        below: how much less there may be, as a fraction of the target, in [0, 1).
        cost: "macs" of dense hardware, or "nonzero_macs" of the weights that are not masked.
    """

    relative_macs: float = 0.5
    above: float = 0.01
    below: float = 0.05
    cost: str = "macs"

    name = "tolerance"
    can_be_missed = True
    evaluate_outside = False
    largest_count = _any_count
    allowed = _any_option
    fit = _as_wanted
    relax = _as_asked
    scales = _never

    def __post_init__(self) -> None:
        _check(self.relative_macs, self.cost)
        for key in ("above", "below"):
            tolerance = getattr(self, key)
            if not 0.0 <= tolerance < 1.0:
                raise ValueError(
                    f"A tolerance must be in [0, 1), a fraction of the target, got {tolerance}. "
                    f"Change budget.{key}."
                )

    def limits(self, base: int, smallest: int) -> Limits:
        """The band in MACs."""
        most = min(1.0, self.relative_macs * (1.0 + self.above))
        upper = _reachable(most, self.cost, base, smallest)
        lower = math.ceil(self.relative_macs * (1.0 - self.below) * base - 1e-6)
        return Limits(min(lower, upper), upper, base)


@dataclass(frozen=True)
class Project:
    """Scales the whole vector of kept fractions so that the budget is met after rounding.

    The log kept fractions of all groups are shifted by one common amount, found by bisection, so
    that the MACs after rounding down are as close below the budget as one shift allows; then single
    channels are added, largest remainder first, until none fits anywhere. What the agent chooses is
    the shape of the plan, never its size. Topping up gives a group one channel as a rule, and a few
    to a group that is cheap beside the others. Patterns are scaled in the same way, from one
    pattern of the library to the next (`envs.pattern_projection`). In layerwise episodes all this
    happens in the last step: what was decided before stands in the observations as it was asked
    for.

    Args:
        relative_macs: MACs left, as a fraction of the unpruned network's, in (0, 1].
    """

    relative_macs: float = 0.5

    name = "project"
    cost = "macs"
    can_be_missed = False
    evaluate_outside = True
    largest_count = _any_count
    allowed = _any_option

    def __post_init__(self) -> None:
        _check(self.relative_macs, self.cost)

    def limits(self, base: int, smallest: int) -> Limits:
        """At most the budget."""
        return Limits(0, _reachable(self.relative_macs, self.cost, base, smallest), base)

    def fit(self, problem: Problem, fractions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The projected counts; `wanted` plays no part."""
        return _scaled(problem, fractions)

    def relax(self, problem: Problem, fractions: np.ndarray) -> np.ndarray:
        """Log kept fractions shifted until fractional channels meet the budget, (batch, S)."""
        return _scaled_relaxed(problem, fractions)

    def scales(self, problem: Problem, plan: Assignment) -> bool:
        """All plans are scaled."""
        return True


def _scaled(problem: Problem, fractions: np.ndarray) -> np.ndarray:
    """Counts (S,) whose MACs are at most the upper limit, and close to it."""
    sizes, smallest = problem.sizes, problem.smallest.counts
    macs, budget = problem.task.cost.macs_of_counts, problem.limits.upper
    floor = problem.task.count_grid.round_down
    logs = np.log(np.maximum(fractions, 1.0 / (2 * sizes)))

    def target(shift: float) -> np.ndarray:
        return np.clip(np.exp(logs + shift) * sizes, smallest, sizes)

    # At the lower end every group is at its smallest, at the upper end at its largest.
    low = float((np.log(smallest / sizes) - logs).min()) - 1e-9
    high = float(-logs.min()) + 1e-9
    if macs(floor(target(high))) <= budget:
        return sizes.copy()
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if macs(floor(target(middle))) <= budget else (low, middle)
    return problem.task.cost.top_up(floor(target(low)), target(low), budget)


def _scaled_relaxed(problem: Problem, fractions: np.ndarray) -> np.ndarray:
    """Log kept fractions shifted until fractional channels meet the upper limit, (batch, S)."""
    sizes = problem.sizes
    smallest = problem.smallest.counts / sizes
    macs, budget = problem.task.cost.macs_of_counts, problem.limits.upper
    logs = np.log(np.maximum(fractions, 1.0 / (2 * sizes)))
    low = (np.log(smallest) - logs).min(axis=1, keepdims=True)
    high = -logs.min(axis=1, keepdims=True)
    for _ in range(RELAXED_STEPS):
        middle = 0.5 * (low + high)
        kept = np.clip(np.exp(logs + middle), smallest, 1.0)
        fits = np.asarray(macs(kept * sizes))[:, None] <= budget
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.clip(np.exp(logs + low), smallest, 1.0)


def _check(relative_macs: float, cost: str) -> None:
    if not 0.0 < relative_macs <= 1.0:
        raise ValueError(
            f"The budget must be in (0, 1], a fraction of the unpruned network's MACs, got "
            f"{relative_macs}. Change budget.relative_macs."
        )
    if cost not in COSTS:
        raise ValueError(
            f"A budget counts one of {', '.join(COSTS)}, got {cost!r}. Change budget.cost."
        )


def _reachable(relative_macs: float, cost: str, base: int, smallest: int) -> int:
    """The budget in MACs.

    Raises:
        ValueError: no action leads there.
    """
    upper = math.floor(relative_macs * base + 1e-6)
    if smallest > upper:
        # Rounded up: the number named must itself be accepted.
        reachable = math.ceil(smallest / base * 1e4) / 1e4
        raise ValueError(
            f"The budget of {relative_macs:g} of the {cost} cannot be reached: the smallest "
            f"network these actions lead to has {reachable:.4f}. Raise budget.relative_macs, or "
            f"let actions remove more (env.max_ratio for ratios; patterns, or "
            f"budget.cost=nonzero_macs for masks, with pattern actions; a smaller round_to)."
        )
    return upper
