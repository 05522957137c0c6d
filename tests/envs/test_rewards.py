"""Rewards: tables of signs and values, monotonicity, and the order of inside and outside a band."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from envs.adaptive_rewards import LagrangianReward, SelfCompetitionReward
from envs.amc_rewards import AmcErrorReward, AmcMacsReward, AmcParamsReward
from envs.rewards import AlphaReward, BandPenalty, Transition
from pruning.evaluation import Evaluation


def evaluation(accuracy):
    return Evaluation(accuracy, -math.log(max(accuracy, 1e-12)), 100)


def transition(accuracy=0.9, relative_macs=0.5, distance=0.0, base=0.9):
    return Transition(
        evaluation=None if accuracy is None else evaluation(accuracy),
        base=evaluation(base),
        relative_macs=relative_macs,
        macs=int(1000 * relative_macs),
        params=10,
        counts=(5, 5),
        budget_distance=distance,
        finished=True,
    )


@pytest.mark.parametrize("quality", ["likelihood", "accuracy"])
@pytest.mark.parametrize(
    ("alpha", "accuracy", "relative_macs", "compression", "kept"),
    [
        pytest.param(0.5, 0.9, 1.0, 0.0, 0.5, id="nothing-pruned"),
        pytest.param(0.5, 0.9, 0.4, 0.3, 0.5, id="pruned-for-nothing"),
        pytest.param(0.5, 0.45, 0.4, 0.3, 0.25, id="half-the-accuracy"),
        pytest.param(0.2, 0.45, 0.4, 0.12, 0.4, id="accuracy-counts-more"),
        pytest.param(0.0, 0.45, 0.1, 0.0, 0.5, id="accuracy-alone"),
        pytest.param(1.0, 0.45, 0.1, 0.9, 0.0, id="compression-alone"),
        pytest.param(0.5, 0.99, 1.0, 0.0, 0.5, id="better-than-the-base-is-no-better"),
    ],
)
def test_alpha_reward(alpha, accuracy, relative_macs, compression, kept, quality):
    terms = AlphaReward(alpha, quality)(transition(accuracy, relative_macs))
    assert terms == pytest.approx({"compression": compression, "quality": kept})


def test_the_likelihood_is_smooth_where_the_accuracy_is_not():
    better = replace(transition(), evaluation=Evaluation(0.8, 0.50, 100))
    worse = replace(transition(), evaluation=Evaluation(0.8, 0.51, 100))
    smooth, hard = AlphaReward(0.3), AlphaReward(0.3, "accuracy")
    assert sum(smooth(better).values()) > sum(smooth(worse).values())
    assert sum(hard(better).values()) == sum(hard(worse).values())


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_alpha_reward_rises_with_accuracy_and_falls_with_cost(alpha):
    reward = AlphaReward(alpha)
    by_accuracy = [sum(reward(transition(a)).values()) for a in np.linspace(0.1, 0.9, 9)]
    by_cost = [sum(reward(transition(0.5, m)).values()) for m in np.linspace(0.1, 1.0, 10)]
    assert all(np.diff(by_accuracy) > 0)
    assert all(np.diff(by_cost) < 0)


def test_a_higher_alpha_favours_the_smaller_of_two_networks():
    small, large = transition(0.6, 0.2), transition(0.85, 0.8)

    def advantage(alpha):
        reward = AlphaReward(alpha)
        return sum(reward(small).values()) - sum(reward(large).values())

    advantages = [advantage(alpha) for alpha in np.linspace(0.0, 1.0, 11)]
    assert all(np.diff(advantages) > 0)
    assert advantages[0] < 0 < advantages[-1]


def test_a_hopeless_base_still_has_a_likelihood_to_keep():
    hopeless = replace(
        transition(), base=Evaluation(0.1, 2000.0, 8), evaluation=Evaluation(0.1, 2000.7, 8)
    )
    terms = AlphaReward(0.5)(hopeless)
    assert terms["quality"] == pytest.approx(0.5 * math.exp(-0.7))


def test_a_base_without_accuracy_is_refused():
    with pytest.raises(ValueError, match=r"accuracy of 0\.0, so none can be kept"):
        AlphaReward(0.5, "accuracy")(transition(base=0.0))


@pytest.mark.parametrize(("accuracy", "error"), [(1.0, 0.0), (0.9, -0.1), (0.0, -1.0)])
def test_amc_error_is_minus_the_error_whatever_the_cost(accuracy, error):
    for relative_macs in (0.1, 1.0):
        terms = AmcErrorReward()(transition(accuracy, relative_macs))
        assert terms == pytest.approx({"error": error})


REWARDS = [
    AlphaReward(0.0),
    AlphaReward(0.5),
    AlphaReward(1.0),
    AmcErrorReward(),
    AmcMacsReward(),
    SelfCompetitionReward(AlphaReward()),
    LagrangianReward(),
]


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.name)
def test_inside_the_band_the_penalty_is_nothing(reward):
    inside = transition(0.7, 0.5)
    assert BandPenalty(reward)(inside) == {**reward(inside), "budget": 0.0}


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.name)
@pytest.mark.parametrize("accuracy", [None, 0.0, 0.5, 1.0])
def test_outside_the_band_the_reward_is_below_every_reward_inside(reward, accuracy):
    penalised = BandPenalty(reward)
    worst_inside = min(
        sum(penalised(transition(a, m)).values()) for a in (0.0, 1.0) for m in (0.0, 1.0)
    )
    for distance in (1e-6, 0.1, 0.9):
        for relative_macs in (0.0, 1.0):
            outside = penalised(transition(accuracy, relative_macs, distance))
            assert sum(outside.values()) < worst_inside
            assert sum(outside.values()) < 0.0
            assert set(outside) == set(penalised.term_names)
            lowest, highest = penalised.bounds
            assert lowest <= sum(outside.values()) <= highest


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.name)
def test_the_penalty_grows_with_the_distance(reward):
    values = [
        sum(BandPenalty(reward)(transition(None, 0.5, distance)).values())
        for distance in np.linspace(0.01, 0.9, 20)
    ]
    assert all(np.diff(values) < 0)


@pytest.mark.parametrize("reward", [AmcMacsReward(), AmcParamsReward()], ids=repr)
def test_amcs_other_rewards_are_the_error_times_a_logarithm(reward):
    of = replace(transition(0.9), macs=1000, params=1000)
    (value,) = reward(of).values()
    assert value == pytest.approx(-0.1 * math.log(1000))
    assert sum(reward(transition(1.0)).values()) == 0.0
    by_accuracy = [sum(reward(transition(a)).values()) for a in np.linspace(0.0, 1.0, 11)]
    assert all(np.diff(by_accuracy) > 0)
    sizes = [replace(transition(0.5), macs=n, params=n) for n in (1, 10, 100, 1000)]
    assert all(np.diff([sum(reward(size).values()) for size in sizes]) < 0)


def test_amcs_rewards_count_what_their_name_says():
    of = replace(transition(0.0), macs=100, params=10)
    assert AmcMacsReward()(of) == pytest.approx({"error_log_macs": -math.log(100)})
    assert AmcParamsReward()(of) == pytest.approx({"error_log_params": -math.log(10)})
