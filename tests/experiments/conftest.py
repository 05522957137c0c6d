"""A network so small that its numbers can be worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from envs.recording import EpisodeRecord
from graphs.tracing import trace_network
from networks.data import DataSplits, SampleSet, SearchSplits
from patterns.library import PatternLibrary
from pruning.plan import Decision
from pruning.task import PruningTask


class TinyNetwork(nn.Module):
    """Convolutions 1 -> 4 -> 6 with batch norms, then a linear; 6x6 images, 3 classes."""

    def __init__(self, width=1):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.conv2 = nn.Conv2d(4 * width, 6 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6 * width)
        self.fc = nn.Linear(6 * width, 3)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def sample_set(count, generator):
    inputs = torch.rand(count, 1, 6, 6, generator=generator)
    targets = torch.randint(3, (count,), generator=generator)
    return SampleSet(inputs, targets)


@pytest.fixture(scope="session")
def tiny_data():
    generator = torch.Generator().manual_seed(0)
    train, calibration, reward, test = (sample_set(n, generator) for n in (24, 12, 16, 20))
    indices = {
        "train": tuple(range(24)),
        "calibration": tuple(range(24, 36)),
        "reward": tuple(range(36, 52)),
    }
    return DataSplits("tiny", 3, SearchSplits(train, calibration, reward), test, indices)


@pytest.fixture
def make_tiny_task(tiny_data):
    def make(width=1):
        torch.manual_seed(0)
        network = TinyNetwork(width).eval()
        graph = trace_network(network, torch.zeros(1, 1, 6, 6))
        library = PatternLibrary.from_specs(
            [
                {"family": "dense"},
                {"family": "channel", "ratio": 0.5},
                {"family": "kernel_shape", "name": "plus", "rows": [".#.", "###", ".#."]},
            ]
        )
        return PruningTask(network, graph, tiny_data.search, library=library)

    return make


@pytest.fixture
def tiny_task(make_tiny_task):
    return make_tiny_task()


@pytest.fixture
def make_record(tiny_task):
    plan_decisions = [Decision("conv1", ratio=0.5), Decision("conv2", ratio=0.0)]
    candidate = tiny_task.candidate(plan_decisions)
    record = EpisodeRecord(
        episode=0,
        steps=1,
        evaluations=1,
        cached=False,
        reward=0.5,
        score=0.5,
        reward_terms={"quality": 0.4, "compression": 0.1},
        accuracy=0.75,
        loss=0.6,
        num_samples=20,
        relative_macs=0.5,
        macs=100,
        nonzero_macs=100,
        params=10,
        met=True,
        raw_action=(1.0,),
        executed=(("conv1", 0.5),),
        clamps=0,
        seconds=0.1,
        plan=tiny_task.plan(plan_decisions, candidate),
    )

    def make(**changes):
        return dataclasses.replace(record, **changes)

    return make
