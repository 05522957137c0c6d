"""Node encoders: one embedding per feature map. The only file that imports PyG."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

if TYPE_CHECKING:
    from graphs.observation import Topology


class NodeProjection(nn.Module):
    """Projects static and changing node features into one space; what every encoder starts with.

    Equal to one linear layer on the concatenation, but the static part is not copied for every
    sample.

    Args:
        topology: the fixed graph.
        state_channels: changing features per node.
        hidden_channels: embedding size of one node.

    Shapes:
        - input: node state (batch, num_nodes, state_channels)
        - output: (batch, num_nodes, hidden_channels)
    """

    node_features: Tensor

    def __init__(self, topology: Topology, state_channels: int, hidden_channels: int) -> None:
        super().__init__()
        # Not persistent: the weights alone are saved, so they fit the graph of any other network.
        self.register_buffer(
            "node_features",
            torch.as_tensor(topology.node_features, dtype=torch.float32),
            persistent=False,
        )
        self.from_features = nn.Linear(self.node_features.shape[1], hidden_channels)
        self.from_state = nn.Linear(state_channels, hidden_channels, bias=False)

    def forward(self, node_state: Tensor) -> Tensor:
        """Embed every node by itself."""
        return self.from_features(self.node_features) + self.from_state(node_state)


class NodeEncoder(nn.Module):
    """Embeds every node by itself, without messages: the ablation `encoder=none`.

    Unlike `GATv2Encoder` it does not read the edges, so a site knows its own operator and the two
    feature maps beside it and nothing further away.

    Args:
        topology: the fixed graph.
        state_channels: changing features per node.
        edge_channels: features per edge; not read, part of the common interface.
        hidden_channels: embedding size of one node.
        num_layers: fully connected layers, at least 1.

    Shapes:
        - input: node state (batch, num_nodes, state_channels), edge features (batch, num_edges,
          edge_channels)
        - output: node embeddings (batch, num_nodes, hidden_channels)
    """

    def __init__(
        self,
        topology: Topology,
        state_channels: int,
        edge_channels: int,
        hidden_channels: int = 64,
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        self.hidden_channels = hidden_channels
        self.num_layers = num_layers
        self.projection = NodeProjection(topology, state_channels, hidden_channels)
        self.layers = nn.ModuleList(
            nn.Linear(hidden_channels, hidden_channels) for _ in range(num_layers - 1)
        )
        self.norm = nn.LayerNorm(hidden_channels)

    def forward(self, node_state: Tensor, edge_features: Tensor) -> Tensor:
        """Embed the nodes of a batch of observations."""
        nodes = nn.functional.elu(self.projection(node_state))
        for layer in self.layers:
            nodes = nodes + nn.functional.elu(layer(nodes))
        return self.norm(nodes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hidden_channels}, num_layers={self.num_layers})"


class GATv2Encoder(nn.Module):
    """Embeds the nodes of a network's graph with GATv2 layers.

    From "How Attentive are Graph Attention Networks?" (https://arxiv.org/abs/2105.14491), with edge
    features, residual connections and layer normalisation before each layer. Messages flow along
    the edges and against them (a flag feature tells which), because what to cut early depends on
    what comes later. There is no dropout: PPO compares probabilities of the same action before and
    after an update, and dropout would enter that ratio.

    The topology is fixed, so a batch is one large graph made by adding offsets to the node indices;
    no `torch_geometric.data.Batch` is built, and no self-loops are needed as the residual keeps the
    node itself.

    Args:
        topology: the fixed graph.
        state_channels: changing features per node.
        edge_channels: features per edge.
        hidden_channels: embedding size of one node, over all heads together.
        num_layers: GATv2 layers, at least 1; information travels that many operators far.
        heads: attention heads per layer; must divide `hidden_channels`.

    Shapes:
        - input: node state (batch, num_nodes, state_channels), edge features (batch, num_edges,
          edge_channels)
        - output: node embeddings (batch, num_nodes, hidden_channels)

    Raises:
        ValueError: `heads` does not divide `hidden_channels`.
    """

    edge_index: Tensor

    def __init__(
        self,
        topology: Topology,
        state_channels: int,
        edge_channels: int,
        hidden_channels: int = 64,
        num_layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if hidden_channels % heads:
            raise ValueError(
                f"hidden_channels={hidden_channels} is not a multiple of heads={heads}. "
                "Change features_extractor_kwargs.hidden_channels or encoder_kwargs.heads in "
                "conf/encoder."
            )
        self.hidden_channels = hidden_channels
        self.num_layers = num_layers
        self.heads = heads
        self.num_nodes = len(topology.node_features)
        forward_edges = torch.as_tensor(topology.edge_index, dtype=torch.long)
        self.register_buffer(
            "edge_index", torch.cat([forward_edges, forward_edges.flip(0)], dim=1), persistent=False
        )
        self.projection = NodeProjection(topology, state_channels, hidden_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_channels) for _ in range(num_layers))
        self.convs = nn.ModuleList(
            GATv2Conv(
                hidden_channels,
                hidden_channels // heads,
                heads=heads,
                edge_dim=edge_channels + 1,  # the flag: 0 along the edge, 1 against it
                add_self_loops=False,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_channels)

    def forward(self, node_state: Tensor, edge_features: Tensor) -> Tensor:
        """Embed the nodes of a batch of observations."""
        batch_size = len(node_state)
        offsets = self.num_nodes * torch.arange(batch_size, device=node_state.device)
        edge_index = (self.edge_index[:, None, :] + offsets[:, None]).flatten(1)  # (2, batch * 2E)
        edge_attr = torch.cat(
            [
                nn.functional.pad(edge_features, (0, 1), value=0.0),
                nn.functional.pad(edge_features, (0, 1), value=1.0),
            ],
            dim=1,
        ).flatten(0, 1)  # (batch * 2E, edge_channels + 1)
        nodes = self.projection(node_state).flatten(0, 1)  # (batch * num_nodes, hidden_channels)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            nodes = nodes + nn.functional.elu(conv(norm(nodes), edge_index, edge_attr))
        return self.norm(nodes).unflatten(0, (batch_size, self.num_nodes))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.hidden_channels}, num_layers={self.num_layers}, "
            f"heads={self.heads})"
        )
