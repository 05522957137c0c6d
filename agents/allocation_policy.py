"""The policy of PPO and A2C that shares out a budget over all groups in one action."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn

from agents.features_extractor import GraphFeaturesExtractor
from agents.flat_features import FlatFeaturesExtractor
from agents.masked_policy import MaskedPolicy, check_scales


class AllocationPolicy(MaskedPolicy):
    """A Gaussian over one number per group, whose first mean is 0 everywhere.

    In `env=allocation` 0 is the uniform plan, so the search starts there. The mean of a group is
    what the node encoder makes of its place in the network, plus an offset of its own:

        mean = head(site, graph) + offset_scale * offset

    The offset lets every group go its own way from the first batch on, and the encoder lets like
    groups go together. Head and offset begin at 0. Without a graph (`encoder=mlp`) the head reads
    the flat observation and gives all means at once.

    There is no critic: in episodes of one step every observation is the same, so the value is one
    trainable number.

    Args:
        observation_space: a `GraphObservationSpace`, or any space that can be flattened.
        action_space: a Box with one entry per site.
        lr_schedule: learning rate as a function of the remaining progress.
        net_arch: widths of the hidden layers of the head.
        features_extractor_class: `GraphFeaturesExtractor` when there are arguments for it,
            `FlatFeaturesExtractor` otherwise, unless given.
        features_extractor_kwargs: arguments of the features extractor.
        offset_scale: how fast the offsets learn beside the other weights, at least 0; 0 for no
            offsets, with which the weights fit another network.
        head_scale: the same for the head, at least 0; 0 for offsets alone, which makes no use of
            the encoder.
        log_std_init: log of the first standard deviation, one trainable number per group.
        log_std_scale: how fast the log of the standard deviation learns, at least 0.
        kwargs: further arguments of SB3's `ActorCriticPolicy`; `pattern_degree`, which belongs to
            the patterns of `GraphPolicy`, is not read.

    Raises:
        ValueError: the action space is not such a Box, or a scale is below 0.
    """

    action_net: Any
    value_net: Any

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any,
        *,
        net_arch: list[int] | None = None,
        features_extractor_class: Any = None,
        features_extractor_kwargs: Mapping[str, Any] | None = None,
        offset_scale: float = 1.0,
        head_scale: float = 0.05,
        log_std_init: float = -1.0,
        log_std_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        _check(observation_space, action_space)
        check_scales(log_std_scale=log_std_scale)
        self.log_std_scale = log_std_scale
        if features_extractor_class is None:
            features_extractor_class = (
                FlatFeaturesExtractor
                if features_extractor_kwargs is None
                else GraphFeaturesExtractor
            )
        self._reads_graph = issubclass(features_extractor_class, GraphFeaturesExtractor)
        kwargs.pop("pattern_degree", None)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[64] if net_arch is None else net_arch,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            offset_scale=offset_scale,
            head_scale=head_scale,
            log_std_init=log_std_init,
            **kwargs,
        )

    def _build(self, lr_schedule: Any) -> None:
        extractor: Any = self.pi_features_extractor
        num_sites = int(self.action_space.shape[0])  # type: ignore[index]
        widths: Any = self.net_arch
        input_dim, num_outputs = (
            (extractor.site_dim + extractor.graph_dim, 1)
            if self._reads_graph
            else (extractor.features_dim, num_sites)
        )
        last = nn.Linear(widths[-1] if widths else input_dim, num_outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.action_net = nn.Sequential(
            *create_mlp(input_dim, -1, widths, self.activation_fn), last
        )
        self.offset = nn.Parameter(torch.zeros(num_sites))
        self.free_log_std = nn.Parameter(torch.zeros(num_sites))
        self.value_net = nn.Parameter(torch.zeros(1))
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    @property
    def reads_graph(self) -> bool:
        """Whether the head reads a graph; a head that does not fits one network only."""
        return self._reads_graph

    @property
    def log_std(self) -> Tensor:  # type: ignore[override]
        """Log of the standard deviation of each entry of the action, shape (S,)."""
        return self.log_std_init + self.log_std_scale * self.free_log_std

    def centre(self, observation: Any, action: np.ndarray) -> None:
        """Start anew at an action: its offsets make it the mean, and the deviation is the first.

        Args:
            observation: one observation, not a batch.
            action: the new mean, shape (S,).

        Raises:
            ValueError: there are no offsets.
        """
        if self.offset_scale == 0.0:
            raise ValueError(
                "Without offsets the mean cannot be chosen. Set agent.policy_kwargs.offset_scale "
                "above 0."
            )
        with torch.no_grad():
            self.offset.zero_()
            mean, _ = self._actor_critic(self.obs_to_tensor(observation)[0])
            self.offset.copy_((torch.as_tensor(action) - mean[0]) / self.offset_scale)
            self.free_log_std.zero_()
        self.optimizer.state.clear()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "log_std_scale": self.log_std_scale,
        }

    def _actor_critic(self, obs: Any) -> tuple[Tensor, Tensor]:
        observations = preprocess_obs(obs, self.observation_space, normalize_images=False)
        parts: Any = observations
        batch_size = len(parts if isinstance(parts, Tensor) else next(iter(parts.values())))
        means = self.offset_scale * self.offset.repeat(batch_size, 1)
        if self.head_scale > 0.0:
            means = means + self.head_scale * self._head(observations)
        return means, self.value_net.repeat(batch_size, 1)

    def _head(self, observations: Any) -> Tensor:
        """What the encoder and the head make of the observations, (batch, S)."""
        extractor: Any = self.pi_features_extractor
        if not self._reads_graph:
            return self.action_net(extractor(observations))
        embeddings = extractor.embed(observations)
        num_sites = embeddings.sites.shape[1]
        graph = embeddings.graph.unsqueeze(1).expand(-1, num_sites, -1)
        return self.action_net(torch.cat([embeddings.sites, graph], dim=-1)).flatten(1)


def _check(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Refuse what is no allocation.

    Raises:
        ValueError: the message says what to set.
    """
    topology = getattr(observation_space, "topology", None)
    is_box = isinstance(action_space, spaces.Box) and len(action_space.shape) == 1
    if not is_box or (topology is not None and action_space.shape != (topology.num_sites,)):
        raise ValueError(
            f"AllocationPolicy decides all groups in one continuous action, and the actions here "
            f"are {action_space}. Set env=allocation (or env/action=allocation "
            f"env/episode=whole)."
        )
