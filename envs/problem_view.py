"""What agents may ask of an environment beside stepping in it: nothing here changes anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.actions import RatioActions
from envs.observations import View
from envs.problem import Problem, State
from envs.shaping import BoundShaping

if TYPE_CHECKING:
    from envs.budgets import Limits
    from envs.recording import EpisodeLog, EpisodeRecord
    from pruning.task import PruningTask


class ProblemView:
    """The questions of `envs.pruning_env.PruningEnv`."""

    task: PruningTask
    _log: EpisodeLog
    _problem: Problem
    _state: State
    _view: View
    _mask: np.ndarray | None
    _shaping: BoundShaping | None

    @property
    def history(self) -> list[EpisodeRecord]:
        """A record of every finished episode, those of siblings included."""
        return self._log.history

    @property
    def best(self) -> EpisodeRecord | None:
        """The measured network within budget that had the highest reward; None before the first.

        Of any step of any episode, those of siblings included.
        """
        return self._log.best

    @property
    def num_evaluations(self) -> int:
        """Counted evaluations of the task; all that share the task count together."""
        return self.task.evaluator.num_evaluations

    @property
    def horizon(self) -> int:
        """Most steps of an episode."""
        return self._problem.horizon

    @property
    def pays_every_step(self) -> bool:
        """Whether layerwise steps are paid before the last one, see `envs.shaping`."""
        return self._shaping is not None

    @property
    def limits(self) -> Limits:
        """The budget in MACs of this network."""
        return self._problem.limits

    @property
    def smallest_counts(self) -> np.ndarray:
        """Fewest channels that the actions can leave in each group, int64 (S,)."""
        return self._problem.smallest.counts.copy()

    def action_masks(self) -> np.ndarray:
        """Which choices are allowed now, flat as sb3-contrib's MaskablePPO wants it.

        Returns:
            bool array of shape (P,) layerwise, (S * P,) in whole episodes.

        Raises:
            ValueError: actions are ratios, which have no mask.
        """
        if self._mask is None:
            raise ValueError(
                "Ratio actions have no mask. Set env/action=pattern, or take an agent that needs "
                "no mask."
            )
        return self._mask.ravel().copy()

    def encode_ratios(self, ratios: Mapping[str, float]) -> Any:
        """The action of the current step that comes closest to pruning by the given ratios.

        Args:
            ratios: pruning ratio in [0, 1) by group name; groups left out are kept whole.

        Returns:
            An element of the action space. With patterns, the nearest valid channel pattern.

        Raises:
            ValueError: a group that the network does not have.
        """
        for name in ratios:
            self.task.graph.group(name)
        return self._problem.actions.encode(self._problem, self._state, ratios)

    def uniform_ratios(self) -> dict[str, float]:
        """Nearly equal pruning ratios per group that meet the budget; none without a budget."""
        return dict(self._problem.actions.uniform(self._problem, self._problem.limits.upper))

    def largest_ratios(self) -> dict[str, float]:
        """The largest pruning ratio that an action can give each group, in [0, 1)."""
        removed = self._problem.actions.removed(self._problem.smallest)
        return {site.group: float(r) for site, r in zip(self.task.sites, removed, strict=True)}

    def preview(self, actions: np.ndarray, *, rounded: bool = False) -> np.ndarray:
        """The plans that actions for all sites would lead to; nothing is measured.

        For agents that learn what plans are worth.

        Args:
            actions: first actions of an episode, shape (batch, S).
            rounded: whether the plans are in whole channels, exactly as a step would execute them,
                a millisecond each; otherwise hundreds cost a few milliseconds.

        Returns:
            Kept fraction of every site in [0, 1], float64 (batch, S).

        Raises:
            ValueError: the env decides patterns, or one site per step.
        """
        part = self._problem.actions
        if self._problem.is_sequential or not isinstance(part, RatioActions):
            raise ValueError(
                "Only ratios of all sites at once can be previewed. Set env=allocation (or "
                "env/action=ratio env/episode=whole)."
            )
        return part.preview(self._problem, np.asarray(actions), rounded=rounded)

    def local_errors(self, plans: np.ndarray) -> np.ndarray:
        """What plans cost the operators that read each group; see `pruning.local_error`.

        Needs calibration images, once, and no evaluation.

        Args:
            plans: kept fraction of every site in [0, 1], shape (batch, S).

        Returns:
            Relative error of every site, at least 0, float64 (batch, S).

        Raises:
            ValueError: no calibration images, or a network that takes more than one input.
        """
        return self.task.local_errors(plans)

    def finalists(self, number: int) -> list[EpisodeRecord]:
        """The best different plans within budget, by `rank`, that did not see all images yet."""
        return self._log.finalists(number, self.task.base.num_samples)

    def first_observation(self) -> Any:
        """What `reset` returns; the running episode goes on."""
        problem, state = self._problem, self._problem.initial()
        return self._view.observe(state, problem.actions.mask(problem, state))

    def _observe(self) -> Any:
        return self._view.observe(self._state, self._mask)
