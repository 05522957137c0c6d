"""PPO and A2C of SB3 for short searches: they learn from how an outcome ranks among recent ones."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.local_start import STARTS, check_start
from agents.ranking import rank_utilities


class RanksMixin:
    """Replaces the rewards of a rollout by the ranks of their outcomes, and returns by outcomes.

    An outcome is a reward other than 0, or one that ends an episode. Its utility is that of its
    rank among the last `window` outcomes, see `agents.ranking`. Missing a budget band costs several
    times what separates two good networks; as raw rewards those penalties drown the differences a
    search is about.

    The return of a step is the utility of the next outcome, at that step or later in its episode:
    in `whole` episodes each step assigns every site anew and is worth what it led to; in layerwise
    ones all steps of an episode share its end. So there is no discount and no GAE.

    Args:
        power: exponent of the rank, above 0; higher cares for the best outcomes only.
        window: number of outcomes remembered, at least 2.
    """

    rewards: np.ndarray
    values: np.ndarray
    returns: np.ndarray
    advantages: np.ndarray
    episode_starts: np.ndarray
    buffer_size: int

    def __init__(self, *args: Any, power: float, window: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.power = power
        self._outcomes: deque[float] = deque(maxlen=window)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Fill returns and advantages.

        Args:
            last_values: values of the observation after the rollout, which stand in for the
                outcome of an episode that goes on.
            dones: whether the last step ended the episode of each environment.
        """
        ends = np.concatenate([self.episode_starts[1:], np.asarray(dones)[None]]).astype(bool)
        is_outcome = ends | (self.rewards != 0)
        self._outcomes.extend(self.rewards[is_outcome].tolist())
        following = last_values.clone().cpu().numpy().flatten()
        utilities = self._utilities(self.rewards)
        for step in reversed(range(self.buffer_size)):
            following = np.where(is_outcome[step], utilities[step], following)
            self.returns[step] = following
        self.advantages = self.returns - self.values

    def _utilities(self, rewards: np.ndarray) -> np.ndarray:
        known = np.fromiter(self._outcomes, dtype=np.float64)
        return rank_utilities(rewards, known, self.power)


class RankedRolloutBuffer(RanksMixin, RolloutBuffer):
    """Rollout buffer of ranked outcomes, for vector observations."""


class RankedDictRolloutBuffer(RanksMixin, DictRolloutBuffer):
    """Rollout buffer of ranked outcomes, for Dict observations."""


class NormalisedReturnsBuffer(DictRolloutBuffer):
    """Plain returns, scaled to mean 0 and variance 1 over a rollout, as AutoSculpt's code has them.

    There is no GAE, and the rewards of an episode that goes on after the rollout are not estimated:
    `gae_lambda` is not used (https://github.com/jlx15588/AutoSculpt). Advantages are the returns
    less the values.
    """

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Fill returns and advantages; `last_values` is not used."""
        ends = np.concatenate([self.episode_starts[1:], np.asarray(dones)[None]]).astype(bool)
        following = np.zeros(self.n_envs)
        for step in reversed(range(self.buffer_size)):
            following = self.rewards[step] + self.gamma * np.where(ends[step], 0.0, following)
            self.returns[step] = following
        self.returns = (self.returns - self.returns.mean()) / (self.returns.std() + 1e-7)
        self.advantages = self.returns - self.values


class RankedOutcomes(OnPolicyAlgorithm):
    """SB3's on-policy agents with ranked outcomes.

    Args:
        policy: see SB3.
        env: see SB3.
        rank_power: exponent of the rank, see `RanksMixin`; None learns from the rewards
            themselves, with SB3's `gamma` and `gae_lambda`, which are not used otherwise.
        rank_window: outcomes among which one is ranked.
        start: one of `agents.local_start.STARTS`: the plan that the first mean of an
            `agents.allocation_policy.AllocationPolicy` stands for; other policies begin as they
            were made, "uniform".
        kwargs: further arguments of the SB3 agent.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        rank_power: float | None = 8.0,
        rank_window: int = 128,
        start: str = "uniform",
        **kwargs: Any,
    ) -> None:
        check_start(start)
        if (rank_power is not None and rank_power <= 0) or rank_window < 2:
            raise ValueError(
                f"rank_power={rank_power}, rank_window={rank_window}: wanted are a power above 0, "
                "or null, and a window of at least 2. Change them in the agent config."
            )
        self.rank_power = rank_power
        self.rank_window = rank_window
        self.start = start
        super().__init__(policy, env, **kwargs)

    def _setup_model(self) -> None:
        if self.rank_power is not None and self.env is not None:
            check_ranks(self.env)
        if self.rank_power is not None and self.rollout_buffer_class is None:
            self.rollout_buffer_class = self._ranked_buffer_class()  # type: ignore[assignment]
            self.rollout_buffer_kwargs = {"power": self.rank_power, "window": self.rank_window}
        super()._setup_model()
        if self.start != "uniform" and self.env is not None:  # a saved agent has its weights
            self._start_policy()

    def _start_policy(self) -> None:
        centre = getattr(self.policy, "centre", None)
        if centre is None:
            raise ValueError(
                f"agent.start={self.start} sets the mean of an AllocationPolicy, and the policy "
                f"is {type(self.policy).__name__}. Set env=allocation, or agent.start=uniform."
            )
        assert self.env is not None
        (observation,) = self.env.env_method("first_observation", indices=[0])
        seed = int(self.seed or 0)
        centre(observation, STARTS[self.start](self.env, seed))

    def _ranked_buffer_class(self) -> type[RanksMixin]:
        is_dict = isinstance(self.observation_space, spaces.Dict)
        return RankedDictRolloutBuffer if is_dict else RankedRolloutBuffer


def check_ranks(env: VecEnv) -> None:
    """Refuse an environment that pays on the way: its small change is no outcome to be ranked.

    Raises:
        ValueError: it does.
    """
    if any(getattr(inner, "pays_every_step", False) for inner in env.get_attr("unwrapped")):
        raise ValueError(
            "Outcomes are ranked at the end of an episode, and this environment pays at every "
            "step. Set agent.rank_power=null agent.gae_lambda=0.9, or env/shaping=none."
        )


class PPO(RankedOutcomes, stable_baselines3.PPO):
    """SB3's PPO-Clip (https://arxiv.org/abs/1707.06347) on ranked outcomes."""


class A2C(RankedOutcomes, stable_baselines3.A2C):
    """SB3's A2C (https://arxiv.org/abs/1602.01783) on ranked outcomes."""
