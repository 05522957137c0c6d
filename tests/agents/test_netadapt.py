from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from classic_task import chain_env, chain_task, counts_of

import agents.netadapt
from agents.netadapt import NetAdaptAgent
from agents.search import run_search
from pruning.plan import PruningPlan

BASE_MACS = 28_848


def played(env, *, evaluations=200, **settings):
    agent = NetAdaptAgent(
        env, seed=0, **{"round_to": 1, "first_step": 0.1, "decay": 1.0} | settings
    )
    run_search(agent, env, evaluations=evaluations)
    table = json.loads(agent.findings().get("netadapt.json", '{"iterations": []}'))["iterations"]
    return agent, table


@pytest.mark.parametrize("selection", ["paper", "code"])
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_first_iteration_by_hand(selection, metric):
    env = chain_env()
    _, table = played(env, selection=selection, metric=metric)
    # target 25,963.2: 18,480 + 1,296 a, 1,200 + 3,456 b and 10,368 + 1,155 c meet it at 5, 7, 13
    assert [counts_of(r) for r in env.history[:3]] == [(5, 8, 16), (8, 7, 16), (8, 8, 13)]
    assert table[0]["counts"] == [8, 7, 16]
    assert (table[0]["kept"], table[0]["candidates"]) == (7, 3)
    assert (table[0]["target"], table[0]["resource"]) == (pytest.approx(25_963.2), 25_392)


@pytest.mark.parametrize("round_to", [1, 2])
def test_every_step_meets_its_target_and_the_last_one_the_budget(round_to):
    env = chain_env()
    _, table = played(env, round_to=round_to, decay=0.96)
    resources = [BASE_MACS] + [row["resource"] for row in table]
    for index, row in enumerate(table):
        step = 0.1 * 0.96**index * BASE_MACS
        assert row["target"] == pytest.approx(max(BASE_MACS // 2, resources[index] - step))
        assert row["resource"] <= row["target"]
        assert row["resource"] < resources[index]
        assert row["kept"] % round_to == 0
    assert table[-1]["resource"] <= BASE_MACS // 2 < table[-2]["resource"]
    assert counts_of(env.best) == tuple(table[-1]["counts"])


def test_the_family_replays_and_its_macs_are_those_of_the_compact_networks():
    env = chain_env()
    agent, table = played(env)
    task = env.task
    for row in table:
        text = agent.findings()[f"netadapt/iteration_{row['iteration']:03d}.json"]
        slim = PruningPlan.from_json(text).apply(task.network, task.graph)
        convolutions = sum(16 * slim.get_submodule(n).weight.numel() for n in ("a", "b", "c"))
        assert convolutions + slim.classifier.weight.numel() == row["resource"]
    accuracies = [row["accuracy"] for row in table]
    for row in table:
        smaller = [a for a, other in zip(accuracies, table, strict=True)
                   if other["relative_macs"] < row["relative_macs"]]  # fmt: skip
        assert row["on_front"] == (not any(a >= row["accuracy"] for a in smaller))


def test_paper_wants_the_best_and_code_the_cheapest_per_saving():
    before, large, small = (0.9, 0.1), (0.88, 0.12), (0.885, 0.115)
    paper, code = NetAdaptAgent(None, selection="paper"), NetAdaptAgent(None, selection="code")
    assert paper._rank(before, small, 50.0) < paper._rank(before, large, 100.0)
    assert code._rank(before, large, 100.0) < code._rank(before, small, 50.0)
    assert code._rank(before, large, 100.0)[0] == pytest.approx((0.02 + 1e-6) / (100 + 1e-5))


def test_without_a_first_step_the_candidates_fit_the_evaluations():
    for evaluations in (12, 20, 60):
        env = chain_env()
        agent = NetAdaptAgent(env, seed=0, first_step=None, round_to=1, evaluations=evaluations)
        result = run_search(agent, env, evaluations=evaluations)
        assert result.evaluations <= evaluations
        table = json.loads(agent.findings()["netadapt.json"])["iterations"]
        assert counts_of(env.best) == tuple(table[-1]["counts"])  # it got there by itself


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"first_step": 0.025, "evaluations": 8}, "more than the evaluations that are left"),
        ({"round_to": 16}, "no group can meet the step's target"),
    ],
)
def test_when_it_cannot_go_on_the_last_evaluation_is_within_budget(caplog, settings, reason):
    env = chain_env()
    agent = NetAdaptAgent(env, seed=0, **{"round_to": 1} | settings)
    result = run_search(agent, env, evaluations=8)
    assert reason in caplog.text
    assert result.evaluations <= 8
    assert env.best is env.history[-1]


def test_other_resources(monkeypatch):
    env = chain_env()
    _, table = played(env, resource="params", relative_resource=0.3)
    base = env.task.cost.base_params
    assert table[-1]["resource"] <= 0.3 * base < table[-2]["resource"]
    assert env.best.params <= 0.3 * base
    assert env.best.met
    lookup = SimpleNamespace(latency_of_counts=lambda counts: float(np.sum(counts)))
    monkeypatch.setattr(agents.netadapt.LatencyTable, "load", lambda *args, **kwargs: lookup)
    _, table = played(chain_env(), resource="latency", latency_table="table.json")
    assert table[0]["target"] == pytest.approx(32 - 3.2)
    assert table[0]["resource"] == 28


def test_the_short_fine_tuning_is_carried_on_and_leaves_the_base_alone(monkeypatch):
    used = []
    original = agents.netadapt.fine_tune

    def spy(network, samples, **options):
        used.append((len(samples), options["epochs"]))
        original(network, samples, **options)

    monkeypatch.setattr(agents.netadapt, "fine_tune", spy)

    def search():
        env = chain_env(chain_task(fake=False))
        before = {k: v.clone() for k, v in env.task.network.state_dict().items()}
        training = {"batch_size": 8, "learning_rate": 0.01}
        _, table = played(env, first_step=0.3, iterations=2, training=training)
        after = env.task.network.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        asked = sum(row["candidates"] for row in table)
        assert len(env.history) == 1  # the plan that is kept, measured from the base weights
        assert env.num_evaluations == asked + 1
        assert counts_of(env.best) == tuple(table[-1]["counts"])
        return table

    assert search() == search()
    assert set(used) == {(16, 1)}


@pytest.mark.parametrize(
    "settings",
    [
        {"resource": "joules"},
        {"selection": "best"},
        {"metric": "top5"},
        {"relative_resource": 1.0},
        {"first_step": 0.0},
        {"decay": 0.0},
        {"round_to": 0},
        {"iterations": -1},
        {"training": {"epochs": 3}},
        {"latency_table": "file.json"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=rf"Change agent\.{next(iter(settings))}"):
        NetAdaptAgent(None, **settings)
