from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise

from agents.amc import AMC
from agents.amc_policy import AMCPolicy
from agents.encoder import NodeEncoder
from agents.features_extractor import GraphFeaturesExtractor
from agents.flat_features import FlatFeaturesExtractor
from agents.off_policy import DDPG, SAC, TD3, truncated_normal
from agents.replay import ReturnReplayBuffer

FLAT = {"features_extractor_class": FlatFeaturesExtractor, "net_arch": [64, 64]}
GRAPH = {
    "features_extractor_class": GraphFeaturesExtractor,
    "features_extractor_kwargs": {"encoder_class": NodeEncoder, "hidden_channels": 16},
    "net_arch": [32],
}


def make_agent(env, agent_class=DDPG, policy_kwargs=FLAT, **kwargs):
    defaults = {
        "buffer_size": 2000,
        "learning_starts": 32,
        "batch_size": 64,
        "train_freq": (1, "episode"),
        "gradient_steps": -1,
        "gamma": 1.0,
        "tau": 0.01,
        "seed": 0,
        "device": "cpu",
    }
    return agent_class(
        "MultiInputPolicy", env, policy_kwargs=policy_kwargs, **{**defaults, **kwargs}
    )


def test_ddpg_learns_the_ratio_of_each_site_in_a_few_hundred_episodes(make_env):
    """A random agent has 0.4 on average, and the mean ratio 0.6."""
    env = make_env("ratio", "layerwise")
    make_agent(env, warmup_episodes=50, sigma=0.6, sigma_decay=0.98).learn(300 * 4)
    assert np.mean([record.reward for record in env.history[:50]]) < 0.5
    assert np.mean([record.reward for record in env.history[-30:]]) > 0.8


@pytest.mark.parametrize("agent_class", [DDPG, TD3])
@pytest.mark.parametrize("episode", ["whole", "layerwise"])
def test_the_graph_is_read_by_off_policy_agents(make_env, tmp_path, agent_class, episode):
    env = make_env("ratio", episode)
    agent = make_agent(env, agent_class, GRAPH, warmup_episodes=2, learning_starts=4)
    agent.learn(24)
    agent.save(tmp_path / "agent.zip")
    loaded = agent_class.load(tmp_path / "agent.zip", device="cpu")
    observation, _ = env.reset()
    np.testing.assert_array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])
    assert loaded.current_sigma == agent.current_sigma < agent.sigma


def test_the_reward_at_the_end_becomes_the_return_of_every_step():
    box = spaces.Box(-1, 1, (1,), np.float32)
    buffer = ReturnReplayBuffer(6, box, box, gamma=0.5)
    value = np.zeros((1, 1), np.float32)
    for reward, done in [(0.0, 0), (2.0, 0), (8.0, 1), (0.0, 0), (4.0, 1), (0.0, 0)]:
        buffer.add(value, value, value, np.array([reward]), np.array([done]), [{}])
    assert buffer.rewards[:, 0].tolist() == [3.0, 6.0, 8.0, 2.0, 4.0, 0.0]
    assert buffer.dones[:, 0].tolist() == [1, 1, 1, 1, 1, 0]  # the last episode goes on
    # it goes on across the end of the buffer, over the oldest transitions
    buffer.add(value, value, value, np.array([6.0]), np.array([1]), [{}])
    assert buffer.rewards[:, 0].tolist() == [6.0, 6.0, 8.0, 2.0, 4.0, 3.0]


def test_truncated_normal_stays_inside_and_does_not_pile_up_at_the_bounds():
    np.random.seed(0)
    drawn = truncated_normal(np.full(20_000, 0.9), 0.5)
    assert drawn.dtype == np.float32
    assert np.abs(drawn).max() < 1.0
    # of N(0.9, 0.5) truncated to [-1, 1] the mean is 0.9 - 0.5 * 0.39104 / 0.57919 + ...
    centre, (low, high) = 0.9, ((-1 - 0.9) / 0.5, (1 - 0.9) / 0.5)
    density = lambda x: np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)  # noqa: E731
    mass = 0.579260 - 0.000072  # of the standard normal between -3.8 and 0.2
    assert drawn.mean() == pytest.approx(
        centre + 0.5 * (density(low) - density(high)) / mass, abs=0.01
    )
    assert truncated_normal(np.array([0.3]), 0.0) == np.float32(0.3)
    far = truncated_normal(np.array([1.0, -1.0]), 1e-3)
    assert np.isfinite(far).all()


def test_noise_decays_by_episode_after_the_warm_up(make_env):
    agent = make_agent(
        make_env("ratio"), sigma=0.8, sigma_decay=0.5, sigma_min=0.1, warmup_episodes=3
    )
    found = []
    for episode in (0, 3, 4, 5, 50):
        agent._episode_num = episode
        found.append(agent.current_sigma)
    assert found == [0.8, 0.8, 0.4, 0.2, 0.1]


def test_each_site_gets_noise_of_its_own(make_env):
    agent = make_agent(make_env("ratio"), warmup_episodes=0)
    agent._last_obs = agent.env.reset()
    action, scaled = agent._sample_action(0)
    assert action.shape == scaled.shape == (1, 4)
    assert len(set(action.ravel().tolist())) == 4


def test_the_flat_features_are_all_entries_but_the_mask(make_env):
    env = make_env(with_mask=True)
    extractor = FlatFeaturesExtractor(env.observation_space)
    # 5 nodes x 2, 5 edges, 4 sites x 3, 4 globals
    assert extractor.features_dim == 10 + 5 + 12 + 4
    assert FlatFeaturesExtractor(spaces.Box(0, 1, (11,))).features_dim == 11


def test_the_order_of_entries_does_not_change_the_flat_features(make_env):
    env = make_env("ratio")
    extractor = FlatFeaturesExtractor(env.observation_space)
    observation = {key: torch.as_tensor(value)[None] for key, value in env.reset()[0].items()}
    backwards = dict(reversed(observation.items()))
    assert torch.equal(extractor(observation), extractor(backwards))


# A start at the uniform plan


@pytest.mark.parametrize("agent_class", [DDPG, TD3, SAC, AMC])
@pytest.mark.parametrize("episode", ["whole", "layerwise"])
def test_the_first_output_is_the_uniform_plan(make_env, agent_class, episode):
    """The environment's uniform ratios are 0.25 at every site, and an action is a ratio there."""
    env = make_env("ratio", episode)
    policy = AMCPolicy if agent_class is AMC else "MultiInputPolicy"
    agent = agent_class(
        policy, env, policy_kwargs=dict(FLAT), seed=0, warm_start=True, buffer_size=9
    )
    for observation in (env.reset()[0], env.step(env.action_space.sample())[0]):
        action, _ = agent.predict(observation, deterministic=True)
        assert action.shape == ((4,) if episode == "whole" else (1,))
        np.testing.assert_allclose(action, 0.25, atol=1e-6)


def test_a_warm_warm_up_follows_the_uniform_plan(make_env):
    env = make_env("ratio")
    agent = make_agent(
        env, warm_start=True, warmup="noise", warmup_episodes=9, sigma=0.01, sigma_min=0.0
    )
    agent.learn(5)
    np.testing.assert_allclose([record.decided for record in env.history], 0.25, atol=0.06)


def test_sac_begins_with_its_own_policy_and_the_given_deviation(make_env):
    env = make_env("ratio", num_sites=64)
    kwargs = {"policy_kwargs": dict(FLAT), "seed": 0, "buffer_size": 99, "learning_starts": 1000}
    agent = SAC("MultiInputPolicy", env, warm_start=True, sigma=0.1, **kwargs)
    agent.learn(20)
    drawn = np.arctanh([record.decided for record in env.history])
    assert drawn.mean() == pytest.approx(np.arctanh(0.25), abs=0.02)
    assert drawn.std() == pytest.approx(0.1, rel=0.1)
    with pytest.raises(ValueError, match=r"sigma=0: .* Change agent\.sigma"):
        SAC("MultiInputPolicy", env, sigma=0, **kwargs)


# What the actor learns from


@pytest.mark.parametrize("agent_class", [DDPG, TD3, SAC])
def test_the_actor_may_learn_slower_than_the_critic(make_env, agent_class):
    kwargs = {"learning_rate": 1e-2, "actor_learning_rate": 1e-4, "learning_starts": 1}
    env = make_env("ratio")
    agent = agent_class(
        "MultiInputPolicy", env, policy_kwargs=dict(FLAT), seed=0, buffer_size=99, **kwargs
    )
    agent.learn(8)
    assert agent._n_updates > 0
    assert agent.actor.optimizer.param_groups[0]["lr"] == 1e-4
    assert agent.critic.optimizer.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize(("agent_class", "updates_of_actor"), [(DDPG, 20), (TD3, 10)])
def test_imitation_leads_to_the_best_ranked_actions(make_env, agent_class, updates_of_actor):
    """So strong a pull leaves the critic no say: the actor goes where the best outcomes were."""
    env = make_env("ratio")
    agent = make_agent(
        env,
        agent_class,
        rank_power=2.0,
        imitation=1e3,
        imitation_power=200.0,
        warmup_episodes=1000,
        learning_starts=1000,
    )
    agent.learn(30)
    buffer = agent.replay_buffer
    best = buffer.actions[int(np.argmax(buffer.rewards[:30, 0])), 0]
    actor_steps = []
    agent.actor.optimizer.register_step_post_hook(lambda *_: actor_steps.append(1))
    agent.train(20, 512)
    assert len(actor_steps) == updates_of_actor
    agent.train(300, 512)  # so large that the best is in every batch
    action, _ = agent.predict(env.reset()[0], deterministic=True)
    np.testing.assert_allclose(agent.policy.scale_action(action), best, atol=0.1)


def test_without_imitation_updates_are_those_of_sb3(make_env):
    """Where every stored episode has ended, both give the same critic from the same draws."""
    found = []
    for imitation in (0.0, 1e-12):
        agent = make_agent(
            make_env("ratio"),
            rank_power=2.0,
            imitation=imitation,
            warmup_episodes=99,
            learning_starts=99,
        )
        agent.learn(12)
        np.random.seed(1)
        agent.train(1, 32)
        found.append([parameter.detach().numpy() for parameter in agent.critic.parameters()])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"rank_power": -1}, r"rank_power=-1: .* Change agent\.rank_power", id="rank"),
        pytest.param(
            {"actor_learning_rate": 0.0},
            r"got 0.0. Change agent\.actor_learning_rate",
            id="actor's rate",
        ),
        pytest.param({"imitation": -1.0}, r"imitation=-1.0, .* wanted are 0 or more", id="pull"),
        pytest.param(
            {"imitation": 1.0}, r"rank_power is null. Set agent\.rank_power", id="pull, no ranks"
        ),
        pytest.param(
            {"imitation": 1.0, "rank_power": 2.0, "train_freq": (4, "step")},
            r"every 4 steps. Set agent\.train_freq",
            id="pull, half an episode",
        ),
        pytest.param({"sigma": -1.0}, "sigma=-1.0", id="sigma"),
        pytest.param({"sigma_decay": 1.5}, "sigma_decay=1.5", id="decay"),
        pytest.param({"sigma_min": 2.0}, "sigma_min=2.0", id="min"),
        pytest.param(
            {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))},
            "leave agent.action_noise empty",
            id="noise",
        ),
    ],
)
def test_settings_out_of_range_are_refused(make_env, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_agent(make_env("ratio"), **arguments)
