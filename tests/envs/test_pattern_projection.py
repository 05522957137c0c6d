"""Patterns scaled to a budget: by hand, as a property, and through the environment."""

from __future__ import annotations

import numpy as np
import pytest

from envs.actions import RatioAction
from envs.budgets import Band, Project, Tolerance
from envs.episodes import Layerwise, Whole
from envs.pattern_projection import project_patterns
from envs.rewards import AlphaReward

KEPT = np.array([[1.0, 0.5, 0.25], [1.0, 0.5, 0.25], [1.0, 0.5, np.nan]])
ALL = np.ones(3, dtype=bool)


def scaled(choices, most, kept=KEPT, preferred=ALL):
    """Choices scaled so that the kept fractions of all sites sum to at most `most`."""
    rows = np.arange(len(kept))
    return project_patterns(
        kept, np.asarray(choices), preferred[: kept.shape[1]], lambda p: kept[rows, p].sum() <= most
    ).tolist()


@pytest.mark.parametrize(
    ("choices", "most", "expected"),
    [
        ([0, 0, 0], 3.0, [0, 0, 0]),
        ([0, 0, 0], 1.5, [1, 1, 1]),
        # at a half each all sites would change at once: one after the other, until none fits
        ([0, 0, 0], 2.0, [0, 1, 1]),
        ([1, 1, 1], 2.0, [0, 1, 1]),
        # the order of the sites is kept: the second, chosen mildest, stays ahead
        ([2, 0, 1], 1.75, [2, 0, 1]),
        ([2, 0, 1], 1.25, [2, 1, 1]),
        # the third cannot go below a half; what that costs the others pay
        ([0, 0, 0], 1.0, [2, 2, 1]),
        ([2, 2, 1], 2.25, [1, 1, 0]),
    ],
)
def test_a_common_factor_is_applied_and_rounded_down(choices, most, expected):
    assert scaled(choices, most) == expected


def test_a_site_that_keeps_as_much_as_before_keeps_its_own_pattern():
    kept = np.array([[1.0, 1.0, 0.5, 0.5], [1.0, 1.0, 0.5, 0.5]])
    preferred = np.array([True, False, False, True])
    assert scaled([1, 0], 1.5, kept, preferred) == [1, 3]
    assert scaled([1, 2], 1.0, kept, preferred) == [3, 2]


def test_the_heaviest_patterns_are_the_last_resort():
    assert scaled([0, 0, 0], 0.1) == [2, 2, 1]


@pytest.mark.parametrize("most", [1.6, 2.0, 2.4, 2.9])
def test_what_fits_leaves_no_room_and_keeps_the_order(most):
    rng = np.random.default_rng(0)
    kept = np.sort(rng.uniform(0.05, 1.0, (6, 5)))[:, ::-1].copy()
    kept[:, 0] = 1.0
    assert kept[:, -1].sum() < most
    for _ in range(50):
        choices = rng.integers(0, 5, 6)
        patterns = np.asarray(scaled(choices, most, kept, np.ones(5, dtype=bool)))
        rows = np.arange(6)
        used = kept[rows, patterns].sum()
        assert used <= most
        for site in range(6):
            if patterns[site] > 0:
                assert used + kept[site, patterns[site] - 1] - kept[site, patterns[site]] > most


@pytest.mark.parametrize("budget", [Project(0.4), Band(0.4, 0.1)], ids=lambda b: b.name)
@pytest.mark.parametrize("episode", [Whole(1), Layerwise()], ids=lambda e: e.name)
def test_every_random_plan_is_measured_within_the_budget(budget, episode, make_env, run_episode):
    env = make_env("AutoSculpt-v0", budget=budget, episode=episode, reward=AlphaReward(0.5))
    for seed in range(100):
        run_episode(env, seed=seed)
    assert all(record.met and record.accuracy is not None for record in env.history)
    assert all(record.relative_macs <= 0.4 for record in env.history)
    assert any(record.clamps > 0 for record in env.history)


def test_inside_the_band_nothing_is_scaled_and_a_projection_scales_all_the_same(make_env):
    action = np.array([1, 1, 1, 1])
    band = make_env("AutoSculpt-v0", budget=Band(0.8, 0.15), reward=AlphaReward(0.5))
    band.reset()
    *_, info = band.step(action)
    assert (info["clamps"], band.best.relative_macs) == (0, pytest.approx(0.5535, abs=1e-4))
    exact = make_env(
        "AutoSculpt-v0", budget=Project(0.8), episode=Whole(1), reward=AlphaReward(0.5)
    )
    exact.reset()
    *_, info = exact.step(action)
    assert info["clamps"] > 0
    assert band.best.relative_macs < exact.best.relative_macs <= 0.8


def test_masks_are_scaled_by_the_weights_that_they_leave(mixed_task, make_env):
    env = make_env(
        "AutoSculpt-v0", task=mixed_task, budget=Band(0.6, 0.1, cost="nonzero_macs"),
        reward=AlphaReward(0.5),
    )  # fmt: skip
    env.reset()
    *_, info = env.step(np.array([3, 3, 0, 0]))  # the kernel shape at both 3x3 sites
    record = env.best
    assert info["met"]
    assert 0.4 <= record.nonzero_macs / mixed_task.cost.base_macs <= 0.6


def test_a_ratio_outside_the_band_is_scaled_as_by_a_projection(make_env, run_episode):
    plans = []
    for budget in (Band(0.4, 0.05), Project(0.4)):
        env = make_env("AutoSculpt-v0", action=RatioAction(), budget=budget, episode=Whole(1))
        run_episode(env, [np.array([-0.9, 0.2, -0.3, -1.0], np.float32)])
        plans.append(env.best.plan.keep_set(env.task.graph).counts.tolist())
    assert plans[0] == plans[1]


@pytest.mark.parametrize("budget", [Band(0.4, 0.1), Band(0.4, 0.1, project=False), Tolerance(0.4)])
def test_previewed_ratios_are_scaled_as_executed_ones_are(budget, make_env):
    env = make_env("AutoSculpt-v0", action=RatioAction(0.8), budget=budget, episode=Whole(1))
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.0, 1.0, (40, 4)).astype(np.float32)
    sizes = np.array([group.size for group in env.task.graph.groups])
    relaxed, rounded = env.preview(actions, rounded=False), env.preview(actions, rounded=True)
    # the mean, as topping up may give much to a site that costs hardly anything
    assert np.abs(relaxed - rounded).mean() < 1.0 / sizes.min()
    relative = env.task.cost.macs_of_counts(relaxed * sizes) / env.task.cost.base_macs
    if isinstance(budget, Band) and budget.project:
        assert relative.max() <= 0.4 + 1e-6
        assert relative.min() >= 0.2 - 1e-6
    else:
        asked = 1.0 - (actions + 1.0) / 2.0 * 0.8
        np.testing.assert_allclose(relaxed, np.maximum(asked, 1.0 / sizes), atol=0.15)
        assert relative.max() > 0.5
