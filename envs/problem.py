"""What the parts of an environment share: the problem, which stays, and the state, which moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from gymnasium import spaces

from pruning.keep_set import KeepSet
from pruning.plan import Candidate, Decision, PruningPlan
from pruning.task import PruningTask

if TYPE_CHECKING:
    from envs.budgets import Budget, Limits


@dataclass(frozen=True, eq=False)
class Assignment:
    """What every site is assigned; sites not decided yet keep everything.

    Attributes:
        counts: kept channels of each site, int64 (S,).
        patterns: index into the pattern library of each site, int64 (S,); 0 for ratio actions.
        importance: name of the importance whose lowest channels go first; None for the task's own.
    """

    counts: np.ndarray
    patterns: np.ndarray
    importance: str | None = None

    def replace(self, site: int, count: int, pattern: int = 0) -> Assignment:
        """The same with another choice at one site."""
        counts, patterns = self.counts.copy(), self.patterns.copy()
        counts[site], patterns[site] = count, pattern
        return Assignment(counts, patterns, self.importance)


@dataclass(frozen=True, eq=False)
class State:
    """Where an episode stands.

    Attributes:
        step: steps taken.
        site: the site the next action decides; None when it decides all, or at the end.
        assignment: what is assigned now.
        decided: which sites have been decided, bool (S,).
        cost: MACs of the assignment, as the budget counts them.
        quality: likelihood last measured in this episode over that of the unpruned network, in
            [0, 1]; 1 before the first measurement.
    """

    step: int
    site: int | None
    assignment: Assignment
    decided: np.ndarray
    cost: int
    quality: float


class Actions(Protocol):
    """The action part, bound to one task and one kind of episode."""

    @property
    def space(self) -> spaces.Space[Any]:
        """Space of the agent's actions."""

    @property
    def num_patterns(self) -> int:
        """Length of the pattern library; 1 when patterns play no part."""

    def smallest(self, meter: CostMeter) -> Assignment:
        """The cheapest assignment there is."""

    def execute(self, problem: Problem, state: State, action: Any) -> tuple[Assignment, int]:
        """What an action leads to, and at how many sites something else was done than asked."""

    def decisions(self, assignment: Assignment) -> tuple[Decision, ...]:
        """One decision per site."""

    def removed(self, assignment: Assignment) -> np.ndarray:
        """Fraction of each site's weights that is removed, float64 (S,) in [0, 1]."""

    def mask(self, problem: Problem, state: State) -> np.ndarray | None:
        """Allowed choices: bool (P,) for one site, (S, P) for all; None when there is no choice."""

    def encode(self, problem: Problem, state: State, ratios: Mapping[str, float]) -> Any:
        """The action that comes closest to the given pruning ratios per group."""

    def uniform(self, problem: Problem, max_macs: int) -> dict[str, float]:
        """Nearly equal pruning ratios per group with at most `max_macs` MACs."""


class CostMeter:
    """Counts the MACs of an assignment the way the budget wants them counted.

    Args:
        task: what is pruned.
        actions: the bound action part; it turns assignments into decisions.
        kind: "macs" for dense hardware, "nonzero_macs" for those with a weight that is not masked.

    Attributes:
        base: MACs of the unpruned network.
    """

    def __init__(self, task: PruningTask, actions: Actions, kind: str) -> None:
        self._task = task
        self._actions = actions
        self._counts_masks = kind == "nonzero_macs"
        self.base: int = task.cost.base_macs

    def __call__(self, assignment: Assignment) -> int:
        """MACs of one assignment."""
        if self._counts_masks and assignment.patterns.any():
            candidate = self._task.candidate(self._actions.decisions(assignment))
            return nonzero_macs(self._task, candidate)
        return int(self._task.cost.macs_of_counts(assignment.counts))

    def of_options(self, options: Sequence[Assignment]) -> np.ndarray:
        """MACs of several assignments, int64 (len(options),)."""
        if self._counts_masks:
            return np.asarray([self(option) for option in options], dtype=np.int64)
        counts = np.stack([option.counts for option in options])
        return np.asarray(self._task.cost.macs_of_counts(counts), dtype=np.int64)


def nonzero_macs(task: PruningTask, candidate: Candidate) -> int:
    """MACs of the weights of a candidate that are not masked."""
    masks = task.mask_tensors(candidate) if candidate.masks else {}
    return int(task.cost.nonzero_macs(candidate.keep, masks))


@dataclass(frozen=True, eq=False)
class Problem:
    """What never changes while an environment lives.

    Attributes:
        task: what is pruned, and how it is measured.
        is_sequential: whether one site is decided per step.
        horizon: most steps of an episode.
        actions: the bound action part.
        budget: the budget part.
        limits: the budget in MACs of this network.
        meter: counts MACs as the budget wants them.
        smallest: the cheapest assignment; undecided sites are taken to end up there.
    """

    task: PruningTask
    is_sequential: bool
    horizon: int
    actions: Actions
    budget: Budget
    limits: Limits
    meter: CostMeter
    smallest: Assignment

    @property
    def num_sites(self) -> int:
        """Number of sites S, one per dependency group."""
        return len(self.task.sites)

    @property
    def sizes(self) -> np.ndarray:
        """Channels of each site before pruning, int64 (S,)."""
        return group_sizes(self.task)

    def completed(self, state: State) -> Assignment:
        """The current assignment with every undecided site pruned as far as it goes."""
        return Assignment(
            np.where(state.decided, state.assignment.counts, self.smallest.counts),
            np.where(state.decided, state.assignment.patterns, self.smallest.patterns),
            state.assignment.importance,
        )

    def initial(self) -> State:
        """The unpruned network, nothing decided."""
        return State(
            step=0,
            site=0 if self.is_sequential else None,
            assignment=dense(self.task),
            decided=np.zeros(self.num_sites, dtype=bool),
            cost=self.meter.base,
            quality=1.0,
        )

    def with_counts(self, counts: Sequence[int] | np.ndarray) -> Assignment:
        """The assignment that keeps so many channels of each site.

        Args:
            counts: kept channels per site, shape (S,).

        Raises:
            ValueError: actions are patterns, or counts are not allowed.
        """
        if self.actions.num_patterns > 1:
            raise ValueError(
                "Channel counts are no pattern actions. Set env=allocation or env/action=ratio."
            )
        wanted = np.asarray(counts, dtype=np.int64)
        if wanted.shape != self.sizes.shape or (wanted < self.smallest.counts).any():
            raise ValueError(
                f"Wanted are {self.num_sites} kept counts, each at least "
                f"{self.smallest.counts.tolist()}, got {wanted.tolist()}. Lower a count's bound "
                f"with env.max_ratio."
            )
        KeepSet.from_counts(self.task.graph, wanted)  # refuses what round_to or the sizes forbid
        return Assignment(wanted, np.zeros_like(wanted))

    def of_plan(self, plan: PruningPlan) -> Assignment:
        """The assignment that a plan of this problem was made of."""
        of_site = {decision.site: decision for decision in plan.decisions}
        decisions = [of_site[site.name] for site in self.task.sites]
        patterns = [
            0 if d.pattern is None else self.task.library.index(d.pattern) for d in decisions
        ]
        counts = plan.keep_set(self.task.graph).counts
        return Assignment(counts, np.asarray(patterns), decisions[0].importance)

    def successor(self, state: State, assignment: Assignment) -> State:
        """The state after an assignment; its quality is known once it is measured."""
        decided = state.decided.copy()
        site = state.site
        if site is None:
            decided[:] = True
        else:
            decided[site] = True
            site = site + 1 if site + 1 < self.num_sites else None
        return State(
            step=state.step + 1,
            site=site,
            assignment=assignment,
            decided=decided,
            cost=self.meter(assignment),
            quality=state.quality,
        )

    def ends(self, state: State) -> tuple[bool, bool]:
        """Whether a state terminates the episode, and whether it truncates it."""
        is_last = state.step >= self.horizon
        if self.is_sequential or self.horizon == 1:  # nothing would follow one step
            return is_last, False
        terminated = self.budget.can_be_missed and self.limits.met(state.cost)
        return terminated, is_last and not terminated

    def measures(self, state: State) -> bool:
        """Whether a network is measured when it is assessed."""
        return self.budget.evaluate_outside or self.limits.met(state.cost)

    def executed(self, assignment: Assignment) -> tuple[tuple[str, float | str], ...]:
        """Name of each site, and the ratio or the name of the pattern executed there."""
        return tuple(
            (decision.site, value)
            for decision in self.actions.decisions(assignment)
            for value in (decision.pattern, decision.ratio)
            if value is not None
        )


def group_sizes(task: PruningTask) -> np.ndarray:
    """Channels of each site before pruning, int64 (S,)."""
    return np.asarray([group.size for group in task.graph.groups], dtype=np.int64)


def dense(task: PruningTask) -> Assignment:
    """The assignment that removes nothing."""
    sizes = group_sizes(task)
    return Assignment(sizes, np.zeros_like(sizes))
