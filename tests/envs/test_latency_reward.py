"""The latency reward: values read off a table with planted times, and tables that do not fit."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import pruning.table_measurement as measurement_module
from envs.latency_reward import LatencyReward
from envs.rewards import Transition
from pruning.evaluation import Evaluation
from pruning.latency_table import TableSetting
from pruning.table_measurement import TableMeasurement

BASE_LOSS = 0.25


@pytest.fixture
def table_file(tmp_path, task, monkeypatch):
    """A table in which an operator takes n_in * n_out microseconds, and nothing else takes time."""

    def operator_call(shape, n_in, n_out, batch, scratch):
        return lambda: 1e-6 * n_in * n_out

    monkeypatch.setattr(measurement_module, "operator_call", operator_call)
    monkeypatch.setattr(
        measurement_module, "time_call", lambda call, *, threads, seconds, number=None: (call(), 1)
    )
    monkeypatch.setattr(
        TableMeasurement,
        "_network_round",
        lambda self, times, network, on_measurement: dataclasses.replace(times, rounds=(1e-12,)),
    )
    inputs = torch.rand(2, 3, 6, 6)
    setting = TableSetting.here(task.graph, batch=2, threads=1)
    measurement = TableMeasurement(
        task.network, task.graph, inputs, setting, num_rounds=1, seconds=1e-5
    )
    path = tmp_path / "table.json"
    measurement.run().save(path)
    return path


def transition(counts, loss=BASE_LOSS):
    return Transition(
        evaluation=Evaluation(0.5, loss, 100),
        base=Evaluation(0.9, BASE_LOSS, 100),
        relative_macs=0.5,
        macs=500,
        params=10,
        counts=tuple(counts),
        budget_distance=0.0,
        finished=True,
    )


def microseconds(stem, inner, pointwise, hidden):
    """Of the network of conftest; a depthwise kernel takes 8 x 8 times the share that is left."""
    convolutions = 3 * stem + stem * inner + inner * stem + 8 * stem + stem * pointwise
    return convolutions + pointwise * hidden + hidden * 4


def test_the_reward_weighs_the_share_of_latency_that_is_saved(task, table_file):
    reward = LatencyReward(str(table_file), alpha=0.25, batch=2).bind(task)
    sizes = [group.size for group in task.graph.groups]
    assert sorted(sizes) == [6, 8, 10, 12]
    order = {8: "stem", 6: "inner", 12: "pointwise", 10: "hidden"}
    halved = [size // 2 for size in sizes]
    names = [order[size] for size in sizes]
    whole, half = (
        reward.base_seconds * 1e6,
        float(reward.table.latency_of_counts(halved)) * 1e6,
    )
    full = dict(zip(names, sizes, strict=True))
    assert whole == pytest.approx(microseconds(**full), rel=0.1)
    assert half == pytest.approx(
        microseconds(**{name: count // 2 for name, count in full.items()}), rel=0.1
    )
    terms = reward(transition(halved, BASE_LOSS + 0.5))
    assert terms == pytest.approx(
        {"latency": 0.25 * (1 - half / whole), "quality": 0.75 * np.exp(-0.5)}
    )
    assert reward(transition(sizes)) == {"latency": 0.0, "quality": 0.75}


def test_every_channel_less_is_worth_more_and_every_loss_less(task, table_file):
    reward = LatencyReward(str(table_file), batch=2).bind(task)
    counts = [group.size for group in task.graph.groups]
    values = [sum(reward(transition(counts)).values())]
    for site in range(len(counts)):
        counts[site] -= 2
        values.append(sum(reward(transition(counts)).values()))
    assert all(np.diff(values) > 0)
    by_loss = [sum(reward(transition(counts, x)).values()) for x in np.linspace(0.25, 5.0, 9)]
    assert all(np.diff(by_loss) < 0)
    assert 0.0 <= min(by_loss) <= max(values) <= 1.0


def test_the_environment_completes_the_reward(make_env, run_episode, table_file):
    env = make_env(reward=LatencyReward(str(table_file), batch=2))
    _, rewards, infos = run_episode(env, seed=0)
    assert set(infos[-1]["reward_terms"]) == {"latency", "quality"}
    assert 0.0 < rewards[-1] < 1.0


def test_a_table_of_another_network_is_refused_by_its_key(make_env, table_file):
    data = json.loads(table_file.read_text())
    data["setting"]["graph"] = "another"
    table_file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"reward\.table=.* is for the network graph another"):
        make_env(reward=LatencyReward(str(table_file), batch=2))


def test_a_table_of_another_batch_is_refused(make_env, table_file):
    with pytest.raises(ValueError, match="batch 2 instead of 8"):
        make_env(reward=LatencyReward(str(table_file), batch=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": None}, "reward.table=null is no file"),
        ({"table": "nowhere.json"}, "reward.table=nowhere.json is no file"),
        ({"table": None, "alpha": 2.0}, "reward.alpha"),
        ({"table": None, "quality": "size"}, "reward.quality"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LatencyReward(**options)
