from __future__ import annotations

import tempfile

import pytest
import stable_baselines3
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.baselines import RandomAgent, UniformAgent
from agents.flat_features import FlatFeaturesExtractor
from agents.graph_policy import GraphPolicy
from agents.off_policy import DDPG
from agents.search import check_agent, run_search

SMALL = {"features_extractor_kwargs": {"hidden_channels": 8, "encoder_kwargs": {"heads": 2}}}
FLAT = {"features_extractor_class": FlatFeaturesExtractor, "net_arch": [8]}


def make_ppo(env, n_steps=16):
    return PPO(
        GraphPolicy,
        env,
        n_steps=n_steps,
        batch_size=n_steps,
        n_epochs=1,
        policy_kwargs=SMALL,
        seed=0,
        device="cpu",
    )


def make_ddpg(env, **kwargs):
    return DDPG(
        "MultiInputPolicy",
        env,
        buffer_size=500,
        learning_starts=16,
        batch_size=16,
        train_freq=(1, "episode"),
        gradient_steps=1,
        warmup_episodes=4,
        policy_kwargs=FLAT,
        seed=0,
        **kwargs,
    )


@pytest.mark.parametrize("evaluations", [1, 21])
@pytest.mark.parametrize("episode", ["whole", "layerwise"])
@pytest.mark.parametrize("make_agent", [make_ppo, make_ddpg, RandomAgent])
def test_every_agent_stops_after_exactly_the_evaluations(
    make_env, make_agent, episode, evaluations
):
    env = make_env("ratio", episode)
    result = run_search(make_agent(env), env, evaluations=evaluations)
    assert result.evaluations == env.num_evaluations == evaluations
    assert result.stop_reason == "evaluations"
    assert result.episodes == len(env.history) == evaluations
    assert result.timesteps == evaluations * (1 if episode == "whole" else 4)
    assert result.cache_hits == 0
    assert result.seconds > 0


def test_cache_hits_are_free_and_counted(make_env):
    env = make_env("pattern", num_sites=3)  # 27 networks
    result = run_search(make_ppo(env), env, evaluations=20)
    assert result.evaluations == len(env.seen) == 20
    assert result.cache_hits == len(env.history) - 20 > 0


def test_the_uniform_agent_is_finished_after_one_evaluation(make_env):
    env = make_env()
    result = run_search(UniformAgent(env), env, evaluations=50)
    assert (result.evaluations, result.stop_reason) == (1, "finished")


def test_a_search_that_can_find_nothing_new_ends(make_env):
    env = make_env("pattern", num_sites=2)  # 9 networks
    result = run_search(RandomAgent(env, seed=0), env, evaluations=10)
    assert (result.evaluations, result.stop_reason) == (9, "max_timesteps")
    assert result.timesteps == 200 * 10 * 2


def test_steps_and_minutes_bound_the_search(make_env):
    env = make_env("ratio")
    result = run_search(RandomAgent(env), env, evaluations=50, max_timesteps=7)
    assert (result.timesteps, result.stop_reason) == (7, "max_timesteps")
    result = run_search(RandomAgent(env), env, evaluations=50, minutes=1e-9)
    assert (result.timesteps, result.stop_reason) == (1, "minutes")
    assert result.evaluations == 8  # the seven from before count


def test_a_search_that_has_its_evaluations_already_does_nothing(make_env):
    env = make_env("ratio")
    run_search(RandomAgent(env), env, evaluations=5)
    result = run_search(make_ppo(env), env, evaluations=5)
    assert (result.timesteps, result.evaluations, result.stop_reason) == (0, 5, "evaluations")


def test_a_second_search_goes_on(make_env):
    env = make_env("ratio")
    agent = make_ppo(env)
    run_search(agent, env, evaluations=5)
    result = run_search(agent, env, evaluations=12)
    assert (result.timesteps, result.evaluations) == (7, 12)


def test_ctrl_c_ends_the_search_in_order(make_env):
    class PressCtrlC(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 3:
                raise KeyboardInterrupt
            return True

    for make_agent in (make_ppo, RandomAgent):
        env = make_env("ratio")
        result = run_search(make_agent(env), env, evaluations=9, callbacks=[PressCtrlC()])
        assert (result.stop_reason, result.evaluations, result.episodes) == ("interrupted", 3, 3)


def test_progress_hears_of_every_evaluation_and_of_the_best(make_env):
    env = make_env("ratio")
    heard = []
    run_search(
        RandomAgent(env, seed=0),
        env,
        evaluations=6,
        progress=lambda count, best: heard.append((count, best.reward)),
    )
    assert [count for count, _ in heard] == [1, 2, 3, 4, 5, 6]
    rewards = [record.reward for record in env.history]
    assert [best for _, best in heard] == [max(rewards[:count]) for count in range(1, 7)]


def test_the_log_goes_to_the_given_folder_and_nowhere_else(make_env, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    env = make_env("ratio")
    run_search(make_ppo(env), env, evaluations=40, log_dir=tmp_path / "log")
    header = (tmp_path / "log" / "progress.csv").read_text().splitlines()[0]
    assert "train/value_loss" in header
    silent = make_env("ratio")
    run_search(make_ppo(silent), silent, evaluations=40)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("agent_class", [DDPG, stable_baselines3.TD3, SAC])
def test_a_continuous_agent_is_refused_where_patterns_are_chosen(make_env, agent_class):
    with pytest.raises(
        ValueError, match=f"{agent_class.__name__} decides Box .* Set env/action=ratio"
    ):
        check_agent(agent_class, make_env("pattern"))
    check_agent(agent_class, make_env("ratio"))
    check_agent(PPO, make_env("pattern"))


def test_dqn_is_refused_but_for_one_pattern_per_step(make_env):
    with pytest.raises(ValueError, match="env/action=pattern and env/episode=layerwise"):
        check_agent(stable_baselines3.DQN, make_env("pattern", "whole"))
    check_agent(stable_baselines3.DQN, make_env("pattern", "layerwise"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        pytest.param({"evaluations": 0}, "search.evaluations=0", id="evaluations"),
        pytest.param({"max_timesteps": -1}, "search.max_timesteps=-1", id="timesteps"),
        pytest.param({"minutes": 0.0}, "search.minutes=0.0", id="minutes"),
    ],
)
def test_a_bound_that_allows_nothing_is_refused(make_env, limits, message):
    env = make_env()
    with pytest.raises(ValueError, match=message):
        run_search(RandomAgent(env), env, **{"evaluations": 5, **limits})


def test_an_agent_of_another_environment_is_refused(make_env):
    env = make_env()
    with pytest.raises(ValueError, match="built with another environment"):
        run_search(RandomAgent(make_env()), env, evaluations=1)
    vec_env = DummyVecEnv([lambda: env, make_env])
    with pytest.raises(ValueError, match="has 2 environments"):
        run_search(make_ppo(vec_env), env, evaluations=1)
