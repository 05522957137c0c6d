"""AMC's agent: hand-computed targets, baselines, buffers and schedules, and a known best found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from stable_baselines3.common.utils import polyak_update, update_learning_rate
from torch.nn import functional

from agents.amc import AMC
from agents.amc_policy import AMCPolicy
from agents.flat_features import FlatFeaturesExtractor
from agents.replay import FinalRewardDictReplayBuffer

CONF = Path(__file__).parents[2] / "conf"
FLAT = {"features_extractor_class": FlatFeaturesExtractor, "net_arch": [32, 32]}
BOX = spaces.Box(-1, 1, (1,), np.float32)
PRESETS = ("amc_paper", "amc_released_code", "amc")
SMALL = ["encoder.off_policy.policy_kwargs.net_arch=[16,16]"]


def preset(name, *overrides):
    """Builds the agent of one of the YAML files around an environment."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train_agent", [f"agent={name}", "env=amc", *overrides])
    return instantiate(config.agent, _partial_=True, _convert_="all")


def make_agent(env, **kwargs):
    defaults = {"policy_kwargs": FLAT, "seed": 0, "device": "cpu", "learning_starts": 0}
    return AMC(AMCPolicy, env, **{**defaults, **kwargs})


def constant(value):
    """A critic or actor that always says the same, for targets that can be computed by hand."""
    return SimpleNamespace(q1_forward=lambda obs, actions: torch.full((len(obs), 1), value))


def a_batch(rewards, dones):
    column = lambda values: torch.tensor(values).reshape(-1, 1)  # noqa: E731
    zeros = torch.zeros(len(rewards), 1)
    return SimpleNamespace(
        observations=zeros,
        next_observations=zeros,
        actions=zeros,
        rewards=column(rewards),
        dones=column(dones),
    )


# Rewards


def test_an_episode_that_a_search_stopped_in_is_not_learned_from(make_env):
    env = make_env("ratio", "layerwise")
    agent = make_agent(env)
    # Stopped in the last step of the second episode, as a bound on evaluations does.
    agent.learn(100, callback=lambda local, _: len(env.history) < 2)
    assert agent.replay_buffer.size() == 4
    agent.learn(4)
    assert agent.replay_buffer.size() == 8
    rewards = agent.replay_buffer.rewards[:8, 0].tolist()
    first, _, third = (record.reward for record in env.history)
    assert rewards == pytest.approx([first] * 4 + [third] * 4)


# Baseline and target


@pytest.mark.parametrize(
    ("step", "values", "expected"),
    [
        pytest.param(0.5, [-0.4, -0.2, 0.4], [-0.4, -0.3, 0.05], id="released"),
        pytest.param(0.1, [1.0, 2.0, 0.0], [1.0, 1.1, 0.99], id="slow"),
        pytest.param(1.0, [1.0, 2.0], [1.0, 2.0], id="the last one"),
    ],
)
def test_the_baseline_starts_at_the_first_reward_and_moves_by_its_step(
    make_env, step, values, expected
):
    agent = make_agent(make_env("ratio", "layerwise"), baseline_step=step)
    found = []
    for value in values:
        agent._move_average(value)
        found.append(agent.moving_average)
    assert found == pytest.approx(expected)


def test_the_target_bootstraps_with_the_baseline_taken_off(make_env):
    agent = make_agent(make_env("ratio", "layerwise"))
    agent.moving_average = -0.3
    agent.actor_target, agent.critic_target = lambda obs: obs, constant(2.0)
    targets = agent._targets(a_batch([-0.5, -0.5], [0.0, 1.0]))
    assert targets[:, 0].tolist() == pytest.approx([-0.2 + 2.0, -0.2])
    agent.gamma = 0.5
    assert agent._targets(a_batch([-0.5], [0.0])).item() == pytest.approx(-0.2 + 1.0)


def test_the_corrected_target_is_the_reward_itself(make_env):
    agent = make_agent(make_env("ratio", "layerwise"), bootstrap=False)
    agent.actor_target, agent.critic_target = lambda obs: obs, constant(2.0)
    assert agent._targets(a_batch([-0.5, 0.25], [0.0, 1.0]))[:, 0].tolist() == [-0.5, 0.25]


def test_bootstrapping_counts_the_reward_once_for_every_step_left(make_env):
    """Iterated to its fixed point on an episode of 4 steps, with a critic as a table."""
    agent = make_agent(make_env("ratio", "layerwise"), baseline="none")
    agent.actor_target = lambda obs: obs
    values = torch.zeros(5, 1)
    for _ in range(5):
        table = values[1:].clone()
        agent.critic_target = SimpleNamespace(q1_forward=lambda obs, actions, table=table: table)
        values[:4] = agent._targets(a_batch([0.5] * 4, [0.0, 0.0, 0.0, 1.0]))
    assert values[:4, 0].tolist() == [2.0, 1.5, 1.0, 0.5]


def test_the_average_over_minibatches_moves_before_it_is_taken_off(make_env):
    agent = make_agent(make_env("ratio", "layerwise"), warmup_episodes=0)
    agent.learn(4)  # one episode, so every minibatch has the same mean
    assert agent._n_updates == 4
    reward = agent.env.get_attr("history")[0][0].reward
    assert agent.moving_average == pytest.approx(reward)
    seen = []
    agent._targets = lambda batch: seen.append(agent.moving_average) or batch.rewards
    agent.moving_average = reward + 1.0
    agent.train(2)
    assert seen == pytest.approx([reward + 0.5, reward + 0.25])


def test_the_average_over_episodes_is_that_of_their_rewards(make_env):
    env = make_env("ratio", "layerwise")
    agent = make_agent(env, baseline="episode", baseline_step=0.25, warmup_episodes=0)
    agent.learn(12)
    first, second, third = (record.reward for record in env.history)
    expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    assert agent.moving_average == pytest.approx(expected)


def test_no_baseline_is_none(make_env):
    agent = make_agent(make_env("ratio", "layerwise"), baseline="none", warmup_episodes=0)
    agent.learn(8)
    assert agent.moving_average is None


def test_the_actor_is_pulled_to_actions_by_the_rank_of_their_outcome(make_env):
    """Ranks 1/2 and 1 weigh 1/4 and 1, whatever power the utilities have."""
    agent = make_agent(
        make_env("ratio"),
        rank_power=3.0,
        baseline="none",
        imitation=0.5,
        imitation_power=2.0,
    )
    mean, deviation = 1 / 4, np.sqrt(1 / 7 - 1 / 16)
    batch = a_batch([(0.125 - mean) / deviation, (1.0 - mean) / deviation], [1.0, 1.0])
    batch.actions = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    distance = agent._distance(torch.tensor([[0.5, 0.0], [0.5, 2.0]]), batch)
    assert distance.item() == pytest.approx((0.25 * 0.25 + 1.0 * 4.25) / 1.25)


# Schedules


@pytest.mark.parametrize(
    ("settings", "episodes", "updates"),
    [
        pytest.param({"warmup_episodes": 3}, 3, 0, id="none in the warm-up"),
        pytest.param({"warmup_episodes": 3}, 5, 8, id="as many as steps after it"),
        pytest.param({"warmup_episodes": 3, "learn_in_warmup": True}, 5, 20, id="in the warm-up"),
        pytest.param(
            {"warmup_episodes": 3, "learn_in_warmup": True, "learning_starts": 8}, 5, 12, id="late"
        ),
        pytest.param({"warmup_episodes": 3, "gradient_steps": 7}, 5, 14, id="by number"),
        # Per step: after the end of the fourth episode, and at every step of the fifth.
        pytest.param(
            {"warmup_episodes": 3, "train_freq": (1, "step"), "gradient_steps": 1}, 5, 5, id="steps"
        ),
    ],
)
def test_the_number_of_updates(make_env, settings, episodes, updates):
    agent = make_agent(make_env("ratio", "layerwise"), **settings)
    agent.learn(4 * episodes)
    assert agent._n_updates == updates


def test_targets_follow_softly_and_both_learning_rates_hold(make_env):
    agent = make_agent(make_env("ratio", "layerwise"), warmup_episodes=0, tau=0.25)
    agent.learn(4)
    assert agent.actor.optimizer.param_groups[0]["lr"] == 1e-4
    assert agent.critic.optimizer.param_groups[0]["lr"] == 1e-3
    for network, target in (
        (agent.actor, agent.actor_target),
        (agent.critic, agent.critic_target),
    ):
        before = [p.detach().clone() for p in target.parameters()]
        agent.train(1)
        for old, new, target_now in zip(
            before, network.parameters(), target.parameters(), strict=True
        ):
            torch.testing.assert_close(target_now, 0.75 * old + 0.25 * new)
            assert not torch.equal(old, new)


def test_noise_is_constant_in_the_warm_up_and_decays_after_it(make_env):
    agent = make_agent(
        make_env("ratio"), sigma=1.0, sigma_decay=0.95, sigma_min=0.0, warmup_episodes=100
    )
    found = []
    for episode in (0, 100, 101, 110):
        agent._episode_num = episode
        found.append(agent.current_sigma)
    assert found == pytest.approx([1.0, 1.0, 0.95, 0.95**10])


def test_the_released_code_has_decayed_once_when_its_actor_first_acts(make_env):
    """delta = 0.5 * 0.95 ** (episode - 100) on [0, 1], first used in episode 101."""
    agent = preset("amc_released_code")(env=make_env("ratio", "layerwise"))
    for episode in (101, 120, 799):
        agent._episode_num = episode
        assert agent.current_sigma / 2 == pytest.approx(0.5 * 0.95 ** (episode - 100))


@pytest.mark.parametrize(("warmup", "follows"), [("noise", True), ("uniform", False)])
def test_the_warm_up_is_uniform_or_follows_the_actor(make_env, warmup, follows):
    env = make_env("ratio", num_sites=64)
    agent = make_agent(env, warmup=warmup, warmup_episodes=9, sigma=0.01, sigma_min=0.0)
    agent._last_obs = agent.env.reset()
    mean = agent.predict(agent._last_obs)[0]
    action, _ = agent._sample_action(0)
    assert (np.abs(action - mean).max() < 0.05) == follows
    assert np.abs(action).max() <= 1.0


# The whole agent


class PlainAMC(AMC):
    """Updates as released before they were batched: one sample, two backward passes, and SB3's."""

    def train(self, gradient_steps, batch_size=64):
        if self._episode_num <= self.warmup_episodes and not self.learn_in_warmup:
            return
        self._update_learning_rate(self.critic.optimizer)
        update_learning_rate(self.actor.optimizer, self.actor_learning_rate)
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size)
            if self.baseline == "batch":
                self._move_average(float(batch.rewards.mean()))
            values = self.critic(batch.observations, batch.actions)[0]
            self._step(self.critic, functional.mse_loss(values, self._targets(batch)))
            actions = self.actor(batch.observations)
            self._step(self.actor, -self.critic.q1_forward(batch.observations, actions).mean())
            for network, target in (
                (self.critic, self.critic_target),
                (self.actor, self.actor_target),
            ):
                polyak_update(network.parameters(), target.parameters(), self.tau)

    @staticmethod
    def _step(network, loss):
        network.optimizer.zero_grad()
        loss.backward()
        network.optimizer.step()


@pytest.mark.parametrize("name", ["amc_paper", "amc_released_code"])
def test_batched_updates_give_the_episodes_of_plain_ones(make_env, name):
    found = []
    for target in ("agents.amc.AMC", f"{__name__}.PlainAMC"):
        env = make_env("ratio", "layerwise")
        overrides = ["agent.warmup_episodes=3", "agent.learning_starts=0"]
        build = preset(name, *SMALL, *overrides, f"agent._target_={target}")
        build(env=env, seed=3).learn(4 * 20)
        found.append([record.decided for record in env.history])
    assert len(found[0]) == 20
    assert found[0] == found[1]


def test_the_buffer_holds_100_transitions_per_step_unless_told_otherwise(make_env):
    assert make_agent(make_env("ratio", "layerwise", num_sites=7)).buffer_size == 700
    agent = make_agent(make_env("ratio", "layerwise"), buffer_size=2000)
    assert agent.buffer_size == agent.replay_buffer.buffer_size == 2000
    assert isinstance(agent.replay_buffer, FinalRewardDictReplayBuffer)


def test_presets_differ_where_the_paper_and_the_code_do(make_env):
    env = make_env("ratio", "layerwise")
    paper, code, ours = (preset(name)(env=env) for name in PRESETS)
    assert (paper.warmup, code.warmup) == ("noise", "uniform")
    for agent, is_ours in ((paper, False), (code, False), (ours, True)):
        assert (agent.warm_start, agent.rank_power, agent.imitation) == (False, None, 0.0)
        assert agent.critic.optimizer.defaults["fused"] is (True if is_ours else None)
    assert (paper.warmup_episodes, code.warmup_episodes) == (100, 101)
    assert (paper.learn_in_warmup, code.learn_in_warmup) == (True, False)
    assert (paper.sigma, code.sigma, code.sigma_decay) == (1.0, 0.95, 0.95)
    assert (paper.baseline, code.baseline, code.baseline_step) == ("episode", "batch", 0.5)
    assert (paper.buffer_size, code.buffer_size) == (2000, 400)
    assert (paper.replay_buffer.replay_first_step, code.replay_buffer.replay_first_step) == (1, 0)
    assert (paper.critic.qf0.action_layer, code.critic.qf0.action_layer) == (2, 1)
    assert (paper.bootstrap, code.bootstrap, ours.bootstrap) == (True, True, False)
    for agent in (paper, code):
        assert (agent.actor_learning_rate, agent.learning_rate) == (1e-4, 1e-3)
        assert (agent.tau, agent.batch_size, agent.gamma, agent.sigma_min) == (0.01, 64, 1.0, 0.0)
        assert [layer.out_features for layer in agent.critic.qf0.layers] == [300, 300]
        assert [layer.out_features for layer in agent.actor.mu[::2]] == [300, 300, 1]


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(
        HydraException, match=r"(?s)agent/amc_papers.*amc_paper\n.*amc_released_code"
    ):
        preset("amc_papers")


def test_an_environment_without_a_task_needs_a_size_of_the_buffer():
    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(ValueError, match=r"Set agent\.buffer_size"):
        make_agent(env)
    assert make_agent(env, buffer_size=50).replay_buffer.buffer_size == 50


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_seed_gives_the_same_episodes(make_env, name):
    build = preset(name, *SMALL, "agent.warmup_episodes=4")
    found = []
    for seed in (3, 3, 4):
        env = make_env("ratio", "layerwise")
        build(env=env, seed=seed).learn(4 * 7)
        found.append([record.decided for record in env.history])
    assert len(found[0]) == 7
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("name", PRESETS)
def test_a_saved_agent_decides_and_learns_on_as_before(make_env, tmp_path, name):
    env = make_env("ratio", "layerwise")
    build = preset(name, *SMALL, "agent.warmup_episodes=4", "agent.learning_starts=0")
    agent = build(env=env)
    agent.learn(4 * 6)
    agent.save(tmp_path / "agent.zip")
    loaded = AMC.load(tmp_path / "agent.zip", env=env, device="cpu")
    observation, _ = env.reset()
    np.testing.assert_array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])
    for attribute in (
        "current_sigma",
        "moving_average",
        "buffer_size",
        "actor_learning_rate",
        "warmup",
        "learn_in_warmup",
        "baseline",
        "bootstrap",
    ):
        assert getattr(loaded, attribute) == getattr(agent, attribute)
    assert loaded.critic.qf0.action_layer == agent.critic.qf0.action_layer
    assert loaded.replay_buffer.replay_first_step == agent.replay_buffer.replay_first_step
    updates = loaded._n_updates
    loaded.learn(4 * 2, reset_num_timesteps=False)
    assert loaded._n_updates == updates + 8


def test_a_known_best_is_found(make_env):
    """The best plan has reward 1; random ones have 0.4 on average."""
    env = make_env("ratio", "layerwise")
    make_agent(
        env,
        policy_kwargs={**FLAT, "net_arch": [64, 64]},
        bootstrap=False,
        baseline="episode",
        baseline_step=0.1,
        actor_learning_rate=1e-3,
        warmup_episodes=30,
        sigma=0.6,
        sigma_decay=0.96,
        sigma_min=0.0,
    ).learn(4 * 140)
    assert np.mean([record.reward for record in env.history[:30]]) < 0.5
    assert np.mean([record.reward for record in env.history[-20:]]) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imitation": -1.0}, r"imitation=-1.0, .* wanted are 0 or more"),
        ({"imitation": 1.0}, r"rank_power is null. Set agent\.rank_power"),
        ({"rank_power": 0.0, "baseline": "none"}, r"rank_power=0.0: .* Change agent\.rank_power"),
        ({"rank_power": 2.0}, r"the baseline is 'batch'. Set agent\.baseline=none"),
        ({"warmup": "none"}, r"warmup is one of uniform, noise, got 'none'. Change agent\.warmup"),
        ({"baseline": "mean"}, r"baseline is one of batch, episode, none, got 'mean'"),
        ({"baseline_step": 0.0}, r"must be in \(0, 1\], got 0.0. Change agent\.baseline_step"),
        ({"actor_learning_rate": 0.0}, r"got 0.0. Change agent\.actor_learning_rate"),
        ({"buffer_size": 0}, r"got 0. Change agent\.buffer_size"),
        ({"sigma": -1.0}, r"sigma=-1.0"),
    ],
)
def test_settings_out_of_range_are_refused(make_env, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_agent(make_env("ratio"), **arguments)
