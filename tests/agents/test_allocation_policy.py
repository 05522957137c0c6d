from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from agents.allocation_policy import AllocationPolicy
from agents.encoder import NodeEncoder
from agents.features_extractor import GraphFeaturesExtractor
from agents.flat_features import FlatFeaturesExtractor
from agents.on_policy import PPO
from agents.search import run_search
from experiments.command_line import CONFIG_FOLDER

GATV2 = {"hidden_channels": 8, "encoder_kwargs": {"heads": 2, "num_layers": 1}}
NONE = {"hidden_channels": 8, "encoder_class": NodeEncoder, "encoder_kwargs": {"num_layers": 1}}


def make_ppo(env, extractor=GATV2, seed=0, policy_kwargs=None, **kwargs):
    options = {"features_extractor_kwargs": extractor, "net_arch": [16], **(policy_kwargs or {})}
    defaults = {"n_steps": 10, "batch_size": 10, "n_epochs": 5, "learning_rate": 0.05}
    return PPO(
        AllocationPolicy,
        env,
        policy_kwargs=options,
        seed=seed,
        rank_power=6.0,
        clip_range=0.6,
        vf_coef=0.0,
        device="cpu",
        **{**defaults, **kwargs},
    )


def first_observation(env):
    return env.reset(seed=0)[0]


def decided(env):
    return [record.decided for record in env.history]


ENCODERS = pytest.mark.parametrize("extractor", [GATV2, NONE, None], ids=["gatv2", "none", "mlp"])


@ENCODERS
def test_the_best_plan_is_found(make_env, extractor):
    env = make_env("ratio", num_sites=6, seed=7)
    result = run_search(make_ppo(env, extractor), env, evaluations=200)
    assert (result.evaluations, result.stop_reason) == (200, "evaluations")
    assert np.mean(np.abs(env.targets)) > 0.4  # what the plan it starts with loses
    assert env.best.reward > 0.9
    assert np.mean([record.reward for record in env.history[-20:]]) > 0.85


@ENCODERS
def test_the_first_mean_is_zero_and_the_first_draws_have_the_initial_deviation(make_env, extractor):
    env = make_env("ratio")
    agent = make_ppo(
        env, extractor, n_steps=300, batch_size=300, policy_kwargs={"log_std_init": -2.0}
    )
    observation = first_observation(env)
    assert agent.predict(observation, deterministic=True)[0].tolist() == [0.0] * 4
    agent.learn(300)
    drawn = np.array(decided(env))
    np.testing.assert_allclose(drawn.mean(axis=0), 0.0, atol=0.03)
    np.testing.assert_allclose(drawn.std(axis=0), np.exp(-2.0), rtol=0.15)


def test_the_features_extractor_follows_the_encoder(make_env):
    assert type(make_ppo(make_env("ratio")).policy.features_extractor) is GraphFeaturesExtractor
    flat = make_ppo(make_env("ratio"), None).policy.features_extractor
    assert type(flat) is FlatFeaturesExtractor


@ENCODERS
def test_a_loaded_agent_decides_the_same(make_env, tmp_path, extractor):
    env = make_env("ratio")
    agent = make_ppo(env, extractor, policy_kwargs={"offset_scale": 0.5, "log_std_scale": 0.3})
    agent.learn(30)
    agent.save(tmp_path / "agent.zip")
    again = PPO.load(tmp_path / "agent.zip", env=env)
    observation = first_observation(env)
    mean = agent.predict(observation, deterministic=True)[0]
    assert np.abs(mean).min() > 0
    np.testing.assert_array_equal(again.predict(observation, deterministic=True)[0], mean)
    np.testing.assert_array_equal(again.policy.log_std.detach(), agent.policy.log_std.detach())
    assert (again.policy.offset_scale, again.policy.log_std_scale) == (0.5, 0.3)
    agent.policy.save(tmp_path / "policy.pt")
    alone = AllocationPolicy.load(tmp_path / "policy.pt")
    np.testing.assert_array_equal(alone.predict(observation, deterministic=True)[0], mean)


def test_the_same_seed_gives_the_same_episodes(make_env):
    def played(seed):
        env = make_env("ratio")
        make_ppo(env, seed=seed).learn(20)
        return decided(env)

    assert played(3) == played(3)
    assert played(3) != played(4)


@pytest.mark.parametrize(
    ("scales", "moves"),
    [
        ({"offset_scale": 0.0, "head_scale": 0.0}, False),
        ({"offset_scale": 1.0, "head_scale": 0.0}, True),
        ({"offset_scale": 0.0, "head_scale": 1.0}, True),
    ],
    ids=["neither", "offset", "head"],
)
def test_offset_and_head_move_the_mean_and_nothing_else_does(make_env, scales, moves):
    env = make_env("ratio")
    agent = make_ppo(env, policy_kwargs={**scales, "log_std_scale": 0.0}).learn(20)
    mean = agent.predict(first_observation(env), deterministic=True)[0]
    assert bool(np.abs(mean).max() > 0) is moves
    np.testing.assert_allclose(agent.policy.log_std.detach(), -1.0)


def test_the_means_and_the_log_probability_are_those_of_a_normal(make_env):
    env = make_env("ratio")
    agent = make_ppo(env, policy_kwargs={"offset_scale": 2.0, "log_std_init": -1.5})
    with torch.no_grad():
        agent.policy.offset.copy_(torch.tensor([0.1, 0.2, -0.3, 0.0]))
        agent.policy.free_log_std.copy_(torch.tensor([0.0, 0.5, 0.0, -0.5]))
    observation, _ = agent.policy.obs_to_tensor(first_observation(env))
    action = torch.tensor([[0.3, 0.3, -0.6, 0.1]])
    values, log_prob, entropy = agent.policy.evaluate_actions(observation, action)
    normal = torch.distributions.Normal(
        torch.tensor([0.2, 0.4, -0.6, 0.0]), torch.exp(torch.tensor([-1.5, -1.0, -1.5, -2.0]))
    )
    torch.testing.assert_close(log_prob, normal.log_prob(action).sum(dim=1))
    torch.testing.assert_close(entropy, normal.entropy().sum().reshape(1))
    assert values.tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("action", "episode"), [("pattern", "whole"), ("ratio", "layerwise"), ("pattern", "layerwise")]
)
def test_other_actions_are_refused(make_env, action, episode):
    with pytest.raises(ValueError, match=r"AllocationPolicy decides all groups .* env=allocation"):
        make_ppo(make_env(action, episode))


@pytest.mark.parametrize("name", ["offset_scale", "head_scale", "log_std_scale"])
def test_scales_below_zero_are_refused(make_env, name):
    with pytest.raises(ValueError, match=rf"{name}=-1.0: .* Change agent\.policy_kwargs\.{name}"):
        make_ppo(make_env("ratio"), policy_kwargs={name: -1.0})


def composed(*overrides):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train_agent", overrides=list(overrides))


@pytest.mark.parametrize("encoder", ["gatv2", "none", "mlp"])
def test_ppo_in_the_allocation_environment_gets_this_policy(make_env, encoder):
    config = composed("agent=ppo", "env=allocation", f"encoder={encoder}", "agent.n_epochs=3")
    agent = instantiate(config.agent, _partial_=True, _convert_="all")(env=make_env("ratio"))
    assert type(agent.policy) is AllocationPolicy
    assert agent.n_epochs == 3  # the command line wins
    assert agent.n_steps == agent.batch_size == 10
    agent.learn(10)


def test_in_other_environments_and_for_other_agents_nothing_changes():
    ppo = OmegaConf.to_container(composed("agent=ppo", "env=amc").agent, resolve=True)
    assert ppo["policy"]["path"] == "agents.masked_policy.MaskedPolicy"
    assert ppo["n_steps"] == 32
    cmaes = OmegaConf.to_container(composed("agent=cmaes", "env=allocation").agent, resolve=True)
    assert set(cmaes) == {"_target_", "_convert_", "seed", "start", "sigma", "population_size"}


def test_the_keys_of_the_encoder_reach_the_policy(make_env):
    key = "encoder.on_policy.policy_kwargs.features_extractor_kwargs.hidden_channels"
    config = composed("agent=ppo", "env=allocation", f"{key}=32")
    agent = instantiate(config.agent, _partial_=True, _convert_="all")(env=make_env("ratio"))
    assert agent.policy.features_extractor.encoder.hidden_channels == 32
