from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.on_policy import PPO, NormalisedReturnsBuffer
from agents.released_code_policy import RandomFeaturesExtractor, ReleasedCodePolicy


def make(env):
    return PPO(
        ReleasedCodePolicy,
        env,
        n_steps=16,
        batch_size=16,
        n_epochs=2,
        gamma=0.9,
        rank_power=None,
        rollout_buffer_class=NormalisedReturnsBuffer,
        normalize_advantage=False,
        seed=0,
        device="cpu",
    )


def test_noise_and_edge_tables_are_not_trained_and_everything_else_is(make_env, tmp_path):
    agent = make(make_env("ratio"))
    policy = agent.policy
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    agent.learn(32)
    fixed = {
        name for name, value in policy.state_dict().items() if torch.equal(before[name], value)
    }
    tables = {name for name in before if name.endswith("edge_table")}
    assert tables | {"log_std"} == fixed
    assert policy.log_std.exp().tolist() == pytest.approx([0.2] * 4)
    extractors = policy.pi_features_extractor, policy.vf_features_extractor
    assert not torch.equal(extractors[0].edge_table, extractors[1].edge_table)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=make_env("ratio"))
    for name, value in policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], value)


def test_the_same_observation_is_never_seen_twice(make_env):
    agent = make(make_env("ratio"))
    observation, _ = make_env("ratio").reset()
    means = [agent.predict(observation, deterministic=True)[0] for _ in range(3)]
    assert not np.array_equal(means[0], means[1])
    assert np.abs(means).max() <= 1.0


def test_returns_are_discounted_to_the_end_of_the_episode_and_normalised():
    space = spaces.Dict({"x": spaces.Box(-1, 1, (1,), np.float32)})
    buffer = NormalisedReturnsBuffer(4, space, spaces.Box(-1, 1, (1,)), gamma=0.5)
    value, zero = torch.full((1,), 0.25), {"x": np.zeros((1, 1), np.float32)}
    for reward, start in zip([1.0, 2.0, 4.0, 8.0], [1, 0, 1, 0], strict=True):
        buffer.add(zero, zero["x"], np.array([reward]), np.array([start]), value, value)
    buffer.compute_returns_and_advantage(torch.tensor([100.0]), np.array([False]))
    plain = np.array([2.0, 2.0, 8.0, 8.0])
    expected = (plain - plain.mean()) / plain.std()
    np.testing.assert_allclose(buffer.returns[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(buffer.advantages[:, 0], expected - 0.25, rtol=1e-5)


def test_what_does_not_fit_is_refused(make_env):
    with pytest.raises(ValueError, match="Set env/action=shared_pattern"):
        make(make_env("pattern"))
    with pytest.raises(ValueError, match="Set env=autosculpt"):
        RandomFeaturesExtractor(spaces.Box(-1, 1, (3,)))
