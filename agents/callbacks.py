"""The one bound that every agent searches under: a number of evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

Progress = Callable[[int, Any], None]
"""Called with the evaluations so far and the best EpisodeRecord (or None) when one changed."""


class EvaluationLimit(BaseCallback):
    """Ends learning when the environment has made so many evaluations, or is out of steps or time.

    SB3 calls it after every environment step, before the agent learns from it, so the number is
    exact also when a rollout is not full. An environment makes at most one evaluation per step;
    several of them keep to the limit themselves, see `envs.vec_env.PruningVecEnv`.

    Args:
        env: the pruning environment; `env.unwrapped` has `num_evaluations` and `best`.
        evaluations: wanted `num_evaluations`.
        max_timesteps: most environment steps of this search.
        minutes: most minutes of wall time, or None.
        progress: called when the number of evaluations or the best record changed.
        clock: seconds now, from any beginning.

    Attributes:
        stop_reason: "evaluations", "max_timesteps", "minutes", or "" while none was reached.
        num_steps: environment steps of this search.
        num_episodes: episodes of this search that ended.
    """

    def __init__(
        self,
        env: Any,
        evaluations: int,
        *,
        max_timesteps: int,
        minutes: float | None = None,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.env = env.unwrapped
        self.evaluations = evaluations
        self.max_timesteps = max_timesteps
        self.minutes = minutes
        self.progress = progress
        self.stop_reason = ""
        self.num_steps = 0
        self.num_episodes = 0
        self._seen: tuple[int, Any] = (self.env.num_evaluations, self.env.best)
        self._clock = clock
        self._started = clock()

    def _on_step(self) -> bool:
        self.num_steps += sum("beyond_limit" not in info for info in self.locals["infos"])
        self.num_episodes += int(sum(self.locals["dones"]))
        self._report()
        if self.env.num_evaluations >= self.evaluations:
            self.stop_reason = "evaluations"
        elif self.num_steps >= self.max_timesteps:
            self.stop_reason = "max_timesteps"
        elif self.minutes is not None and self._clock() - self._started >= 60 * self.minutes:
            self.stop_reason = "minutes"
        return not self.stop_reason

    def _report(self) -> None:
        count, best = self.env.num_evaluations, self.env.best
        if self.progress is not None and (count != self._seen[0] or best is not self._seen[1]):
            self.progress(count, best)
        self._seen = (count, best)
