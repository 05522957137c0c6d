from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from gymnasium import Wrapper
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.baselines import RandomAgent, UniformAgent

PARTS = [(action, episode) for action in ("pattern", "ratio") for episode in ("whole", "layerwise")]


class Counter(BaseCallback):
    """Notes which of SB3's hooks were called, and stops after some steps."""

    def __init__(self, last_step):
        super().__init__()
        self.last_step = last_step
        self.calls = []

    def _on_training_start(self):
        self.calls.append("training_start")

    def _on_rollout_start(self):
        self.calls.append("rollout_start")

    def _on_step(self):
        self.calls.append(f"step {self.num_timesteps}")
        assert self.locals["infos"][0] is not None
        assert self.locals["rewards"].shape == self.locals["dones"].shape == (1,)
        return self.num_timesteps < self.last_step

    def _on_rollout_end(self):
        self.calls.append("rollout_end")

    def _on_training_end(self):
        self.calls.append("training_end")


@pytest.mark.parametrize(("action", "episode"), PARTS)
def test_the_uniform_agent_plays_one_episode_of_the_uniform_ratio(make_env, action, episode):
    env = make_env(action, episode)
    agent = UniformAgent(Wrapper(env), policy="ignored", seed=0).learn(1000)
    expected = {"pattern": 1, "ratio": 0.25}[action]
    assert [record.decided for record in env.history] == [(expected,) * 4]
    assert agent.num_timesteps == (1 if episode == "whole" else 4)
    assert env.num_evaluations == 1


@pytest.mark.parametrize(("action", "episode"), PARTS)
def test_the_random_agent_covers_the_action_space(make_env, action, episode):
    env = make_env(action, episode)
    RandomAgent(env, seed=0).learn(400)
    drawn = np.array([record.decided for record in env.history])
    if action == "pattern":
        share = np.bincount(drawn.ravel().astype(int)) / drawn.size
        np.testing.assert_allclose(share, 1 / 3, atol=0.07)
    else:
        assert drawn.min() < -0.95
        assert drawn.max() > 0.95
        assert abs(drawn.mean()) < 0.1


@pytest.mark.parametrize("episode", ["whole", "layerwise"])
def test_the_random_agent_draws_only_what_the_mask_allows(make_env, episode):
    env = make_env(episode=episode, with_mask=True)
    RandomAgent(env, seed=0).learn(200)
    assert {pattern for record in env.history for pattern in record.decided} == {1, 2}


def test_the_same_seed_draws_the_same_actions(make_env):
    def drawn(seed):
        env = make_env("ratio")
        RandomAgent(env, seed=seed).learn(5)
        return [record.decided for record in env.history]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_callbacks_are_called_as_by_sb3(make_env):
    callback = Counter(last_step=2)
    agent = RandomAgent(make_env(), seed=0)
    agent.learn(10, callback=callback)
    assert callback.calls == [
        "training_start",
        "rollout_start",
        "step 1",
        "step 2",
        "rollout_end",
        "training_end",
    ]
    assert callback.model is agent
    assert callback.training_env.num_envs == 1
    agent.learn(3, callback=[Counter(99)], reset_num_timesteps=False)
    assert agent.num_timesteps == 5


def test_predict_has_the_shape_of_the_observation(make_env):
    env = make_env(num_sites=4)
    observation, _ = env.reset(seed=0)
    agent = UniformAgent(env)
    assert agent.predict(observation)[0].tolist() == [1, 1, 1, 1]
    batch = {key: value[None] for key, value in observation.items()}
    assert agent.predict(batch)[0].shape == (1, 4)


def test_a_loaded_random_agent_goes_on_where_it_was(make_env, tmp_path):
    env = make_env("ratio")
    agent = RandomAgent(env, seed=5)
    agent.learn(3)
    agent.save(tmp_path / "agent")
    again = RandomAgent.load(tmp_path / "agent.zip", env=env)
    assert again.num_timesteps == 3
    before = len(env.history)
    agent.learn(2)
    again.learn(2)
    drawn = [record.decided for record in env.history[before:]]
    assert drawn[:2] == drawn[2:]
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert json.loads(archive.read("agent.json"))["agent"] == "RandomAgent"


def test_a_foreign_file_is_refused(make_env, tmp_path):
    UniformAgent(make_env()).save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match=r"does not hold a RandomAgent .* 'UniformAgent'"):
        RandomAgent.load(tmp_path / "agent.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match=r"text\.zip does not hold a RandomAgent"):
        RandomAgent.load(tmp_path / "text.zip")


def test_more_than_one_environment_is_refused(make_env):
    with pytest.raises(ValueError, match="decides for one environment, and was given 2"):
        UniformAgent(DummyVecEnv([make_env, make_env]))


def test_an_agent_without_environment_says_so():
    with pytest.raises(ValueError, match="call set_env first"):
        RandomAgent(None).learn(1)
