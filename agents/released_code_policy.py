"""The policy of AutoSculpt's released code, for comparison: its encoder cannot see the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

NODE_CHANNELS = EDGE_CHANNELS = 64
HIDDEN_CHANNELS = 128


class RandomFeaturesExtractor(BaseFeaturesExtractor):
    """Embeds a graph whose node features are noise.

    As in the released code of AutoSculpt (https://github.com/jlx15588/AutoSculpt): node features
    are drawn from a normal distribution at every step, edge features are rows of a random table
    that is never trained, one row per pattern. Of the network nothing is left but its shape. What
    differs: the graph is Topiary's, with feature maps as nodes, where theirs has one node per
    filter; and features are drawn again when PPO looks at a step once more.

    Args:
        observation_space: a `GraphObservationSpace`.

    Shapes:
        - input: edge_pattern (batch, num_edges)
        - output: (batch, 128)

    Raises:
        ValueError: the observation space has no topology.
    """

    edge_index: Tensor
    edge_table: Tensor
    is_site_edge: Tensor

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, features_dim=HIDDEN_CHANNELS)
        topology = getattr(observation_space, "topology", None)
        if topology is None:
            raise ValueError(
                "preset=released_code needs an observation with a topology, and this one is "
                f"{observation_space}. Set env=autosculpt."
            )
        self.num_nodes = len(topology.node_features)
        self.num_patterns = topology.num_patterns
        edge_index = torch.as_tensor(topology.edge_index, dtype=torch.long)
        is_site_edge = torch.zeros(edge_index.shape[1], dtype=torch.bool)
        is_site_edge[torch.as_tensor(topology.site_edges[1], dtype=torch.long)] = True
        self.register_buffer("edge_index", edge_index, persistent=False)
        self.register_buffer("is_site_edge", is_site_edge, persistent=False)
        # Saved, since an agent that is loaded again needs the same one; a buffer is not trained.
        self.register_buffer("edge_table", torch.randn(topology.num_patterns + 1, EDGE_CHANNELS))
        self.conv = GATv2Conv(
            NODE_CHANNELS, HIDDEN_CHANNELS, heads=8, concat=False, edge_dim=EDGE_CHANNELS
        )
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(HIDDEN_CHANNELS, HIDDEN_CHANNELS)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Embed a batch of observations."""
        patterns = observations["edge_pattern"].long()
        batch_size = len(patterns)
        edges = self.edge_table[torch.where(self.is_site_edge, patterns, self.num_patterns)]
        nodes = torch.randn(batch_size * self.num_nodes, NODE_CHANNELS, device=edges.device)
        offsets = self.num_nodes * torch.arange(batch_size, device=edges.device)
        edge_index = (self.edge_index[:, None, :] + offsets[:, None]).flatten(1)  # (2, batch * E)
        nodes = self.dropout(torch.tanh(self.conv(nodes, edge_index, edges.flatten(0, 1))))
        graph = nodes.unflatten(0, (batch_size, self.num_nodes)).mean(dim=1)
        return torch.tanh(self.linear(graph))


class ReleasedCodePolicy(ActorCriticPolicy):
    """Actor and critic of AutoSculpt's released code, for `env/action=shared_pattern`.

    Both end in a tanh and have an encoder of their own; the standard deviation of the action is 0.2
    and is not trained. As there, the log probability is that of the action before it is clamped.

    Args:
        observation_space: a `GraphObservationSpace`.
        action_space: a Box.
        lr_schedule: learning rate as a function of the remaining progress.
        kwargs: further arguments of SB3's `ActorCriticPolicy`.

    Raises:
        ValueError: the action space is no Box.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any,
        **kwargs: Any,
    ) -> None:
        if not isinstance(action_space, spaces.Box):
            raise ValueError(
                f"preset=released_code decides weights of patterns, and the actions are "
                f"{action_space}. Set env/action=shared_pattern."
            )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={"pi": [256], "vf": []},
            activation_fn=nn.ReLU,
            ortho_init=False,
            log_std_init=float(torch.log(torch.tensor(0.2))),
            features_extractor_class=RandomFeaturesExtractor,
            share_features_extractor=False,
            **kwargs,
        )

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.log_std.requires_grad_(False)
        self.action_net = nn.Sequential(self.action_net, nn.Tanh())
        self.value_net = nn.Sequential(self.value_net, nn.Tanh())  # type: ignore[assignment]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
        }
