"""Several pruning environments that share one task, and measure side by side."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from envs.pruning_env import PruningEnv
from pruning.evaluation_pool import EvaluationPool

BEYOND_LIMIT = "beyond_limit"
"""Key of the info of an environment that did not step, because the evaluations were spent."""


class PruningVecEnv(DummyVecEnv):
    """Siblings of one `PruningEnv`: one task, one count of evaluations, one history, one best.

    Environments step in order, here, in this process. With a pool, what they are about to measure
    is measured side by side first; each then finds its measurement ready and counts it. So the
    same actions give the same episodes with any pool, and without one.

    Args:
        env: the first environment; the others are its siblings.
        num_envs: number of environments, at least 1.
        pool: measures side by side; None measures one after the other. Closed with this object.

    Raises:
        ValueError: too few environments.
    """

    def __init__(self, env: PruningEnv, num_envs: int, pool: EvaluationPool | None = None) -> None:
        if num_envs < 1:
            raise ValueError(f"vec_env.num_envs must be 1 or more, got {num_envs}.")
        self._pruning_envs = [env, *(env.sibling() for _ in range(num_envs - 1))]
        self._pool = pool
        self._max_evaluations: int | None = None
        monitored: list[gymnasium.Env[Any, Any]] = [Monitor(each) for each in self._pruning_envs]
        super().__init__([lambda each=each: each for each in monitored])  # type: ignore[misc]

    def limit_evaluations(self, evaluations: int | None) -> None:
        """From this many counted evaluations on, environments stand still; None for no limit.

        The number is met exactly: environments whose turn comes later in the same vector step
        neither step nor measure. Theirs are the last observation, reward 0, not done, and
        BEYOND_LIMIT in the info.
        """
        self._max_evaluations = evaluations

    def step_wait(self) -> VecEnvStepReturn:
        """Measure what the actions lead to, then step the environments in order."""
        self._prepare()
        for index, env in enumerate(self.envs):
            if self._num_left() == 0:
                self.buf_rews[index], self.buf_dones[index] = 0.0, False
                self.buf_infos[index] = {BEYOND_LIMIT: True}
                continue
            observation, reward, terminated, truncated, info = env.step(self.actions[index])
            info["TimeLimit.truncated"] = truncated and not terminated
            if terminated or truncated:
                info["terminal_observation"] = observation
                observation, self.reset_infos[index] = env.reset()
            self.buf_rews[index] = reward
            self.buf_dones[index] = terminated or truncated
            self.buf_infos[index] = info
            self._save_obs(index, observation)
        rewards, dones = np.copy(self.buf_rews), np.copy(self.buf_dones)
        return self._obs_from_buf(), rewards, dones, deepcopy(self.buf_infos)

    def close(self) -> None:
        """End the pool and close the sinks."""
        if self._pool is not None:
            self._pool.close()
        super().close()

    def _num_left(self) -> int | None:
        """Evaluations until the limit, at least 0; None without a limit."""
        if self._max_evaluations is None:
            return None
        return max(0, self._max_evaluations - self._pruning_envs[0].num_evaluations)

    def _prepare(self) -> None:
        """Have the pool measure what is new, as far as the limit allows."""
        if self._pool is None:
            return
        evaluator = self._pruning_envs[0].task.evaluator
        foreseen = [
            env.foresee(action)
            for env, action in zip(self._pruning_envs, self.actions, strict=True)
        ]
        new = dict.fromkeys(c for c in foreseen if c is not None and not evaluator.has(c))
        measured = list(new)[: self._num_left()]
        images = [evaluator.images_ahead(ahead) for ahead in range(len(measured))]
        evaluator.prepare(self._pool.measure(measured, images))
