"""An SB3 actor-critic policy that never picks an action the observation masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.distributions import Categorical

from agents.flat_features import ACTION_MASK, FlatFeaturesExtractor

MASKED_LOGIT = -1e8
"""Finite, so that entropies and gradients stay finite; the probability is exactly 0 in float32."""


class SiteCategorical(MultiCategoricalDistribution):
    """SB3's `MultiCategoricalDistribution` for equally many choices everywhere, without its loops.

    Shapes:
        - input: logits (batch, num_sites * num_patterns)
        - output: actions (batch, num_sites), log probabilities and entropies (batch,)
    """

    patterns: Categorical

    def proba_distribution(self, action_logits: Tensor) -> SiteCategorical:
        """Take the logits of all sites."""
        self.patterns = Categorical(logits=action_logits.unflatten(1, (len(self.action_dims), -1)))
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log probability of one pattern per site, summed over the sites."""
        return self.patterns.log_prob(actions).sum(dim=1)

    def entropy(self) -> Tensor:
        """Entropy in nats, summed over the sites."""
        return self.patterns.entropy().sum(dim=1)

    def sample(self) -> Tensor:
        """One pattern per site, drawn independently."""
        return self.patterns.sample()

    def mode(self) -> Tensor:
        """The most likely pattern of each site."""
        return self.patterns.logits.argmax(dim=-1)


class MaskedPolicy(ActorCriticPolicy):
    """Actor-critic policy for PPO and A2C that applies `observation["action_mask"]` to its logits.

    The mask is part of the observation, so it is the same when the action is drawn and when PPO
    looks at it again; PPO with this policy is what MaskablePPO is ("A Closer Look at Invalid Action
    Masking in Policy Gradient Algorithms", https://arxiv.org/abs/2006.14171). Without a mask it is
    SB3's policy.

    The head may be joined by one offset per output:

        outputs = head_scale * head(observation) + offset_scale * offset

    In `whole` episodes an offset belongs to one site, and lets it go its own way from the first
    batch on; it begins at 0 and learns as fast as any weight, where a head has to tell the sites
    apart first.

    Args:
        observation_space: any space the features extractor reads.
        action_space: Discrete, MultiDiscrete or Box.
        lr_schedule: learning rate as a function of the remaining progress.
        features_extractor_class: `FlatFeaturesExtractor` unless given.
        offset_scale: how fast the offsets learn beside the other weights, at least 0; 0 for none.
        head_scale: the same for the head, at least 0.
        kwargs: further arguments of SB3's `ActorCriticPolicy`.

    Raises:
        ValueError: gSDE is asked for, or a scale is below 0.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any,
        *,
        features_extractor_class: Any = FlatFeaturesExtractor,
        offset_scale: float = 0.0,
        head_scale: float = 1.0,
        use_sde: bool = False,
        **kwargs: Any,
    ) -> None:
        if use_sde:
            raise ValueError(
                f"{type(self).__name__} has no state-dependent exploration: "
                "set agent.use_sde=false."
            )
        check_scales(offset_scale=offset_scale, head_scale=head_scale)
        self.offset_scale = offset_scale
        self.head_scale = head_scale
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )

    def _build(self, lr_schedule: Any) -> None:
        if self.offset_scale:  # before the optimiser is made
            self.offset = nn.Parameter(torch.zeros(_num_outputs(self.action_space)))
        super()._build(lr_schedule)
        self._use_site_categorical()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "offset_scale": self.offset_scale,
            "head_scale": self.head_scale,
        }

    def _use_site_categorical(self) -> None:
        """Replace SB3's loop over the sites when all have equally many choices."""
        space = self.action_space
        if isinstance(space, spaces.MultiDiscrete) and len(set(space.nvec.tolist())) == 1:
            self.action_dist = SiteCategorical(space.nvec.tolist())

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log probabilities of a batch of observations."""
        outputs, values = self._actor_critic(obs)
        distribution = self._distribution(obs, outputs)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape((-1, *(self.action_space.shape or ()))), values, log_prob

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log probabilities of `actions`, and entropies."""
        outputs, values = self._actor_critic(obs)
        distribution = self._distribution(obs, outputs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Any) -> Distribution:
        """Distribution of the action."""
        return self._distribution(obs, self._actor_critic(obs)[0])

    def predict_values(self, obs: Any) -> Tensor:
        """Value of each observation, (batch, 1)."""
        return self._actor_critic(obs)[1]

    def _actor_critic(self, obs: Any) -> tuple[Tensor, Tensor]:
        """Logits or means (batch, num_outputs), and values (batch, 1)."""
        features = self.extract_features(obs)
        if self.share_features_extractor:
            latent_pi, latent_vf = self.mlp_extractor(features)
        else:
            latent_pi = self.mlp_extractor.forward_actor(features[0])
            latent_vf = self.mlp_extractor.forward_critic(features[1])
        outputs = self.head_scale * self.action_net(latent_pi)
        if self.offset_scale:
            outputs = outputs + self.offset_scale * self.offset
        return outputs, self.value_net(latent_vf)

    def _distribution(self, obs: Any, outputs: Tensor) -> Distribution:
        if isinstance(self.action_dist, DiagGaussianDistribution):
            return self.action_dist.proba_distribution(outputs, self.log_std)
        if isinstance(self.observation_space, spaces.Dict) and ACTION_MASK in obs:
            allowed = torch.as_tensor(obs[ACTION_MASK], device=outputs.device).flatten(1) > 0.5
            outputs = outputs.masked_fill(~allowed, MASKED_LOGIT)
        return self.action_dist.proba_distribution(action_logits=outputs)


def _num_outputs(action_space: spaces.Space) -> int:
    """Logits or means of an action."""
    if isinstance(action_space, spaces.MultiDiscrete):
        return int(action_space.nvec.sum())
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    return int(np.prod(action_space.shape or ()))


def check_scales(**scales: float) -> None:
    """Refuse a learning scale below 0.

    Raises:
        ValueError: the message names it.
    """
    for name, scale in scales.items():
        if not scale >= 0.0:
            raise ValueError(
                f"{name}={scale}: wanted is 0 or more. Change agent.policy_kwargs.{name}."
            )
