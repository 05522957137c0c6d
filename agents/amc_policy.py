"""AMC's actor and critic (https://arxiv.org/abs/1802.03494), for SB3's DDPG."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import Tensor, nn


class ScaledSigmoid(nn.Module):
    """AMC's sigmoid on [0, 1], scaled to SB3's actions in [-1, 1]: 2 sigmoid(x) - 1."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, in (-1, 1)."""
        return 2.0 * torch.sigmoid(x) - 1.0

    def inverse(self, y: Tensor) -> Tensor:
        """What gives y in (-1, 1)."""
        return torch.logit(0.5 * (y + 1.0))


class AMCActor(Actor):
    """SB3's actor with a sigmoid at its end in place of tanh, which saturates twice as early."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mu[-1] = ScaledSigmoid()


class BranchedQ(nn.Module):
    """A value of state and action, whose branches are summed before a nonlinearity.

        h_i = relu(W_i h_{i-1} + b_i), plus V a + c inside the relu of hidden layer `action_layer`

    where h_0 is the state and a the action, on [0, 1]. Weights are torch's default; the released
    code has an option init_w and never reads it.

    Args:
        features_dim: length of the state.
        action_dim: length of the action.
        net_arch: sizes of the hidden layers.
        action_layer: hidden layer at which the action arrives, from 1 to len(net_arch).
        activation_fn: the nonlinearity.

    Shapes:
        - input: (B, features_dim) and (B, action_dim), actions in [-1, 1]
        - output: (B, 1)
    """

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        net_arch: list[int],
        action_layer: int = 1,
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if not 1 <= action_layer <= len(net_arch):
            raise ValueError(
                f"The action must arrive at one of the critic's {len(net_arch)} hidden layers, "
                f"numbered from 1, got {action_layer}. Change agent.policy_kwargs.action_layer."
            )
        sizes = [features_dim, *net_arch]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(sizes, net_arch, strict=False)
        )
        self.action = nn.Linear(action_dim, net_arch[action_layer - 1])
        self.value = nn.Linear(net_arch[-1], 1)
        self.activation = activation_fn()
        self.action_layer = action_layer

    def forward(self, features: Tensor, actions: Tensor) -> Tensor:
        """The value of every pair."""
        hidden = features
        for number, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden)
            if number == self.action_layer:
                hidden = hidden + self.action(0.5 * (actions + 1.0))
            hidden = self.activation(hidden)
        return self.value(hidden)


class AMCCritic(ContinuousCritic):
    """SB3's critic with `BranchedQ` in place of a concatenation; arguments as SB3's.

    Args:
        action_layer: see `BranchedQ`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_critics: int = 1,
        share_features_extractor: bool = False,
        action_layer: int = 1,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            net_arch,
            features_extractor,
            features_dim,
            activation_fn,
            normalize_images,
            n_critics=0,  # none of SB3's
            share_features_extractor=share_features_extractor,
        )
        self.n_critics = n_critics
        action_dim = get_action_dim(action_space)
        for index in range(n_critics):
            q_network = BranchedQ(features_dim, action_dim, net_arch, action_layer, activation_fn)
            self.add_module(f"qf{index}", q_network)
            self.q_networks.append(q_network)

    def forward(self, obs: Any, actions: Tensor) -> tuple[Tensor, ...]:
        """The value by every critic."""
        with torch.set_grad_enabled(not self.share_features_extractor):
            features = self.extract_features(obs, self.features_extractor)
        return tuple(q_network(features, actions) for q_network in self.q_networks)

    def q1_forward(self, obs: Any, actions: Tensor) -> Tensor:
        """The value by the first critic, without gradients of the features."""
        with torch.no_grad():
            features = self.extract_features(obs, self.features_extractor)
        return self.q_networks[0](features, actions)


class AMCPolicy(TD3Policy):
    """AMC's actor and critic, for vector and Dict observations.

    Args:
        args: as for SB3's TD3Policy.
        action_layer: hidden layer of the critic at which the action arrives: 1 in the released
            code, 2 in the paper. See `BranchedQ`.
        kwargs: as for SB3's TD3Policy.
    """

    def __init__(self, *args: Any, action_layer: int = 1, **kwargs: Any) -> None:
        self._action_layer = action_layer  # read while SB3's constructor builds the critic
        super().__init__(*args, **kwargs)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> AMCActor:
        """Build an actor."""
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return AMCActor(**kwargs).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> AMCCritic:
        """Build a critic."""
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return AMCCritic(**kwargs, action_layer=self._action_layer).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "action_layer": self._action_layer}
