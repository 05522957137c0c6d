from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.distributions import MultiCategoricalDistribution

from agents.encoder import NodeEncoder
from agents.graph_policy import GraphPolicy, PatternLogits
from agents.masked_policy import MaskedPolicy, SiteCategorical

SMALL = {
    "features_extractor_kwargs": {"hidden_channels": 16, "encoder_kwargs": {"heads": 2}},
    "net_arch": [16],
}


def make_ppo(env, policy=GraphPolicy, policy_kwargs=None, **kwargs):
    defaults = {
        "n_steps": 32,
        "batch_size": 32,
        "n_epochs": 5,
        "learning_rate": 5e-3,
        "gamma": 1.0,
        "seed": 0,
    }
    return PPO(
        policy, env, policy_kwargs=policy_kwargs or SMALL, device="cpu", **{**defaults, **kwargs}
    )


def first_observation(agent):
    return agent.policy.obs_to_tensor(agent.env.reset())[0]


def mean_reward(env, last):
    return np.mean([record.reward for record in env.history[-last:]])


def random_mean_reward(env, num_episodes=500):
    env.action_space.seed(0)
    env.reset()
    while len(env.history) < num_episodes:
        if env.step(env.action_space.sample())[2]:
            env.reset()
    return mean_reward(env, num_episodes)


@pytest.mark.parametrize(
    ("action", "episode", "steps", "chance"),
    [
        pytest.param("pattern", "whole", 480, 1 / 3, id="pattern-whole"),
        pytest.param("ratio", "whole", 480, 0.4, id="ratio-whole"),
        pytest.param("pattern", "layerwise", 960, 1 / 3, id="pattern-layerwise"),
    ],
)
def test_the_policy_learns_the_best_decision_of_each_site(make_env, action, episode, steps, chance):
    assert random_mean_reward(make_env(action, episode)) == pytest.approx(chance, abs=0.05)
    env = make_env(action, episode)
    options = {
        "features_extractor_kwargs": {
            "hidden_channels": 16,
            "encoder_kwargs": {"heads": 2, "num_layers": 1},
        },
        "net_arch": [16],
    }
    make_ppo(env, policy_kwargs=options, gae_lambda=1.0, learning_rate=1e-2).learn(steps)
    assert mean_reward(env, 50) > 0.75


def test_a_masked_pattern_is_never_drawn_and_has_no_probability(make_env):
    for episode in ("whole", "layerwise"):
        env = make_env(episode=episode, with_mask=True)
        agent = make_ppo(env).learn(96)
        drawn = np.array([record.decided for record in env.history])
        assert drawn.shape[0] >= 24
        assert set(drawn.ravel().tolist()) == {1, 2}
        distribution = agent.policy.get_distribution(first_observation(agent))
        assert torch.isfinite(distribution.entropy()).all()


def test_a_flat_policy_obeys_the_mask_too(make_env):
    env = make_env(with_mask=True)
    make_ppo(env, MaskedPolicy, {"net_arch": [16]}).learn(192)
    assert {pattern for record in env.history for pattern in record.decided} == {1, 2}


def test_untrained_logits_are_nearly_equal(make_env):
    agent = make_ppo(make_env(num_patterns=3))
    distribution = agent.policy.get_distribution(first_observation(agent))
    torch.testing.assert_close(
        distribution.patterns.probs, torch.full((1, 4, 3), 1 / 3), atol=0.03, rtol=0
    )


def test_a_site_is_decided_by_weights_that_all_sites_share(make_env):
    """The same parameters decide 4 and 9 sites, and equal sites get equal logits."""
    small, large = make_ppo(make_env()), make_ppo(make_env(num_sites=9), seed=1)
    large.policy.load_state_dict(small.policy.state_dict())
    assert large.predict(large.env.reset())[0].shape == (1, 9)


@pytest.mark.parametrize("action", ["pattern", "ratio"])
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_a_saved_agent_decides_as_before(make_env, tmp_path, algorithm, action):
    env = make_env(action)
    agent = algorithm(GraphPolicy, env, n_steps=64, policy_kwargs=SMALL, seed=0, device="cpu")
    agent.learn(64)
    agent.save(tmp_path / "agent.zip")
    loaded = algorithm.load(tmp_path / "agent.zip", device="cpu")
    observations = first_observation(agent)
    with torch.no_grad():
        before, after = (each.policy._actor_critic(observations) for each in (agent, loaded))
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert loaded.observation_space.topology == env.topology
    assert type(loaded.policy.features_extractor.encoder).__name__ == "GATv2Encoder"


def test_the_same_seed_gives_the_same_weights_after_learning(make_env):
    def learned(seed):
        agent = make_ppo(make_env(), seed=seed).learn(64)
        return torch.cat([parameter.flatten() for parameter in agent.policy.parameters()])

    assert torch.equal(learned(3), learned(3))
    assert not torch.equal(learned(3), learned(4))


def test_evaluate_actions_agrees_with_forward(make_env):
    """The PPO ratio is 1 before the first update: nothing random happens inside the policy."""
    for action in ("pattern", "ratio"):
        policy = make_ppo(make_env(action)).policy.train()
        env = make_env(action)
        observations = policy.obs_to_tensor(env.reset()[0])[0]
        actions, values, log_prob = policy(observations)
        again = policy.evaluate_actions(observations, actions)
        torch.testing.assert_close((again[0], again[1]), (values, log_prob))
        torch.testing.assert_close(policy.predict_values(observations), values)


def test_actor_and_critic_can_have_an_encoder_each(make_env):
    agent = make_ppo(make_env(), policy_kwargs={**SMALL, "share_features_extractor": False})
    shared = make_ppo(make_env())
    count, shared_count = (
        sum(parameter.numel() for parameter in each.policy.parameters()) for each in (agent, shared)
    )
    encoder = sum(p.numel() for p in shared.policy.features_extractor.parameters())
    assert count == shared_count + encoder
    agent.learn(32)


def test_the_policy_runs_without_messages(make_env):
    options = {"features_extractor_kwargs": {"encoder_class": NodeEncoder, "hidden_channels": 16}}
    make_ppo(make_env(), policy_kwargs=options).learn(32)


def test_the_standard_deviation_of_ratios_is_one_trained_number(make_env):
    agent = make_ppo(make_env("ratio"), policy_kwargs={**SMALL, "log_std_init": -1.0})
    assert agent.policy.log_std.tolist() == [-1.0]
    agent.learn(64)
    assert agent.policy.log_std.item() != -1.0


def test_site_categorical_equals_the_distribution_of_sb3():
    logits = torch.randn(5, 4 * 3)
    ours = SiteCategorical([3] * 4).proba_distribution(logits)
    theirs = MultiCategoricalDistribution([3] * 4).proba_distribution(logits)
    actions = torch.randint(3, (5, 4))
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.mode(), theirs.mode())
    assert ours.sample().shape == theirs.sample().shape


@pytest.mark.parametrize(
    ("episode", "action_space"),
    [
        pytest.param("whole", spaces.MultiDiscrete([3, 3, 2, 3]), id="unequal-choices"),
        pytest.param("whole", spaces.Discrete(3), id="one-pattern-for-all"),
        pytest.param("layerwise", spaces.Box(-1, 1, (4,)), id="all-at-once-but-layerwise"),
    ],
)
def test_an_action_space_that_does_not_belong_to_the_sites_is_refused(
    make_env, episode, action_space
):
    space = make_env(episode=episode).observation_space
    with pytest.raises(ValueError, match=r"GraphPolicy cannot decide .* for 4 sites"):
        GraphPolicy(space, action_space, lambda _: 1e-3)


def test_state_dependent_exploration_is_refused(make_env):
    with pytest.raises(ValueError, match=r"set agent\.use_sde=false"):
        make_ppo(make_env("ratio"), use_sde=True)


def test_patterns_next_to_each_other_learn_from_each_other():
    """One step for pattern 5 raises its neighbours more than the far end."""
    torch.manual_seed(0)
    logits = PatternLogits(4, 8, degree=3)
    inputs = torch.ones(1, 4)
    before = logits(inputs).detach()
    logits(inputs).log_softmax(-1)[0, 5].backward()
    with torch.no_grad():
        for parameter in logits.parameters():
            parameter += 0.01 * parameter.grad
    change = (logits(inputs) - before)[0].tolist()
    assert change[5] > change[4] > change[0]
    assert change[5] > change[6] > change[0]


def test_every_preference_can_be_learned_in_a_library_without_order():
    torch.manual_seed(0)
    wanted = torch.tensor([0.0, 2.0, 0.0, 2.0, 0.0, 2.0])
    for degree in (0, 3):
        logits = PatternLogits(4, 6, degree)
        optimizer = torch.optim.Adam(logits.parameters(), lr=0.05)
        for _ in range(300):
            loss = (logits(torch.ones(4)) - wanted).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 1e-2


def test_a_negative_degree_is_refused(make_env):
    with pytest.raises(ValueError, match="pattern_degree=-1"):
        make_ppo(make_env(), policy_kwargs={**SMALL, "pattern_degree": -1})


@pytest.mark.parametrize("action", ["pattern", "ratio"])
@pytest.mark.parametrize("episode", ["whole", "layerwise"])
def test_an_offset_moves_its_own_site_and_no_other(make_env, action, episode):
    kwargs = {**SMALL, "offset_scale": 2.0, "head_scale": 0.5}
    policy = make_ppo(make_env(action, episode), policy_kwargs=kwargs).policy
    num_sites = policy.pi_features_extractor.topology.num_sites
    env = make_env(action, episode)
    observations, observation = [], env.reset()[0]
    for _ in range(num_sites if episode == "layerwise" else 1):
        observations.append(policy.obs_to_tensor(observation)[0])
        observation = env.step(env.action_space.sample())[0]

    def outputs():
        with torch.no_grad():
            parts = [policy._actor_critic(o)[0].reshape(-1, policy.offsets.free.shape[1])
                     for o in observations]  # fmt: skip
        return torch.cat(parts)  # (num_sites, num_outputs)

    before = outputs()
    with torch.no_grad():
        policy.offsets.free[1, 0] += 1.0
    moved = outputs() - before
    scale = policy.action_net[-1].free_scale
    expected = torch.zeros_like(moved)
    expected[1, 0] = 2.0 * scale
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_offsets_begin_at_zero_and_share_the_order_of_the_patterns(make_env):
    plain = make_ppo(make_env("pattern", "whole")).policy
    policy = make_ppo(make_env("pattern", "whole"), policy_kwargs={**SMALL, "offset_scale": 1.0})
    observation = first_observation(policy)
    with torch.no_grad():
        torch.testing.assert_close(
            policy.policy._actor_critic(observation)[0], plain._actor_critic(observation)[0]
        )
        output = policy.policy.action_net[-1]
        policy.policy.offsets.coefficients[0, 0] = 1.0  # the linear part: mild to heavy
        offsets = policy.policy.offsets(output)
    assert (offsets[0].diff() > 0).all() or (offsets[0].diff() < 0).all()
    assert not offsets[1:].any()


def test_a_policy_with_offsets_is_saved_and_loaded(make_env, tmp_path):
    agent = make_ppo(make_env("pattern", "whole"), policy_kwargs={**SMALL, "offset_scale": 1.0})
    agent.learn(64)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    observation = first_observation(agent)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.policy._actor_critic(observation)[0], agent.policy._actor_critic(observation)[0]
        )
    assert agent.policy.offsets.free.abs().max() > 0


@pytest.mark.parametrize("name", ["offset_scale", "head_scale"])
def test_a_negative_scale_is_refused(make_env, name):
    with pytest.raises(ValueError, match=rf"{name}=-1.*Change agent.policy_kwargs.{name}"):
        make_ppo(make_env(), policy_kwargs={**SMALL, name: -1.0})


def test_without_a_graph_an_offset_moves_its_own_output_and_the_head_is_scaled(make_env):
    def outputs(policy):
        with torch.no_grad():
            return policy._actor_critic(observation)[0][0]

    env = make_env("pattern", "whole")
    plain = make_ppo(env, MaskedPolicy, {"net_arch": [8]}).policy
    kwargs = {"net_arch": [8], "offset_scale": 2.0, "head_scale": 0.5}
    agent = make_ppo(env, MaskedPolicy, kwargs)
    observation = first_observation(agent)
    torch.testing.assert_close(outputs(agent.policy), 0.5 * outputs(plain))
    with torch.no_grad():
        agent.policy.offset[3] = 1.0
    moved = outputs(agent.policy) - 0.5 * outputs(plain)
    torch.testing.assert_close(moved, 2.0 * torch.eye(len(moved))[3], atol=1e-6, rtol=0)
    before = agent.policy.offset.detach().clone()
    agent.learn(32)
    assert (agent.policy.offset != before).all()
