"""A model of what a plan is worth that reads the network's graph: an ensemble of graph networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sklearn.linear_model import BayesianRidge
from torch import Tensor, nn

from agents.encoder import GATv2Encoder
from agents.features_extractor import GraphFeaturesExtractor
from agents.reward_model import lowest_reward

PLANS_AT_ONCE = 256


class GraphRegressor(nn.Module):
    """From the kept fractions of a plan, placed in the graph, to one number.

    The observation of the unpruned network is read by the extractor the policies use, with the kept
    fraction of every site in place of what is removed there, and of every node in place of its kept
    channels. The embeddings of all sites go through one layer and are pooled.

    Args:
        observation_space: a `GraphObservationSpace`.
        observation: that of the unpruned network.
        encoder_class: embeds the nodes; one of `agents.encoder`.
        encoder_kwargs: further arguments of `encoder_class`.
        hidden_channels: embedding size of a node and of a site.
        num_features: size of the pooled embedding.

    Shapes:
        - input: standardised log kept fractions (batch, S)
        - output: (batch,)

    Raises:
        ValueError: the observation space has no topology.
    """

    membership: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        observation: Mapping[str, np.ndarray],
        *,
        encoder_class: type[nn.Module],
        encoder_kwargs: Mapping[str, Any] | None,
        hidden_channels: int,
        num_features: int,
    ) -> None:
        super().__init__()
        self.extractor = GraphFeaturesExtractor(
            observation_space,
            encoder_class=encoder_class,
            encoder_kwargs=encoder_kwargs,
            hidden_channels=hidden_channels,
            pattern_channels=1,  # the unpruned network has one pattern
        )
        topology = self.extractor.topology
        site_of, edge_of = topology.site_edges
        membership = np.zeros((topology.num_nodes, topology.num_sites), dtype=np.float32)
        membership[topology.edge_index[1][edge_of], site_of] = 1.0
        membership /= np.maximum(membership.sum(axis=1, keepdims=True), 1.0)
        self.register_buffer("membership", torch.as_tensor(membership), persistent=False)
        self._observation = {
            key: torch.as_tensor(observation[key], dtype=torch.float32)
            for key in ("node_state", "edge_pattern", "site_state", "globals")
        }
        width = self.extractor.site_dim + self.extractor.graph_dim
        self.site_layer = nn.Sequential(nn.Linear(width, num_features), nn.ELU())
        self.last = _zero_linear(num_features)

    def features(self, plans: Tensor) -> Tensor:
        """The pooled embedding, (batch, num_features)."""
        batch = {
            key: value.expand(len(plans), *value.shape) for key, value in self._observation.items()
        }
        for key, kept in (("node_state", plans @ self.membership.T), ("site_state", plans)):
            batch[key] = torch.cat([kept.unsqueeze(-1), batch[key][..., 1:]], dim=-1)
        embeddings = self.extractor.embed(batch)
        num_sites = embeddings.sites.shape[1]
        graph = embeddings.graph.unsqueeze(1).expand(-1, num_sites, -1)
        sites = self.site_layer(torch.cat([embeddings.sites, graph], dim=-1))
        # a sum over independent sites grows with the square root of their number
        return sites.mean(dim=1) * num_sites**0.5

    def forward(self, plans: Tensor) -> Tensor:
        """One number per plan."""
        return self.last(self.features(plans)).squeeze(-1)


class PlanRegressor(nn.Module):
    """The same without a graph: two layers on the kept fractions (`encoder=mlp`).

    Args:
        num_sites: sites S.
        num_features: size of both layers.
    """

    def __init__(self, num_sites: int, num_features: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Linear(num_sites, num_features),
            nn.ELU(),
            nn.Linear(num_features, num_features),
            nn.ELU(),
        )
        self.last = _zero_linear(num_features)

    def forward(self, plans: Tensor) -> Tensor:
        """One number per plan."""
        return self.last(self.features(plans)).squeeze(-1)


@dataclass(frozen=True)
class _Output:
    """The Bayesian last layer of one member, and the scale of the features it reads."""

    centre: np.ndarray
    scale: float
    regression: BayesianRidge

    @classmethod
    def fitted(cls, trend: np.ndarray, features: np.ndarray, targets: np.ndarray) -> _Output:
        centre = features.mean(axis=0)
        # one scale for all of them: what hardly differs between plans stays small
        scale = float(np.sqrt(features.var(axis=0).mean())) + 1e-6
        output = cls(centre, scale, BayesianRidge())
        output.regression.fit(output._inputs(trend, features), targets)
        return output

    def predict(self, trend: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, deviation = self.regression.predict(self._inputs(trend, features), return_std=True)
        return mean, deviation

    def _inputs(self, trend: np.ndarray, features: np.ndarray) -> np.ndarray:
        return np.concatenate([trend, (features - self.centre) / self.scale], axis=1)


class GraphEnsemble:
    """Graph networks that learn from every measurement, with a Bayesian last layer each.

    A round of learning, for every member:

    1. a linear trend over the log kept fractions is taken off the rewards;
    2. the graph network goes on, from the weights of the last round, with `steps` gradient steps
       on what is left, every plan weighted by how often a bootstrap sample of the member's own
       holds it;
    3. its last layer is replaced by Bayesian ridge regression on the trend and on the pooled
       embedding, whose evidence says how far to believe either.

    A plan is worth the mean of the members. The variance is that between the members plus the mean
    of their own, noise included. Ensembles as in https://arxiv.org/abs/1612.01474, last layers as
    in "Scalable Bayesian Optimization Using Deep Neural Networks"
    (https://arxiv.org/abs/1502.05700).

    Args:
        encoder_class: embeds the nodes; one of `agents.encoder`. None for networks that read the
            kept fractions alone.
        encoder_kwargs: further arguments of `encoder_class`.
        hidden_channels: embedding size of a node and of a site.
        num_features: what the last layer reads of a plan, besides the trend.
        members: networks in the ensemble, at least 1.
        steps: gradient steps per round, at least 0; 0 keeps the first weights.
        batch_size: plans per step, at least 2.
        learning_rate: above 0.
        weight_decay: at least 0.
        floor: see `agents.reward_model.lowest_reward`.
        seed: of the weights, the bootstrap samples and the batches; None draws one.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        encoder_class: type[nn.Module] | None = GATv2Encoder,
        encoder_kwargs: Mapping[str, Any] | None = None,
        hidden_channels: int = 16,
        num_features: int = 32,
        members: int = 5,
        steps: int = 10,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        floor: float = 2.0,
        seed: int | None = 0,
    ) -> None:
        least = {
            "hidden_channels": (hidden_channels, 1),
            "num_features": (num_features, 1),
            "members": (members, 1),
            "steps": (steps, 0),
            "batch_size": (batch_size, 2),
            "weight_decay": (weight_decay, 0),
        }
        for name, (value, lowest) in least.items():
            if not value >= lowest:
                raise ValueError(
                    f"{name}={value}: wanted is {lowest} or more. Change agent.model.{name}."
                )
        for name, value in {"learning_rate": learning_rate, "floor": floor}.items():
            if not value > 0.0:
                raise ValueError(
                    f"{name}={value}: wanted is a number above 0. Change agent.model.{name}."
                )
        self.encoder_class = encoder_class
        self.encoder_kwargs = encoder_kwargs
        self.hidden_channels = hidden_channels
        self.num_features = num_features
        self.members = members
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.floor = floor
        self._seed = int(np.random.default_rng(seed).integers(2**31))
        self._rng = np.random.default_rng(self._seed)
        self._graph: tuple[spaces.Space, Any] | None = None
        self._networks: list[GraphRegressor | PlanRegressor] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._outputs: list[_Output] = []
        self._centre = self._scale = np.zeros(0)
        self._level, self._spread = 0.0, 1.0
        self._target_centre, self._target_scale = 0.0, 1.0

    def bind(self, observation_space: spaces.Space, observation: Any) -> None:
        """Read the graph and forget what was learned, so that a search begins anew.

        Args:
            observation_space: a `GraphObservationSpace`; any other without `encoder_class`.
            observation: that of the unpruned network.
        """
        self._graph = observation_space, observation
        self._networks = []
        self._rng = np.random.default_rng(self._seed)

    def fit(self, plans: np.ndarray, rewards: np.ndarray) -> None:
        """Go on learning, now from all these plans.

        Raises:
            ValueError: no graph was bound, or it has another number of sites.
        """
        if not self._networks:
            self._begin(plans.shape[1])
        inputs = np.log(plans)
        self._centre, self._scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
        targets = np.maximum(rewards, lowest_reward(rewards, self.floor))
        self._target_centre, self._target_scale = targets.mean(), targets.std() + 1e-9
        targets = (targets - self._target_centre) / self._target_scale
        trend = self._trend(inputs)
        left = targets - BayesianRidge().fit(trend, targets).predict(trend)
        # sites share their weights, so they share a scale too
        self._level, self._spread = inputs.mean(), inputs.std() + 1e-3
        self._train(self._network_inputs(inputs), torch.as_tensor(left, dtype=torch.float32))
        self._outputs = [
            _Output.fitted(trend, features, targets) for features in self._features(inputs)
        ]

    def predict(self, plans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean over the members, and the standard deviation of a measurement."""
        assert self._outputs, "fit comes first"
        inputs = np.log(plans)
        trend = self._trend(inputs)
        predicted = [
            output.predict(trend, features)
            for output, features in zip(self._outputs, self._features(inputs), strict=True)
        ]
        means, deviations = (np.stack(values) for values in zip(*predicted, strict=True))
        variance = means.var(axis=0) + (deviations**2).mean(axis=0)
        return (
            means.mean(axis=0) * self._target_scale + self._target_centre,
            np.sqrt(variance) * self._target_scale,
        )

    def _begin(self, num_sites: int) -> None:
        if self._graph is None:
            raise ValueError(
                f"{type(self).__name__} reads a graph, and none was bound: call bind with the "
                "observation space and the observation of the unpruned network before fit."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self._networks = [self._make(num_sites) for _ in range(self.members)]
        self._optimizer = torch.optim.AdamW(
            nn.ModuleList(self._networks).parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )

    def _make(self, num_sites: int) -> GraphRegressor | PlanRegressor:
        assert self._graph is not None, "checked by the caller"
        if self.encoder_class is None:
            return PlanRegressor(num_sites, self.num_features)
        network = GraphRegressor(
            *self._graph,
            encoder_class=self.encoder_class,
            encoder_kwargs=self.encoder_kwargs,
            hidden_channels=self.hidden_channels,
            num_features=self.num_features,
        )
        if network.membership.shape[1] != num_sites:
            raise ValueError(
                f"The graph has {network.membership.shape[1]} sites and the plans {num_sites}. "
                "Bind the observation of the network that the plans are for."
            )
        return network

    def _train(self, inputs: Tensor, targets: Tensor) -> None:
        """Gradient steps; what one member learns is no concern of another."""
        assert self._optimizer is not None, "made with the networks"
        # The rows are drawn in order, so a plan keeps its weights when others are added.
        drawn = np.random.default_rng(self._seed).poisson(1.0, (len(inputs), self.members))
        weights = torch.as_tensor(drawn, dtype=torch.float32)
        size = min(self.batch_size, len(inputs))
        for _ in range(self.steps):
            batch = torch.as_tensor(self._rng.choice(len(inputs), size, replace=False))
            self._optimizer.zero_grad()
            for member, network in enumerate(self._networks):
                errors = (network(inputs[batch]) - targets[batch]) ** 2
                (weights[batch, member] * errors).mean().backward()
            self._optimizer.step()

    def _features(self, inputs: np.ndarray) -> list[np.ndarray]:
        """What the last layer of each member reads, (batch, num_features)."""
        parts = self._network_inputs(inputs).split(PLANS_AT_ONCE)
        with torch.no_grad():
            return [
                torch.cat([network.features(part) for part in parts]).double().numpy()
                for network in self._networks
            ]

    def _trend(self, inputs: np.ndarray) -> np.ndarray:
        return (inputs - self._centre) / self._scale

    def _network_inputs(self, inputs: np.ndarray) -> Tensor:
        return torch.as_tensor((inputs - self._level) / self._spread, dtype=torch.float32)


def _zero_linear(num_features: int) -> nn.Linear:
    """The last layer of a network that begins by predicting nothing."""
    last = nn.Linear(num_features, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return last
