"""What agents need of an environment in which one action is a whole plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from agents.baselines import ScriptedAgent, uniform_action


class WholePlanAgent(ScriptedAgent):
    """Proposes whole plans and reads what became of each; the common part of such agents.

    A plan outside the budget's band is not measured, so it costs a proposal and no evaluation.

    Args:
        env: an environment whose episodes are one step that decides all groups, and whose budget
            is a band.
        seed: accepted so that every agent takes the same arguments.

    Raises:
        ValueError: the environment is another one.
    """

    action_spaces: tuple[type[spaces.Space], ...] = (spaces.Box,)

    def __init__(self, env: Any, *, seed: int | None = None) -> None:
        super().__init__(env, lambda env, rng: self._propose(env), seed=seed)

    def set_env(self, env: Any) -> None:
        """Attach an environment.

        Raises:
            ValueError: it does not take whole plans in one step, or its budget is no band.
        """
        super().set_env(env)
        vec_env = self._attached_env()
        pruning_env = self.pruning_env(vec_env)
        num_sites = len(pruning_env.task.sites)
        is_whole = isinstance(vec_env.action_space, self.action_spaces) and (
            vec_env.action_space.shape == (num_sites,)
        )
        if not is_whole or pruning_env.horizon != 1:
            self.env = None
            raise ValueError(
                f"{type(self).__name__} decides all groups in one step, and episodes here have up "
                f"to {pruning_env.horizon} steps with actions in {vec_env.action_space}. "
                f"Set env=ratios (or env/episode=whole env.max_steps=1, and an env/action that "
                f"fits)."
            )
        if pruning_env.limits.lower <= 0:
            self.env = None
            raise ValueError(
                f"{type(self).__name__} looks for plans whose MACs lie in a band, and the budget "
                f"here has no lower edge. Set budget=tolerance or budget=band."
            )

    @staticmethod
    def pruning_env(env: VecEnv) -> Any:
        """The environment behind the wrappers."""
        return env.get_attr("unwrapped")[0]

    def _recommended(self, env: VecEnv) -> np.ndarray:
        """The best plan so far, at first the uniform one."""
        ratios = self._best_ratios()
        return uniform_action(env, self.rng) if ratios is None else self._encode(env, ratios)

    def _encode(self, env: VecEnv, ratios: Mapping[str, float]) -> np.ndarray:
        (action,) = env.env_method("encode_ratios", ratios)
        return np.asarray(action)

    def _propose(self, env: VecEnv) -> np.ndarray:
        """The action that `_has_next` prepared."""
        raise AssertionError("an agent that proposes nothing")

    def _best_ratios(self) -> Mapping[str, float] | None:
        """Pruning ratio by group of the best plan so far, or None before the first in the band."""
        return None
