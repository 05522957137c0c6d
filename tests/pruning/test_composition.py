"""Two prunings one after the other are one pruning of the first network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from graphs.tracing import trace_network
from networks.resnet import cifar_resnet
from pruning.composition import compose_keep, plan_of
from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer


def traced(network, inputs):
    graph = trace_network(network, inputs)
    return graph, Slimmer(network, graph, verify=False)


def test_kept_channels_are_those_that_survive_both():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    inputs = torch.zeros(1, 3)
    graph, slimmer = traced(network, inputs)
    (name,) = graph.group_index
    keep = KeepSet.from_indices(graph, {name: [0, 2, 3, 5]})
    slim_graph, _ = traced(slimmer.materialize(keep), inputs)
    later = KeepSet.from_indices(slim_graph, {name: [1, 3]})  # of 0, 2, 3, 5
    composed = compose_keep(graph, keep, slim_graph, later)
    assert composed.kept(name).tolist() == [2, 5]
    plan = plan_of(graph, composed)
    assert plan.keep == {name: (2, 5)}
    assert plan.decisions[0].ratio == pytest.approx(4 / 6)
    with pytest.raises(ValueError, match=r"leaves 2 positions on axis 0 of '0\.weight'.*has 4"):
        compose_keep(graph, composed, slim_graph, later)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("seed", range(3))
def test_pruning_at_once_gives_the_tensors_of_two_prunings(shortcut, seed):
    torch.manual_seed(seed)
    network = cifar_resnet(depth=8, shortcut=shortcut, width=8, num_classes=4).eval()
    inputs = torch.zeros(1, 3, 8, 8)
    rng = np.random.default_rng(seed)
    graph, slimmer = traced(network, inputs)
    keep = KeepSet.random(graph, rng)
    slim = slimmer.materialize(keep)
    slim_graph, slim_slimmer = traced(slim, inputs)
    later = KeepSet.random(slim_graph, rng)
    twice = slim_slimmer.materialize(later).state_dict()
    composed = compose_keep(graph, keep, slim_graph, later)
    once = plan_of(graph, composed).apply(network, graph).state_dict()
    assert once.keys() == twice.keys()
    assert all(torch.equal(value, twice[name]) for name, value in once.items())
