"""Network Slimming (https://arxiv.org/abs/1708.06519): one threshold on all batch-norm scales."""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.count_search import CountSpace
from agents.magnitude import MagnitudeAgent


class SlimmingAgent(MagnitudeAgent):
    """Removes the channels with the smallest batch-norm scales of all: one evaluation.

    The scales are those of the network as it is, not normalised. The method wants them to come from
    training with a penalty on them: `sparse_training=slimming`, before anything is pruned.

    Args:
        env: an environment with ratio (or allocation) actions and a budget, whose task ranks
            channels by `bn_gamma`.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: as in SB3; the result does not depend on it.
        verbose: not used.

    Raises:
        ValueError: the task ranks channels by something else, or the environment has pattern
            actions or no budget.
    """

    def __init__(
        self, env: Any, *, policy: Any = None, seed: int | None = None, verbose: int = 0
    ) -> None:
        super().__init__(env, normalise="none", seed=seed)

    def set_env(self, env: Any) -> None:
        """Attach an environment.

        Raises:
            ValueError: as at the class.
        """
        super().set_env(env)
        (task,) = self._attached_env().get_attr("task")
        if task.criterion != "bn_gamma":
            self.env = None
            raise ValueError(
                f"SlimmingAgent removes channels by their batch-norm scale, and here "
                f"importance.criterion={task.criterion}. Set importance=bn_gamma."
            )

    def _scores(self, space: CountSpace) -> list[np.ndarray]:
        groups = space.task.graph.groups
        return [np.asarray(space.task.scores[group.name], float) for group in groups]

    def _settings(self) -> dict[str, Any]:
        return {}
