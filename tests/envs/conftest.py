"""A small real network whose accuracy has a closed form, so that the best plan is known."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import envs  # noqa: F401  (registers the environments)
from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from patterns.library import PatternLibrary
from pruning.evaluation import Evaluation
from pruning.task import PruningTask

CHANNELS = tuple({"family": "channel", "ratio": ratio} for ratio in (0.25, 0.5, 0.75))
MIXED = (
    {"family": "channel", "ratio": 0.5},
    {"family": "channel", "ratio": 0.75},
    {"family": "kernel_shape", "shape": "plus"},
)


class SmallNetwork(nn.Module):
    """Stem, residual block, depthwise and pointwise convolution, hidden layer, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.hidden = nn.Linear(12, 10)
        self.classifier = nn.Linear(10, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        x = torch.relu(self.pointwise(torch.relu(self.depthwise(x))))
        return self.classifier(torch.relu(self.hidden(x.mean((2, 3)))))


class ClosedForm:
    """Stands in for the evaluator: each group costs accuracy in proportion to what it loses."""

    def __init__(self, task: PruningTask) -> None:
        self._sizes = np.array([group.size for group in task.graph.groups])
        self._worth = 0.02 + 0.05 * np.arange(len(self._sizes))
        self._known: dict = {}
        self.num_evaluations = 0
        self.num_cache_hits = 0

    def accuracy(self, counts, num_masks=0) -> float:
        lost = float((self._worth * (1.0 - np.asarray(counts) / self._sizes)).sum())
        return 0.9 - lost - 0.01 * num_masks

    def evaluate(self, candidate, overlay=None) -> Evaluation:
        if candidate in self._known:
            self.num_cache_hits += 1
            return replace(self._known[candidate], cached=True)
        self.num_evaluations += 1
        accuracy = self.accuracy(candidate.keep.counts, len(candidate.masks))
        self._known[candidate] = Evaluation(accuracy, -math.log(accuracy), 100)
        return self._known[candidate]


def _real_task(specs=CHANNELS) -> PruningTask:
    torch.manual_seed(0)
    network = SmallNetwork().eval()
    inputs = torch.rand(4, 3, 6, 6)
    samples = SampleSet(inputs, torch.arange(4))
    graph = trace_network(network, inputs[:1])
    library = PatternLibrary.from_specs(specs)
    return PruningTask(network, graph, SearchSplits(samples, samples, samples), library=library)


def _task(specs=CHANNELS) -> PruningTask:
    task = _real_task(specs)
    task.evaluator = ClosedForm(task)
    task.base = Evaluation(0.9, -math.log(0.9), 100)
    return task


@pytest.fixture
def make_task():
    """Builds a task with closed-form accuracy: make_task(pattern specifications)."""
    return _task


@pytest.fixture
def make_real_task():
    """Builds the same task with its own evaluator, on four images."""
    return _real_task


@pytest.fixture
def task():
    """A task with channel patterns 0.25, 0.5 and 0.75."""
    return _task()


@pytest.fixture
def mixed_task():
    """A task with channel patterns 0.5 and 0.75 and the kernel shape "plus"."""
    return _task(MIXED)


@pytest.fixture
def make_env(task):
    """Builds an environment around `task`: make_env("AMC-v0", budget=..., ...)."""

    def make(env_id="AMC-v0", **parts):
        parts.setdefault("task", task)
        return gymnasium.make(env_id, disable_env_checker=True, **parts).unwrapped

    return make


@pytest.fixture
def run_episode():
    """Runs one episode of random or given actions; returns observations, rewards and infos."""

    def run(env, actions=None, seed=None):
        observation, info = env.reset(seed=seed)
        observations, rewards, infos, finished = [observation], [], [info], False
        if seed is not None:
            env.action_space.seed(seed)
        steps = iter(actions) if actions is not None else None
        while not finished:
            action = env.action_space.sample() if steps is None else next(steps)
            observation, reward, terminated, truncated, info = env.step(action)
            observations.append(observation)
            rewards.append(reward)
            infos.append(info)
            finished = terminated or truncated
        return observations, rewards, infos

    return run
