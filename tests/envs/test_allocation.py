"""The allocation environment: one action shares out the budget, 0 is the uniform plan."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from envs.allocation import AllocationAction
from envs.budgets import Project, Unlimited, Wall
from envs.episodes import Layerwise
from envs.rewards import AlphaReward, BandPenalty, LogLikelihoodReward, Transition
from pruning.evaluation import Evaluation


def played(env, action):
    """Counts and record of a one-step episode."""
    env.reset()
    *_, terminated, truncated, info = env.step(np.asarray(action))
    assert (terminated, truncated) == (True, False)
    record = info["record"]
    counts = [len(record.plan.keep[group.name]) for group in env.task.graph.groups]
    return counts, record


def num_sites(env):
    return len(env.task.sites)


@pytest.mark.parametrize("relative_macs", [0.2, 0.35, 0.5, 0.8, 1.0])
def test_action_zero_is_the_uniform_plan(make_env, relative_macs):
    env = make_env("Allocation-v0", budget=Project(relative_macs))
    counts, record = played(env, np.zeros(num_sites(env)))
    upper = math.floor(relative_macs * env.task.cost.base_macs)
    assert counts == env.task.uniform_counts(upper).tolist()
    assert record.met


def test_the_uniform_ratios_are_encoded_as_zero(make_env):
    env = make_env("Allocation-v0")
    env.reset()
    np.testing.assert_allclose(env.encode_ratios(env.uniform_ratios()), 0.0, atol=1e-6)


def test_every_action_ends_within_budget_with_no_room_for_one_more_channel(make_env):
    env = make_env("Allocation-v0", action=AllocationAction(log_range=3.0))
    cost, upper = env.task.cost, math.floor(0.5 * env.task.cost.base_macs)
    sizes = np.array([group.size for group in env.task.graph.groups])
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts, record = played(env, rng.uniform(-1, 1, num_sites(env)))
        assert record.met
        assert record.macs <= upper
        larger = np.array(counts) + np.eye(len(counts), dtype=int)[np.array(counts) < sizes]
        assert (cost.macs_of_counts(larger) > upper).all()


def test_only_differences_between_the_entries_count(make_env):
    env = make_env("Allocation-v0")
    shape = np.linspace(-0.4, 0.4, num_sites(env))
    plans = [played(env, shape + shift)[0] for shift in (-0.5, 0.0, 0.5)]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0] != played(env, np.zeros(num_sites(env)))[0]


def test_asking_for_more_of_one_group_never_gives_it_less(make_env):
    env = make_env("Allocation-v0", action=AllocationAction(log_range=2.0))
    spans = []
    for site in range(num_sites(env)):
        actions = np.zeros((9, num_sites(env)))
        actions[:, site] = np.linspace(-1, 1, 9)
        kept = [played(env, action)[0][site] for action in actions]
        assert kept == sorted(kept)
        spans.append(kept[-1] - kept[0])
    assert spans[0] >= 5  # a group as cheap as the pointwise one may be topped up whatever is asked


def test_without_a_budget_an_entry_is_the_log_of_the_kept_fraction(make_env):
    env = make_env(
        "Allocation-v0",
        budget=Unlimited(),
        reward=AlphaReward(),
        action=AllocationAction(log_range=math.log(4), max_ratio=0.6),
    )
    sizes = [group.size for group in env.task.graph.groups]
    assert sizes == [8, 6, 12, 10]
    # halves; a quarter is more than max_ratio removes; nothing is above the whole group
    assert played(env, [-0.5, -0.5, 0.0, 1.0])[0] == [4, 3, 12, 10]
    assert played(env, [-1.0, 0.0, -1.0, 0.5])[0] == [3, 6, 5, 10]


def test_an_encoded_plan_is_executed_again(make_env):
    env = make_env("Allocation-v0", action=AllocationAction(log_range=2.0))
    counts, record = played(env, [0.3, -0.5, 0.1, 0.6])
    env.reset()
    again = env.encode_ratios(dict(record.executed))
    assert played(env, again)[0] == counts


def test_layer_by_layer_behind_a_wall_it_is_a_factor_of_the_current_site(make_env, run_episode):
    env = make_env("Allocation-v0", budget=Wall(0.5), episode=Layerwise())
    assert env.action_space.shape == (1,)
    infos = run_episode(env, [np.array([0.0])] * num_sites(env))[2]
    record = infos[-1]["record"]
    kept = [len(record.plan.keep[group.name]) for group in env.task.graph.groups]
    assert kept == env.task.uniform_counts(math.floor(0.5 * env.task.cost.base_macs)).tolist()
    assert run_episode(env, seed=3)[2][-1]["met"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AllocationAction(log_range=0.0), r"in \(0, 10\], got 0.0. Change env.log_range"),
        (lambda: AllocationAction(max_ratio=1.0), r"in \(0, 1\), got 1.0. Change env.max_ratio"),
        (lambda: LogLikelihoodReward(0.0), r"below 0, got 0.0. Change reward.lowest"),
        (lambda: LogLikelihoodReward(-math.inf), r"below 0, got -inf. Change reward.lowest"),
    ],
    ids=["log_range", "max_ratio", "lowest-0", "lowest-inf"],
)
def test_what_is_out_of_range_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_action_of_the_wrong_shape_or_not_finite_is_refused(make_env):
    env = make_env("Allocation-v0")
    env.reset()
    with pytest.raises(ValueError, match=r"finite array of shape \(4,\)"):
        env.step(np.zeros(3))
    with pytest.raises(ValueError, match=r"finite array of shape \(4,\)"):
        env.step(np.full(4, np.nan))


def transition(loss, relative_macs=0.5, distance=0.0):
    return Transition(
        evaluation=None if loss is None else Evaluation(0.5, loss, 100),
        base=Evaluation(0.9, 0.1, 100),
        relative_macs=relative_macs,
        macs=500,
        params=10,
        counts=(5, 5),
        budget_distance=distance,
        finished=True,
    )


@pytest.mark.parametrize(
    ("loss", "reward"), [(0.0, 0.0), (0.3, -0.3), (7.0, -7.0), (25.0, -20.0), (-1.0, 0.0)]
)
def test_the_reward_is_minus_the_loss_within_its_bounds(loss, reward):
    for relative_macs in (0.1, 1.0):
        terms = LogLikelihoodReward()(transition(loss, relative_macs))
        assert terms == {"log_likelihood": pytest.approx(reward)}
    assert LogLikelihoodReward().bounds == (-20.0, 0.0)


def test_the_reward_falls_with_the_loss_whatever_the_accuracy():
    rewards = [
        sum(LogLikelihoodReward()(transition(loss)).values()) for loss in np.linspace(0.1, 15, 30)
    ]
    assert all(np.diff(rewards) < 0)
    right, wrong = transition(1.0), transition(1.0)
    wrong = replace(wrong, evaluation=Evaluation(0.1, 1.0, 100))
    assert LogLikelihoodReward()(right) == LogLikelihoodReward()(wrong)


def test_outside_a_band_it_is_worse_than_the_worst_inside():
    penalised = BandPenalty(LogLikelihoodReward())
    worst = sum(penalised(transition(99.0)).values())
    for loss in (None, 0.0, 99.0):
        assert sum(penalised(transition(loss, distance=0.01)).values()) < worst


def test_the_reward_asks_for_a_budget(make_env):
    with pytest.raises(ValueError, match="reward=log_likelihood and budget=none"):
        make_env("Allocation-v0", budget=Unlimited())


def test_a_preview_is_what_a_step_would_execute(make_env):
    env = make_env("Allocation-v0", action=AllocationAction(log_range=2.0))
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (20, num_sites(env))).astype(np.float32)
    sizes = np.array([group.size for group in env.task.graph.groups])
    exact = env.preview(actions, rounded=True)
    assert exact.shape == actions.shape
    for action, plan in zip(actions, exact, strict=True):
        counts, _ = played(env, action)
        assert (plan * sizes).tolist() == counts
    relaxed = env.preview(actions)
    macs = env.task.cost.macs_of_counts(relaxed * sizes)
    np.testing.assert_allclose(macs, 0.5 * env.task.cost.base_macs, rtol=1e-3)
    assert np.abs(relaxed - exact).mean() < 2.0 / sizes.min()


def test_asking_for_a_preview_or_an_observation_changes_nothing(make_env):
    env = make_env("Allocation-v0")
    first, _ = env.reset()
    env.preview(np.ones((3, num_sites(env))))
    again = env.first_observation()
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert (env.num_evaluations, env.history) == (0, [])


@pytest.mark.parametrize("env_id", ["AMC-v0", "AutoSculpt-v0"])
def test_patterns_and_single_sites_have_no_preview(make_env, env_id):
    env = make_env(env_id)
    with pytest.raises(ValueError, match="Only ratios of all sites at once can be previewed"):
        env.preview(np.zeros((2, num_sites(env))))
