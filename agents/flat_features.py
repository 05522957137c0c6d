"""The observation as one vector, for policies without a graph encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

ACTION_MASK = "action_mask"


class FlatFeaturesExtractor(BaseFeaturesExtractor):
    """Flattens a vector observation or every entry of a Dict observation, but for the action mask.

    SB3's own extractors take either a vector or a Dict; this one takes both, so `encoder=mlp` fits
    every env.

    Args:
        observation_space: a Box, or a Dict of them.

    Shapes:
        - input: (batch, ...) or a mapping of such
        - output: (batch, features_dim)
    """

    def __init__(self, observation_space: spaces.Space) -> None:
        parts: dict[str, spaces.Space] = (
            {key: space for key, space in observation_space.items() if key != ACTION_MASK}
            if isinstance(observation_space, spaces.Dict)
            else {"": observation_space}
        )
        super().__init__(
            observation_space, features_dim=sum(flatdim(space) for space in parts.values())
        )
        self._keys = tuple(parts)

    def forward(self, observations: Tensor | Mapping[str, Tensor]) -> Tensor:
        """One vector per observation."""
        if isinstance(observations, Tensor):
            return observations.flatten(1)
        # In the order of the space: an environment and a replay buffer list entries differently.
        return torch.cat([observations[key].flatten(1) for key in self._keys], dim=1)
