"""From the graph observation to one embedding per site, for every SB3 agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.encoder import GATv2Encoder


@dataclass(frozen=True)
class SiteEmbeddings:
    """What the encoder says about a batch of observations.

    Attributes:
        sites: (batch, num_sites, site_dim), one embedding per site.
        graph: (batch, graph_dim), the whole network and its budget.
        current: (batch, num_sites), 1 at the site to be decided now, 0 elsewhere.
    """

    sites: Tensor
    graph: Tensor
    current: Tensor

    @property
    def current_site(self) -> Tensor:
        """Embedding of the site to be decided now, (batch, site_dim); zeros when none is."""
        return (self.sites * self.current.unsqueeze(-1)).sum(dim=1)


class GraphFeaturesExtractor(BaseFeaturesExtractor):
    """Reads a `GraphObservationSpace` and embeds its sites.

    An edge is described by its static features and by a trainable embedding of the pattern now
    assigned to it. A site is the mean over its edges of (edge, source node, target node) through a
    layer, beside the static features and the present state of the site. All weights are shared by
    all sites, so they fit the graph of any other network with as many features.

    As a plain SB3 extractor (DDPG, TD3, SAC with `MultiInputPolicy`) it gives the embedding of the
    site to be decided now, or of all sites in `whole` episodes, followed by the embedding of the
    graph. `GraphPolicy` calls `embed` instead.

    Args:
        observation_space: a `GraphObservationSpace`: a Dict space with the attribute `topology`.
        encoder_class: embeds the nodes; one of `agents.encoder`, or a class with the arguments of
            `NodeEncoder`.
        encoder_kwargs: further arguments of `encoder_class`, such as `num_layers`.
        hidden_channels: embedding size of a node and of a site.
        pattern_channels: size of the embedding of a pattern.

    Shapes:
        - input: node_state (batch, num_nodes, 2), edge_pattern (batch, num_edges), site_state
          (batch, num_sites, 3), globals (batch, 4)
        - output: (batch, features_dim)

    Raises:
        ValueError: the observation space has no topology.
    """

    edge_features: Tensor
    site_features: Tensor
    site_edges: Tensor
    site_ends: Tensor
    edges_per_site: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        encoder_class: type[nn.Module] = GATv2Encoder,
        encoder_kwargs: Mapping[str, Any] | None = None,
        hidden_channels: int = 64,
        pattern_channels: int = 8,
    ) -> None:
        topology = getattr(observation_space, "topology", None)
        if topology is None or not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                "A graph encoder needs an observation with a topology, and this one is "
                f"{observation_space}. Set env/observation=graph, or take encoder=mlp."
            )
        state_channels, site_channels, num_globals = (
            observation_space[key].shape[-1]  # type: ignore[index]
            for key in ("node_state", "site_state", "globals")
        )
        site_dim = hidden_channels + topology.site_features.shape[1] + site_channels
        graph_dim = 2 * hidden_channels + site_channels + num_globals
        num_read = 1 if topology.is_sequential else topology.num_sites
        super().__init__(observation_space, features_dim=num_read * site_dim + graph_dim)
        self.topology = topology
        self.site_dim = site_dim
        self.graph_dim = graph_dim

        site_edges = torch.as_tensor(topology.site_edges, dtype=torch.long)
        edge_index = torch.as_tensor(topology.edge_index, dtype=torch.long)
        constants = {
            "edge_features": torch.as_tensor(topology.edge_features, dtype=torch.float32),
            "site_features": torch.as_tensor(topology.site_features, dtype=torch.float32),
            "site_edges": site_edges,
            "site_ends": edge_index[
                :, site_edges[1]
            ],  # (2, K): source and target of each site edge
            "edges_per_site": torch.bincount(site_edges[0], minlength=topology.num_sites)
            .clamp(min=1)
            .unsqueeze(1),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

        # Sized by the space: ratio actions have one pattern, and the space still allows 0 and 1.
        pattern_box = observation_space["edge_pattern"]
        assert isinstance(pattern_box, spaces.Box)
        num_patterns = int(pattern_box.high.max()) + 1
        self.pattern_embedding = nn.Embedding(num_patterns, pattern_channels)
        edge_channels = self.edge_features.shape[1] + pattern_channels
        self.encoder = encoder_class(
            topology,
            state_channels=state_channels,
            edge_channels=edge_channels,
            hidden_channels=hidden_channels,
            **(encoder_kwargs or {}),
        )
        self.site_layer = nn.Sequential(
            nn.Linear(edge_channels + 2 * hidden_channels, hidden_channels),
            nn.ELU(),
            nn.Linear(hidden_channels, hidden_channels),
            nn.LayerNorm(hidden_channels),
        )

    def embed(self, observations: Mapping[str, Tensor]) -> SiteEmbeddings:
        """Embeddings of all sites and of the graph."""
        batch_size = len(observations["node_state"])
        edges = torch.cat(
            [
                self.edge_features.expand(batch_size, -1, -1),
                self.pattern_embedding(observations["edge_pattern"].long()),
            ],
            dim=-1,
        )  # (batch, num_edges, edge_channels)
        nodes = self.encoder(observations["node_state"], edges)
        site_of, edge_of = self.site_edges
        source, target = self.site_ends
        site_edges = torch.cat([edges[:, edge_of], nodes[:, source], nodes[:, target]], dim=-1)
        total = site_edges.new_zeros(batch_size, len(self.edges_per_site), site_edges.shape[-1])
        mean = total.index_add(1, site_of, site_edges) / self.edges_per_site
        site_nodes = self.site_layer(mean)
        site_state = observations["site_state"]
        sites = torch.cat(
            [
                _standardise(site_nodes),
                _standardise(self.site_features).expand(batch_size, -1, -1),
                site_state,
            ],
            dim=-1,
        )
        graph = torch.cat(
            [
                nodes.mean(dim=1),
                site_nodes.mean(dim=1),
                site_state.mean(dim=1),
                observations["globals"],
            ],
            dim=-1,
        )
        return SiteEmbeddings(sites, graph, current=observations["site_state"][..., -1])

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """The embeddings as one vector per observation."""
        embeddings = self.embed(observations)
        sites = (
            embeddings.current_site if self.topology.is_sequential else embeddings.sites.flatten(1)
        )
        return torch.cat([sites, embeddings.graph], dim=-1)


def _standardise(sites: Tensor) -> Tensor:
    """Mean 0 and variance 1 for every channel, over the sites of a network.

    The sites of one network look much alike. Without this, what the head learns at one site it
    applies to all of them, and a search ends before they are told apart.

    Args:
        sites: (..., num_sites, dim); a lone site becomes 0.
    """
    centred = sites - sites.mean(dim=-2, keepdim=True)
    return centred / (centred.pow(2).mean(dim=-2, keepdim=True) + 1e-4).sqrt()
