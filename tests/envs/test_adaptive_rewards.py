"""Rewards with a memory: what they pay, how plans are ranked, and that a replay restores them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envs.adaptive_rewards import LagrangianReward, SelfCompetitionReward
from envs.band_reward import BandReward
from envs.budgets import Band, Unlimited
from envs.rewards import AlphaReward, BandPenalty, Transition, merit
from pruning.evaluation import Evaluation


def transition(quality, relative_macs=0.5, distance=0.0, finished=True, accuracy=0.5):
    """`quality` is the likelihood that is kept, of a base whose loss is 0."""
    return Transition(
        evaluation=Evaluation(accuracy, -math.log(quality), 100),
        base=Evaluation(1.0, 0.0, 100),
        relative_macs=relative_macs,
        macs=int(1000 * relative_macs),
        params=10,
        counts=(5, 5),
        budget_distance=distance,
        finished=finished,
    )


def results(*values):
    """Transitions whose AlphaReward(0.0) is the value."""
    return [transition(value) for value in values]


def paid(reward, transitions):
    return [sum(reward(one).values()) for one in transitions]


def test_against_the_best_only_a_new_best_pays():
    reward = SelfCompetitionReward(AlphaReward(0.0), against="best")
    assert paid(reward, results(0.5, 0.4, 0.5, 0.6, 0.55)) == [0, -1, 0, 1, -1]
    assert reward.state == pytest.approx({"result": 0.55, "opponent": 0.6})


def test_against_a_percentile_of_the_recent_results():
    reward = SelfCompetitionReward(AlphaReward(0.0), percentile=50, window=3)
    # medians: none, 0.2, 0.3, 0.4, of (0.4, 0.5, 0.45) 0.45
    assert paid(reward, results(0.2, 0.4, 0.5, 0.45, 0.45)) == [0, 1, 1, 1, 0]


def test_a_rank_is_the_share_of_recent_results_that_were_beaten():
    reward = SelfCompetitionReward(AlphaReward(0.0), against="rank")
    values = paid(reward, results(0.5, 0.6, 0.55, 0.1, 0.55))
    # ranks: none, 1 of 1, 1 of 2, 0 of 3, below 1 and 2 of 4 (0.5 and 0.1 below, itself equal)
    assert values == pytest.approx([0, 1, 0, -1, 2 * (2 / 4 + 3 / 4) / 2 - 1])


@pytest.mark.parametrize("against", ["best", "percentile", "rank"])
def test_a_better_plan_is_never_paid_less_than_a_worse_one_at_the_same_moment(against):
    def last(value):
        reward = SelfCompetitionReward(AlphaReward(0.0), against=against)
        return paid(reward, results(0.3, 0.7, 0.5, value))[-1]

    values = [last(value) for value in np.linspace(0.1, 0.9, 17)]
    assert all(np.diff(values) >= 0)
    assert values[0] == -1.0
    assert values[-1] == 1.0


def test_plans_are_ranked_by_the_result_and_not_by_the_competition():
    reward = SelfCompetitionReward(AlphaReward(0.0), against="best")
    first, second = results(0.5, 0.9)
    terms = [reward(first), reward(second), reward(first)]
    merits = [merit(reward, one, t) for one, t in zip((first, second, first), terms, strict=True)]
    assert merits == pytest.approx([0.5, 0.9, 0.5])


@pytest.mark.parametrize(
    "make",
    [
        lambda: SelfCompetitionReward(AlphaReward(), window=4),
        lambda: SelfCompetitionReward(AlphaReward(), against="rank", window=4),
        lambda: LagrangianReward(target=0.4),
    ],
    ids=["percentile", "rank", "lagrangian"],
)
def test_a_replay_pays_the_same_and_a_merit_changes_nothing(make):
    rng = np.random.default_rng(0)
    seen = [transition(q, c) for q, c in rng.uniform(0.1, 1.0, (20, 2))]
    first, again = make(), make()
    values = [(first(one), first.state) for one in seen]
    replayed = []
    for one in seen:
        again.merit(seen[3])
        replayed.append((again(one), again.state))
    assert replayed == values


def test_the_lagrangian_is_the_alpha_reward_less_a_constant():
    reward = LagrangianReward(target=0.4, multiplier=3.0)
    assert reward.state == pytest.approx({"multiplier": 3.0, "alpha": 0.75})
    terms = reward(transition(0.8, 0.6))
    assert terms == pytest.approx({"quality": 0.2, "cost": -0.15})
    alpha = sum(AlphaReward(0.75)(transition(0.8, 0.6)).values())
    assert sum(terms.values()) == pytest.approx(alpha - 0.75 * (1 - 0.4))


def test_the_multiplier_rises_above_the_target_falls_below_and_stays_at_it():
    reward = LagrangianReward(target=0.4, multiplier=1.0, step=0.5)
    seen = []
    for relative_macs in (0.6, 0.4, 0.2, 0.1, 0.1, 0.4):
        reward(transition(0.8, relative_macs))
        seen.append(reward.multiplier)
    assert seen == pytest.approx([1.1, 1.1, 1.0, 0.85, 0.7, 0.7])
    small = LagrangianReward(target=0.9, multiplier=0.1, step=1.0)
    small(transition(0.8, 0.1))
    assert small.multiplier == 0.0


def test_the_lagrangian_rises_with_quality_and_falls_with_cost():
    def value(quality, relative_macs):
        return sum(LagrangianReward(multiplier=2.0)(transition(quality, relative_macs)).values())

    assert all(np.diff([value(q, 0.5) for q in np.linspace(0.1, 1.0, 10)]) > 0)
    assert all(np.diff([value(0.5, c) for c in np.linspace(0.0, 1.0, 11)]) < 0)
    assert value(0.9, 0.2) > 0 > value(0.01, 0.9)


def quality_of(relative_macs):
    """A toy network: the less is left, the more each further cut costs."""
    return 1.0 - 0.9 * (1.0 - relative_macs) ** 2


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("multiplier", [0.0, 5.0])
def test_dual_ascent_meets_the_target_on_a_known_trade_off(target, multiplier):
    # An agent that always takes the best cost for the present multiplier.
    reward = LagrangianReward(target=target, multiplier=multiplier, step=0.2)
    costs = np.linspace(0.05, 1.0, 191)
    chosen = []
    for _ in range(200):
        alpha = reward.multiplier / (1.0 + reward.multiplier)
        values = (1.0 - alpha) * quality_of(costs) + alpha * (target - costs)
        chosen.append(costs[np.argmax(values)])
        terms = reward(transition(quality_of(chosen[-1]), chosen[-1]))
        assert sum(terms.values()) == pytest.approx(values.max())
    assert np.mean(chosen[-50:]) == pytest.approx(target, abs=0.01)
    # There the slope of the quality is the multiplier.
    assert reward.multiplier == pytest.approx(1.8 * (1.0 - target), abs=0.05)


def test_plans_that_meet_the_target_are_ranked_by_quality_above_all_others():
    reward = LagrangianReward(target=0.5)
    plans = [(0.99, 0.9), (0.99, 0.6), (0.01, 0.5), (0.5, 0.1), (0.9, 0.5)]
    assert all(np.diff([reward.merit(transition(*plan)) for plan in plans]) > 0)


def test_the_band_of_the_released_code():
    reward = BandReward()
    assert reward(transition(0.8, accuracy=0.7)) == {"band": 70.0}
    outside = [transition(0.8, 0.7, 0.1, finished=last, accuracy=0.7) for last in (False, True)]
    assert paid(reward, outside) == pytest.approx([-0.3, -100.0])
    accuracies = np.linspace(0.0, 1.0, 5)
    inside = paid(reward, [transition(0.8, accuracy=a) for a in accuracies])
    missed = paid(
        reward, [transition(0.8, 0.7, 0.1, finished=False, accuracy=a) for a in accuracies]
    )
    assert all(np.diff(inside) > 0)
    assert all(np.diff(missed) > 0)
    assert max(missed) <= min(inside)


def test_any_metric_of_a_user_can_be_kept():
    reward = LagrangianReward(quality="accuracy", multiplier=0.0)
    errors = [transition(0.5, accuracy=37.5)]
    errors[0] = Transition(**{**vars(errors[0]), "base": Evaluation(50.0, 2.0, 10)})
    assert reward(errors[0]) == {"quality": 0.75, "cost": 0.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfCompetitionReward(AlphaReward(), against="you"), "reward.against"),
        (lambda: SelfCompetitionReward(AlphaReward(), percentile=100), r"percentile in \(0, 100\)"),
        (lambda: SelfCompetitionReward(AlphaReward(), window=1), "window of 2 or more"),
        (lambda: SelfCompetitionReward(LagrangianReward()), "change with time"),
        (lambda: LagrangianReward(target=1.0), r"a target in \(0, 1\)"),
        (lambda: LagrangianReward(step=0.0), "a step above 0"),
        (lambda: LagrangianReward(quality="size"), "likelihood, accuracy, got 'size'"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_environment_logs_the_multiplier_and_keeps_the_best_that_meets_the_target(
    make_env, run_episode
):
    reward = LagrangianReward(target=0.6, multiplier=0.5, step=1.0)
    env = make_env(budget=Unlimited(), reward=reward)
    seen = []
    for seed in range(12):
        _, rewards, infos = run_episode(env, seed=seed)
        record = infos[-1]["record"]
        assert sum(rewards) == pytest.approx(sum(infos[-1]["reward_terms"].values()))
        assert infos[-1]["reward_state"] == record.reward_state
        seen.append(record)
    multipliers = [record.reward_state["multiplier"] for record in seen]
    steps = [record.relative_macs - 0.6 for record in seen]
    expected = [0.5]
    for step in steps[:-1]:
        expected.append(max(0.0, expected[-1] + step))
    assert multipliers == pytest.approx(expected)
    meets = [record for record in seen if record.relative_macs <= 0.6]
    assert env.best.loss == min(record.loss for record in meets)


def test_with_self_competition_the_best_plan_is_still_the_best(make_env, run_episode):
    env = make_env(reward=SelfCompetitionReward(AlphaReward(0.0), against="best"))
    losses = []
    for seed in range(12):
        _, rewards, infos = run_episode(env, seed=seed)
        assert sum(rewards) in (-1.0, 0.0, 1.0)
        losses.append(infos[-1]["record"].loss)
    assert env.best.loss == min(losses)


def test_a_band_around_an_adaptive_reward_passes_its_state_on():
    inner = LagrangianReward(target=0.5)
    penalised = BandPenalty(inner)
    penalised(transition(0.8, 0.6))
    assert penalised.state == inner.state
    assert penalised.merit(transition(0.8, 0.4)) == pytest.approx(0.8)
    assert BandPenalty(AlphaReward()).state == {}


def test_the_released_band_is_refused_where_nothing_outside_is_measured(make_env):
    with pytest.raises(ValueError, match=r"reward=band and budget\.evaluate_outside=false"):
        make_env("AutoSculpt-v0", budget=Band(), reward=BandReward())
    env = make_env(
        "AutoSculpt-v0", budget=Band(evaluate_outside=True, project=False), reward=BandReward()
    )
    env.reset()
    _, reward, terminated, _, info = env.step(np.zeros(4, dtype=np.int64))
    assert (reward, terminated) == (pytest.approx(-0.1), False)
    assert info["reward_terms"] == {"band": reward}
