from __future__ import annotations

import itertools

import numpy as np
import pytest
from classic_task import chain_env, chain_task, counts_of

from agents.count_search import CountSpace
from agents.search import run_search
from agents.sensitivity import (
    GroupCurve,
    Sensitivities,
    SensitivityAgent,
    _convex_hull,
    additive_plan,
    measure_sensitivities,
    threshold_plan,
)


def test_the_curves_are_those_of_one_group_pruned_alone():
    task = chain_task()
    curves = measure_sensitivities(task, [0.5, 0.25]).curves
    assert task.evaluator.num_evaluations == 6
    assert [curve.counts for curve in curves] == [(8, 6, 4), (8, 6, 4), (16, 12, 8)]
    np.testing.assert_allclose(curves[0].losses, [0.1, 0.85, 1.6])
    np.testing.assert_allclose(curves[1].losses, [0.1, 0.35, 0.6])
    np.testing.assert_allclose(curves[2].losses, [0.1, 0.6, 1.1])
    np.testing.assert_allclose(curves[2].accuracies[0], np.exp(-0.1))


def test_increases_are_interpolated_monotone_and_go_on():
    curve = GroupCurve("g", 8, (8, 6, 4, 2), (0.5, 0.4, 1.5, 1.3), (0.0,) * 4)
    # rises 0, 0 (it fell), 1, 1 (never falls again); the last slope is 0
    increase = curve.increase(np.array([8, 7, 5, 4, 3, 1]))
    np.testing.assert_allclose(increase, [0, 0, 0.5, 1, 1, 1])
    steep = GroupCurve("g", 8, (8, 4), (0.0, 2.0), (0.0,) * 2)
    np.testing.assert_allclose(steep.increase(np.array([2])), [3.0])


def test_the_convex_hull_by_hand():
    x, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 2.0, 2.0, 6.0])
    assert _convex_hull(x, y).tolist() == [0.0, 1.0, 2.0, 6.0]


def test_the_additive_plan_is_nearly_the_best_of_all():
    task = chain_task(power=2.0)
    space = CountSpace.of(task, [1, 1, 1], task.cost.base_macs // 2)
    sensitivities = measure_sensitivities(task, np.arange(1, 8) / 8)
    plan = additive_plan(space, sensitivities)
    plans = [np.array(p) for p in itertools.product(range(1, 9), range(1, 9), range(1, 17))]
    best = min(task.evaluator.loss(p) for p in plans if space.fits(p))
    assert space.fits(plan)
    assert task.evaluator.loss(plan) <= best + 0.05


def test_the_threshold_is_the_smallest_common_increase():
    task = chain_task()  # rises: 3, 1 and 2 times the fraction removed
    space = CountSpace.of(task, [1, 1, 1], task.cost.base_macs // 2)
    plan = threshold_plan(space, measure_sensitivities(task, [0.25, 0.5, 0.75]))
    # 0.375 keeps 7, 5 and 13: 144 * (7 + 35 + 65) + 39 = 15,447 MACs of 14,424; 0.5 keeps 7, 4
    # and 12: 11,988. A fifth channel of b does not fit (14,724), so c and a get something back.
    assert plan.tolist() == [8, 4, 14]


def test_the_scan_then_the_plan_then_a_local_search():
    env = chain_env()
    agent = SensitivityAgent(env, ratios=[0.5], refine="exchange", seed=0, evaluations=12)
    result = run_search(agent, env, evaluations=12)
    counts = [counts_of(record) for record in env.history]
    assert counts[:3] == [(4, 8, 16), (8, 4, 16), (8, 8, 8)]
    assert all(record.met for record in env.history[3:])
    assert result.evaluations == 12
    assert env.best.score >= env.history[3].score
    curves = Sensitivities.from_json(agent.findings()["sensitivities.json"])
    assert curves.curves[1].losses == pytest.approx((0.1, 0.6))


def test_few_evaluations_get_fewer_ratios_and_too_few_are_refused():
    env = chain_env()
    run_search(SensitivityAgent(env, evaluations=4), env, evaluations=4)
    assert [counts_of(r) for r in env.history[:3]] == [(4, 8, 16), (8, 4, 16), (8, 8, 8)]
    assert env.best is not None
    with pytest.raises(ValueError, match=r"needs 4 evaluations or more, and has 3\. Raise search"):
        SensitivityAgent(env, evaluations=3).learn(10)


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"rule": "best"}, "rule"), ({"refine": "all"}, "refine"), ({"step": 0.0}, "step")],
)
def test_settings_out_of_range_are_refused(settings, key):
    with pytest.raises(ValueError, match=rf"Change agent\.{key}"):
        SensitivityAgent(None, **settings)


def test_ratios_and_files_are_checked():
    with pytest.raises(ValueError, match=r"ratios=\[1\.5\]: .* Change agent\.ratios"):
        measure_sensitivities(chain_task(), [1.5])
    for text in ("no json", "{}", '{"format": "other"}'):
        with pytest.raises(ValueError, match="Not sensitivities of format"):
            Sensitivities.from_json(text)
