"""Episodes: determinism, records, the best plan, refusals of numbers, and what sinks receive."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest

from envs.actions import RatioAction
from envs.budgets import Band, Unlimited, Wall
from envs.episodes import Layerwise, Whole
from envs.observations import GraphObservation
from envs.recording import CsvSink
from envs.rewards import AlphaReward

IDS = ("AMC-v0", "AutoSculpt-v0")


class Memory:
    def __init__(self):
        self.records, self.closed = [], 0

    def write(self, record):
        self.records.append(record)

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("env_id", IDS)
def test_the_same_actions_give_the_same_episode_exactly(env_id, make_task, make_env, run_episode):
    first = run_episode(make_env(env_id, task=make_task()), seed=3)
    second = run_episode(make_env(env_id, task=make_task()), seed=3)
    for one, other in zip(first[0], second[0], strict=True):
        np.testing.assert_equal(one, other)
    assert first[1] == second[1]
    assert first[2] == second[2]


def test_a_record_equals_that_of_the_same_episode_played_later(make_env, run_episode):
    env = make_env("AMC-v0")
    actions = [np.array([value], np.float32) for value in (0.1, -0.5, 0.3, 0.0)]
    run_episode(env, actions)
    run_episode(env, actions)
    first, second = env.history
    assert first == second
    assert (first.episode, second.episode) == (0, 1)
    assert (first.cached, second.cached) == (False, True)
    assert (first.evaluations, second.evaluations) == (1, 1)
    assert env.num_evaluations == 1


def test_the_layerwise_episode_pays_at_the_end_only(make_env, run_episode):
    env = make_env("AMC-v0")
    _, rewards, infos = run_episode(env, seed=0)
    record = infos[-1]["record"]
    assert len(rewards) == len(env.task.sites) == record.steps == 4
    assert rewards[:-1] == [0.0, 0.0, 0.0]
    assert rewards[-1] == record.reward == record.score == pytest.approx(record.accuracy - 1.0)
    assert [info["reward_terms"] for info in infos[:-1]] == [{}] * 4
    assert record.reward_terms == infos[-1]["reward_terms"] == {"error": rewards[-1]}


def test_a_record_holds_raw_and_executed_actions_and_a_plan_that_replays(make_env, run_episode):
    env = make_env("AMC-v0", budget=Wall(0.5))
    mildest = [np.array([-1.0], np.float32)] * 4
    _, _, infos = run_episode(env, mildest)
    record = infos[-1]["record"]
    assert record.raw_action == (-1.0,) * 4
    assert [name for name, _ in record.executed] == [site.name for site in env.task.sites]
    ratios = [value for _, value in record.executed]
    assert record.clamps == np.count_nonzero(ratios) > 0
    keep = record.plan.keep_set(env.task.graph)
    assert env.task.cost.macs(keep) == record.macs == record.nonzero_macs
    assert env.task.cost.params(keep) == record.params
    assert record.relative_macs == record.macs / env.task.cost.base_macs <= 0.5
    assert record.accuracy == pytest.approx(env.task.evaluator.accuracy(keep.counts))


def test_best_is_the_known_optimum_once_every_plan_was_tried(make_env):
    env = make_env("AutoSculpt-v0", budget=Band(0.5, 0.1, project=False), reward=AlphaReward(0.3))
    task, choices = env.task, range(len(env.task.library))
    sizes = np.array([group.size for group in task.graph.groups])
    ratios = np.array([pattern.channel_ratio for pattern in task.library])
    base, expected = task.cost.base_macs, -np.inf
    for action in itertools.product(choices, repeat=len(task.sites)):
        env.reset()
        env.step(np.array(action))
        counts = sizes - np.floor(ratios[list(action)] * sizes + 0.5).astype(int)
        relative = task.cost.macs_of_counts(counts) / base
        if 0.3 <= relative <= 0.5:
            quality = task.evaluator.accuracy(counts) / 0.9  # likelihood = accuracy here
            expected = max(expected, 0.3 * (1 - relative) + 0.7 * quality)
    assert env.best.score == pytest.approx(expected)
    assert env.best.met
    assert task.evaluator.num_evaluations < 4**4  # the rest was outside the band


def test_best_considers_every_step_of_a_whole_episode(make_env):
    env = make_env(
        "AutoSculpt-v0", budget=Unlimited(), reward=AlphaReward(0.0), episode=Whole(max_steps=3)
    )
    env.reset()
    for action in ([3, 3, 3, 3], [0, 0, 0, 0], [2, 2, 2, 2]):
        *_, truncated, info = env.step(np.array(action))
    assert truncated
    assert env.best.steps == 2
    assert env.best.score == pytest.approx(1.0)
    assert len(env.history) == 1
    assert info["record"].steps == 3
    assert info["record"].reward > info["record"].score


def test_a_whole_episode_terminates_inside_the_band_and_is_truncated_outside(make_env):
    env = make_env(
        "AutoSculpt-v0", budget=Band(0.5, 0.1, project=False), episode=Whole(max_steps=2)
    )
    env.reset()
    dense, heavy = np.zeros(4, int), np.full(4, 3)
    assert env.step(dense)[2:4] == (False, False)
    assert env.step(heavy)[2:4] == (False, True)
    inside = env.encode_ratios(env.uniform_ratios())
    env.reset()
    assert env.step(inside)[2:4] == (True, False)
    assert env.num_evaluations == 1


def test_the_next_observation_shows_the_assignment(make_env):
    env = make_env("AutoSculpt-v0", budget=Band(0.5, 0.1, project=False))
    env.reset()
    observation, *_ = env.step(np.array([1, 2, 3, 0]))
    removed, decided, current = observation["site_state"].T
    np.testing.assert_allclose(removed, [0.25, 0.5, 0.75, 0.0])
    assert decided.tolist() == current.tolist() == [1.0] * 4
    graph = env.task.graph
    for index, edge in enumerate(graph.edges):
        name = None if edge.operator is None else graph.operators[edge.operator].name
        expected = {"stem": 1, "outer": 1, "depthwise": 1, "inner": 2, "pointwise": 3}.get(name, 0)
        assert observation["edge_pattern"][index] == expected


def test_sinks_get_every_finished_episode_once(make_env, run_episode):
    sink = Memory()
    env = make_env("AutoSculpt-v0", sinks=(sink,), budget=Band(project=False))
    for seed in range(3):
        run_episode(env, seed=seed)
    env.reset()
    env.step(np.zeros(4, int))
    assert sink.records == env.history
    assert len(sink.records) == 3
    env.close()
    assert sink.closed == 1


def test_the_csv_has_one_line_per_episode_and_can_be_continued(tmp_path, make_env, run_episode):
    path = tmp_path / "metrics.csv"
    for seed in range(2):
        budget = Band(project=False)
        sinks = (CsvSink(path),)
        env = make_env("AutoSculpt-v0", sinks=sinks, budget=budget, episode=Whole(max_steps=1))
        run_episode(env, [np.zeros(4, int)])  # outside the band: not measured
        run_episode(env, [env.encode_ratios(env.uniform_ratios())], seed=seed)
        env.close()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert list(rows[0])[-1] == "seconds"
    assert [row["accuracy"] == "" for row in rows] == [True, False, True, False]
    assert rows[0]["reward/quality"] == "0.0"
    assert float(rows[0]["reward/budget"]) == pytest.approx(-0.5)
    assert float(rows[1]["reward"]) == env.history[1].reward
    assert json.loads(rows[1]["executed"]) == dict(env.history[1].executed)
    assert json.loads(rows[0]["raw_action"]) == [0.0] * 4


def test_a_csv_with_other_columns_is_refused(tmp_path, make_env, run_episode):
    path = tmp_path / "metrics.csv"
    run_episode(make_env("AMC-v0", sinks=(CsvSink(path),)), seed=0)
    env = make_env("AMC-v0", sinks=(CsvSink(path),), reward=AlphaReward())
    with pytest.raises(ValueError, match="reward/error"):
        run_episode(env, seed=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Whole(max_steps=0), "at least 1 step, got 0. Change env.max_steps"),
        (lambda: RatioAction(1.0), r"in \(0, 1\), got 1.0. Change env.max_ratio"),
        (lambda: Wall(0.0), "got 0.0. Change budget.relative_macs"),
        (lambda: Wall(0.5, cost="flops"), "macs, nonzero_macs, got 'flops'. Change budget.cost"),
        (lambda: Band(0.5, -0.1), "got -0.1. Change budget.delta"),
        (lambda: AlphaReward(1.5), "got 1.5. Change reward.alpha"),
        (lambda: AlphaReward(quality="f1"), "likelihood, accuracy, got 'f1'"),
    ],
)
def test_numbers_out_of_range_are_refused_with_the_key_to_change(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("action", [np.array([np.nan]), np.zeros(2), 0.5])
def test_a_ratio_that_is_no_action_is_refused(make_env, action):
    env = make_env("AMC-v0")
    env.reset()
    with pytest.raises(ValueError, match=r"finite array of shape \(1,\)"):
        env.step(action)


@pytest.mark.parametrize("action", [np.array([0, 0, 0, 4]), np.array([0, 0, -1, 0])])
def test_a_pattern_index_that_does_not_exist_is_refused(make_env, action):
    env = make_env("AutoSculpt-v0")
    env.reset()
    with pytest.raises(ValueError, match=r"from 0 to 3 \(dense, channel_0.25"):
        env.step(action)


def test_two_envs_on_one_task_count_evaluations_together(make_env, run_episode):
    first, second = make_env("AMC-v0"), make_env("AMC-v0", episode=Layerwise())
    run_episode(first, seed=0)
    run_episode(second, seed=1)
    assert first.num_evaluations == second.num_evaluations == 2


def test_the_graph_observation_carries_the_quality_last_measured(make_env):
    env = make_env(
        "AutoSculpt-v0",
        observation=GraphObservation(),
        budget=Band(0.6, 0.3),
        episode=Whole(max_steps=5),
    )
    observation, _ = env.reset()
    np.testing.assert_allclose(observation["globals"], [1.0, 0.6, 0.0, 1.0])
    observation, *_ = env.step(np.array([1, 1, 1, 1]))
    macs, _, progress, quality = observation["globals"]
    counts = env.history[-1].plan.keep_set(env.task.graph).counts
    assert counts.tolist() == [6, 4, 9, 7]  # half a channel rounds to removal
    assert progress == pytest.approx(0.2)
    assert macs == pytest.approx(env.history[-1].relative_macs)
    assert quality == pytest.approx(env.task.evaluator.accuracy(counts) / 0.9)
