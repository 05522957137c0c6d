"""Every `encoder=` behind one interface: what they share, and what sets them apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from agents.encoder import (
    EdgeMeans,
    GATv2Encoder,
    GCNEncoder,
    GINEncoder,
    NodeEncoder,
    SAGEEncoder,
)
from agents.features_extractor import GraphFeaturesExtractor
from agents.flat_features import FlatFeaturesExtractor

CONF = Path(__file__).parents[2] / "conf"
GRAPH = {
    "gatv2": GATv2Encoder,
    "gcn": GCNEncoder,
    "gin": GINEncoder,
    "none": NodeEncoder,
    "sage": SAGEEncoder,
}
MESSAGES = {name: encoder for name, encoder in GRAPH.items() if name != "none"}
EXTRACTORS = {**dict.fromkeys(GRAPH, GraphFeaturesExtractor), "mlp": FlatFeaturesExtractor}
STATE, EDGE, HIDDEN = 2, 7, 16

every_graph_encoder = pytest.mark.parametrize("encoder_class", GRAPH.values(), ids=GRAPH)
every_message = pytest.mark.parametrize("encoder_class", MESSAGES.values(), ids=MESSAGES)


def make(encoder_class, topology, seed=0, **kwargs):
    torch.manual_seed(seed)
    return encoder_class(topology, STATE, EDGE, HIDDEN, **kwargs)


def inputs(topology, batch_size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(batch_size, topology.num_nodes, STATE, generator=generator),
        torch.rand(batch_size, topology.num_edges, EDGE, generator=generator),
    )


def composed(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train_agent", overrides=[f"encoder={name}"]).encoder


def test_there_is_a_config_for_every_encoder():
    names = {file.stem for file in (CONF / "encoder").glob("*.yaml")}
    assert names == {*GRAPH, "mlp"}


@every_graph_encoder
def test_a_node_gets_one_embedding(make_topology, encoder_class):
    topology = make_topology(5)
    embedded = make(encoder_class, topology)(*inputs(topology))
    assert embedded.shape == (3, 6, HIDDEN)
    # the last layer norm, not trained yet: every node has mean 0 and variance 1
    torch.testing.assert_close(embedded.mean(-1), torch.zeros(3, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(embedded.var(-1, correction=0), torch.ones(3, 6), atol=1e-2, rtol=0)


@every_graph_encoder
def test_new_names_for_the_nodes_only_rename_the_embeddings(make_topology, encoder_class):
    topology = make_topology(5)
    new_name = np.array([3, 0, 5, 1, 4, 2])  # node i is called new_name[i]
    old_name = np.argsort(new_name)
    renamed = dataclasses.replace(
        topology,
        edge_index=new_name[topology.edge_index],
        node_features=topology.node_features[old_name],
    )
    state, edges = inputs(topology)
    with torch.no_grad():
        expected = make(encoder_class, topology)(state, edges)
        found = make(encoder_class, renamed)(state[:, old_name], edges)
    torch.testing.assert_close(found[:, new_name], expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, expected, atol=1e-2)


@every_graph_encoder
def test_the_order_of_the_edges_says_nothing(make_topology, encoder_class):
    topology = make_topology(5)
    order = np.array([4, 1, 5, 0, 3, 2])
    turned = dataclasses.replace(topology, edge_index=topology.edge_index[:, order])
    state, edges = inputs(topology)
    with torch.no_grad():
        expected = make(encoder_class, topology)(state, edges)
        found = make(encoder_class, turned)(state, edges[:, order])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@every_graph_encoder
def test_a_batch_gives_what_its_graphs_give_one_by_one(make_topology, encoder_class):
    topology = make_topology(6)
    encoder = make(encoder_class, topology)
    state, edges = inputs(topology, 4)
    with torch.no_grad():
        together = encoder(state, edges)
        alone = [encoder(state[i : i + 1], edges[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@every_graph_encoder
def test_the_seed_decides_the_weights(make_topology, encoder_class):
    topology = make_topology(4)
    first, again, other = (
        make(encoder_class, topology, seed)(*inputs(topology)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


@every_graph_encoder
def test_gradients_reach_every_parameter(make_topology, encoder_class):
    topology = make_topology(5)
    encoder = make(encoder_class, topology)
    state, edges = inputs(topology)
    target = torch.rand(3, 6, HIDDEN, generator=torch.Generator().manual_seed(1))
    (encoder(state, edges) * target).sum().backward()
    without = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert without == []


@every_graph_encoder
def test_weights_fit_the_graph_of_another_network(make_topology, encoder_class):
    small, large = make_topology(3), make_topology(9, seed=1)
    other = make(encoder_class, large, seed=1)
    before = other(*inputs(large))
    other.load_state_dict(make(encoder_class, small).state_dict())
    assert not torch.allclose(other(*inputs(large)), before, atol=1e-2)
    torch.testing.assert_close(
        other(*inputs(large)), make(encoder_class, large, seed=0)(*inputs(large))
    )


@every_message
@pytest.mark.parametrize("num_layers", [1, 2])
def test_what_an_edge_says_reaches_as_far_as_promised(make_topology, encoder_class, num_layers):
    """Layers that read edges use it at its ends first; else it is in the nodes from the start."""
    chain = np.stack([np.arange(8), np.arange(1, 9)])
    topology = dataclasses.replace(
        make_topology(8),
        edge_index=chain,
        edge_features=np.zeros((8, 4), np.float32),
        site_edges=np.stack([np.arange(8), np.arange(8)]),
    )
    encoder = make(encoder_class, topology, num_layers=num_layers)
    state, edges = inputs(topology, 1)
    other = edges.clone()
    other[0, 4] = 1 - other[0, 4]  # from node 4 to node 5
    with torch.no_grad():
        difference = (encoder(state, edges) - encoder(state, other)).abs().sum(-1)[0]
    changed = (difference > 1e-6).nonzero().flatten().tolist()
    reach = num_layers - (encoder_class in (GATv2Encoder, GINEncoder))
    assert changed == list(range(4 - reach, 6 + reach))


def test_without_messages_edges_are_not_read(make_topology):
    topology = make_topology(5)
    encoder = make(NodeEncoder, topology)
    state, edges = inputs(topology)
    assert torch.equal(encoder(state, edges), encoder(state, 1 - edges))


@every_message
def test_the_direction_of_an_edge_matters(make_topology, encoder_class):
    topology = make_topology(5)
    turned = dataclasses.replace(topology, edge_index=topology.edge_index[::-1].copy())
    state, edges = inputs(topology)
    with torch.no_grad():
        expected = make(encoder_class, topology)(state, edges)
        found = make(encoder_class, turned)(state, edges)
    assert (found - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("encoder_class", "counts_edges"),
    [(GATv2Encoder, False), (SAGEEncoder, False), (GCNEncoder, True), (GINEncoder, True)],
)
def test_means_do_not_count_neighbours_and_sums_do(make_topology, encoder_class, counts_edges):
    """With every edge twice, attention and means stay as they were."""
    topology = make_topology(5)
    double = dataclasses.replace(topology, edge_index=np.tile(topology.edge_index, 2))
    state, edges = inputs(topology)
    with torch.no_grad():
        expected = make(encoder_class, topology)(state, edges)
        found = make(encoder_class, double)(state, edges.repeat(1, 2, 1))
    assert torch.allclose(found, expected, atol=1e-5) != counts_edges


def test_edge_means_by_hand(make_topology):
    topology = dataclasses.replace(make_topology(2), edge_index=np.array([[0, 0, 1], [1, 2, 2]]))
    means = EdgeMeans(topology, 2, 4)
    with torch.no_grad():
        means.linear.weight.copy_(torch.eye(4))
        found = means(torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]]))
    expected = [  # mean of the edges that make the node, then of those that read it
        [0.0, 0.0, 1.5, 15.0],
        [1.0, 10.0, 4.0, 40.0],
        [3.0, 30.0, 0.0, 0.0],
    ]
    torch.testing.assert_close(found, torch.tensor([expected]))


@pytest.mark.parametrize("name", EXTRACTORS)
def test_the_command_line_builds_the_right_encoder(make_env, name):
    env = make_env()
    section = composed(name).on_policy
    policy = instantiate(section.policy)(
        env.observation_space,
        env.action_space,
        lambda _: 1e-3,
        **instantiate(section.policy_kwargs, _convert_="all"),
    )
    extractor = policy.features_extractor
    assert type(extractor) is EXTRACTORS[name]
    if name == "mlp":
        return
    assert type(extractor.encoder) is GRAPH[name]
    assert (extractor.encoder.hidden_channels, extractor.encoder.num_layers) == (64, 2)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_an_assigned_pattern_changes_what_every_policy_sees(make_env, name):
    env = make_env()
    section = composed(name).off_policy.policy_kwargs
    torch.manual_seed(0)
    extractor = instantiate(section.features_extractor_class)(
        env.observation_space,
        **instantiate(section.get("features_extractor_kwargs", {}), _convert_="all"),
    )
    first, _ = env.reset()
    second, *_ = env.step(np.array([2, 0, 0, 0]))
    assert second["edge_pattern"].tolist() == [2, 0, 0, 0, 0]
    second["site_state"] = first["site_state"]
    features = [
        extractor({key: torch.as_tensor(value)[None] for key, value in observation.items()})
        for observation in (first, second)
    ]
    assert features[0].shape == (1, extractor.features_dim)
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_graph_encoders_are_compared_with_the_same_settings():
    """All but the class of the encoder and what only one of them has."""
    settings = {}
    for name in GRAPH:
        section = OmegaConf.to_container(composed(name))
        options = section["on_policy"]["policy_kwargs"]["features_extractor_kwargs"]
        del options["encoder_class"]
        options["encoder_kwargs"].pop("heads", None)
        settings[name] = section
    assert all(section == settings["gatv2"] for section in settings.values())
    assert settings["gatv2"]["on_policy"]["policy_kwargs"]["net_arch"] == [64]


@every_message
def test_fewer_than_one_layer_is_refused(make_topology, encoder_class):
    with pytest.raises(ValueError, match=r"num_layers=0: wanted is 1 or more.*encoder_kwargs"):
        make(encoder_class, make_topology(), num_layers=0)


def test_an_unknown_encoder_is_refused_with_those_there_are():
    with pytest.raises(MissingConfigException, match=r"(?s)encoder/gat.*gatv2.*gcn.*gin.*mlp"):
        composed("gat")


@pytest.mark.parametrize("name", sorted(set(MESSAGES) - {"gatv2"}))
def test_encoders_say_what_they_are(make_topology, name):
    encoder = make(GRAPH[name], make_topology(), num_layers=3)
    assert repr(encoder) == f"{GRAPH[name].__name__}(16, num_layers=3)"
