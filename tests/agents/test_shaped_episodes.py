"""Agents in environments that pay at every step."""

from __future__ import annotations

import numpy as np
import pytest
from classic_task import chain_env
from stable_baselines3 import SAC

from agents.amc import AMC
from agents.masked_policy import MaskedPolicy
from agents.off_policy import DDPG, TD3
from agents.on_policy import A2C, PPO
from agents.search import check_agent, run_search
from envs.shaping import LocalErrorShaping


@pytest.fixture
def env():
    return chain_env(env_id="AMC-v0", shaping=LocalErrorShaping(0.5))


@pytest.mark.parametrize("agent_class", [DDPG, TD3])
def test_a_replayed_return_begins_at_its_own_step(agent_class):
    """What was paid before a step is not what the step is worth."""
    for refund in (True, False):
        env = chain_env(env_id="AMC-v0", shaping=LocalErrorShaping(0.5, refund=refund))
        agent = agent_class(
            "MlpPolicy", env, seed=0, gamma=1.0, buffer_size=100, learning_starts=50
        )
        agent.learn(9)
        stored = agent.replay_buffer.rewards[:9, 0].reshape(3, 3)
        for returns, record in zip(stored, env.history, strict=True):
            kept = np.array([[1.0 - value for _, value in record.executed]])
            paid = 0.5 * env.local_errors(kept)[0]
            before = np.append(0.0, np.cumsum(paid)[:-1])  # by the steps before each step
            whole = record.accuracy - 1.0 - (0.0 if refund else paid.sum())
            np.testing.assert_allclose(returns, whole + before, atol=1e-5)
        assert agent.replay_buffer.dones[:9].all()


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("agent_class", [PPO, A2C])
def test_ranked_outcomes_are_refused_and_plain_rewards_are_not(env, agent_class):
    with pytest.raises(ValueError, match=r"Set agent\.rank_power=null agent\.gae_lambda=0\.9"):
        agent_class(MaskedPolicy, env, n_steps=6)
    agent = agent_class(MaskedPolicy, env, n_steps=6, rank_power=None, seed=0)
    assert run_search(agent, env, evaluations=4).evaluations == 4


def test_an_agent_of_the_last_reward_is_refused(env):
    with pytest.raises(ValueError, match=r"AMC gives the last reward .* Set env/shaping=none"):
        check_agent(AMC, env)
    check_agent(SAC, env)
    check_agent(AMC, chain_env(env_id="AMC-v0"))


@pytest.mark.parametrize("refund", [True, False])
def test_the_same_seed_gives_the_same_episodes(refund):
    def played():
        env = chain_env(env_id="AMC-v0", shaping=LocalErrorShaping(0.5, refund=refund))
        PPO(MaskedPolicy, env, n_steps=6, batch_size=6, rank_power=None, gamma=1.0, seed=1).learn(
            18
        )
        return [record.raw_action for record in env.history]

    assert played() == played()
