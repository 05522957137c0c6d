"""Final rewards, rewards that are rewritten as ranks, and batches drawn together, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from agents.ranking import rank_utilities
from agents.replay import (
    FinalRewardDictReplayBuffer,
    FinalRewardReplayBuffer,
    ReturnReplayBuffer,
)

BOX = spaces.Box(-1, 1, (1,), np.float32)


def utility(rank, power=1.0):
    """Of a rank in (0, 1): mean 0 and variance 1 over uniform ranks."""
    mean = 1 / (power + 1)
    return (rank**power - mean) / np.sqrt(1 / (2 * power + 1) - mean**2)


def fill(buffer, rewards_and_dones):
    for number, (reward, done) in enumerate(rewards_and_dones):
        value = np.full((1, 1), number / 10, np.float32)
        buffer.add(value, value, value, np.array([reward]), np.array([done]), [{}])


def test_every_step_of_an_episode_gets_its_last_reward():
    buffer = FinalRewardReplayBuffer(8, BOX, BOX)
    fill(buffer, [(1.0, 0), (2.0, 0), (-0.5, 1), (0.0, 0), (4.0, 1)])
    assert buffer.rewards[:5, 0].tolist() == [-0.5, -0.5, -0.5, 4.0, 4.0]
    assert buffer.dones[:5, 0].tolist() == [0, 0, 1, 0, 1]
    np.testing.assert_allclose(buffer.actions[:5, 0, 0], [0.0, 0.1, 0.2, 0.3, 0.4])


def test_an_episode_is_not_replayed_before_it_ends():
    buffer = FinalRewardReplayBuffer(8, BOX, BOX)
    fill(buffer, [(0.0, 0), (0.0, 0)])
    assert buffer.size() == 0
    fill(buffer, [(3.0, 1), (0.0, 0)])
    assert buffer.size() == 3


def test_first_steps_can_be_left_out_as_in_the_released_code():
    buffer = FinalRewardReplayBuffer(8, BOX, BOX, replay_first_step=False)
    fill(buffer, [(0.0, 0), (0.0, 0), (-0.5, 1), (0.0, 0), (4.0, 1), (7.0, 1)])
    assert buffer.rewards[: buffer.size(), 0].tolist() == [-0.5, -0.5, 4.0, 7.0]  # 7: its only step
    np.testing.assert_allclose(buffer.actions[:4, 0, 0], [0.1, 0.2, 0.4, 0.5])


@pytest.mark.parametrize("buffer_class", [FinalRewardReplayBuffer, ReturnReplayBuffer])
def test_a_time_limit_ends_an_episode_like_any_other_end(buffer_class):
    buffer = buffer_class(4, BOX, BOX)
    value = np.zeros((1, 1), np.float32)
    infos = [{"TimeLimit.truncated": True}]
    buffer.add(value, value, value, np.array([5.0]), np.array([1]), infos)
    assert buffer.sample(1).dones.item() == 1.0


def test_what_is_held_back_is_a_copy():
    buffer = FinalRewardReplayBuffer(4, BOX, BOX)
    value = np.ones((1, 1), np.float32)
    buffer.add(value, value, value, np.array([0.0]), np.array([0]), [{}])
    value[:] = 9.0
    buffer.add(value, value, value, np.array([1.0]), np.array([1]), [{}])
    assert buffer.observations[:2, 0, 0].tolist() == [1.0, 9.0]


def test_utilities_are_powers_of_ranks_with_ties_at_their_middle():
    known = np.array([3.0, -1.0, 3.0, 9.0])  # ranks 1/2, 1/8, 1/2, 7/8
    found = rank_utilities(np.array([[9.0, 3.0], [-1.0, 5.0]]), known, 2.0)
    expected = [
        [utility(7 / 8, 2.0), utility(1 / 2, 2.0)],
        [utility(1 / 8, 2.0), utility(3 / 4, 2.0)],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert rank_utilities(np.array([1.0]), np.array([]), 2.0).tolist() == [0.0]


def test_stored_rewards_are_rewritten_when_an_episode_ends():
    buffer = ReturnReplayBuffer(8, BOX, BOX, rank_power=1.0)
    fill(buffer, [(0.0, 0), (-2.0, 1)])  # the only outcome: in the middle, which is worth 0
    assert buffer.rewards[:2, 0].tolist() == [0.0, 0.0]
    fill(buffer, [(-900.0, 1)])  # 2 of 3 transitions are better; ranks 2/3 and 1/6
    np.testing.assert_allclose(
        buffer.rewards[:3, 0], [utility(2 / 3), utility(2 / 3), utility(1 / 6)], rtol=1e-6
    )
    fill(buffer, [(-1.0, 1), (0.0, 0)])  # the best so far; the last one goes on
    np.testing.assert_allclose(
        buffer.rewards[:4, 0], [utility(r) for r in (1 / 2, 1 / 2, 1 / 8, 7 / 8)], atol=1e-6
    )
    assert buffer.rewards[4, 0] == 0.0


def test_what_is_overwritten_is_ranked_no_more():
    buffer = ReturnReplayBuffer(2, BOX, BOX, rank_power=1.0)
    fill(buffer, [(5.0, 1), (1.0, 1), (3.0, 1)])  # 3 has taken the place of 5
    np.testing.assert_allclose(buffer.rewards[:, 0], [utility(3 / 4), utility(1 / 4)], rtol=1e-6)
    fill(buffer, [(0.0, 0)])  # nothing is known of it: 3 is alone
    fill(buffer, [(2.0, 1)])  # of one episode both
    np.testing.assert_allclose(buffer.rewards[:, 0], 0.0)


def test_amc_ranks_the_final_reward_of_every_step():
    buffer = FinalRewardReplayBuffer(8, BOX, BOX, rank_power=4.0)
    fill(buffer, [(7.0, 0), (-0.5, 1), (7.0, 0), (-0.9, 1)])
    expected = [utility(3 / 4, 4.0)] * 2 + [utility(1 / 4, 4.0)] * 2
    np.testing.assert_allclose(buffer.rewards[:4, 0], expected, rtol=1e-6)


def test_without_a_power_rewards_stay_as_they_are():
    buffer = FinalRewardReplayBuffer(8, BOX, BOX)
    fill(buffer, [(0.0, 0), (-0.5, 1), (-0.9, 1)])
    np.testing.assert_allclose(buffer.rewards[:3, 0], [-0.5, -0.5, -0.9])


@pytest.mark.parametrize("is_dict", [False, True])
def test_batches_drawn_together_are_those_of_single_draws(is_dict):
    space = spaces.Dict({"a": BOX, "b": BOX}) if is_dict else BOX
    buffer_class = FinalRewardDictReplayBuffer if is_dict else FinalRewardReplayBuffer
    buffer = buffer_class(16, space, BOX)
    for number in range(12):
        value = np.full((1, 1), number / 12, np.float32)
        seen = {"a": value, "b": -value} if is_dict else value
        buffer.add(seen, seen, value, np.array([number]), np.array([number % 3 == 2]), [{}])
    np.random.seed(4)
    single = [buffer.sample(5) for _ in range(3)]
    np.random.seed(4)
    together = buffer.sample_several(3, 5)
    for one, other in zip(single, together, strict=True):
        assert type(one) is type(other)
        assert one.actions.tolist() == other.actions.tolist()
        assert one.rewards.tolist() == other.rewards.tolist()
        assert one.dones.tolist() == other.dones.tolist()
        for first, second in ((one.observations, other.observations),):
            keys = ("a", "b") if is_dict else (slice(None),)
            assert all(first[key].tolist() == second[key].tolist() for key in keys)
