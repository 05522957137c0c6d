"""An environment whose outcomes a reward model imagines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class Preview:
    """The plans that actions of an environment lead to.

    Args:
        env: holds environments with `preview`, see `envs.pruning_env.PruningEnv`.
    """

    def __init__(self, env: VecEnv) -> None:
        self._env = env

    def __call__(self, actions: np.ndarray, *, rounded: bool) -> np.ndarray:
        """Kept fractions (batch, S) of actions (batch, S)."""
        (plans,) = self._env.env_method("preview", actions, rounded=rounded, indices=[0])
        return plans


class ImaginedVecEnv(VecEnv):
    """Many one-step episodes at once; nothing is measured, a model says what a plan is worth.

    Args:
        observation: the one observation, that of the unpruned network.
        observation_space: its space.
        action_space: one entry per site.
        num_envs: episodes at once.
        preview: gives the plan of an action.

    Attributes:
        observation: as given.
        preview: as given.
        worth: gives the rewards (batch,) of plans (batch, S); set before the first step.
    """

    def __init__(
        self,
        observation: Any,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        *,
        num_envs: int,
        preview: Preview,
    ) -> None:
        self.render_mode = None  # asked for by the constructor below
        super().__init__(num_envs, observation_space, action_space)
        self.observation = observation
        self.preview = preview
        self.worth: Callable[[np.ndarray], np.ndarray] | None = None
        self._observations = _repeated(observation, num_envs)
        self._actions = np.zeros((num_envs, *action_space.shape), dtype=np.float32)

    def reset(self) -> Any:
        """The one observation, for every episode."""
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        """Take one action per episode."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Imagine what the actions are worth; every episode ends."""
        assert self.worth is not None, "there is no model yet"
        rewards = self.worth(self.preview(self._actions, rounded=False)).astype(np.float32)
        dones = np.ones(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        return self._observations, rewards, dones, infos

    def close(self) -> None:
        """There is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of this object, once per episode asked for."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of this object; all episodes share it."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of this object, once per episode asked for."""
        method = getattr(self, method_name)
        return [method(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No episode is wrapped."""
        return [False for _ in self._get_indices(indices)]


def _repeated(observation: Any, times: int) -> Any:
    if isinstance(observation, Mapping):
        return {key: _repeated(value, times) for key, value in observation.items()}
    return np.repeat(np.asarray(observation)[None], times, axis=0)
