from __future__ import annotations

import numpy as np
import pytest
from classic_task import chain_env, chain_task
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import local_start
from agents.allocation_policy import AllocationPolicy
from agents.evolution import CMAESAgent, OnePlusOneAgent
from agents.imagination import ImaginationAgent
from agents.local_start import local_error_start, uniform_start
from agents.masked_policy import MaskedPolicy
from agents.on_policy import PPO


@pytest.fixture(autouse=True)
def few_previews(monkeypatch):
    """Enough for three groups."""
    monkeypatch.setattr(local_start, "NUM_PREVIEWS", 600)


@pytest.fixture
def env():
    return chain_env()


def vectorised(env):
    return DummyVecEnv([lambda: env])


def error_of(env, action):
    return (env.local_errors(env.preview(action[None], rounded=True)) ** 2).sum()


def ppo(env, **settings):
    return PPO(AllocationPolicy, env, n_steps=4, batch_size=4, seed=0, **settings)


def test_the_start_has_less_local_error_than_the_uniform_plan_and_meets_the_budget(env):
    uniform = uniform_start(vectorised(env), 0)
    start = local_error_start(vectorised(env), 0)
    assert env.action_space.contains(start)
    assert error_of(env, start) < 0.95 * error_of(env, uniform)
    env.reset()
    *_, info = env.step(start)
    assert info["met"]
    assert info["relative_macs"] <= 0.5


def test_no_plan_of_many_has_much_less_local_error_than_the_start(env):
    start = local_error_start(vectorised(env), 3)
    drawn = np.random.default_rng(0).uniform(-1, 1, (3000, 3))
    errors = (env.local_errors(env.preview(drawn)) ** 2).sum(1)
    assert (env.local_errors(env.preview(start[None])) ** 2).sum() < errors.min() + 1e-3


def test_the_uniform_plan_stays_where_nothing_is_better(env):
    env.local_errors = lambda plans: np.ones_like(plans)
    np.testing.assert_array_equal(
        local_error_start(vectorised(env), 0), uniform_start(vectorised(env), 0)
    )


def test_a_start_needs_no_evaluation_and_is_the_same_for_the_same_seed(env):
    before = env.num_evaluations
    first = local_error_start(vectorised(env), 5)
    np.testing.assert_array_equal(first, local_error_start(vectorised(env), 5))
    assert env.num_evaluations == before


@pytest.mark.parametrize("agent_class", [CMAESAgent, OnePlusOneAgent, ImaginationAgent])
def test_a_search_begins_at_its_start(env, agent_class):
    agent = agent_class(env, seed=0, start="local_error")
    observation, _ = env.reset()
    begun = agent.predict(observation)[0]
    assert error_of(env, begun) < 0.95 * error_of(env, uniform_start(vectorised(env), 0))
    plain = agent_class(env, seed=0)
    np.testing.assert_allclose(
        plain.predict(observation)[0], uniform_start(vectorised(env), 0), atol=1e-6
    )


def test_the_start_is_what_is_measured_first_and_survives_saving(env, tmp_path):
    agent = OnePlusOneAgent(env, seed=0, start="local_error").learn(3)
    measured = np.asarray(env.history[0].raw_action)
    assert error_of(env, measured) < 0.95 * error_of(env, uniform_start(vectorised(env), 0))
    agent.save(tmp_path / "agent")
    again = OnePlusOneAgent.load(tmp_path / "agent.zip", env=chain_env())
    assert again.start == "local_error"
    agent.learn(4)
    again.learn(4)
    assert [r.raw_action for r in env.history[3:]] == [
        r.raw_action for r in again.get_env().get_attr("history")[0]
    ]


def test_the_first_mean_of_ppo_is_the_start(env):
    agent = ppo(env, start="local_error")
    observation, _ = env.reset()
    mean = agent.predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(mean, local_error_start(agent.get_env(), 0), atol=1e-6)
    np.testing.assert_allclose(
        ppo(chain_env()).predict(observation, deterministic=True)[0], 0.0, atol=1e-6
    )


def test_a_loaded_ppo_keeps_what_it_learned(env, tmp_path):
    agent = ppo(env, start="local_error").learn(8)
    agent.save(tmp_path / "agent")
    again = PPO.load(tmp_path / "agent.zip", env=env)
    observation, _ = env.reset()
    np.testing.assert_array_equal(
        agent.predict(observation, deterministic=True)[0],
        again.predict(observation, deterministic=True)[0],
    )


@pytest.mark.parametrize("agent_class", [CMAESAgent, OnePlusOneAgent, ImaginationAgent])
def test_an_unknown_start_is_refused(env, agent_class):
    with pytest.raises(ValueError, match=r"uniform, local_error, got 'best'\. Change agent\.start"):
        agent_class(env, start="best")
    with pytest.raises(ValueError, match=r"uniform, local_error, got 'best'"):
        ppo(env, start="best")


def test_a_policy_without_a_mean_to_set_is_refused():
    env = chain_env(env_id="AMC-v0", task=chain_task())
    with pytest.raises(ValueError, match=r"policy is MaskedPolicy\. Set env=allocation"):
        PPO(MaskedPolicy, env, n_steps=4, batch_size=4, start="local_error")
