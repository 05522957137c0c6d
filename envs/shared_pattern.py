"""The action of AutoSculpt's released code: one distribution over patterns for all sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from envs.actions import PatternActions
from envs.problem import Actions, Assignment, Problem, State
from pruning.task import PruningTask

LOWEST, HIGHEST = 0.01, 0.99


@dataclass(frozen=True)
class SharedPatternAction:
    """Weights of the patterns, from which every site draws its own.

    An action is a vector (P,) in [0.01, 0.99], one unnormalised probability per entry of the
    pattern library. It says how often a pattern is used and not where, which is why it cannot learn
    what the paper of AutoSculpt describes (https://arxiv.org/abs/2412.18091); it is here to be
    compared with. What differs from the released code:

    - There every filter draws a pattern, and in each layer the filters of the smallest norm get the
      heaviest of those drawn; here every site draws one for all of its filters.
    - There a 1x1 convolution draws patterns that are counted and not executed; here a site draws
      among the patterns that are valid for it.
    - There the residual stream shares the draw of its first layer; here it is one site.
    - There the draw is random; here its seed is the action, so that the same actions lead to the
      same network and a search can be replayed. With continuous actions the draws are as good as
      independent.
    """

    name = "shared_pattern"

    def bind(self, task: PruningTask, is_sequential: bool) -> Actions:
        """Weights of the patterns of `task`."""
        return SharedPatternActions(task, is_sequential)


class SharedPatternActions(PatternActions):
    """`SharedPatternAction` bound to a task.

    Args:
        task: what is pruned.
        is_sequential: whether an action is drawn from for one site, or for all.
    """

    def __init__(self, task: PruningTask, is_sequential: bool) -> None:
        super().__init__(task, is_sequential)
        self.space = spaces.Box(LOWEST, HIGHEST, (self.num_patterns,), np.float32)

    def execute(self, problem: Problem, state: State, action: Any) -> tuple[Assignment, int]:
        """Draw a pattern for the site, or for every site; none is drawn that is not allowed."""
        weights = np.asarray(action, dtype=np.float32)
        if weights.shape != self.space.shape or not np.isfinite(weights).all():
            raise ValueError(
                f"An action must be a finite array of shape {self.space.shape}, got {action!r}."
            )
        weights = np.clip(weights, LOWEST, HIGHEST)
        rng = np.random.default_rng(np.frombuffer(weights.tobytes(), dtype=np.uint32))
        mask = self.mask(problem, state)
        assert mask is not None
        allowed = np.atleast_2d(mask)
        shares = np.where(allowed, weights, 0.0).astype(np.float64)
        shares /= shares.sum(axis=1, keepdims=True)
        if state.site is not None:  # another draw at every site, also for equal actions
            rng = np.random.default_rng([*np.frombuffer(weights.tobytes(), np.uint32), state.site])
        choices = [rng.choice(self.num_patterns, p=share) for share in shares]
        return super().execute(problem, state, np.asarray(choices, dtype=np.int64))

    def encode(self, problem: Problem, state: State, ratios: Mapping[str, float]) -> np.ndarray:
        """Nearly always the channel pattern that is nearest to the mean of the ratios."""
        mean = sum(ratios.values()) / max(1, len(ratios))
        weights = np.full(self.num_patterns, LOWEST, dtype=np.float32)
        weights[self._closest(mean, np.ones(self.num_patterns, dtype=bool))] = HIGHEST
        return weights
