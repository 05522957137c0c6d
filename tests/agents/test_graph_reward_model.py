from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy.stats import spearmanr

from agents.encoder import GATv2Encoder, GCNEncoder
from agents.graph_reward_model import GraphEnsemble, GraphRegressor, PlanRegressor
from agents.held_out import held_out_quality
from agents.reward_model import GaussianProcess
from agents.search import run_search
from envs.pruning_env import PruningEnv
from experiments.command_line import CONFIG_FOLDER
from experiments.search_stage import build_parts
from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from networks.digits import digits_resnet
from patterns.library import PatternLibrary
from pruning.task import PruningTask

SMALL = {"members": 2, "hidden_channels": 8}


def composed(*overrides):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train_agent", ["agent=imagination", "env=allocation", *overrides])


@pytest.fixture
def make_digits_env():
    def make(*overrides):
        torch.manual_seed(0)
        network = digits_resnet(width=4, blocks=(1, 1, 1)).eval()
        sets = [SampleSet(torch.rand(n, 1, 8, 8), torch.arange(n) % 10) for n in (10, 10, 30)]
        graph = trace_network(network, torch.zeros(1, 1, 8, 8))
        library = PatternLibrary.from_specs([])
        task = PruningTask(network, graph, SearchSplits(*sets), library=library)
        return PruningEnv(task, **build_parts(composed(*overrides)))

    return make


@pytest.fixture
def graph(make_digits_env):
    env = make_digits_env()
    return env.observation_space, env.first_observation()


def some_plans(count, num_sites, seed=0):
    """Plans, and rewards with a trend that is steeper the less is kept of the site before."""
    plans = np.random.default_rng(seed).uniform(0.3, 1.0, (count, num_sites))
    logs = np.log(plans)
    slopes = np.linspace(0.5, 2.0, num_sites)
    return plans, logs @ slopes - 2.0 * (logs[:, 1:] * logs[:, :-1]).sum(axis=1)


def sites_of(graph):
    return graph[0].topology.num_sites


def bound(graph, **settings):
    model = GraphEnsemble(**{**SMALL, **settings})
    model.bind(*graph)
    return model


@pytest.mark.parametrize("encoder_class", [GATv2Encoder, GCNEncoder, None])
def test_a_fitted_ensemble_ranks_plans_it_has_not_seen(graph, encoder_class):
    plans, rewards = some_plans(160, sites_of(graph))
    model = bound(graph, encoder_class=encoder_class)
    for count in (60, 80, 100):
        model.fit(plans[:count], rewards[:count])
    mean, deviation = model.predict(plans[100:])
    assert mean.shape == deviation.shape == (60,)
    assert (deviation > 0).all()
    assert spearmanr(mean, rewards[100:]).statistic > 0.85
    assert np.abs(mean - rewards[100:]).mean() < 0.5 * rewards.std()


def test_predictions_do_not_depend_on_the_other_plans_asked(graph):
    plans, rewards = some_plans(300, sites_of(graph))
    model = bound(graph)
    model.fit(plans[:40], rewards[:40])
    together, alone = model.predict(plans), model.predict(plans[290:])
    for whole, part in zip(together, alone, strict=True):
        np.testing.assert_allclose(whole[290:], part, rtol=1e-4)


def test_it_doubts_what_is_far_from_every_measurement(graph):
    plans, rewards = some_plans(60, sites_of(graph))
    model = bound(graph)
    model.fit(plans, rewards)
    near = model.predict(plans)[1].mean()
    assert model.predict(np.full((1, sites_of(graph)), 0.05))[1][0] > 1.5 * near


def test_the_place_of_a_site_in_the_graph_plays_a_part(graph):
    """The same kept fraction at two sites, and different embeddings."""
    space, observation = graph
    torch.manual_seed(0)
    network = GraphRegressor(
        space,
        observation,
        encoder_class=GATv2Encoder,
        encoder_kwargs={"heads": 2},
        hidden_channels=8,
        num_features=16,
    )
    features = network.features(torch.eye(sites_of(graph)))
    assert features.shape == (sites_of(graph), 16)
    assert torch.pdist(features).min() > 1e-3
    assert (network(torch.eye(sites_of(graph))) == 0).all()


def test_learning_goes_on_from_the_weights_of_the_last_round(graph):
    plans, rewards = some_plans(60, sites_of(graph))
    model = bound(graph, encoder_class=None, steps=1, learning_rate=0.01)
    errors = []
    for _ in range(60):
        model.fit(plans, rewards)
        errors.append(np.abs(model.predict(plans)[0] - rewards).mean())
    assert errors[-1] < 0.8 * errors[0]


def test_the_same_seed_predicts_the_same_and_binding_begins_anew(graph):
    plans, rewards = some_plans(40, sites_of(graph))

    def predicted(model):
        for count in (20, 40):
            model.fit(plans[:count], rewards[:count])
        return model.predict(plans)[0]

    model = bound(graph, seed=3)
    first = predicted(model)
    torch.rand(3)  # the global generator plays no part
    np.testing.assert_array_equal(first, predicted(bound(graph, seed=3)))
    assert not np.array_equal(first, predicted(bound(graph, seed=4)))
    model.bind(*graph)
    np.testing.assert_array_equal(first, predicted(model))


def test_how_badly_a_network_is_ruined_plays_no_part(graph):
    plans, rewards = some_plans(40, sites_of(graph))
    predictions = []
    for ruin in (-50.0, -5000.0):
        model = bound(graph, steps=2)
        model.fit(plans, np.append(rewards[:-2], [ruin, ruin]))
        predictions.append(model.predict(plans)[0])
    np.testing.assert_array_equal(*predictions)


def test_a_model_without_its_graph_is_refused(graph):
    plans, rewards = some_plans(20, sites_of(graph))
    with pytest.raises(ValueError, match="reads a graph, and none was bound: call bind"):
        GraphEnsemble().fit(plans, rewards)
    with pytest.raises(ValueError, match=rf"has {sites_of(graph)} sites and the plans 2\."):
        bound(graph).fit(plans[:, :2], rewards)
    model = GraphEnsemble()
    model.bind(spaces.Box(-1, 1, (4,)), np.zeros(4))
    with pytest.raises(ValueError, match=r"Set env/observation=graph, or take encoder=mlp"):
        model.fit(plans, rewards)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 0}, r"members=0: wanted is 1 or more. Change agent\.model\.members\."),
        ({"batch_size": 1}, r"batch_size=1: wanted is 2 or more. Change agent\.model\.batch_size"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0: wanted is a number above 0. Change agent"),
        ({"floor": -1.0}, r"floor=-1.0: wanted is a number above 0. Change agent\.model\.floor"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GraphEnsemble(**settings)


def test_imagination_searches_with_it_and_repeats_itself(make_digits_env):
    """From the files of conf/: same seed, same plans, and none measured twice."""
    overrides = ("agent/model=graph_ensemble", "agent.warm_up=6", "agent.drawn_plans=20")
    found = []
    for _ in range(2):
        config = composed(*overrides, "agent.model.members=2", "agent.model.steps=2")
        env = make_digits_env(*overrides)
        agent = instantiate(config.agent, _convert_="all", env=env)
        result = run_search(agent, env, evaluations=14)
        found.append([record.reward for record in env.history])
    assert result.evaluations == 14
    assert len(set(found[0])) > 10
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("encoder", "network_class"), [("gatv2", GraphRegressor), ("mlp", PlanRegressor)]
)
def test_the_encoder_of_the_config_is_that_of_the_model(graph, encoder, network_class):
    config = composed("agent/model=graph_ensemble", f"encoder={encoder}", "seed=5")
    model = instantiate(config.agent.model, _convert_="all")
    assert model.members == 5
    model.bind(*graph)
    plans, rewards = some_plans(10, sites_of(graph))
    model.fit(plans, rewards)
    assert {type(network) for network in model._networks} == {network_class}


def test_models_are_compared_on_the_plans_measured_later(graph):
    plans, rewards = some_plans(80, sites_of(graph))

    class KnowsAll:
        def fit(self, plans, rewards):
            pass

        def predict(self, asked):
            known = dict(zip(map(bytes, plans), rewards, strict=True))
            return np.array([known[bytes(plan)] for plan in asked]), np.full(len(asked), 0.1)

    models = {"process": GaussianProcess(), "oracle": KnowsAll()}
    qualities = held_out_quality(models, plans, rewards, (10, 60), floor=100.0)
    assert [quality.measured for quality in qualities["process"]] == [10, 60]
    few, many = qualities["process"]
    assert many.rmse < few.rmse
    assert many.rank_correlation > 0.9
    assert qualities["oracle"][0].rank_correlation == pytest.approx(1.0)
    assert qualities["oracle"][0].rmse == 0.0
    # a normal density at its mean: -ln(0.1) - ln(2 pi) / 2
    assert qualities["oracle"][0].log_likelihood == pytest.approx(1.38365, abs=1e-4)
    with pytest.raises(
        ValueError, match=r"measured=\[79\]: wanted are rising numbers from 2 to 77"
    ):
        held_out_quality(models, plans, rewards, [79])
