"""A chain of three pruned layers whose loss is a sum of known terms, one per group."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium
import numpy as np
import torch
from torch import nn

import envs  # noqa: F401  (registers the environments)
from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from patterns.library import PatternLibrary
from pruning.evaluation import Evaluation
from pruning.task import PruningTask

BASE_LOSS = 0.1


class Chain(nn.Module):
    """Convolutions 1 -> 8 -> 8 -> 16 on 4x4 images, then a linear layer to 3 classes.

    MACs: 16 * 9 * 8 = 1,152, 16 * 9 * 64 = 9,216, 16 * 9 * 128 = 18,432 and 16 * 3 = 48.
    """

    def __init__(self, with_norms=True):
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.a_norm = nn.BatchNorm2d(8) if with_norms else nn.Identity()
        self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.b_norm = nn.BatchNorm2d(8) if with_norms else nn.Identity()
        self.c = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.c_norm = nn.BatchNorm2d(16) if with_norms else nn.Identity()
        self.classifier = nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.a_norm(self.a(x)))
        x = torch.relu(self.b_norm(self.b(x)))
        x = torch.relu(self.c_norm(self.c(x)))
        return self.classifier(x.mean((2, 3)))


class SumOfTerms:
    """Stands in for the evaluator: loss = 0.1 + sum of worth * (fraction removed) ** power."""

    def __init__(self, task, worth, power):
        self.sizes = np.array([group.size for group in task.graph.groups])
        self.worth, self.power = np.asarray(worth), power
        self.known, self.num_evaluations, self.num_cache_hits = {}, 0, 0

    def loss(self, counts):
        removed = 1.0 - np.asarray(counts) / self.sizes
        return BASE_LOSS + float((self.worth * removed**self.power).sum())

    def evaluate(self, candidate, overlay=None):
        if candidate in self.known:
            self.num_cache_hits += 1
            return replace(self.known[candidate], cached=True)
        self.num_evaluations += 1
        loss = self.loss(candidate.keep.counts)
        self.known[candidate] = Evaluation(math.exp(-loss), loss, 100)
        return self.known[candidate]


def chain_task(worth=(3.0, 1.0, 2.0), power=1.0, *, criterion="l1", round_to=1, fake=True):
    """A task around `Chain`; with `fake` its evaluator is `SumOfTerms`."""
    torch.manual_seed(0)
    network = Chain().eval()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(24, 1, 4, 4, generator=generator)
    samples = SampleSet(inputs, torch.arange(24) % 3)
    graph = trace_network(network, inputs[:1]).rounded(round_to)
    task = PruningTask(
        network,
        graph,
        SearchSplits(samples, samples, samples),
        library=PatternLibrary.from_specs([{"family": "channel", "ratio": 0.5}]),
        criterion=criterion,
    )
    if fake:
        task.evaluator = SumOfTerms(task, worth, power)
        task.base = Evaluation(math.exp(-BASE_LOSS), BASE_LOSS, 100)
    return task


def chain_env(task=None, env_id="Allocation-v0", **parts):
    """An environment around a task, at half of the MACs."""
    task = chain_task() if task is None else task
    return gymnasium.make(env_id, task=task, disable_env_checker=True, **parts).unwrapped


def counts_of(record):
    """Kept counts of a record, in graph order."""
    return tuple(len(kept) for kept in record.plan.keep.values())
