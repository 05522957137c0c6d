"""DDPG and TD3 of SB3 for short searches: no bootstrapping, noise that decays by episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm


class _ReturnsMixin:
    """Turns the rewards of an episode into returns as soon as it ends.

    A search of a few hundred episodes has no time to bootstrap a reward that comes with the last
    step through all steps before it. Like AMC, which gives the final reward to every transition of
    the episode (released code of https://arxiv.org/abs/1802.03494), each transition gets what
    followed it; unlike AMC's its target ends there (`dones` is 1), so the critic learns the return
    itself and not the return times the steps left.
    """

    rewards: np.ndarray
    dones: np.ndarray
    timeouts: np.ndarray
    pos: int
    buffer_size: int

    def __init__(self, *args: Any, gamma: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gamma = gamma
        self._episode: list[int] = []

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: Any,
        reward: Any,
        done: Any,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of one environment."""
        self._episode.append(self.pos)
        super().add(obs, next_obs, action, reward, done, infos)  # type: ignore[misc]
        if done[0]:
            following = 0.0
            for position in reversed(self._episode[-self.buffer_size :]):
                following = float(self.rewards[position, 0]) + self.gamma * following
                self.rewards[position] = following
                self.dones[position] = 1.0
                self.timeouts[position] = 0.0
            self._episode = []


class ReturnReplayBuffer(_ReturnsMixin, ReplayBuffer):
    """Replay buffer of returns, for vector observations and one environment."""


class ReturnDictReplayBuffer(_ReturnsMixin, DictReplayBuffer):
    """Replay buffer of returns, for Dict observations and one environment."""


class _EpisodeExploration(OffPolicyAlgorithm):
    """AMC's exploration for SB3's deterministic agents.

    Actions of the first `warmup_episodes` are uniform. After that they follow a normal distribution
    around the actor's output, truncated to the action's bounds (drawn again instead of clipped, so
    that no mass piles up at the bounds), whose standard deviation is `sigma * sigma_decay **
    episode`, counted from the end of the warm-up.

    Args:
        policy: see SB3.
        env: see SB3; one environment.
        sigma: standard deviation in the action scaled to [-1, 1]; AMC's 0.5 on [0, 1] is 1.0 here.
        sigma_decay: factor per episode, in (0, 1].
        sigma_min: the standard deviation never falls below this.
        warmup_episodes: episodes of uniform actions.
        kwargs: further arguments of the SB3 agent.

    Raises:
        ValueError: an argument is out of range, or SB3's `action_noise` is given too.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        sigma: float = 1.0,
        sigma_decay: float = 0.98,
        sigma_min: float = 0.02,
        warmup_episodes: int = 30,
        action_noise: ActionNoise | None = None,
        **kwargs: Any,
    ) -> None:
        if action_noise is not None:
            raise ValueError(
                f"{type(self).__name__} makes its own noise: leave agent.action_noise empty and "
                "set agent.sigma."
            )
        if not (sigma > 0 and 0 < sigma_decay <= 1 and 0 <= sigma_min <= sigma):
            raise ValueError(
                f"sigma={sigma}, sigma_decay={sigma_decay}, sigma_min={sigma_min}: wanted are "
                "sigma > 0, sigma_decay in (0, 1] and sigma_min in [0, sigma]. Change them in the "
                "agent config."
            )
        self.sigma = sigma
        self.sigma_decay = sigma_decay
        self.sigma_min = sigma_min
        self.warmup_episodes = warmup_episodes
        super().__init__(policy, env, **kwargs)

    @property
    def current_sigma(self) -> float:
        """Standard deviation of the present episode, in the action scaled to [-1, 1]."""
        decays = max(0, self._episode_num - self.warmup_episodes)
        return max(self.sigma_min, self.sigma * self.sigma_decay**decays)

    def _setup_model(self) -> None:
        if self.replay_buffer_class is None:
            self.replay_buffer_class = (
                ReturnDictReplayBuffer
                if isinstance(self.observation_space, spaces.Dict)
                else ReturnReplayBuffer
            )
            self.replay_buffer_kwargs = {"gamma": self.gamma, **(self.replay_buffer_kwargs or {})}
        super()._setup_model()

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._episode_num < self.warmup_episodes:
            shape = (n_envs, *(self.action_space.shape or ()))
            scaled = np.random.uniform(-1.0, 1.0, shape).astype(np.float32)
        else:
            assert self._last_obs is not None
            mean = self.policy.scale_action(self.predict(self._last_obs, deterministic=True)[0])
            scaled = truncated_normal(mean, self.current_sigma)
        return self.policy.unscale_action(scaled), scaled


class DDPG(_EpisodeExploration, stable_baselines3.DDPG):
    """SB3's DDPG (https://arxiv.org/abs/1509.02971), AMC's exploration, returns as targets."""


class TD3(_EpisodeExploration, stable_baselines3.TD3):
    """SB3's TD3 (https://arxiv.org/abs/1802.09477), AMC's exploration, returns as targets."""


def truncated_normal(mean: np.ndarray, sigma: float) -> np.ndarray:
    """Draw from a normal distribution truncated to [-1, 1].

    NumPy's global generator is used, as in SB3's own noise, because SB3 seeds it.

    Args:
        mean: centre of each entry, in [-1, 1].
        sigma: standard deviation before truncation; 0 gives the mean.

    Returns:
        float32 array of the shape of `mean`.
    """
    if sigma == 0:
        return np.asarray(mean, dtype=np.float32)
    centre = torch.as_tensor(mean, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = normal.cdf((-1 - centre) / sigma), normal.cdf((1 - centre) / sigma)
    uniform = torch.as_tensor(np.random.uniform(size=centre.shape))
    drawn = centre + sigma * normal.icdf(low + uniform * (high - low))
    return drawn.clamp(-1.0, 1.0).numpy().astype(np.float32)
