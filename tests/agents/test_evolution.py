from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from gymnasium import Wrapper, spaces
from stable_baselines3.common.callbacks import BaseCallback

from agents.evolution import CMAESAgent, CMAStrategy, OnePlusOneAgent, OnePlusOneStrategy
from agents.search import run_search

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
AGENTS = [CMAESAgent, OnePlusOneAgent]


def decided(env):
    return [record.decided for record in env.history]


@pytest.mark.parametrize("agent_class", AGENTS)
def test_the_best_plan_is_found(make_env, agent_class):
    env = make_env("ratio", num_sites=6, seed=7)
    start = 1 - np.mean(np.abs(0.25 - env.targets))
    result = run_search(agent_class(Wrapper(env), seed=0), env, evaluations=250)
    assert (result.evaluations, result.stop_reason) == (250, "evaluations")
    assert start < 0.6
    assert env.best.reward > 0.93
    assert np.mean([record.reward for record in env.history[-20:]]) > 0.9


@pytest.mark.parametrize("agent_class", AGENTS)
def test_before_anything_is_learned_the_centre_is_the_uniform_plan(make_env, agent_class):
    env = make_env("ratio")
    observation, _ = env.reset(seed=0)
    agent = agent_class(env, policy="ignored", seed=0)
    assert agent.predict(observation)[0].tolist() == [0.25] * 4
    agent.learn(60)
    batch = {key: value[None] for key, value in observation.items()}
    action = agent.predict(batch, deterministic=True)[0]
    assert action.shape == (1, 4)
    assert action.dtype == np.float32
    assert np.abs(action[0] - env.targets).mean() < np.abs(0.25 - env.targets).mean()


@pytest.mark.parametrize("agent_class", AGENTS)
def test_the_same_seed_gives_the_same_episodes(make_env, agent_class):
    def played(seed):
        env = make_env("ratio")
        agent_class(env, seed=seed).learn(30)
        return decided(env)

    assert played(3) == played(3)
    assert played(3) != played(4)


def test_the_strategy_of_cmaes_is_a_normal_around_the_start_until_a_generation_is_told():
    strategy = CMAStrategy(np.array([0.1, -0.2]), BOX, sigma=0.05, population_size=400, seed=0)
    points = []
    for _ in range(400):
        points.append(strategy.ask())
        assert strategy.ask() is points[-1]
        assert strategy.mean.tolist() == [0.1, -0.2]
        strategy.tell(points[-1][0])
    np.testing.assert_allclose(np.mean(points, axis=0), [0.1, -0.2], atol=0.01)
    np.testing.assert_allclose(np.std(points, axis=0), 0.05, rtol=0.1)
    assert strategy.mean[0] > 0.13  # the better half lies to the right
    assert strategy.mean[1] == pytest.approx(-0.2, abs=0.01)


def test_the_points_of_cmaes_stay_in_the_box():
    strategy = CMAStrategy(np.array([1.0, 3.0]), BOX, sigma=1.0, population_size=None, seed=0)
    for _ in range(30):
        assert BOX.contains(strategy.ask().astype(np.float32))
        strategy.tell(float(strategy.ask().sum()))


def test_one_plus_one_keeps_the_better_and_adapts_sigma_by_the_rule():
    strategy = OnePlusOneStrategy(np.array([0.5, 9.0]), BOX, sigma=0.2, factor=16.0, seed=0)
    assert strategy.ask().tolist() == [0.5, 1.0]
    strategy.tell(1.0)
    assert strategy.sigma == 0.2  # the first parent is no success
    worse = strategy.ask()
    strategy.tell(0.5)
    assert strategy.mean.tolist() == [0.5, 1.0]
    assert strategy.sigma == pytest.approx(0.1)  # 16 ** -1/4
    equal = strategy.ask()
    assert equal.tolist() != worse.tolist()
    strategy.tell(1.0)
    assert strategy.mean.tolist() == equal.tolist()
    assert strategy.sigma == pytest.approx(1.6)
    assert BOX.contains(strategy.ask().astype(np.float32))


@pytest.mark.parametrize("agent_class", AGENTS)
@pytest.mark.parametrize("learned", [0, 3, 25])
def test_a_loaded_agent_goes_on_where_it_was(make_env, tmp_path, agent_class, learned):
    env = make_env("ratio")
    agent = agent_class(env, seed=5, sigma=0.4).learn(learned)
    agent.save(tmp_path / "agent")
    again = agent_class.load(tmp_path / "agent.zip", env=env)
    assert (again.num_timesteps, again.sigma) == (learned, 0.4)
    before = len(env.history)
    agent.learn(20)
    again.learn(20)
    assert decided(env)[before : before + 20] == decided(env)[before + 20 :]
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert len(json.loads(archive.read("agent.json"))["memory"]["rewards"]) == learned


def test_settings_survive_saving(make_env, tmp_path):
    CMAESAgent(make_env("ratio"), population_size=5, sigma=0.1).save(tmp_path / "a.zip")
    assert CMAESAgent.load(tmp_path / "a.zip").population_size == 5
    OnePlusOneAgent(make_env("ratio"), factor=1.2).save(tmp_path / "b.zip")
    assert OnePlusOneAgent.load(tmp_path / "b.zip").factor == 1.2
    with pytest.raises(ValueError, match="does not hold a CMAESAgent"):
        CMAESAgent.load(tmp_path / "b.zip")


@pytest.mark.parametrize("agent_class", AGENTS)
def test_a_known_plan_is_free_and_its_reward_is_told(make_env, agent_class):
    env = make_env("ratio")
    agent_class(env, seed=1).learn(12)
    result = run_search(agent_class(env, seed=1), env, evaluations=20)
    assert result.cache_hits == 12
    assert (result.evaluations, result.episodes) == (20, 20)
    assert decided(env)[:12] == decided(env)[12:24]


@pytest.mark.parametrize("agent_class", AGENTS)
def test_ctrl_c_in_the_middle_of_an_episode_loses_nothing(make_env, tmp_path, agent_class):
    class PressCtrlC(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 7:
                raise KeyboardInterrupt
            return True

    env, undisturbed = make_env("ratio"), make_env("ratio")
    agent = agent_class(env, seed=2)
    result = run_search(agent, env, evaluations=30, callbacks=[PressCtrlC()])
    assert (result.stop_reason, result.evaluations) == ("interrupted", 7)
    agent.save(tmp_path / "agent.zip")
    run_search(agent_class.load(tmp_path / "agent.zip", env=env), env, evaluations=30)
    run_search(agent_class(undisturbed, seed=2), undisturbed, evaluations=30)
    assert decided(env) == decided(undisturbed)


@pytest.mark.parametrize("agent_class", AGENTS)
@pytest.mark.parametrize(
    ("action", "episode"), [("pattern", "whole"), ("ratio", "layerwise"), ("pattern", "layerwise")]
)
def test_other_episodes_and_actions_are_refused(make_env, agent_class, action, episode):
    with pytest.raises(ValueError, match=f"{agent_class.__name__} decides .* Set env=allocation"):
        agent_class(make_env(action, episode))


@pytest.mark.parametrize("agent_class", AGENTS)
def test_episodes_of_several_steps_are_refused(make_env, agent_class):
    env = make_env("ratio")
    env.horizon = 20
    with pytest.raises(ValueError, match=r"up to 20 steps .* Set env=allocation"):
        agent_class(env)
    env.horizon = 1  # and one that does not say so is found out
    env.step = lambda action: (env.reset()[0], 0.0, False, False, {})
    with pytest.raises(ValueError, match=r"this one goes on\. Set env\.max_steps=1"):
        agent_class(env).learn(5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CMAESAgent(None, sigma=0.0), r"sigma=0.0: .* Change agent\.sigma"),
        (lambda: OnePlusOneAgent(None, sigma=np.inf), r"sigma=inf: .* Change agent\.sigma"),
        (lambda: CMAESAgent(None, population_size=1), r"=1: .* Change agent\.population_size"),
        (lambda: OnePlusOneAgent(None, factor=0.9), r"factor=0.9: .* Change agent\.factor"),
    ],
    ids=["sigma", "sigma-inf", "population", "factor"],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_agent_without_environment_says_so():
    with pytest.raises(ValueError, match="call set_env first"):
        CMAESAgent(None).learn(1)
