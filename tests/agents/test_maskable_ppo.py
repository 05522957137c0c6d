from __future__ import annotations

import numpy as np
import pytest

from agents.features_extractor import GraphFeaturesExtractor
from agents.maskable_ppo import MaskablePPO, RankedMaskableDictRolloutBuffer
from agents.search import check_agent, run_search

KWARGS = {
    "net_arch": [32],
    "features_extractor_class": GraphFeaturesExtractor,
    "features_extractor_kwargs": {"hidden_channels": 8, "encoder_kwargs": {"heads": 2}},
}


def make(env, **options):
    options = {"n_steps": 32, "batch_size": 32, "rank_power": 4.0, "learning_rate": 1e-2, **options}
    return MaskablePPO("MultiInputPolicy", env, policy_kwargs=KWARGS, seed=0, **options)


@pytest.mark.parametrize("episode", ["whole", "layerwise"])
def test_it_improves_and_never_takes_what_is_masked(make_env, episode):
    env = make_env("pattern", episode, with_mask=True)
    agent = make(env)
    assert type(agent.rollout_buffer) is RankedMaskableDictRolloutBuffer
    run_search(agent, env, evaluations=10**6, max_timesteps=1024)
    decided = np.array([record.decided for record in env.history])
    assert decided.min() == 1
    rewards = [record.reward for record in env.history]
    assert np.mean(rewards[-50:]) > np.mean(rewards[:50]) + 0.1


def test_a_saved_agent_keeps_its_ranks(make_env, tmp_path):
    env = make_env("pattern", with_mask=True)
    make(env).save(tmp_path / "agent.zip")
    loaded = MaskablePPO.load(tmp_path / "agent.zip", env=env)
    assert (loaded.rank_power, loaded.rollout_buffer.power) == (4.0, 4.0)


def test_it_is_refused_for_ratios_by_name(make_env):
    message = r"MaskablePPO decides Discrete or MultiDiscrete .*Set env/action=pattern, or"
    with pytest.raises(ValueError, match=message):
        check_agent(MaskablePPO, make_env("ratio"))
