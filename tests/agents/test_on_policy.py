from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.flat_features import FlatFeaturesExtractor
from agents.on_policy import A2C, PPO, RankedDictRolloutBuffer, RankedRolloutBuffer

BOX = spaces.Box(-1, 1, (1,), np.float32)


def filled(rewards, starts, power=1.0, window=128, buffer=None, done=True, last_value=0.0):
    """A buffer after one rollout in which every value was 0.25."""
    if buffer is None:
        buffer = RankedRolloutBuffer(len(rewards), BOX, BOX, power=power, window=window)
    buffer.reset()
    value, zero = torch.full((1,), 0.25), np.zeros((1, 1), np.float32)
    for reward, start in zip(rewards, starts, strict=True):
        buffer.add(zero, zero, np.array([reward]), np.array([start]), value, value)
    buffer.compute_returns_and_advantage(torch.tensor([last_value]), np.array([done]))
    return buffer


def test_returns_are_the_ranks_of_the_rewards_scaled_to_unit_variance():
    buffer = filled([5.0, -7.0, 5.1, 100.0], [1, 1, 1, 1])
    # ranks (k - 1/2) / 4, minus 1/2, over the standard deviation of a uniform number
    expected = (np.array([0.375, 0.125, 0.625, 0.875]) - 0.5) * np.sqrt(12)
    np.testing.assert_allclose(buffer.returns[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(buffer.advantages[:, 0], expected - 0.25, rtol=1e-6)


def test_a_high_power_tells_the_best_apart_and_not_the_worst():
    returns = filled([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1], power=8.0).returns[:, 0]
    assert returns[3] - returns[2] > 10 * (returns[1] - returns[0]) > 0


def test_equal_outcomes_have_equal_utility_in_the_middle():
    returns = filled([2.0, 2.0, 2.0, 2.0], [1, 1, 1, 1]).returns[:, 0]
    np.testing.assert_allclose(returns, 0.0, atol=1e-7)


def test_the_outcome_at_the_end_counts_for_every_step_of_its_episode():
    buffer = filled([0, 0, 3.0, 0, 1.0, 0], [1, 0, 0, 1, 0, 1], done=False, last_value=0.5)
    good, bad = 0.25 * np.sqrt(12), -0.25 * np.sqrt(12)
    np.testing.assert_allclose(buffer.returns[:, 0], [good, good, good, bad, bad, 0.5], rtol=1e-6)


def test_a_reward_of_zero_that_ends_an_episode_is_an_outcome():
    returns = filled([0.0, -1.0, 0.0], [1, 1, 1]).returns[:, 0]
    np.testing.assert_allclose(returns, np.array([1 / 6, -1 / 3, 1 / 6]) * np.sqrt(12), rtol=1e-6)


def test_outcomes_are_ranked_among_those_of_earlier_rollouts():
    buffer = filled([1.0, 2.0], [1, 1], window=3)
    returns = filled([3.0, 0.0], [1, 1], buffer=buffer).returns[:, 0]
    # among 2, 3, 0: the first outcome has left the window
    np.testing.assert_allclose(returns, np.array([1 / 3, -1 / 3]) * np.sqrt(12), rtol=1e-6)


@pytest.mark.parametrize("agent_class", [PPO, A2C])
def test_the_buffer_fits_the_observation(make_env, tmp_path, agent_class):
    options = {"features_extractor_class": FlatFeaturesExtractor}
    agent = agent_class(
        "MultiInputPolicy", make_env(), n_steps=64, policy_kwargs=options, seed=0, rank_power=2.0
    )
    agent.learn(64)
    assert type(agent.rollout_buffer) is RankedDictRolloutBuffer
    agent.save(tmp_path / "agent.zip")
    loaded = agent_class.load(tmp_path / "agent.zip", env=make_env())
    assert (loaded.rank_power, loaded.rank_window) == (2.0, 128)
    assert loaded.rollout_buffer.power == 2.0
    loaded.learn(64)


def test_without_a_power_it_is_the_agent_of_sb3(make_env):
    options = {"features_extractor_class": FlatFeaturesExtractor}
    agent = PPO("MultiInputPolicy", make_env(), policy_kwargs=options, rank_power=None)
    assert not isinstance(agent.rollout_buffer, RankedDictRolloutBuffer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"rank_power": 0.0}, "rank_power=0.0", id="power"),
        pytest.param({"rank_window": 1}, "rank_window=1", id="window"),
    ],
)
def test_settings_out_of_range_are_refused(make_env, arguments, message):
    with pytest.raises(ValueError, match=message):
        PPO("MultiInputPolicy", make_env(), **arguments)
