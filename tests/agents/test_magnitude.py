from __future__ import annotations

import numpy as np
import pytest
from classic_task import chain_env, chain_task, counts_of

from agents.count_search import CountSpace
from agents.magnitude import NORMALISATIONS, MagnitudeAgent, threshold_counts
from agents.search import run_search
from agents.slimming import SlimmingAgent


def space_of(task, max_macs, smallest=(1, 1, 1)):
    return CountSpace.of(task, smallest, max_macs)


def macs(a, b, c):
    return 144 * (a + a * b + b * c) + 3 * c


def test_channels_go_in_the_order_of_one_ranking():
    task = chain_task()
    scores = [np.arange(8) + 0.5, np.full(8, 10.0), np.arange(16) - 8.0]  # c: -8 ... 7
    # a threshold of 3.25 keeps 4.5 5.5 6.5 7.5 3.5 (5), all of b, and 4 5 6 7 (4)
    assert threshold_counts(space_of(task, macs(5, 8, 4)), scores).tolist() == [5, 8, 4]
    # one MAC less: 3.5 in a (1,296 MACs) does not fit; the next in line, 3 in c (1,155), does
    assert threshold_counts(space_of(task, macs(5, 8, 4) - 1), scores).tolist() == [4, 8, 5]


def test_what_is_left_of_the_budget_goes_down_the_ranking():
    task = chain_task()
    scores = [np.full(8, 5.0), np.full(8, 4.0), np.full(16, 3.0)]
    budget = macs(8, 3, 1) + 144 * 3 + 3  # room for no fourth in b (144 * 9), but one more in c
    assert threshold_counts(space_of(task, budget), scores).tolist() == [8, 3, 2]


def test_the_smallest_counts_and_steps_are_kept():
    task = chain_task(round_to=4)
    scores = [np.zeros(8), np.r_[np.full(4, 9.0), np.full(4, 1.0)], np.full(16, 2.0)]
    counts = threshold_counts(space_of(task, macs(4, 4, 12), (4, 4, 4)), scores)
    assert counts.tolist() == [4, 4, 12]


def test_the_cost_power_prefers_cheap_channels():
    task = chain_task()
    scores = [np.full(8, 1.0), np.full(8, 2.0), np.full(16, 1.5)]
    budget = macs(8, 8, 16) // 2
    plain = threshold_counts(space_of(task, budget), scores)
    per_mac = threshold_counts(space_of(task, budget), scores, cost_power=1.0)
    # a channel costs 144 * 9 in a, 144 * 24 in b, and 144 * 8 + 3 in c
    assert plain[1] == 8
    assert per_mac[2] == 16
    assert per_mac[1] < 8


def test_normalisations_by_hand():
    scores = np.array([3.0, 1.0, 4.0])
    assert NORMALISATIONS["none"](scores).tolist() == [3.0, 1.0, 4.0]
    np.testing.assert_allclose(NORMALISATIONS["mean"](scores), scores * 3 / 8)
    assert NORMALISATIONS["max"](scores).tolist() == [0.75, 0.25, 1.0]
    np.testing.assert_allclose(NORMALISATIONS["l2"](scores), scores / np.sqrt(26))
    np.testing.assert_allclose(NORMALISATIONS["lamp"](scores), [3 / 7, 1 / 8, 1.0])
    assert NORMALISATIONS["l2"](np.zeros(2)).tolist() == [0.0, 0.0]
    assert NORMALISATIONS["lamp"](np.zeros(2)).tolist() == [0.0, 0.0]


def test_one_evaluation_per_power_and_the_best_is_kept():
    env = chain_env()
    result = run_search(MagnitudeAgent(env, cost_powers=[0.0, 1.0, 2.0]), env, evaluations=50)
    losses = [record.loss for record in env.history]
    assert (result.evaluations + result.cache_hits, result.stop_reason) == (3, "finished")
    assert env.best.loss == min(losses)
    assert all(record.met for record in env.history)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalise": "sum"}, r"normalise='sum': .*lamp.* Change agent\.normalise"),
        ({"cost_powers": []}, r"Change agent\.cost_powers"),
        ({"cost_powers": [-1.0]}, r"\[-1\.0\].* Change agent\.cost_powers"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MagnitudeAgent(None, **settings)


def test_slimming_follows_the_scales_of_the_batch_norms(tmp_path):
    task = chain_task(criterion="bn_gamma")
    names = [group.name for group in task.graph.groups]
    task.scores = dict(
        zip(names, [np.full(8, 3.0), np.full(8, 2.0), np.linspace(0, 1, 16)], strict=True)
    )
    env = chain_env(task)
    agent = SlimmingAgent(env, seed=0)
    result = run_search(agent, env, evaluations=5)
    # all of a and b: 10,368 MACs; 14,424 leave 4,056 of which a channel of c takes 1,155
    assert counts_of(env.best) == (8, 8, 3)
    assert result.evaluations == 1
    agent.save(tmp_path / "agent.zip")
    SlimmingAgent.load(tmp_path / "agent.zip", env=env)


def test_slimming_refuses_another_importance():
    with pytest.raises(ValueError, match=r"importance\.criterion=l1\. Set importance=bn_gamma"):
        SlimmingAgent(chain_env())
