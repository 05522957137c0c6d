from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from agents.encoder import GATv2Encoder, NodeEncoder
from agents.features_extractor import GraphFeaturesExtractor
from graphs.observation import GraphObservationSpace

ENCODERS = [
    pytest.param(GATv2Encoder, {"num_layers": 2, "heads": 4}, id="gatv2"),
    pytest.param(NodeEncoder, {"num_layers": 2}, id="none"),
]


def make_extractor(topology, encoder_class=GATv2Encoder, encoder_kwargs=None, seed=0):
    torch.manual_seed(seed)
    return GraphFeaturesExtractor(
        GraphObservationSpace(topology, has_action_mask=False),
        encoder_class=encoder_class,
        encoder_kwargs=encoder_kwargs or {},
        hidden_channels=16,
        pattern_channels=4,
    )


def random_observations(topology, batch_size, seed=0):
    space = GraphObservationSpace(topology, has_action_mask=False)
    space.seed(seed)
    samples = [space.sample() for _ in range(batch_size)]
    return {key: torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in space}


@pytest.mark.parametrize(("encoder_class", "encoder_kwargs"), ENCODERS)
def test_new_names_for_the_nodes_do_not_change_the_site_embeddings(
    make_topology, encoder_class, encoder_kwargs
):
    topology = make_topology(5)
    new_name = np.array([3, 0, 5, 1, 4, 2])  # node i is called new_name[i]
    old_name = np.argsort(new_name)
    renamed = dataclasses.replace(
        topology,
        edge_index=new_name[topology.edge_index],
        node_features=topology.node_features[old_name],
    )
    observations = random_observations(topology, 3)
    renamed_observations = {**observations, "node_state": observations["node_state"][:, old_name]}
    with torch.no_grad():
        expected = make_extractor(topology, encoder_class, encoder_kwargs).embed(observations)
        found = make_extractor(renamed, encoder_class, encoder_kwargs).embed(renamed_observations)
    assert not torch.allclose(expected.sites[:, 0], expected.sites[:, 1], atol=1e-2)
    torch.testing.assert_close(found.sites, expected.sites, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.graph, expected.graph, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("encoder_class", "encoder_kwargs"), ENCODERS)
def test_a_batch_gives_what_its_observations_give_one_by_one(
    make_topology, encoder_class, encoder_kwargs
):
    topology = make_topology(6)
    extractor = make_extractor(topology, encoder_class, encoder_kwargs)
    observations = random_observations(topology, 4)
    with torch.no_grad():
        together = extractor(observations)
        alone = [
            extractor({key: value[i : i + 1] for key, value in observations.items()})
            for i in range(4)
        ]
    assert together.shape == (4, extractor.features_dim)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_messages_flow_along_the_edges_and_against_them(make_topology):
    topology = dataclasses.replace(
        make_topology(5), edge_index=np.array([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 5, 1]])
    )
    observations = random_observations(topology, 1)

    def changed_nodes(encoder_class, node, **kwargs):
        torch.manual_seed(0)
        encoder = encoder_class(topology, 2, 7, 16, **kwargs)
        edges = torch.rand(1, 6, 7)
        state = observations["node_state"]
        other = state.clone()
        other[0, node] = 1 - other[0, node]
        with torch.no_grad():
            difference = (encoder(state, edges) - encoder(other, edges)).abs().sum(-1)[0]
        return (difference > 1e-6).nonzero().flatten().tolist()

    assert changed_nodes(GATv2Encoder, 2, num_layers=1) == [1, 2, 3]
    assert changed_nodes(GATv2Encoder, 2, num_layers=2) == [0, 1, 2, 3, 4]
    assert changed_nodes(NodeEncoder, 2) == [2]


def test_the_direction_of_an_edge_matters(make_topology):
    topology = make_topology(5)
    turned = dataclasses.replace(topology, edge_index=topology.edge_index[::-1].copy())
    state, edges = torch.rand(1, 6, 2), torch.rand(1, 6, 7)
    torch.manual_seed(0)
    encoder = GATv2Encoder(topology, 2, 7, 16)
    torch.manual_seed(0)
    turned_encoder = GATv2Encoder(turned, 2, 7, 16)
    with torch.no_grad():
        difference = encoder(state, edges) - turned_encoder(state, edges)
    assert difference.abs().max() > 1e-4


def test_the_embedding_of_an_assigned_pattern_is_trained(make_topology):
    topology = make_topology(4, num_patterns=5)
    extractor = make_extractor(topology)
    observations = random_observations(topology, 2)
    observations["edge_pattern"] = torch.tensor([[0.0, 3, 3, 0, 0], [0, 0, 0, 0, 1]])
    extractor(observations).pow(2).sum().backward()
    used = extractor.pattern_embedding.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [True, True, False, True, False]


def test_a_site_without_edges_has_an_embedding_of_its_features(make_topology):
    topology = make_topology(3)
    topology = dataclasses.replace(topology, site_edges=topology.site_edges[:, :2])
    sites = make_extractor(topology).embed(random_observations(topology, 2)).sites.detach()
    assert torch.isfinite(sites).all()
    features = topology.site_features
    expected = (features[2] - features.mean(0)) / np.sqrt(features.var(0) + 1e-4)
    np.testing.assert_allclose(sites[0, 2, 16:19].numpy(), expected, atol=1e-5)


def test_the_sites_of_a_network_are_told_apart_from_the_start(make_topology):
    """Over the sites, every embedding channel has mean 0 and variance 1, but for the site state."""
    topology = make_topology(6)
    sites = make_extractor(topology).embed(random_observations(topology, 2)).sites.detach()
    embedded = sites[..., :-3]
    torch.testing.assert_close(embedded.mean(1), torch.zeros(2, 19), atol=1e-5, rtol=0)
    assert (embedded.var(1, correction=0) > 0.8).all()
    lone = make_topology(1)
    sites = make_extractor(lone).embed(random_observations(lone, 2)).sites
    assert sites[..., :-3].abs().max() == 0


def test_weights_fit_the_graph_of_another_network(make_topology):
    small, large = make_topology(3), make_topology(9, seed=1)
    extractor, other = make_extractor(small, seed=0), make_extractor(large, seed=1)
    other.load_state_dict(extractor.state_dict())
    assert other.embed(random_observations(large, 2)).sites.shape[:2] == (2, 9)


def test_in_layerwise_episodes_the_features_are_those_of_the_current_site(make_topology):
    topology = make_topology(4, is_sequential=True)
    extractor = make_extractor(topology)
    observations = random_observations(topology, 2)
    observations["site_state"][..., 2] = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 0]])
    with torch.no_grad():
        embeddings, features = extractor.embed(observations), extractor(observations)
    torch.testing.assert_close(features[0, : extractor.site_dim], embeddings.sites[0, 2])
    assert features[1, : extractor.site_dim].abs().sum() == 0


def test_encoders_say_what_they_are(make_topology):
    topology = make_topology()
    assert repr(GATv2Encoder(topology, 2, 4, 32, num_layers=3, heads=8)) == (
        "GATv2Encoder(32, num_layers=3, heads=8)"
    )
    assert repr(NodeEncoder(topology, 2, 4, 32)) == "NodeEncoder(32, num_layers=2)"


def test_heads_that_do_not_divide_the_channels_are_refused(make_topology):
    with pytest.raises(ValueError, match="hidden_channels=16 is not a multiple of heads=5"):
        make_extractor(make_topology(), encoder_kwargs={"heads": 5})


def test_an_observation_without_topology_is_refused():
    from gymnasium import spaces

    with pytest.raises(ValueError, match=r"Set env/observation=graph, or take encoder=mlp"):
        GraphFeaturesExtractor(spaces.Box(0, 1, (11,)))
