from __future__ import annotations

import sys

import numpy as np
import pytest
from gymnasium import spaces

from agents.search import run_search
from agents.tpe import TPEAgent, TPEStrategy

pytest.importorskip("optuna")


def decided(env):
    return [record.decided for record in env.history]


def test_the_uniform_plan_comes_first_and_the_best_is_remembered(make_env):
    env = make_env("ratio")
    agent = TPEAgent(env, seed=0, num_random=5)
    result = run_search(agent, env, evaluations=40)
    assert decided(env)[0] == (0.25,) * 4
    assert (result.evaluations, result.stop_reason) == (40, "evaluations")
    assert env.best.reward > env.history[0].reward
    observation, _ = env.reset()
    np.testing.assert_allclose(agent.predict(observation)[0], env.best.decided)


def test_the_estimator_beats_uniform_draws():
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    strategy = TPEStrategy(np.zeros(2), box, num_random=10, multivariate=True, seed=0)
    points = []
    for _ in range(60):
        points.append(strategy.ask())
        assert strategy.ask() is points[-1]
        strategy.tell(-float(np.abs(points[-1] - 0.5).sum()))
    distance = np.abs(np.array(points) - 0.5).sum(axis=1)
    assert distance[-20:].mean() < 0.6 * distance[1:10].mean()
    np.testing.assert_array_equal(strategy.mean, points[int(np.argmin(distance))])


def test_a_loaded_agent_goes_on_where_it_was(make_env, tmp_path):
    env = make_env("ratio")
    agent = TPEAgent(env, seed=5, num_random=3).learn(8)
    agent.save(tmp_path / "agent.zip")
    again = TPEAgent.load(tmp_path / "agent.zip", env=env)
    assert again.num_random == 3
    agent.learn(6)
    again.learn(6)
    assert decided(env)[8:14] == decided(env)[14:20]


def test_what_does_not_fit_is_refused(make_env, monkeypatch):
    with pytest.raises(ValueError, match=r"TPEAgent decides .* Set env=allocation"):
        TPEAgent(make_env("pattern"))
    with pytest.raises(ValueError, match=r"num_random=0: .* Change agent\.num_random"):
        TPEAgent(None, num_random=0)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"needs the package optuna.*\[hpo\]"):
        TPEAgent(None)
