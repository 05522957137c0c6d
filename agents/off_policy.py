"""DDPG, TD3 and SAC of SB3 for short searches: no bootstrapping, a start at the uniform plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from agents.ranking import moments
from agents.replay import ReturnDictReplayBuffer, ReturnReplayBuffer

WARMUPS = ("uniform", "noise")
"""How actions of the warm-up are drawn."""


class _ShortSearch(OffPolicyAlgorithm):
    """SB3's off-policy agents with returns as targets, perhaps ranked, and a chosen start.

    Args:
        policy: see SB3.
        env: see SB3; one environment.
        rank_power: every stored outcome counts by its rank among all of them, see
            `agents.replay`; None for the rewards themselves.
        warm_start: whether the actor's first output is the uniform plan, whatever it observes.
        actor_learning_rate: of the actor, above 0, where it differs from that of the critic; None
            for `learning_rate`, which is SB3's.
        kwargs: further arguments of the SB3 agent.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        rank_power: float | None = None,
        warm_start: bool = False,
        actor_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        if actor_learning_rate is not None and not actor_learning_rate > 0.0:
            raise ValueError(
                f"The actor's learning rate must be positive, got {actor_learning_rate}. "
                f"Change agent.actor_learning_rate."
            )
        if rank_power is not None and not rank_power > 0.0:
            raise ValueError(
                f"rank_power={rank_power}: wanted is a power above 0, or null for plain rewards. "
                "Change agent.rank_power."
            )
        self.rank_power = rank_power
        self.warm_start = warm_start
        self.actor_learning_rate = actor_learning_rate
        super().__init__(policy, env, **kwargs)

    def _setup_model(self) -> None:
        if self.replay_buffer_class is None:
            self.replay_buffer_class = self._buffer_class()
            self.replay_buffer_kwargs = {
                "rank_power": self.rank_power,
                **self._buffer_arguments(),
                **(self.replay_buffer_kwargs or {}),
            }
        super()._setup_model()
        if self.warm_start and self.env is not None:
            self._start_at(self._uniform_action())

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        if self.actor_learning_rate is not None:
            actor: Any = self.policy.actor
            update_learning_rate(actor.optimizer, self.actor_learning_rate)

    def _buffer_class(self) -> Any:
        is_dict = isinstance(self.observation_space, spaces.Dict)
        return ReturnDictReplayBuffer if is_dict else ReturnReplayBuffer

    def _buffer_arguments(self) -> dict[str, Any]:
        return {"gamma": self.gamma}

    def _uniform_action(self) -> np.ndarray:
        """The action of the uniform plan, scaled to [-1, 1]; layerwise that of its mean ratio."""
        env = self.env
        assert env is not None, "asked with an environment only"
        (ratios,) = env.env_method("uniform_ratios", indices=0)
        if np.prod(self.action_space.shape or (1,)) < len(ratios):
            ratios = dict.fromkeys(ratios, float(np.mean(list(ratios.values()))))
        (action,) = env.env_method("encode_ratios", ratios, indices=0)
        return np.asarray(self.policy.scale_action(np.asarray(action)))

    def _start_at(self, action: np.ndarray) -> None:
        """Make an action in [-1, 1] the actor's output for every observation."""
        policy: Any = self.policy
        _set_output(policy.actor.mu[-2], policy.actor.mu[-1], action)
        policy.actor_target.load_state_dict(policy.actor.state_dict())


def _set_output(layer: nn.Linear, squash: nn.Module, action: np.ndarray) -> None:
    """Let a last layer give an action, whatever comes in; its weights begin at 0 and learn.

    Args:
        layer: gives what is squashed.
        squash: tanh, or a module whose `inverse` undoes it.
        action: shape (layer.out_features,), in [-1, 1]; at most 0.99 of either bound is taken.
    """
    wanted = torch.as_tensor(np.clip(action, -0.99, 0.99), dtype=torch.float32)
    inverse = getattr(squash, "inverse", torch.atanh)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(inverse(wanted))


class _EpisodeExploration(_ShortSearch):
    """AMC's exploration for SB3's deterministic agents.

    Actions of the first `warmup_episodes` are uniform, or follow the actor with constant noise.
    After that they follow a normal distribution around the actor's output, truncated to the
    action's bounds (drawn again instead of clipped, so that no mass piles up at the bounds), whose
    standard deviation is `sigma * sigma_decay ** episode`, counted from the end of the warm-up.

    Args:
        policy: see SB3.
        env: see SB3; one environment.
        warmup: "uniform" or "noise": how actions of the warm-up are drawn.
        warmup_episodes: episodes of the warm-up.
        sigma: standard deviation in the action scaled to [-1, 1]; AMC's 0.5 on [0, 1] is 1.0 here.
        sigma_decay: factor per episode, in (0, 1].
        sigma_min: the standard deviation never falls below this.
        imitation: weight of the squared distance between the actor's actions and those in the
            replay buffer, each weighted by the rank of its outcome to the power of
            `imitation_power`, at least 0. It keeps the actor where plans were measured: a critic
            that has seen a hundred of them is wrong at the bounds, which is where its gradient
            leads (TD3+BC, https://arxiv.org/abs/2106.06860, with ranks as weights). Needs
            `rank_power`.
        imitation_power: above 0; higher follows the best plans only.
        kwargs: further arguments, see `_ShortSearch`.

    Raises:
        ValueError: an argument is out of range, or SB3's `action_noise` is given too.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        warmup: str = "uniform",
        warmup_episodes: int = 30,
        sigma: float = 1.0,
        sigma_decay: float = 0.98,
        sigma_min: float = 0.02,
        imitation: float = 0.0,
        imitation_power: float = 8.0,
        action_noise: ActionNoise | None = None,
        **kwargs: Any,
    ) -> None:
        if action_noise is not None:
            raise ValueError(
                f"{type(self).__name__} makes its own noise: leave agent.action_noise empty and "
                "set agent.sigma."
            )
        if warmup not in WARMUPS:
            raise ValueError(
                f"warmup is one of {', '.join(WARMUPS)}, got {warmup!r}. Change agent.warmup."
            )
        if not (sigma > 0 and 0 < sigma_decay <= 1 and 0 <= sigma_min <= sigma):
            raise ValueError(
                f"sigma={sigma}, sigma_decay={sigma_decay}, sigma_min={sigma_min}: wanted are "
                "sigma > 0, sigma_decay in (0, 1] and sigma_min in [0, sigma]. Change them in the "
                "agent config."
            )
        if not (imitation >= 0.0 and imitation_power > 0.0):
            raise ValueError(
                f"imitation={imitation}, imitation_power={imitation_power}: wanted are 0 or more "
                "and a power above 0. Change them in the agent config."
            )
        if imitation > 0.0 and kwargs.get("rank_power") is None:
            raise ValueError(
                f"imitation={imitation} weighs actions by the rank of their outcome, and "
                "rank_power is null. Set agent.rank_power, or agent.imitation=0."
            )
        self.imitation = imitation
        self.imitation_power = imitation_power
        self.warmup = warmup
        self.warmup_episodes = warmup_episodes
        self.sigma = sigma
        self.sigma_decay = sigma_decay
        self.sigma_min = sigma_min
        super().__init__(policy, env, **kwargs)

    @property
    def current_sigma(self) -> float:
        """Standard deviation of the present episode, in the action scaled to [-1, 1]."""
        decays = max(0, self._episode_num - self.warmup_episodes)
        return max(self.sigma_min, self.sigma * self.sigma_decay**decays)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.warmup == "uniform" and self._episode_num < self.warmup_episodes:
            shape = (n_envs, *(self.action_space.shape or ()))
            scaled = np.random.uniform(-1.0, 1.0, shape).astype(np.float32)
        else:
            assert self._last_obs is not None
            mean = self.policy.scale_action(self.predict(self._last_obs, deterministic=True)[0])
            scaled = truncated_normal(mean, self.current_sigma)
        return self.policy.unscale_action(scaled), scaled

    def _actor_loss(self, batch: Any) -> Tensor:
        """Minus the value of the actor's actions on a batch, and imitation, ()."""
        policy: Any = self.policy
        actions = policy.actor(batch.observations)
        loss = -policy.critic.q1_forward(batch.observations, actions).mean()
        if self.imitation == 0.0:
            return loss
        return loss + self.imitation * self._distance(actions, batch)

    def _distance(self, actions: Tensor, batch: Any) -> Tensor:
        """Squared distance from the actions taken, averaged over the well ranked of them, ()."""
        assert self.rank_power is not None, "checked by the constructor"
        mean, deviation = moments(self.rank_power)
        powered = (batch.rewards[:, 0] * deviation + mean).clamp(min=0.0)  # rank ** rank_power
        weights = powered ** (self.imitation_power / self.rank_power)
        squares = (actions - batch.actions).pow(2).sum(dim=1)
        return (weights * squares).sum() / weights.sum().clamp(min=1e-12)


class _Imitation(_EpisodeExploration):
    """Updates of SB3's deterministic agents with imitation, for which theirs have no place.

    Returns are the targets, so nothing reads target networks, and they are left as they are.

    Raises:
        ValueError: with imitation, updates come within episodes, whose returns are not known yet.
    """

    policy_delay: int

    def _setup_model(self) -> None:
        super()._setup_model()
        frequency: Any = self.train_freq
        if self.imitation > 0.0 and frequency.unit is not TrainFrequencyUnit.EPISODE:
            raise ValueError(
                f"imitation={self.imitation} learns from whole episodes, and updates come every "
                f"{frequency.frequency} steps. Set agent.train_freq to [1, episode], or "
                "agent.imitation=0."
            )

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update the critics, and the actor every `policy_delay` of these updates.

        Args:
            gradient_steps: number of updates.
            batch_size: transitions per update.
        """
        if self.imitation == 0.0:
            super().train(gradient_steps, batch_size)
            return
        policy, buffer = self.policy, self.replay_buffer
        assert isinstance(policy, TD3Policy)
        assert isinstance(buffer, ReturnReplayBuffer | ReturnDictReplayBuffer)
        policy.set_training_mode(True)
        actor, critic = policy.actor, policy.critic
        self._update_learning_rate([actor.optimizer, critic.optimizer])
        losses: dict[str, list[Tensor]] = {"train/critic_loss": [], "train/actor_loss": []}
        for batch in buffer.sample_several(gradient_steps, batch_size, self._vec_normalize_env):
            self._n_updates += 1
            values = critic(batch.observations, batch.actions)
            critic_loss = torch.stack([(value - batch.rewards).pow(2).mean() for value in values])
            descend(critic.optimizer, critic_loss.sum(), list(critic.parameters()))
            losses["train/critic_loss"].append(critic_loss.sum().detach())
            if self._n_updates % self.policy_delay == 0:
                actor_loss = self._actor_loss(batch)
                descend(actor.optimizer, actor_loss, list(actor.parameters()))
                losses["train/actor_loss"].append(actor_loss.detach())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, values in losses.items():
            if values:
                self.logger.record(name, float(torch.stack(values).mean()))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[Tensor]) -> None:
    """One step of an optimiser; only the gradients that it reads are computed."""
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    optimizer.step()


class DDPG(_Imitation, stable_baselines3.DDPG):
    """SB3's DDPG (https://arxiv.org/abs/1509.02971), AMC's exploration, returns as targets."""


class TD3(_Imitation, stable_baselines3.TD3):
    """SB3's TD3 (https://arxiv.org/abs/1802.09477), AMC's exploration, returns as targets.

    With returns as targets there is no bootstrapped value to smooth or to take the least of two
    of: what is left of TD3 is an actor that is updated half as often.
    """


class SAC(_ShortSearch, stable_baselines3.SAC):
    """SB3's SAC (https://arxiv.org/abs/1801.01290), returns as targets.

    Args:
        policy: see SB3.
        env: see SB3; one environment.
        sigma: with `warm_start`, the first standard deviation of the policy before its tanh; there
            are no uniform actions at the start then.
        kwargs: further arguments, see `_ShortSearch` and SB3.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, policy: Any, env: Any, *, sigma: float = 0.35, **kwargs: Any) -> None:
        if not sigma > 0.0:
            raise ValueError(f"sigma={sigma}: wanted is a number above 0. Change agent.sigma.")
        self.sigma = sigma
        super().__init__(policy, env, **kwargs)

    def _start_at(self, action: np.ndarray) -> None:
        actor: Any = self.policy.actor
        _set_output(actor.mu, nn.Tanh(), action)
        with torch.no_grad():
            actor.log_std.weight.zero_()
            actor.log_std.bias.fill_(np.log(self.sigma))

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        return super()._sample_action(0 if self.warm_start else learning_starts, None, n_envs)


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
