"""The AMC features: hand-computed values, and the sum that holds at every step."""

from __future__ import annotations

import numpy as np
import pytest

from envs.actions import PatternAction, RatioAction
from envs.budgets import Band, Unlimited
from envs.episodes import Layerwise, Whole
from envs.observations import LAYER_FEATURES, LayerObservation
from envs.rewards import AlphaReward
from pruning.keep_set import KeepSet

FREE = {"budget": Unlimited(), "reward": AlphaReward(0.5)}
STEM = 36 * 9 * 3 * 8
INNER = 36 * 9 * 8 * 6
OUTER = 36 * 9 * 6 * 8
DEPTHWISE = 9 * 9 * 8
POINTWISE = 9 * 8 * 12
HIDDEN = 12 * 10
CLASSIFIER = 10 * 4
TOTAL = STEM + INNER + OUTER + DEPTHWISE + POINTWISE + HIDDEN + CLASSIFIER


def column(name):
    return LAYER_FEATURES.index(name)


def test_the_first_vector_is_as_computed_by_hand(make_env):
    env = make_env("AMC-v0", **FREE)
    observation, _ = env.reset()
    assert env.task.cost.base_macs == TOTAL
    first = (STEM + OUTER + DEPTHWISE) / TOTAL
    expected = {
        "t": 0.0,
        "n": (8 - 6) / (12 - 6),
        "c": 0.0,  # 3 channels, the fewest
        "h": 1.0,  # 6 pixels, the most
        "w": 1.0,
        "stride": 0.0,  # 1 everywhere: no spread
        "k": 1.0,  # 3, the largest
        "macs": first,
        "reduced": 0.0,
        "rest": 1.0 - first,
        "a": 0.0,
    }
    np.testing.assert_allclose(observation, list(expected.values()), atol=1e-6)


def test_the_vectors_follow_the_decisions(make_env):
    env = make_env("AMC-v0", **FREE)
    env.reset()
    observation, *_ = env.step(env.encode_ratios({"stem": 0.5}))
    left = 0.5 * (STEM + INNER + OUTER + DEPTHWISE + POINTWISE) + HIDDEN + CLASSIFIER
    assert observation[column("t")] == pytest.approx(1 / 3)
    assert observation[column("macs")] == pytest.approx(0.5 * INNER / TOTAL)
    assert observation[column("reduced")] == pytest.approx(1.0 - left / TOTAL)
    assert observation[column("a")] == pytest.approx(0.5)
    observation, *_ = env.step(env.encode_ratios({"inner": 1 / 3}))
    assert observation[column("macs")] == pytest.approx(0.5 * POINTWISE / TOTAL)
    assert observation[column("a")] == pytest.approx(1 / 3)


@pytest.mark.parametrize("action", [RatioAction(), PatternAction()], ids=lambda a: a.name)
@pytest.mark.parametrize("episode", [Layerwise(), Whole(3)], ids=lambda e: e.name)
def test_reduced_current_and_rest_sum_to_all_macs_at_every_step(
    action, episode, make_env, run_episode
):
    env = make_env("AMC-v0", action=action, episode=episode, observation=LayerObservation(), **FREE)
    for seed in range(20):
        observations, _, infos = run_episode(env, seed=seed)
        for observation, info in zip(observations, infos, strict=True):
            rows = observation.reshape(-1, len(LAYER_FEATURES)).astype(np.float64)
            shares = rows[:, [column("reduced"), column("macs"), column("rest")]]
            np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-6)
            np.testing.assert_allclose(shares[:, 0], 1.0 - info["relative_macs"], atol=1e-6)


def test_every_operator_is_counted_once(make_env):
    env = make_env("AMC-v0", episode=Whole(3), **FREE)
    observation, _ = env.reset()
    macs = observation.reshape(4, -1)[:, column("macs")]
    assert macs.sum() == pytest.approx((TOTAL - CLASSIFIER) / TOTAL)


def test_the_whole_vector_shows_what_each_site_has_lost(make_env):
    env = make_env("AMC-v0", episode=Whole(3), **FREE)
    env.reset()
    observation, *_ = env.step(env.encode_ratios({"stem": 0.5, "hidden": 0.3}))
    np.testing.assert_allclose(
        observation.reshape(4, -1)[:, column("a")], [0.5, 0.0, 0.0, 0.3], atol=1e-6
    )


def test_nodes_show_the_kept_and_the_decided_fraction_of_their_channels(make_env):
    env = make_env("AutoSculpt-v0", action=RatioAction(), episode=Layerwise(), **FREE)
    observation, _ = env.reset()
    graph = env.task.graph
    names = [node.name for node in graph.feature_maps]
    frozen = [1.0 if set(node.units) == {-1} else 0.0 for node in graph.feature_maps]
    np.testing.assert_allclose(
        observation["node_state"], np.stack([np.ones(len(names)), frozen], 1)
    )
    observation, *_ = env.step(env.encode_ratios({"stem": 0.25}))
    keep = KeepSet.from_ratios(graph, {"stem": 0.25})
    for node, (kept, decided) in zip(graph.feature_maps, observation["node_state"], strict=True):
        units = [unit for unit in node.units if unit != -1]
        fixed = len(node.units) - len(units)
        expected = (keep.mask[units].sum() + fixed) / len(node.units)
        assert kept == pytest.approx(expected)
        stem = set(graph.group("stem").units)
        assert decided == pytest.approx(float(not units or set(units) <= stem))


def test_the_current_site_is_marked_until_the_end(make_env):
    env = make_env("AutoSculpt-v0", episode=Layerwise(), **FREE)
    observation, _ = env.reset()
    for site in range(4):
        assert observation["site_state"][:, 2].tolist() == np.eye(4)[site].tolist()
        assert observation["site_state"][:, 1].sum() == site
        assert observation["globals"][2] == pytest.approx(site / 4)
        observation, *_ = env.step(1)
    assert observation["site_state"][:, 2].tolist() == [0.0] * 4
    assert observation["globals"][2] == 1.0


def test_the_same_state_gives_the_same_observation_whatever_came_before(make_task, make_env):
    first = make_env("AutoSculpt-v0", task=make_task(), budget=Band(0.5, 0.05))
    second = make_env("AutoSculpt-v0", task=make_task(), budget=Band(0.5, 0.05))
    assert first.observation_space == second.observation_space
    first.reset()
    first.step(np.array([3, 3, 3, 3]))
    first.reset()
    second.reset()
    action = np.array([0, 0, 1, 1])  # outside the band
    np.testing.assert_equal(first.step(action)[0], second.step(action)[0])
