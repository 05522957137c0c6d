"""How much sites mind being cut, in the observations: values by hand, counting and resuming."""

from __future__ import annotations

import numpy as np
import pytest

from envs.budgets import Unlimited
from envs.episodes import Whole
from envs.observations import LAYER_FEATURES, GraphObservation, LayerObservation
from envs.rewards import AlphaReward
from graphs.features import SITE_FEATURES
from pruning.evaluation import NonFiniteAccuracy
from pruning.journal import EvaluationJournal, JournalSubject
from pruning.local_error import LocalErrors

ERRORS = [[0.2, 1.0, 3.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.5, 1.0, 4.0]]
"""Of each site with 25, 50 and 75 % of its channels gone."""
SQUASHED = np.array(ERRORS) / (1 + np.array(ERRORS))


@pytest.fixture
def known(task):
    """A task whose local errors are ERRORS."""
    task.local_errors = LocalErrors(tuple(np.array([9.0, *row[::-1], 0.0]) for row in ERRORS))
    return task


def rise(task, site, ratio):
    """Loss with one site pruned, less that of the whole network, as the fake evaluator has it."""
    sizes = [group.size for group in task.graph.groups]
    counts = np.array(sizes)
    counts[site] -= round(sizes[site] * ratio)
    return -np.log(task.evaluator.accuracy(counts) / 0.9)


def test_local_errors_are_site_features_of_the_graph(known, make_env):
    plain = make_env("AutoSculpt-v0").observation_space.topology
    env = make_env("AutoSculpt-v0", observation=GraphObservation(local_errors=True))
    topology = env.observation_space.topology
    assert plain.site_features.shape == (4, len(SITE_FEATURES))
    np.testing.assert_array_equal(topology.site_features[:, :-3], plain.site_features)
    np.testing.assert_allclose(topology.site_features[:, -3:], SQUASHED, rtol=1e-6)
    assert topology.site_features.dtype == np.float32
    assert topology != plain
    assert env.num_evaluations == 0


def test_the_layer_vector_of_a_site_ends_with_its_local_errors(known, make_env):
    plain = make_env("AMC-v0")
    env = make_env("AMC-v0", observation=LayerObservation(local_errors=True))
    assert env.observation_space.shape == (14,)
    plain_seen, seen = plain.reset()[0], env.reset()[0]
    for site in range(4):
        np.testing.assert_array_equal(seen[:11], plain_seen)
        np.testing.assert_allclose(seen[11:], SQUASHED[site], rtol=1e-6)
        action = np.array([0.3], np.float32)
        plain_seen, seen = plain.step(action)[0], env.step(action)[0]
    assert env.observation_space.contains(seen)


def test_whole_episodes_see_the_errors_of_all_sites(known, make_env):
    parts = {"episode": Whole(1), "budget": Unlimited(), "reward": AlphaReward()}
    env = make_env("AMC-v0", observation=LayerObservation(local_errors=True), **parts)
    rows = env.reset()[0].reshape(4, 14)
    np.testing.assert_allclose(rows[:, 11:], SQUASHED, rtol=1e-6)
    assert (rows[:, LAYER_FEATURES.index("a")] == 0.0).all()


@pytest.mark.parametrize("env_id", ["AMC-v0", "AutoSculpt-v0"])
def test_sensitivities_are_measured_once_and_counted(task, make_env, env_id):
    part = LayerObservation if env_id == "AMC-v0" else GraphObservation
    env = make_env(env_id, observation=part(sensitivities=(0.5, 2 / 3)))
    assert env.num_evaluations == 8
    assert env.history == []
    assert env.best is None
    expected = np.array([[rise(task, site, ratio) for ratio in (0.5, 2 / 3)] for site in range(4)])
    if env_id == "AMC-v0":
        found = env.reset()[0][11:]
        expected = expected[0]
    else:
        found = env.observation_space.topology.site_features[:, len(SITE_FEATURES) :]
    np.testing.assert_allclose(found, expected / (1 + expected), rtol=1e-5)
    env.sibling()
    make_env(env_id, observation=part(sensitivities=(0.5,)))
    assert env.num_evaluations == 8  # known already


def test_a_ratio_that_removes_no_channel_needs_no_measurement(make_env):
    env = make_env("AMC-v0", observation=LayerObservation(sensitivities=[0.01]))
    assert env.num_evaluations == 0
    assert env.reset()[0][11] == 0.0


def test_a_network_that_gives_nan_minds_most(task, make_env):
    def evaluate(candidate, overlay=None):
        raise NonFiniteAccuracy("NaN")

    task.evaluator.evaluate = evaluate
    env = make_env("AMC-v0", observation=LayerObservation(sensitivities=[0.5]))
    assert env.reset()[0][11] == 1.0


@pytest.mark.parametrize("part", [LayerObservation, GraphObservation])
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, float("nan")])
def test_a_ratio_out_of_range_is_refused(part, ratio):
    with pytest.raises(ValueError, match=r"in \(0, 1\), got .*env\.observation\.sensitivities"):
        part(sensitivities=[0.5, ratio])


def test_a_resumed_search_replays_its_scan(tmp_path, make_real_task, make_env, run_episode):
    def played():
        task = make_real_task()
        journal = EvaluationJournal(
            tmp_path / "evaluations.jsonl", JournalSubject(task.graph.fingerprint, task.base)
        )
        task.evaluator.journal = journal
        env = make_env("AMC-v0", task=task, observation=LayerObservation(sensitivities=[0.5]))
        seen, rewards, _ = run_episode(env, seed=0)
        journal.close()
        return env, journal, seen, rewards

    env, journal, seen, rewards = played()
    assert (env.num_evaluations, len(journal), journal.num_replayed) == (5, 5, 0)
    again, journal, seen_again, rewards_again = played()
    assert (again.num_evaluations, len(journal), journal.num_replayed) == (5, 5, 5)
    np.testing.assert_array_equal(seen, seen_again)
    assert rewards == rewards_again
    assert again.history == env.history
