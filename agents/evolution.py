"""Evolution strategies, with SB3's interface: the rivals of a learned one-step policy."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from cmaes import CMA
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from agents.baselines import ScriptedAgent
from agents.local_start import STARTS, check_start


class Strategy(Protocol):
    """Asks for the value of one point after the other."""

    @property
    def mean(self) -> np.ndarray:
        """Centre of the search, shape (D,)."""

    def ask(self) -> np.ndarray:
        """The next point, shape (D,); the same until its value is told."""

    def tell(self, value: float) -> None:
        """The value of the point that was asked last; higher is better."""


class CMAStrategy:
    """CMA-ES (https://arxiv.org/abs/1604.00772) of the library `cmaes`; values are told one by one.

    Args:
        mean: where to start, shape (D,).
        space: bounds of the points; what is drawn outside is drawn again.
        sigma: first standard deviation.
        population_size: points per generation, at least 2; None for 4 + floor(3 ln D).
        seed: of the points.
    """

    def __init__(
        self,
        mean: np.ndarray,
        space: spaces.Box,
        *,
        sigma: float,
        population_size: int | None,
        seed: int,
    ) -> None:
        bounds = np.stack([space.low, space.high], axis=1).astype(np.float64)
        self._optimizer = CMA(
            mean=np.clip(mean, bounds[:, 0], bounds[:, 1]),
            sigma=sigma,
            bounds=bounds,
            population_size=population_size,
            seed=seed,
        )
        self._asked: deque[np.ndarray] = deque()
        self._told: list[tuple[np.ndarray, float]] = []

    @property
    def population_size(self) -> int:
        """Points per generation."""
        return int(self._optimizer.population_size)

    @property
    def mean(self) -> np.ndarray:
        """Mean of the distribution, shape (D,)."""
        return self._optimizer.mean.copy()

    def ask(self) -> np.ndarray:
        """A draw from the distribution of this generation."""
        return self.ask_several(1)[0]

    def ask_several(self, count: int) -> list[np.ndarray]:
        """The next points of this generation, in the order in which their values are told."""
        while len(self._asked) < count:
            self._asked.append(self._optimizer.ask())
        return list(self._asked)[:count]

    def tell(self, value: float) -> None:
        """Once the generation is complete, the distribution moves."""
        point = self.ask()
        self._asked.popleft()
        self._told.append((point, -value))
        if len(self._told) == self._optimizer.population_size:
            self._optimizer.tell(self._told)
            self._told = []


class OnePlusOneStrategy:
    """The (1+1) evolution strategy with the one-fifth rule (Rechenberg 1973; Schumer 1968).

    A child is drawn around the parent and takes its place when it is not worse. Sigma grows by
    `factor` after such a success and shrinks by its fourth root otherwise, so that it stays when
    one child of five succeeds.

    Args:
        mean: the first parent, measured first, shape (D,).
        space: bounds of the points; what is drawn outside is moved to the bound.
        sigma: first standard deviation.
        factor: growth of sigma after a success, at least 1.
        seed: of the points.
    """

    def __init__(
        self, mean: np.ndarray, space: spaces.Box, *, sigma: float, factor: float, seed: int
    ) -> None:
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._rng = np.random.default_rng(seed)
        self._parent = np.clip(mean, self._low, self._high)
        self._value = -math.inf
        self._sigma = sigma
        self._factor = factor
        self._asked: np.ndarray | None = self._parent

    @property
    def mean(self) -> np.ndarray:
        """The parent, shape (D,)."""
        return self._parent.copy()

    @property
    def sigma(self) -> float:
        """Standard deviation of the next child."""
        return self._sigma

    def ask(self) -> np.ndarray:
        """The next child; first of all the first parent."""
        if self._asked is None:
            step = self._sigma * self._rng.standard_normal(len(self._parent))
            self._asked = np.clip(self._parent + step, self._low, self._high)
        return self._asked

    def tell(self, value: float) -> None:
        """Keep the better of parent and child, and adapt sigma."""
        is_first, is_better = self._value == -math.inf, value >= self._value
        if is_better:
            self._parent, self._value = self.ask(), value
        if not is_first:
            self._sigma *= self._factor if is_better else self._factor**-0.25
        self._asked = None


class EvolutionAgent(ScriptedAgent, ABC):
    """Lets a strategy decide all groups in one step, and tells it the reward.

    What the environment knows already costs no evaluation and is told like any other reward. A
    saved agent holds its seed, its start and the rewards, and asks and tells them again when it is
    loaded: a few milliseconds, and nothing of the library's own state is written.

    Args:
        env: an environment whose episodes are one step with a Box action of one entry per group.
        sigma: first standard deviation; actions lie in [-1, 1].
        seed: same seed, same episodes; None draws one.
        start: one of `agents.local_start.STARTS`, the plan that the search begins at.

    Raises:
        ValueError: a setting is out of range, or the environment has other episodes or actions.
    """

    def __init__(self, env: Any, *, sigma: float, seed: int | None, start: str = "uniform") -> None:
        check_start(start)
        if not 0.0 < sigma < math.inf:
            raise ValueError(f"sigma={sigma}: wanted is a number above 0. Change agent.sigma.")
        self.sigma = sigma
        self.start = start
        self._start: np.ndarray | None = None
        self._rewards: list[float] = []
        self._strategy: Strategy | None = None
        self._strategy_seed = int(np.random.default_rng(seed).integers(2**31))
        super().__init__(env, lambda env, rng: self._ask(env), seed=seed)

    def set_env(self, env: Any) -> None:
        """Attach an environment.

        Raises:
            ValueError: it does not decide all groups in one step, or holds several environments.
        """
        super().set_env(env)
        vec_env = self._attached_env()
        space = vec_env.action_space
        horizon = vec_env.get_attr("horizon")[0] if vec_env.has_attr("horizon") else 1
        is_sequential = getattr(
            getattr(vec_env.observation_space, "topology", None), "is_sequential", False
        )
        if not isinstance(space, spaces.Box) or horizon != 1 or is_sequential:
            self.env = None
            raise ValueError(
                f"{type(self).__name__} decides all groups in one continuous action, and episodes "
                f"here have up to {horizon} steps with actions in {space}. Set env=allocation "
                f"(or env/action=ratio budget=project env/episode=whole env.max_steps=1)."
            )

    def start_at(self, action: np.ndarray) -> None:
        """Begin the search at an action, whatever `start` says.

        Args:
            action: shape (S,).

        Raises:
            ValueError: the search has begun, or the action has another shape.
        """
        space = self._attached_env().action_space
        if self._rewards:
            raise ValueError("The search has begun: choose where it starts before.")
        if np.shape(action) != space.shape:
            raise ValueError(
                f"A start of shape {np.shape(action)} is no action of shape {space.shape}."
            )
        self._start = np.asarray(action, dtype=np.float64)
        self._strategy = None

    def _recommended(self, env: VecEnv) -> np.ndarray:
        """The centre of the search, at first its start."""
        space = env.action_space
        assert isinstance(space, spaces.Box), "checked by set_env"
        return np.clip(self._searching(env).mean, space.low, space.high).astype(np.float32)

    @abstractmethod
    def _make_strategy(self, start: np.ndarray, space: spaces.Box) -> Strategy:
        """The strategy at its beginning."""

    def _ask(self, env: VecEnv) -> np.ndarray:
        return self._searching(env).ask().astype(np.float32)

    def _take_in(self, action: np.ndarray, reward: float, done: bool) -> None:
        if not done:
            raise ValueError(
                f"{type(self).__name__} needs episodes of one step, and this one goes on. "
                f"Set env.max_steps=1, or env=allocation."
            )
        assert self._strategy is not None, "a step without a question"
        self._strategy.tell(reward)
        self._rewards.append(reward)

    def _searching(self, env: VecEnv) -> Strategy:
        """The strategy, built at its start when it is first needed."""
        if self._strategy is None:
            if self._start is None:
                self._start = STARTS[self.start](env, self._strategy_seed).astype(np.float64)
            space = env.action_space
            assert isinstance(space, spaces.Box), "checked by set_env"
            self._strategy = self._make_strategy(self._start, space)
            for reward in self._rewards:
                self._strategy.ask()
                self._strategy.tell(reward)
        return self._strategy

    def _settings(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "start": self.start}

    def _memory(self) -> dict[str, Any]:
        return {
            "seed": self._strategy_seed,
            "start": None if self._start is None else self._start.tolist(),
            "rewards": self._rewards,
        }

    def _remember(self, memory: dict[str, Any]) -> None:
        start: Sequence[float] | None = memory["start"]
        self._strategy_seed = memory["seed"]
        self._start = None if start is None else np.asarray(start, dtype=np.float64)
        self._rewards = list(memory["rewards"])
        self._strategy = None


class CMAESAgent(EvolutionAgent):
    """CMA-ES (https://arxiv.org/abs/1604.00772).

    Args:
        env: an environment whose episodes are one step with a Box action of one entry per group.
        sigma: first standard deviation, above 0; actions lie in [-1, 1].
        population_size: plans per generation, at least 2; None for 4 + floor(3 ln(groups)).
        start: see `EvolutionAgent`.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: same seed, same episodes; None draws one.
        verbose: not used.

    Raises:
        ValueError: a setting is out of range, or the environment has other episodes or actions.
    """

    def __init__(
        self,
        env: Any,
        *,
        sigma: float = 0.3,
        population_size: int | None = 6,
        start: str = "uniform",
        policy: Any = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        if population_size is not None and population_size < 2:
            raise ValueError(
                f"population_size={population_size}: wanted is 2 or more, or null. "
                f"Change agent.population_size."
            )
        self.population_size = population_size
        super().__init__(env, sigma=sigma, seed=seed, start=start)

    def _make_strategy(self, start: np.ndarray, space: spaces.Box) -> CMAStrategy:
        return CMAStrategy(
            start,
            space,
            sigma=self.sigma,
            population_size=self.population_size,
            seed=self._strategy_seed,
        )

    def _check_number(self, num_envs: int) -> None:
        """A generation is drawn at once, so its plans can be measured side by side."""

    def _actions(self, env: VecEnv) -> np.ndarray:
        strategy = self._searching(env)
        assert isinstance(strategy, CMAStrategy), "made above"
        if strategy.population_size % env.num_envs:
            raise ValueError(
                f"A generation of {strategy.population_size} plans cannot be shared out equally "
                f"among vec_env.num_envs={env.num_envs} environments. Set agent.population_size "
                "to a multiple of vec_env.num_envs."
            )
        return np.stack(strategy.ask_several(env.num_envs)).astype(np.float32)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "population_size": self.population_size}


class OnePlusOneAgent(EvolutionAgent):
    """The (1+1) evolution strategy with the one-fifth rule.

    Args:
        env: an environment whose episodes are one step with a Box action of one entry per group.
        sigma: first standard deviation, above 0; actions lie in [-1, 1].
        factor: growth of sigma after a success, at least 1; 1 keeps sigma.
        start: see `EvolutionAgent`.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: same seed, same episodes; None draws one.
        verbose: not used.

    Raises:
        ValueError: a setting is out of range, or the environment has other episodes or actions.
    """

    def __init__(
        self,
        env: Any,
        *,
        sigma: float = 0.3,
        factor: float = 1.5,
        start: str = "uniform",
        policy: Any = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        if not 1.0 <= factor < math.inf:
            raise ValueError(
                f"factor={factor}: wanted is a number of at least 1. Change agent.factor."
            )
        self.factor = factor
        super().__init__(env, sigma=sigma, seed=seed, start=start)

    def _make_strategy(self, start: np.ndarray, space: spaces.Box) -> OnePlusOneStrategy:
        return OnePlusOneStrategy(
            start, space, sigma=self.sigma, factor=self.factor, seed=self._strategy_seed
        )

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "factor": self.factor}
