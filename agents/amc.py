"""AMC's DDPG, as in its paper, as in its released code, and corrected: one argument a difference.

"AMC: AutoML for Model Compression and Acceleration on Mobile Devices",
https://arxiv.org/abs/1802.03494; released code: https://github.com/mit-han-lab/amc.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from torch import Tensor
from torch.nn import functional

from agents.off_policy import _EpisodeExploration, descend
from agents.replay import FinalRewardDictReplayBuffer, FinalRewardReplayBuffer

BASELINES = ("batch", "episode", "none")
"""What AMC's reward baseline is a moving average of."""

TRANSITIONS_PER_STEP = 100
"""Size of the replay buffer per step of an episode; released code, option rmsize."""

DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 64,
    "tau": 0.01,
    "gamma": 1.0,
    "train_freq": (1, "episode"),
    "gradient_steps": -1,
}
"""SB3's arguments where AMC, paper and code alike, has other values than SB3."""


class AMC(_EpisodeExploration, stable_baselines3.DDPG):
    """AMC's agent (section 3.2): DDPG that gives the last reward to every step of an episode.

    The critic's target for a transition of an episode that ended with the reward R is

        R - b + gamma * Q'(s', mu'(s'))     bootstrap=True, as paper and released code
        R - b                               bootstrap=False, corrected
        R - b                               for the last transition, always

    where b is a moving average of rewards and primes are target networks. As R is already on every
    transition, bootstrapping with gamma = 1 counts it once for every step that is left: the value
    of the first of L steps is L (R - b), and the noise of all targets adds up in it. Corrected, the
    critic learns the return itself.

    What differs between paper and released code is an argument; so is what both leave open, and so
    is what neither has: `warm_start` and `rank_power` (see `agents.off_policy` and
    `agents.replay`), with which conf/agent/amc.yaml searches.

    | argument | paper | released code |
    |---|---|---|
    | warmup | noise around the actor, constant | uniform actions |
    | warmup_episodes | 100 | 101: its comparison is `<=` |
    | learn_in_warmup | not said; here True | False |
    | sigma of the first episode after it | 0.5 on [0, 1]: 1.0 here | decayed once: 0.95 here |
    | sigma_decay | not said | 0.95 |
    | baseline | average over episodes | average over minibatches |
    | baseline_step | not said | 0.5 |
    | buffer_size | 2000 | None: 100 per step of an episode |
    | replay_first_step | True | False: its sampler never returns first steps |
    | policy_kwargs.action_layer | 2 | 1 |

    Two differences are left: actions are pruning ratios here, scaled to [-1, 1], whose range ends
    at the largest ratio, where AMC's kept ratios below a least one are clipped; and the released
    code updates between storing the transitions of one episode, here it is stored first. As in
    AMC, what is stored is the action the agent chose, not what the budget made of it.

    Args:
        policy: `agents.amc_policy.AMCPolicy`, or one of SB3's TD3.
        env: one environment.
        actor_learning_rate: of the actor, > 0; `learning_rate` is the critic's.
        learn_in_warmup: whether the networks are updated during the warm-up.
        baseline: "batch" or "episode", what b is a moving average of: the mean reward of every
            minibatch, or the reward of every episode, its own included; "none" for b = 0.
        baseline_step: how far b moves to each new value, in (0, 1]; it starts at the first one.
        bootstrap: see above.
        replay_first_step: whether first transitions of episodes are learned from.
        buffer_size: transitions in the replay buffer, >= 1; None for 100 per site of the env's
            task.
        kwargs: further arguments of `agents.off_policy.DDPG`; `DEFAULTS` are AMC's values.

    Attributes:
        reads_last_reward_only: asked by `agents.search.check_agent`: rewards on the way are lost.
        moving_average: the present b, None before the first reward.

    Raises:
        ValueError: an argument is out of range.
    """

    reads_last_reward_only = True

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        actor_learning_rate: float = 1e-4,
        learn_in_warmup: bool = False,
        baseline: str = "batch",
        baseline_step: float = 0.5,
        bootstrap: bool = True,
        replay_first_step: bool = True,
        buffer_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        if baseline not in BASELINES:
            raise ValueError(
                f"baseline is one of {', '.join(BASELINES)}, got {baseline!r}. "
                f"Change agent.baseline."
            )
        if baseline != "none" and kwargs.get("rank_power") is not None:
            raise ValueError(
                f"Ranks have mean 0 already, and the baseline is {baseline!r}. Set "
                "agent.baseline=none, or agent.rank_power=null."
            )
        if not 0.0 < baseline_step <= 1.0:
            raise ValueError(
                f"The step of the baseline must be in (0, 1], got {baseline_step}. "
                f"Change agent.baseline_step."
            )
        if buffer_size is not None and buffer_size < 1:
            raise ValueError(
                f"The replay buffer holds at least 1 transition, got {buffer_size}. "
                f"Change agent.buffer_size."
            )
        self.learn_in_warmup = learn_in_warmup
        self.baseline = baseline
        self.baseline_step = baseline_step
        self.bootstrap = bootstrap
        self.replay_first_step = replay_first_step
        self.moving_average: float | None = None
        super().__init__(
            policy,
            env,
            actor_learning_rate=actor_learning_rate,
            buffer_size=buffer_size or 0,
            **{**DEFAULTS, **kwargs},
        )

    def _setup_model(self) -> None:
        if self.buffer_size == 0:  # none was given
            assert self.env is not None, "a saved agent knows its buffer size"
            (env,) = self.env.get_attr("unwrapped")
            if not hasattr(env, "task"):
                raise ValueError(
                    f"{env} does not say how many steps its episodes have, so the size of the "
                    "replay buffer must be given. Set agent.buffer_size."
                )
            self.buffer_size = TRANSITIONS_PER_STEP * len(env.task.sites)
        super()._setup_model()

    def _buffer_class(self) -> Any:
        is_dict = isinstance(self.observation_space, spaces.Dict)
        return FinalRewardDictReplayBuffer if is_dict else FinalRewardReplayBuffer

    def _buffer_arguments(self) -> dict[str, Any]:
        return {"replay_first_step": self.replay_first_step}

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        # A callback may have stopped the last `learn` in the last step of an episode.
        buffer = self.replay_buffer
        if isinstance(buffer, FinalRewardReplayBuffer | FinalRewardDictReplayBuffer):
            buffer.drop_unfinished()
        return super()._setup_learn(*args, **kwargs)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update critic and actor, each time on a minibatch of finished episodes.

        Args:
            gradient_steps: number of updates.
            batch_size: transitions per update.
        """
        buffer = self.replay_buffer
        assert isinstance(buffer, FinalRewardReplayBuffer | FinalRewardDictReplayBuffer)
        is_warm = self._episode_num > self.warmup_episodes or self.learn_in_warmup
        if not is_warm or buffer.size() == 0:
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.critic.optimizer)
        batches = buffer.sample_several(gradient_steps, batch_size, self._vec_normalize_env)
        losses = torch.stack([self._update(batch) for batch in batches])
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/critic_loss", losses[:, 0].mean())
        self.logger.record("train/actor_loss", losses[:, 1].mean())
        self.logger.record("train/baseline", self.moving_average or 0.0)

    def _update(self, batch: Any) -> Tensor:
        """One update; gives the losses of critic and actor, (2,).

        Only the gradients that an optimiser reads are computed.
        """
        if self.baseline == "batch":
            self._move_average(float(batch.rewards.mean()))
        values = self.critic(batch.observations, batch.actions)[0]
        critic_loss = functional.mse_loss(values, self._targets(batch))
        descend(self.critic.optimizer, critic_loss, list(self.critic.parameters()))
        actor_loss = self._actor_loss(batch)
        descend(self.actor.optimizer, actor_loss, list(self.actor.parameters()))
        if self.bootstrap:  # nothing else reads the target networks
            for network, target in (
                (self.critic, self.critic_target),
                (self.actor, self.actor_target),
            ):
                _follow(list(target.parameters()), list(network.parameters()), self.tau)
        return torch.stack([critic_loss.detach(), actor_loss.detach()])

    @torch.no_grad()
    def _targets(self, batch: Any) -> Tensor:
        """What the critic shall say of each transition, (B, 1)."""
        targets = batch.rewards - (self.moving_average or 0.0)
        if not self.bootstrap:
            return targets
        actions = self.actor_target(batch.next_observations)
        following = self.critic_target.q1_forward(batch.next_observations, actions)
        return targets + self.gamma * (1.0 - batch.dones) * following

    def _move_average(self, value: float) -> None:
        old = self.moving_average
        self.moving_average = value if old is None else old + self.baseline_step * (value - old)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: Any,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        if dones[0] and self.baseline == "episode":
            self._move_average(float(reward[0]))


@torch.no_grad()
def _follow(targets: list[Tensor], parameters: list[Tensor], tau: float) -> None:
    """Move targets by tau towards the parameters: SB3's `polyak_update`, all tensors at once."""
    torch._foreach_mul_(targets, 1.0 - tau)
    torch._foreach_add_(targets, parameters, alpha=tau)
