"""The end of a search whose agent only repeats itself."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback

from envs.pruning_env import PruningEnv


class Patience(BaseCallback):
    """Ends a search after so many episodes in a row whose plan was known before.

    Known plans are free, so the bound on evaluations alone never ends an agent that has converged.

    Args:
        env: the environment of the search.
        episodes: episodes in a row, at least 1; None waits for ever.

    Attributes:
        is_exhausted: whether it ended the search.
    """

    def __init__(self, env: PruningEnv, episodes: int | None) -> None:
        super().__init__()
        self.env = env
        self.episodes = episodes
        self.is_exhausted = False
        self._seen = 0
        self._evaluations = env.num_evaluations
        self._repeats = 0

    def _on_step(self) -> bool:
        for record in self.env.history[self._seen :]:
            if record.evaluations > self._evaluations:
                self._evaluations = record.evaluations
                self._repeats = 0
            elif record.cached:  # an episode outside a budget band is neither new nor known
                self._repeats += 1
        self._seen = len(self.env.history)
        self.is_exhausted = self.episodes is not None and self._repeats >= self.episodes
        return not self.is_exhausted
