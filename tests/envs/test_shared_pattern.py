"""One distribution for all sites: what is drawn, how often, and that equal actions draw alike."""

from __future__ import annotations

import numpy as np
import pytest

from envs.band_reward import BandReward
from envs.budgets import Band, Wall
from envs.episodes import Layerwise, Whole
from envs.shared_pattern import SharedPatternAction

P = 4  # dense, 0.25, 0.5 and 0.75


@pytest.fixture
def whole(make_env):
    return make_env(
        "AutoSculpt-v0",
        action=SharedPatternAction(),
        episode=Whole(max_steps=3000),
        budget=Band(0.3, 0.0, project=False),
    )


def drawn(env, weights):
    env.reset()
    env.step(np.asarray(weights, dtype=np.float32))
    return [str(d.pattern) for d in env._problem.actions.decisions(env._state.assignment)]


def test_an_action_is_one_weight_per_pattern_whatever_the_number_of_sites(whole):
    assert whole.action_space.shape == (P,)
    assert (whole.action_space.low.min(), whole.action_space.high.max()) == pytest.approx(
        (0.01, 0.99)
    )


def test_the_same_action_draws_the_same_and_another_draws_anew(whole):
    weights = [0.5, 0.5, 0.5, 0.5]
    assert drawn(whole, weights) == drawn(whole, weights)
    others = {tuple(drawn(whole, np.add(weights, 1e-3 * k))) for k in range(20)}
    assert len(others) > 10


def test_patterns_are_drawn_as_often_as_their_weights_say(whole):
    rng = np.random.default_rng(0)
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    names = [pattern.name for pattern in whole.task.library]
    counts = dict.fromkeys(names, 0)
    for _ in range(300):  # a tiny change of the action is another draw
        for name in drawn(whole, weights * (1 + 1e-4 * rng.standard_normal(P))):
            counts[name] += 1
    shares = np.array([counts[name] for name in names]) / sum(counts.values())
    np.testing.assert_allclose(shares, weights, atol=0.05)


def test_what_is_not_valid_at_a_site_is_not_drawn(make_env, mixed_task):
    env = make_env(
        "AutoSculpt-v0",
        task=mixed_task,
        action=SharedPatternAction(),
        budget=Band(0.3, project=False),
    )
    valid = mixed_task.valid
    index = {pattern.name: i for i, pattern in enumerate(mixed_task.library)}
    assert not valid.all()
    for k in range(30):
        weights = np.full(P, 0.5) + 1e-3 * k
        names = drawn(env, weights)
        assert all(valid[site, index[name]] for site, name in enumerate(names))
    assert env._clamps == 0


def test_layerwise_every_site_has_a_draw_of_its_own_and_the_wall_holds(make_env):
    env = make_env(
        "AutoSculpt-v0", action=SharedPatternAction(), episode=Layerwise(), budget=Wall(0.5)
    )
    patterns = set()
    for k in range(10):
        env.reset()
        for _ in env.task.sites:
            *_, info = env.step(np.full(P, 0.5 + 1e-3 * k, dtype=np.float32))
        assert info["met"]
        patterns.add(info["record"].executed)
    assert len(patterns) > 5


def test_an_episode_that_never_gets_there_ends_with_the_penalty_of_the_released_code(make_env):
    env = make_env(
        "AutoSculpt-v0",
        action=SharedPatternAction(),
        episode=Whole(max_steps=3),
        budget=Band(0.3, 0.0, evaluate_outside=True, project=False),
        reward=BandReward(),
    )
    env.reset()
    dense = np.array([0.99, 0.01, 0.01, 0.01], dtype=np.float32)
    rewards, ended = [], False
    while not ended:
        _, reward, terminated, truncated, _ = env.step(dense)
        rewards.append(reward)
        ended = terminated or truncated
    assert rewards[-1] == -100.0
    assert all(-1.0 <= reward < 0.0 for reward in rewards[:-1])


def test_an_action_of_another_shape_is_refused(whole):
    whole.reset()
    with pytest.raises(ValueError, match=r"finite array of shape \(4,\)"):
        whole.step(np.zeros(3, dtype=np.float32))
