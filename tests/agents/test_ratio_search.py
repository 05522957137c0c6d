"""Bisection and grid over one ratio."""

from __future__ import annotations

import numpy as np
import pytest

from agents.ratio_search import BisectionAgent, GridAgent, distinct_ratios
from agents.search import run_search
from envs.budgets import Project, Tolerance
from envs.episodes import Whole
from pruning.keep_set import kept_count


def all_counts(env):
    groups = env.task.graph.groups
    ratios = np.linspace(0.0, 0.9, 9001)
    return {tuple(kept_count(group, float(ratio)) for group in groups) for ratio in ratios}


def test_the_ladder_holds_every_plan_of_one_ratio_once(make_plan_env):
    env = make_plan_env()
    groups = env.task.graph.groups
    ladder = distinct_ratios(groups, 0.9)
    counts = [tuple(kept_count(group, ratio) for group in groups) for ratio in ladder]
    assert len(set(counts)) == len(counts)
    assert set(counts) == all_counts(env)
    macs = [env.task.cost.macs_of_counts(count) for count in counts]
    assert macs == sorted(macs, reverse=True)


def test_bisection_reaches_the_band_and_then_measures_every_plan_in_it(make_plan_env):
    env = make_plan_env(budget=Tolerance(0.5, above=0.1, below=0.2))
    agent = BisectionAgent(env)
    result = run_search(agent, env, evaluations=100)
    in_band = {
        counts for counts in all_counts(env) if env.limits.met(env.task.cost.macs_of_counts(counts))
    }
    assert len(in_band) > 1
    measured = [r for r in env.history if r.met]
    assert {tuple(r.plan.keep_set(env.task.graph).counts) for r in measured} == in_band
    assert result.evaluations == len(measured) == len(in_band)
    assert result.stop_reason == "finished"
    first = next(i for i, record in enumerate(env.history) if record.met)
    assert first < np.log2(len(all_counts(env))) + 1  # each proposal halves what is left
    assert all(record.accuracy is None for record in env.history[:first])


def test_bisection_ends_when_no_plan_of_one_ratio_is_in_the_band(make_plan_env):
    env = make_plan_env(budget=Tolerance(0.5, above=0.0, below=0.0001))
    result = run_search(BisectionAgent(env), env, evaluations=10)
    assert (result.evaluations, result.stop_reason) == (0, "finished")
    assert 1 < len(env.history) < 7


def test_the_grid_measures_only_what_is_in_the_band(make_plan_env):
    env = make_plan_env(budget=Tolerance(0.5, above=0.1, below=0.2))
    agent = GridAgent(env, num_ratios=6)
    run_search(agent, env, evaluations=100)
    assert [trial.ratio for trial in agent.trials] == pytest.approx(
        [0.15, 0.3, 0.45, 0.6, 0.75, 0.9], abs=0.02
    )
    assert env.num_evaluations == sum(trial.met for trial in agent.trials) == 1
    assert GridAgent(env, num_ratios=500)._settings() == {"num_ratios": 500}


def test_a_saved_search_predicts_its_best_plan(make_plan_env, tmp_path):
    env = make_plan_env(budget=Tolerance(0.5, above=0.1, below=0.2))
    agent = BisectionAgent(env)
    run_search(agent, env, evaluations=100)
    agent.save(tmp_path / "agent")
    loaded = BisectionAgent.load(tmp_path / "agent", env)
    observation, _ = env.reset()
    action, _ = loaded.predict(observation)
    env.step(action)
    assert env.history[-1] == env.best


def test_environments_that_do_not_fit_are_refused(make_plan_env):
    with pytest.raises(ValueError, match=r"no lower edge. Set budget=tolerance or budget=band"):
        BisectionAgent(make_plan_env(budget=Project(0.5)))
    with pytest.raises(ValueError, match=r"up to 3 steps .* Set env=ratios"):
        GridAgent(make_plan_env(episode=Whole(max_steps=3)))
    with pytest.raises(ValueError, match=r"num_ratios=0: .* Change agent.num_ratios"):
        GridAgent(make_plan_env(), num_ratios=0)
