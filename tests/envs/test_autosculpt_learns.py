"""AutoSculpt's decision process, joint or site by site, trains an agent on a known trade-off."""

from __future__ import annotations

import numpy as np
import pytest

from agents.graph_policy import GraphPolicy
from agents.on_policy import PPO
from agents.search import run_search
from envs.budgets import Band, Wall
from envs.episodes import Layerwise, Whole
from envs.rewards import AlphaReward

SMALL = {"features_extractor_kwargs": {"hidden_channels": 8, "encoder_kwargs": {"heads": 2}}}


@pytest.mark.parametrize(
    ("episode", "budget", "timesteps"),
    [(Whole(max_steps=1), Band(0.5, 0.15), 480), (Layerwise(), Wall(0.5), 1600)],
    ids=["whole", "layerwise"],
)
def test_the_last_episodes_are_better_than_the_first(make_env, episode, budget, timesteps):
    env = make_env("AutoSculpt-v0", episode=episode, budget=budget, reward=AlphaReward(0.0))
    agent = PPO(
        GraphPolicy, env, n_steps=40, batch_size=40, n_epochs=4, learning_rate=1e-2,
        rank_power=4.0, policy_kwargs=SMALL, seed=0, device="cpu",
    )  # fmt: skip
    run_search(agent, env, evaluations=10**6, max_timesteps=timesteps)
    rewards = [record.reward for record in env.history]
    assert np.mean(rewards[-60:]) > np.mean(rewards[:60]) + np.std(rewards[:60]) / np.sqrt(15)
