"""A pruning environment whose best answer is known, with the attributes that agents may rely on."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs.actions import RatioAction
from envs.budgets import Tolerance
from envs.episodes import Whole
from envs.observations import GraphObservation
from envs.pruning_env import PruningEnv
from envs.rewards import LogLikelihoodReward
from graphs.observation import GraphObservationSpace, Topology
from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from patterns.library import PatternLibrary
from pruning.task import PruningTask


def chain_topology(num_sites=4, num_patterns=3, *, is_sequential=False, seed=0) -> Topology:
    """Feature maps in a row, a site between neighbours, and one edge past them all."""
    rng = np.random.default_rng(seed)
    nodes = np.arange(num_sites)
    edges = np.append(np.stack([nodes, nodes + 1]), [[0], [num_sites]], axis=1)
    return Topology(
        edge_index=edges,
        node_features=rng.random((num_sites + 1, 5), dtype=np.float32),
        edge_features=rng.random((num_sites + 1, 4), dtype=np.float32),
        site_edges=np.stack([nodes, nodes]),
        site_features=rng.random((num_sites, 3), dtype=np.float32),
        num_sites=num_sites,
        num_patterns=num_patterns,
        is_sequential=is_sequential,
    )


class BestPatternEnv(gymnasium.Env):
    """Every site has one best pattern; reward is the fraction of sites that have it.

    With ratio actions the reward is 1 minus the mean distance to a target in [-1, 1]. A whole
    episode is one step; a layerwise one has as many steps as sites, all but the last with reward 0.

    Args:
        action: "pattern" or "ratio".
        episode: "whole" or "layerwise".
        with_mask: pattern 0 is never allowed, and never the best.
    """

    def __init__(
        self,
        action="pattern",
        episode="whole",
        *,
        with_mask=False,
        num_sites=4,
        num_patterns=3,
        seed=0,
    ):
        sequential = episode == "layerwise"
        num_patterns = num_patterns if action == "pattern" else 1
        self.topology = chain_topology(num_sites, num_patterns, is_sequential=sequential, seed=seed)
        feature = self.topology.site_features[:, 0]
        first = int(with_mask)
        rank = np.argsort(np.argsort(feature))
        self.best_patterns = first + rank * (num_patterns - first) // num_sites
        self.targets = 0.8 * (2 * feature - 1)
        self.masks = np.ones((num_sites, num_patterns), dtype=bool)
        self.masks[:, :first] = False
        self.is_sequential, self.is_pattern, self.with_mask = (
            sequential,
            action == "pattern",
            with_mask,
        )
        self.observation_space = GraphObservationSpace(self.topology, has_action_mask=with_mask)
        decided = 1 if sequential else num_sites
        if not self.is_pattern:
            self.action_space = spaces.Box(-1.0, 1.0, (decided,), np.float32)
        elif sequential:
            self.action_space = spaces.Discrete(num_patterns)
        else:
            self.action_space = spaces.MultiDiscrete([num_patterns] * num_sites)
        if with_mask:
            self.action_masks = lambda: self.masks[self._site] if sequential else self.masks.ravel()
        self.num_evaluations = 0
        self.best = None
        self.history = []
        self.seen = set()
        self.task = SimpleNamespace(
            evaluator=SimpleNamespace(num_cache_hits=0), sites=[None] * num_sites
        )
        self._site, self._decided = 0, []

    def uniform_ratios(self):
        return dict.fromkeys(range(self.topology.num_sites), 0.25)

    def preview(self, actions, *, rounded=False):
        kept = 0.5 + 0.4 * np.asarray(actions, dtype=np.float64)
        return np.round(kept, 3) if rounded else kept

    def first_observation(self):
        return self._observe()

    def encode_ratios(self, ratios):
        values = [ratios[self._site]] if self.is_sequential else list(ratios.values())
        if not self.is_pattern:
            return np.array(values, dtype=np.float32)
        patterns = np.full(len(values), 1)
        return np.int64(1) if self.is_sequential else patterns

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._site, self._decided = 0, []
        return self._observe(), {}

    def step(self, action):
        self._decided.extend(np.atleast_1d(action).tolist())
        self._site = len(self._decided)
        if self._site < self.topology.num_sites:
            return self._observe(), 0.0, False, False, {}
        decided = tuple(self._decided)
        if decided in self.seen:
            self.task.evaluator.num_cache_hits += 1
        else:
            self.seen.add(decided)
            self.num_evaluations += 1
        if self.is_pattern:
            reward = float(np.mean(np.array(decided) == self.best_patterns))
        else:
            reward = 1.0 - float(np.mean(np.abs(np.array(decided) - self.targets)))
        record = SimpleNamespace(reward=reward, decided=decided)
        self.history.append(record)
        if self.best is None or reward > self.best.reward:
            self.best = record
        return self._observe(), reward, True, False, {}

    def _observe(self):
        topology = self.topology
        site_state = np.zeros((topology.num_sites, 3), np.float32)
        site_state[: self._site, 1] = 1
        if self.is_sequential and self._site < topology.num_sites:
            site_state[self._site, 2] = 1
        observation = {
            "node_state": np.ones((topology.num_nodes, 2), np.float32),
            "edge_pattern": np.zeros(topology.num_edges, np.float32),
            "site_state": site_state,
            "globals": np.full(4, 0.5, np.float32),
        }
        if self.is_pattern and self._decided:
            observation["edge_pattern"][: self._site] = self._decided
        if self.with_mask:
            site = min(self._site, topology.num_sites - 1)
            masks = self.masks[site] if self.is_sequential else self.masks
            observation["action_mask"] = masks.astype(np.float32)
        return observation


@pytest.fixture
def make_topology():
    return chain_topology


@pytest.fixture
def make_env():
    return BestPatternEnv


class PlainNetwork(torch.nn.Module):
    """Convolutions 1 -> 8 -> 12 -> 6, then a linear; 6x6 images, 3 classes."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(8, 12, 3, padding=1)
        self.conv3 = torch.nn.Conv2d(12, 6, 3, padding=1)
        self.fc = torch.nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv3(torch.relu(self.conv2(x))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def make_plan_env():
    """Builds an environment in which one action is a whole plan of a real, small network."""

    def make(relative_macs=0.5, *, specs=(), importances=None, weights=None, network=None, **parts):
        torch.manual_seed(0)
        sets = [SampleSet(torch.rand(n, 1, 6, 6), torch.arange(n) % 3) for n in (9, 9, 30)]
        network = (network or PlainNetwork()).eval()
        network.load_state_dict(weights or {}, strict=False)
        task = PruningTask(
            network,
            trace_network(network, torch.zeros(1, 1, 6, 6)),
            SearchSplits(*sets),
            library=PatternLibrary.from_specs(specs),
            importances=importances,
        )
        defaults = {
            "observation": GraphObservation(),
            "action": RatioAction(0.9),
            "episode": Whole(max_steps=1),
            "budget": Tolerance(relative_macs),
            "reward": LogLikelihoodReward(),
        }
        return PruningEnv(task, **{**defaults, **parts})

    return make
