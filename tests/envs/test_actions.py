"""Actions: the map to ratios, masks, repairs of invalid patterns, and the way back from ratios."""

from __future__ import annotations

import numpy as np
import pytest

from envs.actions import PatternAction, RatioAction
from envs.budgets import Band, Project, Unlimited, Wall
from envs.episodes import Layerwise, Whole
from envs.rewards import AlphaReward


def free_env(make_env, env_id="AMC-v0", **parts):
    return make_env(env_id, budget=Unlimited(), reward=AlphaReward(0.5), **parts)


@pytest.mark.parametrize(
    ("value", "ratio"), [(-1.0, 0.0), (0.0, 0.4), (0.25, 0.5), (1.0, 0.8), (7.0, 0.8), (-3.0, 0.0)]
)
def test_an_action_is_mapped_linearly_to_a_ratio(value, ratio, make_env, run_episode):
    env = free_env(make_env)
    run_episode(env, [np.array([value], np.float32)] * 4)
    counts = env.history[-1].plan.keep_set(env.task.graph).counts
    expected = [size - int(np.floor(ratio * size + 0.5)) for size in (8, 6, 12, 10)]
    assert counts.tolist() == expected


@pytest.mark.parametrize("episode", [Layerwise(), Whole(1)], ids=lambda e: e.name)
def test_encoded_ratios_are_executed_to_the_channel(episode, make_env, run_episode):
    env = free_env(make_env, episode=episode)
    groups = env.task.graph.groups
    rng = np.random.default_rng(0)
    for _ in range(20):
        removed = [int(rng.integers(0, int(0.8 * g.size) + 1)) for g in groups]
        wanted = {g.name: n / g.size for g, n in zip(groups, removed, strict=True)}
        env.reset()
        finished = False
        while not finished:
            *_, terminated, truncated, info = env.step(env.encode_ratios(wanted))
            finished = terminated or truncated
        assert dict(info["record"].executed) == pytest.approx(wanted)
        assert info["record"].clamps == 0


def test_encoding_asks_for_no_more_than_the_largest_ratio(make_env):
    env = free_env(make_env)
    env.reset()
    assert env.encode_ratios({"stem": 0.95}).tolist() == [1.0]
    assert env.encode_ratios({}).tolist() == [-1.0]
    with pytest.raises(ValueError, match="No group is called 'stam'"):
        env.encode_ratios({"stam": 0.5})


def test_ratios_are_encoded_as_the_nearest_channel_pattern(mixed_task, make_env):
    env = free_env(make_env, "AutoSculpt-v0", task=mixed_task)
    env.reset()
    ratios = {"stem": 0.6, "inner": 0.25, "pointwise": 0.26, "hidden": 0.9}
    action = env.encode_ratios(ratios)  # 0.25 is as near to dense as to 0.5: the milder one
    assert [mixed_task.library.names[p] for p in action] == [
        "channel_0.5",
        "dense",
        "channel_0.5",
        "channel_0.75",
    ]
    assert action in env.action_space


def test_encoding_behind_a_wall_gives_an_allowed_pattern(make_env):
    env = make_env("AMC-v0", action=PatternAction(), budget=Wall(0.3))
    env.reset()
    for _ in env.task.sites:
        action = env.encode_ratios({})
        assert action in env.action_space
        assert env.action_masks()[action]
        *_, info = env.step(action)
    assert info["clamps"] == 0


@pytest.mark.parametrize(
    ("env_id", "parts"),
    [
        ("AMC-v0", {}),
        ("AMC-v0", {"action": PatternAction()}),
        ("AMC-v0", {"episode": Whole(1), "budget": Project(0.5)}),
        ("AutoSculpt-v0", {"budget": Band(0.5, 0.1)}),
        ("AutoSculpt-v0", {"action": RatioAction(), "budget": Band(0.5, 0.1)}),
    ],
    ids=["wall", "wall-pattern", "project", "band", "band-ratio"],
)
def test_the_uniform_ratios_meet_the_budget_when_executed(env_id, parts, make_env):
    env = make_env(env_id, **parts)
    env.reset()
    finished = False
    while not finished:
        *_, terminated, truncated, info = env.step(env.encode_ratios(env.uniform_ratios()))
        finished = terminated or truncated
    record = info["record"]
    assert record.met
    assert 0.3 <= record.relative_macs <= 0.5
    assert set(env.uniform_ratios()) == {group.name for group in env.task.graph.groups}


def test_action_masks_are_flat_and_follow_the_valid_patterns(mixed_task, make_env):
    env = free_env(make_env, "AutoSculpt-v0", task=mixed_task)
    observation, _ = env.reset()
    masks = env.action_masks()
    assert masks.dtype == bool
    assert masks.shape == (4 * 4,)
    np.testing.assert_array_equal(masks.reshape(4, 4), mixed_task.valid)
    np.testing.assert_array_equal(observation["action_mask"], mixed_task.valid)
    # the kernel shape needs a 3x3 convolution: hidden and pointwise have none
    assert masks.reshape(4, 4)[:, 3].tolist() == [True, True, False, False]


def test_action_masks_follow_the_current_site(mixed_task, make_env):
    env = free_env(make_env, action=PatternAction(), task=mixed_task)
    env.reset()
    for row in mixed_task.valid:
        np.testing.assert_array_equal(env.action_masks(), row)
        env.step(0)
    assert env.action_masks().tolist() == [True, False, False, False]


def test_ratio_actions_have_no_mask(make_env):
    env = make_env("AMC-v0")
    env.reset()
    with pytest.raises(ValueError, match="env/action=pattern"):
        env.action_masks()


def test_an_invalid_mask_pattern_is_executed_as_dense_and_counted(mixed_task, make_env):
    env = free_env(make_env, "AutoSculpt-v0", task=mixed_task)
    env.reset()
    *_, info = env.step(np.array([3, 3, 3, 3]))
    assert info["clamps"] == 2
    assert env.best.executed == (
        ("stem", "plus"),
        ("inner", "plus"),
        ("pointwise", "dense"),
        ("hidden", "dense"),
    )
    assert env.best.macs == mixed_task.cost.base_macs
    assert env.best.nonzero_macs < env.best.macs


def test_an_invalid_channel_pattern_is_executed_as_the_nearest_milder_one(make_task, make_env):
    specs = [{"family": "channel", "ratio": ratio} for ratio in (0.25, 0.5, 0.95)]
    task = make_task(specs)
    assert task.valid[:, 3].tolist() == [False, False, True, False]  # 0.95 leaves 0, 0, 1, 0
    env = free_env(make_env, "AutoSculpt-v0", task=task)
    env.reset()
    *_, info = env.step(np.array([3, 3, 3, 3]))
    names = [pattern for _, pattern in env.best.executed]
    assert names == ["channel_0.5", "channel_0.5", "channel_0.95", "channel_0.5"]
    assert info["clamps"] == 3


def test_what_a_mask_removes_is_a_fraction_of_the_weights(mixed_task, make_env):
    env = free_env(make_env, "AutoSculpt-v0", task=mixed_task)
    env.reset()
    observation, *_ = env.step(np.array([1, 3, 2, 0]))
    removed = observation["site_state"][:, 0]
    np.testing.assert_allclose(removed, [0.5, 5 / 9, 0.75, 0.0], rtol=1e-6)  # a plus keeps 4 of 9
