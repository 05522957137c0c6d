"""The action part: from what the agent says to what every site is assigned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from envs.pattern_projection import project_patterns
from envs.problem import Actions, Assignment, CostMeter, Problem, State, dense, group_sizes
from pruning.keep_set import kept_count
from pruning.plan import Decision
from pruning.task import PruningTask


class Action(Protocol):
    """What an agent may do."""

    @property
    def name(self) -> str:
        """Name of the option in conf/env/action."""

    def bind(self, task: PruningTask, is_sequential: bool) -> Actions:
        """The action part for one task; sequential means one site per step."""


@dataclass(frozen=True)
class RatioAction:
    """A continuous pruning ratio: for one site per step, or for all sites at once.

    Actions lie in [-1, 1], as SB3 wants them, and map linearly to [0, max_ratio].

    Args:
        max_ratio: largest fraction of a group's channels removed, in (0, 1).
    """

    max_ratio: float = 0.8

    name = "ratio"

    def __post_init__(self) -> None:
        if not 0.0 < self.max_ratio < 1.0:
            raise ValueError(
                f"The largest pruning ratio must be in (0, 1), got {self.max_ratio}. "
                f"Change env.max_ratio."
            )

    def bind(self, task: PruningTask, is_sequential: bool) -> Actions:
        """Ratios for the groups of `task`."""
        return RatioActions(task, is_sequential, self.max_ratio)


class RatioActions:
    """`RatioAction` bound to a task.

    Args:
        task: what is pruned.
        is_sequential: whether an action is one ratio, shape (1,), or all of them, shape (S,).
        max_ratio: largest fraction removed.
    """

    num_patterns = 1

    def __init__(self, task: PruningTask, is_sequential: bool, max_ratio: float) -> None:
        self._task = task
        self._is_sequential = is_sequential
        self._max_ratio = max_ratio
        self._sizes = group_sizes(task)
        length = 1 if is_sequential else len(task.sites)
        self.space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (length,), np.float32)

    def smallest(self, meter: CostMeter) -> Assignment:
        """Every group at `max_ratio`, or at its min_keep."""
        ratios = np.full(len(self._sizes), self._max_ratio)
        return Assignment(self._counts(ratios), np.zeros_like(self._sizes))

    def execute(self, problem: Problem, state: State, action: Any) -> tuple[Assignment, int]:
        """Round the ratios to allowed channel counts and let the budget bound them."""
        asked = self._asked(problem, state, action)
        ratios = np.clip(asked, 0.0, self._max_ratio)
        if state.site is None:
            wanted = self._counts(ratios)
            counts = problem.budget.fit(problem, 1.0 - asked, wanted)
            return Assignment(counts, state.assignment.patterns), int((counts != wanted).sum())
        site = state.site
        wanted_count = kept_count(self._task.graph.groups[site], float(ratios[0]))
        others = problem.completed(state).counts
        count = problem.budget.largest_count(problem, others, site, wanted_count)
        assignment = state.assignment.replace(site, count)
        if site + 1 < problem.num_sites:
            return assignment, int(count != wanted_count)
        # Only now all is decided that a projection scales; every other budget changes nothing.
        decided = assignment.counts
        counts = problem.budget.fit(problem, decided / self._sizes, decided)
        clamps = int(count != wanted_count) + int((counts != decided).sum())
        return Assignment(counts, assignment.patterns), clamps

    def decisions(self, assignment: Assignment) -> tuple[Decision, ...]:
        """Ratios that round to exactly the counts assigned."""
        return tuple(
            Decision(site.name, None, float(ratio), assignment.importance)
            for site, ratio in zip(self._task.sites, self.removed(assignment), strict=True)
        )

    def removed(self, assignment: Assignment) -> np.ndarray:
        """Pruning ratio of each site."""
        return (self._sizes - assignment.counts) / self._sizes

    def mask(self, problem: Problem, state: State) -> np.ndarray | None:
        """None: every ratio is allowed."""
        return None

    def preview(self, problem: Problem, actions: np.ndarray, *, rounded: bool) -> np.ndarray:
        """Kept fractions (batch, S) of a batch of first actions (batch, S)."""
        start = problem.initial()
        if rounded:
            plans = [self.execute(problem, start, action)[0].counts for action in actions]
            return np.stack(plans) / self._sizes
        asked = np.stack([1.0 - self._asked(problem, start, action) for action in actions])
        return problem.budget.relax(problem, asked)

    def encode(self, problem: Problem, state: State, ratios: Mapping[str, float]) -> np.ndarray:
        """The given ratios, at most `max_ratio`, as an action for the current step."""
        sites = self._task.sites if state.site is None else (self._task.sites[state.site],)
        values = np.asarray([ratios.get(site.group, 0.0) for site in sites])
        scaled = 2.0 * np.clip(values / self._max_ratio, 0.0, 1.0) - 1.0
        return scaled.astype(np.float32)

    def uniform(self, problem: Problem, max_macs: int) -> dict[str, float]:
        """One kept fraction for all groups, topped up channel by channel (or `round_to`)."""
        counts = np.asarray(self._task.uniform_counts(max_macs))
        ratios = (self._sizes - counts) / self._sizes
        return {site.group: float(r) for site, r in zip(self._task.sites, ratios, strict=True)}

    def _asked(self, problem: Problem, state: State, action: Any) -> np.ndarray:
        """The pruning ratios that an action asks for."""
        return (self._values(action) + 1.0) / 2.0 * self._max_ratio

    def _values(self, action: Any) -> np.ndarray:
        """The action, float64 in [-1, 1]; values outside count as the nearest end."""
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self.space.shape or not np.isfinite(values).all():
            raise ValueError(
                f"An action must be a finite array of shape {self.space.shape}, got {action!r}."
            )
        return np.clip(values, -1.0, 1.0)

    def _counts(self, ratios: np.ndarray) -> np.ndarray:
        groups = self._task.graph.groups
        counts = [kept_count(g, float(r)) for g, r in zip(groups, ratios, strict=True)]
        return np.asarray(counts, dtype=np.int64)


@dataclass(frozen=True)
class PatternAction:
    """One entry of the pattern library: for one site per step, or for all sites at once.

    A choice that is not valid is executed as the nearest valid milder channel pattern, else as the
    dense one, and counted in `clamps`. Behind a wall, where mild choices may be shut out, the
    mildest one that fits takes its place. A budget may scale the whole plan, see
    `envs.pattern_projection`.
    """

    name = "pattern"

    def bind(self, task: PruningTask, is_sequential: bool) -> Actions:
        """Patterns for the groups of `task`."""
        return PatternActions(task, is_sequential)


class PatternActions:
    """`PatternAction` bound to a task.

    Args:
        task: what is pruned.
        is_sequential: whether an action is one index, or one per site.
    """

    def __init__(self, task: PruningTask, is_sequential: bool) -> None:
        self._task = task
        self._library = task.library
        self._is_sequential = is_sequential
        self._sizes = group_sizes(task)
        num_sites, self.num_patterns = len(task.sites), len(task.library)
        self._valid = np.asarray(task.valid, dtype=bool)
        self._ratios = np.asarray([pattern.channel_ratio for pattern in task.library])
        # Index 0, the dense pattern, counts as a channel pattern that removes nothing.
        self._is_channel = (self._ratios > 0.0) | (np.arange(self.num_patterns) == 0)
        self._counts = np.asarray(
            [[kept_count(g, float(ratio)) for ratio in self._ratios] for g in task.graph.groups],
            dtype=np.int64,
        )
        self._known_severities: dict[tuple[int, int], float] = {}
        self._known_uniform: dict[int, dict[str, float]] = {}
        self._known_fractions: dict[str, np.ndarray] = {}
        self.space: spaces.Space[Any] = (
            spaces.Discrete(self.num_patterns)
            if is_sequential
            else spaces.MultiDiscrete([self.num_patterns] * num_sites)
        )

    def smallest(self, meter: CostMeter) -> Assignment:
        """At every site the valid pattern that is cheapest with all other sites dense."""
        start = dense(self._task)
        patterns = []
        for site in range(len(self._sizes)):
            valid = np.flatnonzero(self._valid[site])
            options = [start.replace(site, int(self._counts[site, p]), int(p)) for p in valid]
            patterns.append(valid[np.argmin(meter.of_options(options))])
        return self._assignment(np.asarray(patterns, dtype=np.int64))

    def execute(self, problem: Problem, state: State, action: Any) -> tuple[Assignment, int]:
        """Replace what is not allowed by the nearest that is."""
        choices = self._choices(action)
        allowed = self.mask(problem, state)
        assert allowed is not None
        if state.site is None:
            executed = np.asarray(
                [self._nearest(site, p, allowed[site]) for site, p in enumerate(choices)]
            )
            executed = self._scaled(problem, executed)
            return self._assignment(executed), int((executed != choices).sum())
        pattern = self._nearest(state.site, int(choices[0]), allowed)
        count = int(self._counts[state.site, pattern])
        assignment = state.assignment.replace(state.site, count, pattern)
        clamps = int(pattern != choices[0])
        if state.site + 1 < problem.num_sites:
            return assignment, clamps
        # Only now all is decided that is scaled, see RatioActions.
        decided = assignment.patterns
        scaled = self._scaled(problem, decided)
        return self._assignment(scaled), clamps + int((scaled != decided).sum())

    def decisions(self, assignment: Assignment) -> tuple[Decision, ...]:
        """The patterns by name."""
        return tuple(
            Decision(site.name, self._library[int(p)].name, None, assignment.importance)
            for site, p in zip(self._task.sites, assignment.patterns, strict=True)
        )

    def removed(self, assignment: Assignment) -> np.ndarray:
        """Fraction of the site's channels removed; with a mask, of its weights."""
        return np.asarray(
            [self._severity(site, int(p)) for site, p in enumerate(assignment.patterns)]
        )

    def mask(self, problem: Problem, state: State) -> np.ndarray | None:
        """What is valid at the site, and within the budget's wall; at the end only dense."""
        if not self._is_sequential:
            return self._valid.copy()
        if state.site is None:
            return np.arange(self.num_patterns) == 0
        site, allowed = state.site, self._valid[state.site].copy()
        others = problem.completed(state)
        valid = np.flatnonzero(allowed)
        options = [others.replace(site, int(self._counts[site, p]), int(p)) for p in valid]
        allowed[valid] = problem.budget.allowed(problem, options)
        assert allowed.any(), "the budget has shut out every pattern"
        return allowed

    def encode(self, problem: Problem, state: State, ratios: Mapping[str, float]) -> Any:
        """The allowed channel pattern nearest to each ratio; the milder of two equally near."""
        allowed = self.mask(problem, state)
        assert allowed is not None
        sites = self._task.sites
        if self._is_sequential:
            site = 0 if state.site is None else state.site
            return np.int64(self._closest(ratios.get(sites[site].group, 0.0), allowed))
        return np.asarray(
            [self._closest(ratios.get(s.group, 0.0), allowed[i]) for i, s in enumerate(sites)],
            dtype=np.int64,
        )

    def uniform(self, problem: Problem, max_macs: int) -> dict[str, float]:
        """One ratio for all groups, rounded to channel patterns; the error is passed on.

        Of 401 ratios, the one whose rounded network is the largest with at most `max_macs`.
        """
        if max_macs not in self._known_uniform:
            self._known_uniform[max_macs] = self._most_uniform(problem, max_macs)
        return self._known_uniform[max_macs]

    def _most_uniform(self, problem: Problem, max_macs: int) -> dict[str, float]:
        best, best_macs = self.smallest(problem.meter).patterns, -1
        for ratio in np.linspace(0.0, float(self._ratios.max()), 401):
            patterns = self._diffused(ratio)
            macs = int(self._task.cost.macs_of_counts(self._assignment(patterns).counts))
            if best_macs < macs <= max_macs:
                best, best_macs = patterns, macs
        return {
            site.group: float(self._ratios[p])
            for site, p in zip(self._task.sites, best, strict=True)
        }

    def _diffused(self, ratio: float) -> np.ndarray:
        """Channel patterns (S,) whose ratios average to `ratio`; rounding errors are passed on."""
        owed, patterns = 0.0, []
        for valid in self._valid:
            patterns.append(self._closest(ratio + owed, valid))
            owed += ratio - self._ratios[patterns[-1]]
        return np.asarray(patterns, dtype=np.int64)

    def _closest(self, ratio: float, allowed: np.ndarray) -> int:
        """The allowed channel pattern of the nearest ratio, or the first allowed of any kind."""
        choices = np.flatnonzero(allowed & self._is_channel)
        if not len(choices):
            return int(np.flatnonzero(allowed)[0])
        distance = np.round(np.abs(self._ratios[choices] - ratio), 9)
        return int(choices[np.lexsort((self._ratios[choices], distance))[0]])

    def _nearest(self, site: int, choice: int, allowed: np.ndarray) -> int:
        """The choice itself, else the nearest milder channel pattern, else the mildest of all."""
        if allowed[choice]:
            return choice
        milder = np.flatnonzero(allowed & self._is_channel & (self._ratios <= self._ratios[choice]))
        if len(milder):
            return int(milder[np.argmax(self._ratios[milder])])
        options = np.flatnonzero(allowed)
        return int(options[np.argmin([self._severity(site, int(p)) for p in options])])

    def _scaled(self, problem: Problem, patterns: np.ndarray) -> np.ndarray:
        """What the budget makes of a whole choice of valid patterns, (S,)."""
        if not problem.budget.scales(problem, self._assignment(patterns)):
            return patterns
        kept = self._kept_fractions(problem.budget.cost)

        def fits(choices: np.ndarray) -> bool:
            return problem.meter(self._assignment(choices)) <= problem.limits.upper

        return project_patterns(kept, patterns, self._is_channel, fits)

    def _kept_fractions(self, cost: str) -> np.ndarray:
        """What each pattern keeps of a site, as the budget counts it; nan where invalid, (S, P)."""
        if cost not in self._known_fractions:
            kept = self._counts / self._sizes[:, None]
            if cost == "nonzero_macs":
                for site, pattern in zip(*np.nonzero(self._valid), strict=True):
                    kept[site, pattern] = 1.0 - self._severity(int(site), int(pattern))
            self._known_fractions[cost] = np.where(self._valid, kept, np.nan)
        return self._known_fractions[cost]

    def _assignment(self, patterns: np.ndarray) -> Assignment:
        return Assignment(self._counts[np.arange(len(patterns)), patterns], patterns)

    def _choices(self, action: Any) -> np.ndarray:
        """Indices, int64 (1,) or (S,)."""
        choices = np.atleast_1d(np.asarray(action))
        length = 1 if self._is_sequential else len(self._sizes)
        is_integer = np.issubdtype(choices.dtype, np.integer)
        if choices.shape != (length,) or not is_integer:
            raise ValueError(
                f"An action must be {length} pattern indices, got {action!r} of shape "
                f"{choices.shape}."
            )
        if choices.min() < 0 or choices.max() >= self.num_patterns:
            raise ValueError(
                f"Pattern indices go from 0 to {self.num_patterns - 1} "
                f"({', '.join(self._library.names)}), got {action!r}."
            )
        return choices.astype(np.int64)

    def _severity(self, site: int, pattern: int) -> float:
        """Fraction of a site's channels that a pattern removes; with a mask, of its weights."""
        key = (site, pattern)
        if key not in self._known_severities:
            channels = float(1.0 - self._counts[site, pattern] / self._sizes[site])
            self._known_severities[key] = max(channels, self._masked(site, pattern))
        return self._known_severities[key]

    def _masked(self, site: int, pattern: int) -> float:
        """Fraction of a site's weights that a pattern masks."""
        if self._is_channel[pattern]:
            return 0.0
        alone = dense(self._task).replace(site, int(self._sizes[site]), pattern)
        masks = self._task.mask_tensors(self._task.candidate(self.decisions(alone)))
        num_weights = sum(mask.numel() for mask in masks.values())
        num_kept = sum(int(mask.count_nonzero()) for mask in masks.values())
        return 1.0 - num_kept / num_weights if num_weights else 0.0
