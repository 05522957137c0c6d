"""The graph observation space and its topology: values by hand, equality, copies."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from graphs.features import (
    EDGE_FEATURES,
    NODE_FEATURES,
    SITE_FEATURES,
    NetworkFacts,
    edge_features,
    mean_length,
    node_features,
    owning_site,
    site_features,
)
from graphs.observation import GraphObservationSpace, build_topology
from graphs.tracing import trace_network


class Concatenated(nn.Module):
    """Two convolutions, concatenated, then a depthwise one that carries both groups."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 2, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        return self.classifier(torch.relu(self.depthwise(x)).mean((2, 3)))


MACS = {"left": 64 * 27 * 4, "right": 64 * 3 * 2, "depthwise": 64 * 9 * 6, "classifier": 30}
TOTAL = sum(MACS.values())


def traced(seed=0):
    torch.manual_seed(seed)
    network = Concatenated().eval()
    graph = trace_network(network, torch.rand(1, 3, 8, 8))
    facts = NetworkFacts(
        weights={
            operator.weight: network.state_dict()[operator.weight].numpy()
            for operator in graph.operators
        },
        importances={"left": np.array([1.0, 2.0, 3.0, 4.0]), "right": np.array([0.0, 0.0])},
        operator_macs=MACS,
        savings=[0.5, 0.25],
        sites=[group.producers for group in graph.groups],
    )
    return graph, facts


def topology(seed=0, num_patterns=3, is_sequential=False):
    graph, facts = traced(seed)
    return build_topology(graph, facts, num_patterns=num_patterns, is_sequential=is_sequential)


def test_an_operator_of_two_groups_is_counted_at_the_first():
    graph, facts = traced()
    assert [group.producers for group in graph.groups] == [
        ("left", "depthwise"),
        ("right", "depthwise"),
    ]
    owner = owning_site(graph, facts.sites)
    names = [operator.name for operator in graph.operators]
    assert dict(zip(names, owner.tolist(), strict=True)) == {
        "left": 0,
        "right": 1,
        "depthwise": 0,
        "classifier": -1,
    }


def test_edge_features_are_as_computed_by_hand():
    graph, facts = traced()
    features = edge_features(graph, facts)
    columns = {name: index for index, name in enumerate(EDGE_FEATURES)}
    names = [
        None if edge.operator is None else graph.operators[edge.operator].name
        for edge in graph.edges
    ]
    left = features[names.index("left")]
    assert left[columns["is_conv"]] == 1.0
    assert left[columns["kernel"]] == pytest.approx(3 / 7)
    assert left[columns["stride"]] == pytest.approx(1 / 4)
    assert left[columns["grouping"]] == 0.0
    assert left[columns["in_channels"]] == pytest.approx(np.log(4) / np.log(4097))
    assert left[columns["macs"]] == pytest.approx(MACS["left"] / TOTAL)
    assert left[columns["params"]] == pytest.approx(108 / (108 + 6 + 54 + 30))
    weight = facts.weights["left.weight"].reshape(4, -1)
    mean = np.abs(weight).mean() * np.sqrt(27)
    assert left[columns["weight_mean"]] == pytest.approx(mean / (1 + mean), rel=1e-5)
    depthwise = features[names.index("depthwise")]
    assert depthwise[columns["is_depthwise"]] == 1.0
    assert depthwise[columns["grouping"]] == pytest.approx(np.log(6) / np.log(4097))
    concat = features[[edge.kind for edge in graph.edges].index("concat")]
    assert concat[columns["is_concat"]] == 1.0
    assert concat[columns["macs"]] == concat[columns["weight_mean"]] == 0.0


def test_macs_shares_of_operator_edges_sum_to_one():
    graph, facts = traced()
    shares = edge_features(graph, facts)[:, EDGE_FEATURES.index("macs")]
    assert shares.sum() == pytest.approx(1.0)


def test_node_features_are_as_computed_by_hand():
    graph, facts = traced()
    features = node_features(graph, facts)
    columns = {name: index for index, name in enumerate(NODE_FEATURES)}
    source = features[0]
    assert source[columns["fixed"]] == 1.0
    assert source[columns["macs_in"]] == 0.0
    assert source[columns["macs_out"]] == pytest.approx((MACS["left"] + MACS["right"]) / TOTAL)
    assert source[columns["positions"]] == pytest.approx(np.log(65) / np.log(65537))
    index = next(
        edge.target
        for edge in graph.edges
        if edge.operator is not None and graph.operators[edge.operator].name == "left"
    )
    left = features[index]
    assert left[columns["importance_mean"]] == pytest.approx(2.5 / 4)
    assert left[columns["importance_std"]] == pytest.approx(np.std([0.25, 0.5, 0.75, 1.0]))
    assert left[columns["macs_in"]] == pytest.approx(MACS["left"] / TOTAL)
    assert features[-1, columns["depth"]] == 1.0


def test_site_features_are_as_computed_by_hand():
    graph, facts = traced()
    features = site_features(graph, facts)
    columns = {name: index for index, name in enumerate(SITE_FEATURES)}
    left, right = features
    assert left[columns["channels"]] == pytest.approx(np.log(5) / np.log(4097))
    assert left[columns["min_keep"]] == pytest.approx(graph.groups[0].min_keep / 4)
    assert left[columns["saving"]] == pytest.approx(0.5)
    assert left[columns["macs"]] == pytest.approx((MACS["left"] + MACS["depthwise"]) / TOTAL)
    assert left[columns["importance_q50"]] == pytest.approx(2.5 / 4)
    assert right[columns["importance_q10"]] == 1.0  # equal importances are all the largest
    assert (left[columns["depth"]], right[columns["depth"]]) == (0.0, 1.0)


def test_features_lie_in_the_unit_interval_and_differ_with_the_weights():
    first, second = topology(seed=0), topology(seed=1)
    for name in ("node_features", "edge_features", "site_features"):
        values = getattr(first, name)
        assert values.dtype == np.float32
        assert values.min() >= 0.0
        assert values.max() <= 1.0
    assert not np.array_equal(first.edge_features, second.edge_features)
    assert first != second


def test_the_same_network_gives_the_same_topology():
    assert topology() == topology()
    assert hash(topology()) == hash(topology())


def test_site_edges_name_every_edge_that_produces_a_site():
    graph, facts = traced()
    pairs = build_topology(graph, facts, num_patterns=1, is_sequential=True).site_edges
    named = [(s, graph.operators[graph.edges[e].operator].name) for s, e in pairs.T]
    assert sorted(named) == [(0, "depthwise"), (0, "left"), (1, "depthwise"), (1, "right")]


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_the_space_survives_copies_with_its_topology(duplicate):
    space = GraphObservationSpace(topology(), has_action_mask=True)
    other = duplicate(space)
    assert other == space
    assert other.topology == space.topology
    assert space.sample() in other


def test_spaces_differ_when_their_topologies_do():
    space = GraphObservationSpace(topology(), has_action_mask=False)
    assert space != GraphObservationSpace(topology(seed=1), has_action_mask=False)
    assert space != GraphObservationSpace(topology(), has_action_mask=True)


@pytest.mark.parametrize(("is_sequential", "shape"), [(True, (3,)), (False, (2, 3))])
def test_the_space_has_the_documented_entries(is_sequential, shape):
    one = topology(is_sequential=is_sequential)
    space = GraphObservationSpace(one, has_action_mask=True)
    assert {key: box.shape for key, box in space.items()} == {
        "node_state": (one.num_nodes, 2),
        "edge_pattern": (one.num_edges,),
        "site_state": (2, 3),
        "globals": (4,),
        "action_mask": shape,
    }
    assert space["edge_pattern"].high.max() == 2.0
    assert "action_mask" not in GraphObservationSpace(one, has_action_mask=False).spaces


@pytest.mark.parametrize(
    ("lengths", "mean"), [((), 1.0), ((3,), 3.0), ((1, 9), 3.0), ((2, 2), 2.0)]
)
def test_the_length_of_a_kernel_is_its_geometric_mean(lengths, mean):
    assert mean_length(lengths) == pytest.approx(mean)
