"""Node encoders: one embedding per feature map.

Only this file and agents/released_code_policy.py import PyG.

All take the same arguments and see the same observation. `GATv2Encoder`, `GCNEncoder`,
`SAGEEncoder` and `GINEncoder` differ in their layers only; `NodeEncoder` sends no messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv, GCNConv, GINEConv, SAGEConv

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

    Unlike the other encoders it does not read the edges, so a site knows its own operator and the
    two feature maps beside it and nothing further away.

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


class EdgeMeans(nn.Module):
    """Puts edge features into nodes, for layers that read none.

    A linear layer on the mean over the edges that make a node, and on the mean over the edges that
    read it, side by side; a node without such edges has 0 there. Two means, since the direction of
    an edge matters and there is no flag feature to tell it.

    Args:
        topology: the fixed graph.
        edge_channels: features per edge.
        hidden_channels: embedding size of one node.

    Shapes:
        - input: edge features (batch, num_edges, edge_channels)
        - output: (batch, num_nodes, hidden_channels)
    """

    ends: Tensor
    edges_per_node: Tensor

    def __init__(self, topology: Topology, edge_channels: int, hidden_channels: int) -> None:
        super().__init__()
        num_nodes = len(topology.node_features)
        sources, targets = torch.as_tensor(topology.edge_index, dtype=torch.long)
        # Row n of the sums is the edges that make node n, row N + n those that read it.
        ends = torch.cat([targets, sources + num_nodes])
        counts = torch.bincount(ends, minlength=2 * num_nodes).clamp(min=1).unsqueeze(1)
        self.register_buffer("ends", ends, persistent=False)
        self.register_buffer("edges_per_node", counts, persistent=False)
        # Without bias: the projection of the node, to which this is added, has one.
        self.linear = nn.Linear(2 * edge_channels, hidden_channels, bias=False)

    def forward(self, edge_features: Tensor) -> Tensor:
        """Embed what the edges around every node say."""
        batch_size, _, edge_channels = edge_features.shape
        sums = edge_features.new_zeros(batch_size, len(self.edges_per_node), edge_channels)
        sums = sums.index_add(1, self.ends, edge_features.repeat(1, 2, 1))
        made, read = (sums / self.edges_per_node).chunk(2, dim=1)
        return self.linear(torch.cat([made, read], dim=-1))


class MessagePassingEncoder(nn.Module):
    """Embeds the nodes of a network's graph with message-passing layers of one kind.

    What the encoders share, so that comparing them compares their layers: residual connections and
    layer normalisation before each layer, ELU after it. Messages flow along the edges and against
    them, because what to cut early depends on what comes later. There is no dropout: PPO compares
    probabilities of the same action before and after an update, and dropout would enter that ratio.

    Layers that take edge features get those of the observation and a flag, 0 along an edge and 1
    against it. For layers that take none, the edge features enter the nodes once, before the first
    layer (`EdgeMeans`), so every encoder sees the same; what an edge says then travels one operator
    further than with layers that read it.

    The topology is fixed, so a batch is one large graph made by adding offsets to the node indices;
    no `torch_geometric.data.Batch` is built.

    Args:
        topology: the fixed graph.
        state_channels: changing features per node.
        edge_channels: features per edge.
        hidden_channels: embedding size of one node.
        num_layers: layers, at least 1; information travels that many operators far.
        make_layer: makes one layer, from (nodes, hidden_channels), edge index (2, edges) and, if
            `reads_edges`, edge features (edges, edge_channels + 1) to (nodes, hidden_channels).
        reads_edges: whether the layers take edge features.

    Shapes:
        - input: node state (batch, num_nodes, state_channels), edge features (batch, num_edges,
          edge_channels)
        - output: node embeddings (batch, num_nodes, hidden_channels)

    Raises:
        ValueError: fewer than one layer.
    """

    edge_index: Tensor

    def __init__(
        self,
        topology: Topology,
        state_channels: int,
        edge_channels: int,
        hidden_channels: int,
        num_layers: int,
        make_layer: Callable[[], nn.Module],
        *,
        reads_edges: bool,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(
                f"num_layers={num_layers}: wanted is 1 or more. Change encoder_kwargs.num_layers "
                "in conf/encoder; encoder=none sends no messages."
            )
        self.hidden_channels = hidden_channels
        self.num_layers = num_layers
        self.num_nodes = len(topology.node_features)
        forward_edges = torch.as_tensor(topology.edge_index, dtype=torch.long)
        self.register_buffer(
            "edge_index", torch.cat([forward_edges, forward_edges.flip(0)], dim=1), persistent=False
        )
        self.projection = NodeProjection(topology, state_channels, hidden_channels)
        self.edge_means = (
            None if reads_edges else EdgeMeans(topology, edge_channels, hidden_channels)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_channels) for _ in range(num_layers))
        self.convs = nn.ModuleList(make_layer() for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_channels)

    def forward(self, node_state: Tensor, edge_features: Tensor) -> Tensor:
        """Embed the nodes of a batch of observations."""
        batch_size = len(node_state)
        offsets = self.num_nodes * torch.arange(batch_size, device=node_state.device)
        edge_index = (self.edge_index[:, None, :] + offsets[:, None]).flatten(1)  # (2, batch * 2E)
        nodes = self.projection(node_state)
        arguments: tuple[Tensor, ...] = (edge_index,)
        if self.edge_means is None:
            arguments = (edge_index, _with_flags(edge_features))
        else:
            nodes = nodes + self.edge_means(edge_features)
        nodes = nodes.flatten(0, 1)  # (batch * num_nodes, hidden_channels)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            nodes = nodes + nn.functional.elu(conv(norm(nodes), *arguments))
        return self.norm(nodes).unflatten(0, (batch_size, self.num_nodes))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hidden_channels}, num_layers={self.num_layers})"


def _with_flags(edge_features: Tensor) -> Tensor:
    """Features of the edges along (flag 0) and against (1), (batch * 2E, edge_channels + 1)."""
    along, against = (nn.functional.pad(edge_features, (0, 1), value=flag) for flag in (0.0, 1.0))
    return torch.cat([along, against], dim=1).flatten(0, 1)


class GATv2Encoder(MessagePassingEncoder):
    """Attention over neighbours: `encoder=gatv2`, the default.

    From "How Attentive are Graph Attention Networks?" (https://arxiv.org/abs/2105.14491), with edge
    features. No self-loops are needed, as the residual keeps the node itself.

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
        ValueError: `heads` does not divide `hidden_channels`, or fewer than one layer.
    """

    def __init__(
        self,
        topology: Topology,
        state_channels: int,
        edge_channels: int,
        hidden_channels: int = 64,
        num_layers: int = 2,
        heads: int = 4,
    ) -> None:
        if hidden_channels % heads:
            raise ValueError(
                f"hidden_channels={hidden_channels} is not a multiple of heads={heads}. "
                "Change features_extractor_kwargs.hidden_channels or encoder_kwargs.heads in "
                "conf/encoder."
            )

        def make_layer() -> nn.Module:
            return GATv2Conv(
                hidden_channels,
                hidden_channels // heads,
                heads=heads,
                edge_dim=edge_channels + 1,
                add_self_loops=False,
            )

        super().__init__(
            topology,
            state_channels,
            edge_channels,
            hidden_channels,
            num_layers,
            make_layer,
            reads_edges=True,
        )
        self.heads = heads

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.hidden_channels}, num_layers={self.num_layers}, "
            f"heads={self.heads})"
        )


class GCNEncoder(MessagePassingEncoder):
    """Graph convolutions: `encoder=gcn`.

    From "Semi-Supervised Classification with Graph Convolutional Networks"
    (https://arxiv.org/abs/1609.02907), self-loops included: the sum over the neighbours and the
    node itself, each weighted by 1 / sqrt(degree * degree) of both ends, through a linear layer.
    Edge features enter the nodes before the first layer.

    Arguments, shapes and errors are those of `GATv2Encoder`, without heads.
    """

    def __init__(
        self,
        topology: Topology,
        state_channels: int,
        edge_channels: int,
        hidden_channels: int = 64,
        num_layers: int = 2,
    ) -> None:
        super().__init__(
            topology,
            state_channels,
            edge_channels,
            hidden_channels,
            num_layers,
            lambda: GCNConv(hidden_channels, hidden_channels),
            reads_edges=False,
        )


class SAGEEncoder(MessagePassingEncoder):
    """GraphSAGE with the mean over neighbours: `encoder=sage`.

    From "Inductive Representation Learning on Large Graphs" (https://arxiv.org/abs/1706.02216): a
    linear layer on the mean over the neighbours, plus one on the node itself; no sampling, the
    graphs are small. Edge features enter the nodes before the first layer.

    Arguments, shapes and errors are those of `GATv2Encoder`, without heads.
    """

    def __init__(
        self,
        topology: Topology,
        state_channels: int,
        edge_channels: int,
        hidden_channels: int = 64,
        num_layers: int = 2,
    ) -> None:
        super().__init__(
            topology,
            state_channels,
            edge_channels,
            hidden_channels,
            num_layers,
            lambda: SAGEConv(hidden_channels, hidden_channels),
            reads_edges=False,
        )


class GINEncoder(MessagePassingEncoder):
    """Graph isomorphism networks with edge features (GINE): `encoder=gin`.

    From "How Powerful are Graph Neural Networks?" (https://arxiv.org/abs/1810.00826), with the edge
    features of "Strategies for Pre-training Graph Neural Networks"
    (https://arxiv.org/abs/1905.12265): the sum over the neighbours of ReLU(node + linear(edge)),
    plus the node itself times a trained 1 + eps, through two linear layers.

    Arguments, shapes and errors are those of `GATv2Encoder`, without heads.
    """

    def __init__(
        self,
        topology: Topology,
        state_channels: int,
        edge_channels: int,
        hidden_channels: int = 64,
        num_layers: int = 2,
    ) -> None:
        def make_layer() -> nn.Module:
            layers = nn.Sequential(
                nn.Linear(hidden_channels, hidden_channels),
                nn.ELU(),
                nn.Linear(hidden_channels, hidden_channels),
            )
            return GINEConv(layers, train_eps=True, edge_dim=edge_channels + 1)

        super().__init__(
            topology,
            state_channels,
            edge_channels,
            hidden_channels,
            num_layers,
            make_layer,
            reads_edges=True,
        )
