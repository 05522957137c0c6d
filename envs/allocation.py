"""Actions that share out a budget: how much more or less than the uniform plan a group keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.actions import RatioActions
from envs.problem import Actions, Problem, State
from pruning.task import PruningTask


@dataclass(frozen=True)
class AllocationAction:
    """A kept fraction as a factor on that of the uniform plan: for one site, or for all at once.

    An action a in [-1, 1] asks for the fraction `uniform * exp(log_range * a)`. So action 0 is the
    uniform plan, and with `budget=project`, which multiplies all fractions by one common factor
    until the budget is met, the differences between the entries are all that counts.

    Args:
        log_range: natural logarithm of the largest factor, above 0; 1 is from 0.37 to 2.7 times.
        max_ratio: largest fraction of a group's channels removed, in (0, 1).
    """

    log_range: float = 1.0
    max_ratio: float = 0.9

    name = "allocation"

    def __post_init__(self) -> None:
        if not 0.0 < self.log_range <= 10.0:
            raise ValueError(
                f"The logarithm of the largest factor must be in (0, 10], got {self.log_range}. "
                f"Change env.log_range."
            )
        if not 0.0 < self.max_ratio < 1.0:
            raise ValueError(
                f"The largest pruning ratio must be in (0, 1), got {self.max_ratio}. "
                f"Change env.max_ratio."
            )

    def bind(self, task: PruningTask, is_sequential: bool) -> Actions:
        """Factors for the groups of `task`."""
        return AllocationActions(task, is_sequential, self.max_ratio, self.log_range)


class AllocationActions(RatioActions):
    """`AllocationAction` bound to a task.

    Args:
        task: what is pruned.
        is_sequential: whether an action is one factor, shape (1,), or all of them, shape (S,).
        max_ratio: largest fraction removed.
        log_range: natural logarithm of the largest factor.
    """

    def __init__(
        self, task: PruningTask, is_sequential: bool, max_ratio: float, log_range: float
    ) -> None:
        super().__init__(task, is_sequential, max_ratio)
        self._log_range = log_range
        self._known_uniform: dict[int, np.ndarray] = {}

    def encode(self, problem: Problem, state: State, ratios: Mapping[str, float]) -> np.ndarray:
        """The given ratios, at most `max_ratio`, as an action for the current step."""
        sites = self._task.sites if state.site is None else (self._task.sites[state.site],)
        removed = np.asarray([ratios.get(site.group, 0.0) for site in sites])
        kept = 1.0 - np.clip(removed, 0.0, self._max_ratio)
        action = np.log(kept / self._uniform_fractions(problem, state)) / self._log_range
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _asked(self, problem: Problem, state: State, action: Any) -> np.ndarray:
        """Pruning ratios; below 0 where more than the whole group is asked for.

        A projection needs to know how much more; everything else takes it for the whole group.
        """
        factors = np.exp(self._log_range * self._values(action))
        return 1.0 - self._uniform_fractions(problem, state) * factors

    def _uniform_fractions(self, problem: Problem, state: State) -> np.ndarray:
        """Kept fractions of the uniform plan, of the current site (1,) or of all sites (S,)."""
        budget = problem.limits.upper
        if budget not in self._known_uniform:
            ratios = self.uniform(problem, budget)
            kept = [1.0 - ratios[site.group] for site in self._task.sites]
            self._known_uniform[budget] = np.asarray(kept)
        fractions = self._known_uniform[budget]
        return fractions if state.site is None else fractions[[state.site]]
