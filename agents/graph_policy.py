"""The graph policy of PPO and A2C: one head, shared by all sites, decides each of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn

from agents.features_extractor import GraphFeaturesExtractor, SiteEmbeddings
from agents.masked_policy import MaskedPolicy

FREE_SCALE = 0.25
"""How fast the part of the logits learns that is not a polynomial, see PatternLogits."""


class GraphPolicy(MaskedPolicy):
    """Decides every site of a network from its place in the network's graph.

    As in AutoSculpt (https://arxiv.org/abs/2412.18091), a GATv2 encoder reads the network with the
    patterns now assigned and the actor assigns patterns. Unlike its released code, which draws
    every layer from one distribution, each site has logits of its own, made by a head with weights
    shared by all sites. Therefore the weights do not depend on the number of sites and fit another
    network.

    | episode | action space | output of the actor |
    |---|---|---|
    | whole | MultiDiscrete, one pattern per site | logits (batch, num_sites * num_patterns) |
    | layerwise | Discrete, a pattern for the current site | logits (batch, num_patterns) |
    | whole | Box, one value per site | means (batch, num_sites) |
    | layerwise | Box, one value for the current site | means (batch, 1) |

    The offsets of `MaskedPolicy` belong to the sites here, in layerwise episodes too. They let
    every site go its own way, and the head lets like sites go together; without them the weights
    fit another network.

    Args:
        observation_space: a `GraphObservationSpace`.
        action_space: see the table.
        lr_schedule: learning rate as a function of the remaining progress.
        net_arch: widths of the hidden layers of both heads, or {"pi": [...], "vf": [...]}.
        features_extractor_class: `GraphFeaturesExtractor` or a subclass.
        features_extractor_kwargs: `encoder_class`, `encoder_kwargs`, `hidden_channels`,
            `pattern_channels`.
        pattern_degree: the part of a site's logits that learns fast is a polynomial of this degree
            in the position of the pattern in its library, at least 0. Neighbours in a library that
            goes from mild to heavy then learn from each other; 0 for a library without order.
        log_std_init: log of the initial standard deviation of Gaussian actions; one trainable value
            for all sites.
        kwargs: further arguments of `MaskedPolicy`, among them `offset_scale` and `head_scale`.

    Raises:
        ValueError: the observation has no topology, the action space is none of the table, or a
            scale is below 0.
    """

    action_net: Any
    value_net: Any
    features_extractor: GraphFeaturesExtractor
    pi_features_extractor: GraphFeaturesExtractor
    vf_features_extractor: GraphFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any,
        *,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        features_extractor_class: type[GraphFeaturesExtractor] = GraphFeaturesExtractor,
        pattern_degree: int = 3,
        log_std_init: float = -0.7,
        **kwargs: Any,
    ) -> None:
        self.pattern_degree = pattern_degree
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[64] if net_arch is None else net_arch,
            features_extractor_class=features_extractor_class,
            log_std_init=log_std_init,
            **kwargs,
        )

    def _build(self, lr_schedule: Any) -> None:
        extractor = self.pi_features_extractor
        topology = extractor.topology
        outputs_per_site = _outputs_per_site(self.action_space, topology)
        widths = (
            self.net_arch
            if isinstance(self.net_arch, dict)
            else {"pi": self.net_arch, "vf": self.net_arch}
        )
        degree = 0 if isinstance(self.action_space, spaces.Box) else self.pattern_degree
        output = PatternLogits(widths["pi"][-1], outputs_per_site, degree)
        input_dim = extractor.site_dim + extractor.graph_dim
        self.action_net = nn.Sequential(
            *create_mlp(input_dim, -1, widths["pi"], self.activation_fn), output
        )
        self.value_net = nn.Sequential(
            *create_mlp(extractor.graph_dim, 1, widths["vf"], self.activation_fn)
        )
        if self.ortho_init:
            for head, output_gain in ((self.action_net, 0.01), (self.value_net, 1.0)):
                head.apply(partial(self.init_weights, gain=np.sqrt(2)))
                head[-1].apply(partial(self.init_weights, gain=output_gain))
        self.offsets = SiteOffsets(topology.num_sites, output) if self.offset_scale else None
        if isinstance(self.action_space, spaces.Box):
            self.log_std = nn.Parameter(torch.full((1,), self.log_std_init))
        self._use_site_categorical()
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "pattern_degree": self.pattern_degree}

    def _actor_critic(self, obs: Any) -> tuple[Tensor, Tensor]:
        observations = preprocess_obs(obs, self.observation_space, normalize_images=False)
        assert isinstance(observations, dict)
        embeddings = self.pi_features_extractor.embed(observations)
        critic_graph = (
            embeddings.graph
            if self.share_features_extractor
            else self.vf_features_extractor.embed(observations).graph
        )
        return self._actor(embeddings), self.value_net(critic_graph)

    def _actor(self, embeddings: SiteEmbeddings) -> Tensor:
        """Logits or means, (batch, num_outputs)."""
        is_sequential = self.pi_features_extractor.topology.is_sequential
        if is_sequential:
            sites, graph = embeddings.current_site, embeddings.graph
        else:
            sites = embeddings.sites
            graph = embeddings.graph.unsqueeze(1).expand(-1, sites.shape[1], -1)
        outputs = self.head_scale * self.action_net(torch.cat([sites, graph], dim=-1))
        if self.offsets is not None:
            offsets = self.offset_scale * self.offsets(self.action_net[-1])  # (num_sites, outputs)
            outputs = outputs + (embeddings.current @ offsets if is_sequential else offsets)
        return outputs.flatten(1)


class PatternLogits(nn.Module):
    """Linear layer for the logits of a site, with a bias to agree on neighbouring patterns.

    The logits are a polynomial in the position of the pattern in its library, plus a free linear
    part whose weights act, and so learn, at a quarter of the rate. A library from mild to heavy is
    an ordered choice: what is learned of one ratio says something of the next. Every preference can
    still be learned.

    Args:
        in_channels: size of the input.
        num_patterns: number of logits.
        degree: degree of the polynomial, at least 0; 0 is a linear layer.

    Shapes:
        - input: (..., in_channels)
        - output: (..., num_patterns)
    """

    basis: Tensor

    def __init__(self, in_channels: int, num_patterns: int, degree: int) -> None:
        super().__init__()
        if degree < 0:
            raise ValueError(
                f"pattern_degree={degree}: wanted is 0 or more. Change agent.policy_kwargs."
            )
        degree = min(degree, num_patterns - 1)
        position = np.linspace(-1.0, 1.0, num_patterns)
        powers = np.stack([position**power for power in range(degree + 1)], axis=1)
        orthonormal = np.linalg.qr(powers)[0][:, 1:]  # a constant would change no probability
        self.register_buffer(
            "basis",
            torch.as_tensor(orthonormal.T * np.sqrt(num_patterns), dtype=torch.float32),
            persistent=False,
        )
        self.free_scale = 1.0 if degree == 0 else FREE_SCALE
        self.polynomial = nn.Linear(in_channels, degree, bias=False) if degree else None
        self.free = nn.Linear(in_channels, num_patterns)

    def forward(self, inputs: Tensor) -> Tensor:
        """The logits."""
        coefficients = None if self.polynomial is None else self.polynomial(inputs)
        return self.combine(coefficients, self.free(inputs))

    def combine(self, coefficients: Tensor | None, free: Tensor) -> Tensor:
        """The logits of a polynomial (..., degree), if there is one, and a free part."""
        free = self.free_scale * free
        return free if coefficients is None else free + coefficients @ self.basis


class SiteOffsets(nn.Module):
    """What every site adds to the outputs of a head that all sites share; at first nothing.

    Args:
        num_sites: number of sites.
        output: last layer of the head, whose order of the patterns holds here too.

    Shapes:
        - output: (num_sites, num_patterns)
    """

    def __init__(self, num_sites: int, output: PatternLogits) -> None:
        super().__init__()
        degree = 0 if output.polynomial is None else output.polynomial.out_features
        self.coefficients = nn.Parameter(torch.zeros(num_sites, degree)) if degree else None
        self.free = nn.Parameter(torch.zeros(num_sites, output.free.out_features))

    def forward(self, output: PatternLogits) -> Tensor:
        """The offsets; `output` as given when this was made."""
        return output.combine(self.coefficients, self.free)


def _outputs_per_site(action_space: spaces.Space, topology: Any) -> int:
    """Numbers the head gives for one site: the logits of its patterns, or one mean."""
    num_sites, num_patterns = topology.num_sites, topology.num_patterns
    decided = 1 if topology.is_sequential else num_sites
    if isinstance(action_space, spaces.Box) and action_space.shape == (decided,):
        return 1
    if isinstance(action_space, spaces.Discrete) and topology.is_sequential:
        return int(action_space.n)
    if (
        isinstance(action_space, spaces.MultiDiscrete)
        and not topology.is_sequential
        and action_space.nvec.tolist() == [num_patterns] * num_sites
    ):
        return num_patterns
    raise ValueError(
        f"GraphPolicy cannot decide {action_space} for {num_sites} sites with {num_patterns} "
        f"patterns in {'layerwise' if topology.is_sequential else 'whole'} episodes. Allowed are "
        "Discrete and Box(1,) in layerwise episodes, MultiDiscrete and Box with one entry per site "
        "in whole ones."
    )
