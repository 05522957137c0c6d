"""Agents that follow a rule, with SB3's interface: what learned policies are compared with."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import is_vectorized_observation
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

STATE_FORMAT = 2
_STATE_FILE = "agent.json"

Choose = Callable[[VecEnv, np.random.Generator], np.ndarray]
"""Gives the action of the current step of the first environment."""

Agent = TypeVar("Agent", bound="ScriptedAgent")


class ScriptedAgent:
    """Rolls out episodes whose actions follow a rule, with the interface of an SB3 agent.

    Args:
        env: a Gymnasium env, or a VecEnv; None to attach one later with `set_env`.
        choose: the rule.
        max_episodes: `learn` ends after so many episodes, None for no bound.
        seed: seed of the rule's generator and of the env's first reset.

    Attributes:
        num_timesteps: environment steps of the last `learn`.
    """

    def __init__(
        self,
        env: Any,
        choose: Choose,
        *,
        max_episodes: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.env: VecEnv | None = None
        self.seed = seed
        self.max_episodes = max_episodes
        self.num_timesteps = 0
        self.rng = np.random.default_rng(seed)
        self._choose = choose
        self._logger = Logger(folder=None, output_formats=[])
        if env is not None:
            self.set_env(env)

    @property
    def logger(self) -> Logger:
        """SB3's logger; silent until `set_logger`."""
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Log to `logger` from now on."""
        self._logger = logger

    def get_env(self) -> VecEnv | None:
        """The environment, as the VecEnv that SB3's callbacks expect."""
        return self.env

    def set_env(self, env: Any) -> None:
        """Attach an environment.

        Raises:
            ValueError: it holds several environments, and this agent decides for one.
        """
        vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
        self._check_number(vec_env.num_envs)
        if self.seed is not None:
            vec_env.seed(self.seed)
        self.env = vec_env

    def learn(
        self: Agent,
        total_timesteps: int,
        callback: BaseCallback | Sequence[BaseCallback] | None = None,
        log_interval: int | None = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Agent:
        """Roll out episodes; what is learned of them is up to the agent. Arguments as in SB3.

        Args:
            total_timesteps: most environment steps.
            callback: called after every step, and ends the search when it returns False.
            log_interval: not used.
            tb_log_name: not used.
            reset_num_timesteps: start counting steps from 0.
            progress_bar: show SB3's progress bar.

        Returns:
            The agent.
        """
        env = self._attached_env()
        callbacks = CallbackList(
            [callback] if isinstance(callback, BaseCallback) else list(callback or ())
        )
        if progress_bar:
            callbacks.callbacks.append(ProgressBarCallback())
        if reset_num_timesteps:
            self.num_timesteps = 0
        self._total_timesteps = self.num_timesteps + total_timesteps  # read by SB3's progress bar
        num_episodes = 0
        env.reset()
        callbacks.init_callback(self)  # type: ignore[arg-type]
        callbacks.on_training_start(locals(), globals())
        callbacks.on_rollout_start()
        while self.num_timesteps < self._total_timesteps and num_episodes != self.max_episodes:
            outcome = self._advance(env)
            if outcome is None:
                break
            stepped = [
                bool(done)
                for done, info in zip(outcome["dones"], outcome["infos"], strict=True)
                if "beyond_limit" not in info  # the environment stood still
            ]
            self.num_timesteps += len(stepped)
            num_episodes += sum(stepped)
            callbacks.update_locals(outcome)
            if not callbacks.on_step():
                break
        callbacks.on_rollout_end()
        callbacks.on_training_end()
        return self

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """What the agent would do in the attached env; the observation is not read."""
        env = self._attached_env()
        action = self._recommended(env)
        vectorised = is_vectorized_observation(observation, env.observation_space)
        return (action[None] if vectorised else action), state

    def save(self, path: str | Path) -> None:
        """Write what `load` needs as JSON in a zip.

        Args:
            path: the file; ".zip" is added when it has no suffix.
        """
        state = {
            "format": STATE_FORMAT,
            "agent": type(self).__name__,
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "rng": self.rng.bit_generator.state,
            "settings": self._settings(),
            "memory": self._memory(),
        }
        with zipfile.ZipFile(_with_suffix(path), "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_STATE_FILE, json.dumps(state))

    @classmethod
    def load(cls: type[Agent], path: str | Path, env: Any = None) -> Agent:
        """Read what `save` wrote; runs no code of the file.

        Raises:
            ValueError: the file was not written by this class.
        """
        path = _with_suffix(path)
        try:
            with zipfile.ZipFile(path) as archive:
                state = json.loads(archive.read(_STATE_FILE))
        except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} does not hold a {cls.__name__}: {error}") from error
        if state.get("format") != STATE_FORMAT or state.get("agent") != cls.__name__:
            raise ValueError(
                f"{path} does not hold a {cls.__name__} of format {STATE_FORMAT}: it holds a "
                f"{state.get('agent')!r} of format {state.get('format')!r}."
            )
        agent = cls(env, seed=state["seed"], **state["settings"])
        agent.num_timesteps = state["num_timesteps"]
        agent.rng.bit_generator.state = state["rng"]
        agent._remember(state["memory"])
        return agent

    def _check_number(self, num_envs: int) -> None:
        """Refuse several environments; agents that can decide for them replace this.

        Raises:
            ValueError: there are several.
        """
        if num_envs != 1:
            raise ValueError(
                f"{type(self).__name__} decides for one environment, and was given {num_envs}. "
                "Set vec_env=dummy vec_env.num_envs=1."
            )

    def _actions(self, env: VecEnv) -> np.ndarray:
        """One action per environment, shape (num_envs, ...)."""
        return self._choose(env, self.rng)[None]

    def _advance(self, env: VecEnv) -> dict[str, Any] | None:
        """Take one step; what SB3's callbacks read of it, or None when there is nothing to try."""
        if not self._has_next(env):
            return None
        actions = self._actions(env)
        new_obs, rewards, dones, infos = env.step(actions)
        for action, reward, done, info in zip(actions, rewards, dones, infos, strict=True):
            if "beyond_limit" not in info:
                self._take_in(action, float(reward), bool(done))
        return {"new_obs": new_obs, "rewards": rewards, "dones": dones, "infos": infos}

    def _has_next(self, env: VecEnv) -> bool:
        """Whether there is something left to try; asked before every step."""
        return True

    def _recommended(self, env: VecEnv) -> np.ndarray:
        """The action that `predict` gives: that of the current step, or of the best plan so far."""
        return self._choose(env, self.rng)

    def _take_in(self, action: np.ndarray, reward: float, done: bool) -> None:
        """Learn from one step; agents that only follow a rule do not."""

    def _settings(self) -> dict[str, Any]:
        """Further arguments of the constructor, as JSON takes them."""
        return {}

    def _memory(self) -> Any:
        """What was learned, as JSON takes it."""
        return None

    def _remember(self, memory: Any) -> None:
        """Take over what `_memory` gave."""

    def _attached_env(self) -> VecEnv:
        if self.env is None:
            raise ValueError(f"{type(self).__name__} has no environment: call set_env first.")
        return self.env


class UniformAgent(ScriptedAgent):
    """Prunes all groups by one ratio that meets the budget, and stops after that one episode.

    Args:
        env: a pruning environment.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: as in SB3; the result does not depend on it.
        verbose: not used.
    """

    def __init__(
        self, env: Any, *, policy: Any = None, seed: int | None = None, verbose: int = 0
    ) -> None:
        super().__init__(env, uniform_action, max_episodes=1, seed=seed)


class RandomAgent(ScriptedAgent):
    """Draws every action uniformly from the action space, or from what `action_masks` leaves of it.

    The environment treats the actions as those of any other agent, so its budget (`wall`,
    `project`) holds for them.

    Args:
        env: an environment with a Box, Discrete or MultiDiscrete action.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: same seed, same actions.
        verbose: not used.
    """

    def __init__(
        self, env: Any, *, policy: Any = None, seed: int | None = None, verbose: int = 0
    ) -> None:
        super().__init__(env, random_action, seed=seed)

    def _check_number(self, num_envs: int) -> None:
        """Any number will do."""

    def _actions(self, env: VecEnv) -> np.ndarray:
        return np.stack([random_action(env, self.rng, index) for index in range(env.num_envs)])


def uniform_action(env: VecEnv, rng: np.random.Generator) -> np.ndarray:
    """The action that prunes the current group, or all groups, by the uniform ratio."""
    (ratios,) = env.env_method("uniform_ratios", indices=0)
    (action,) = env.env_method("encode_ratios", ratios, indices=0)
    return np.asarray(action)


def random_action(env: VecEnv, rng: np.random.Generator, index: int = 0) -> np.ndarray:
    """A uniform sample of the actions that the environment `index` allows."""
    space = env.action_space
    if isinstance(space, spaces.Box):
        return rng.uniform(space.low, space.high).astype(space.dtype)
    assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete), space
    choices = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec)
    if not env.has_attr("action_masks"):
        return rng.integers(choices).reshape(space.shape).astype(space.dtype)
    (masks,) = env.env_method("action_masks", indices=index)
    allowed = np.split(np.asarray(masks, dtype=bool).ravel(), np.cumsum(choices)[:-1])
    action = [rng.choice(np.flatnonzero(mask)) for mask in allowed]
    return np.asarray(action, dtype=space.dtype).reshape(space.shape)


def _with_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")
