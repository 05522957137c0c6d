"""What layerwise episodes are paid on their way, computed by hand."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from envs.budgets import Band, Unlimited, Wall
from envs.episodes import Whole
from envs.observations import GraphObservation
from envs.recording import CsvSink
from envs.rewards import AlphaReward
from envs.shaping import LocalErrorShaping
from pruning.local_error import LocalErrors

WORTH = (1.0, 2.0, 3.0, 4.0)
ACTIONS = [np.array([value], np.float32) for value in (0.25, -1.0, 0.25, 0.25)]  # half, none, ...


@pytest.fixture
def shaped(make_task, make_env):
    """An AMC environment in which a site that loses a fraction f has the local error WORTH * f."""

    def make(shaping=None, **parts):
        task = make_task()
        groups = task.graph.groups
        task.local_errors = LocalErrors(
            tuple(
                worth * np.linspace(1, 0, g.size + 1)
                for worth, g in zip(WORTH, groups, strict=True)
            )
        )
        parts = {"budget": Wall(1.0), **parts}
        return make_env("AMC-v0", task=task, shaping=shaping, **parts)

    return make


def lost(env):
    """Fractions removed in the last episode."""
    return np.array([value for _, value in env.history[-1].executed])


def test_each_step_pays_minus_the_local_error_of_its_site(shaped, run_episode):
    plain = shaped()
    _, plain_rewards, _ = run_episode(plain, ACTIONS)
    env = shaped(LocalErrorShaping(0.5, refund=False))
    _, rewards, infos = run_episode(env, ACTIONS)
    np.testing.assert_allclose(lost(env), lost(plain))
    errors = 0.5 * np.array(WORTH) * lost(env)
    assert errors[1] == 0.0 < errors[0]
    expected = -errors
    expected[-1] += plain_rewards[-1]
    np.testing.assert_allclose(rewards, expected, atol=1e-12)
    np.testing.assert_allclose(
        [info["reward_terms"]["local_error"] for info in infos[1:]], -errors, atol=1e-12
    )


def test_a_refund_gives_all_back_at_the_last_step(shaped, run_episode):
    inner = run_episode(shaped(), ACTIONS)[1][-1]
    env = shaped(LocalErrorShaping(0.5))
    _, rewards, infos = run_episode(env, ACTIONS)
    errors = 0.5 * np.array(WORTH) * lost(env)
    np.testing.assert_allclose(rewards[:-1], -errors[:-1], atol=1e-12)
    assert rewards[-1] == pytest.approx(inner + errors[:-1].sum())
    assert sum(rewards) == pytest.approx(inner)
    terms = infos[-1]["record"].reward_terms
    assert list(terms) == ["error", "local_error"]
    assert terms["error"] == pytest.approx(inner)


@pytest.mark.parametrize("refund", [True, False])
def test_plans_are_ranked_by_what_a_whole_episode_pays(shaped, run_episode, refund):
    env = shaped(LocalErrorShaping(0.5, refund=refund))
    for seed in range(4):
        _, rewards, _ = run_episode(env, seed=seed)
        record = env.history[-1]
        assert record.reward == pytest.approx(sum(rewards))
        assert record.score == pytest.approx(sum(rewards))
        inner = record.accuracy - 1.0
        cost = 0.0 if refund else 0.5 * float(np.array(WORTH) @ lost(env))
        assert record.score == pytest.approx(inner - cost)
    assert env.best.score == max(record.score for record in env.history)


@pytest.mark.parametrize("refund", [True, False])
def test_exact_counts_are_paid_like_the_episode_that_ends_there(shaped, run_episode, refund):
    env = shaped(LocalErrorShaping(0.5, refund=refund))
    _, rewards, _ = run_episode(env, ACTIONS)
    played = env.history[-1]
    counts = [len(kept) for kept in played.plan.keep.values()]
    record = env.measure_counts(counts)
    assert record.reward == pytest.approx(sum(rewards))
    assert record.score == pytest.approx(played.score)


def test_any_reward_can_be_shaped_also_outside_a_band(shaped, run_episode):
    parts = {"reward": AlphaReward(0.5), "budget": Band(0.3, delta=0.01, project=False)}
    mild = [np.array([-1.0], np.float32)] * 3 + [np.array([1.0], np.float32)]
    _, plain, _ = run_episode(shaped(**parts), mild)
    env = shaped(LocalErrorShaping(0.1), **parts)
    _, rewards, _ = run_episode(env, mild)
    assert not env.history[-1].met
    assert env.history[-1].accuracy is None
    assert sum(rewards) == pytest.approx(plain[-1])
    assert list(env.history[-1].reward_terms) == ["compression", "quality", "budget", "local_error"]


def test_an_episode_begins_with_nothing_paid(shaped, run_episode):
    env = shaped(LocalErrorShaping(0.5))
    first = run_episode(env, ACTIONS)[1]
    env.reset()
    env.step(ACTIONS[0])
    assert run_episode(env, ACTIONS)[1] == first
    assert env.history[0] == env.history[1]
    sibling = env.sibling()
    assert run_episode(sibling, ACTIONS)[1] == first


def test_the_terms_are_logged(shaped, run_episode, tmp_path):
    env = shaped(LocalErrorShaping(0.5), sinks=(CsvSink(tmp_path / "metrics.csv"),))
    run_episode(env, ACTIONS)
    run_episode(env, ACTIONS)
    env.close()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    refund = 0.5 * float((np.array(WORTH) * lost(env))[:-1].sum())
    assert [float(row["reward/local_error"]) for row in rows] == pytest.approx([refund] * 2)


def test_whole_episodes_are_refused(make_env):
    with pytest.raises(
        ValueError, match=r"env/shaping=local_error and env/episode=whole do not go together"
    ):
        make_env(
            "AMC-v0",
            observation=GraphObservation(),
            episode=Whole(1),
            budget=Unlimited(),
            reward=AlphaReward(),
            shaping=LocalErrorShaping(),
        )


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_no_positive_number_is_refused(weight):
    with pytest.raises(ValueError, match=r"above 0, got .*\. Change env\.shaping\.weight"):
        LocalErrorShaping(weight)
