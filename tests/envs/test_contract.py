"""Every environment and every combination of parts keeps Gymnasium's and SB3's contract."""

from __future__ import annotations

import itertools
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from envs.actions import PatternAction, RatioAction
from envs.amc_rewards import AmcErrorReward
from envs.budgets import Band, Project, Unlimited, Wall
from envs.episodes import Layerwise, Whole
from envs.observations import GraphObservation, LayerObservation
from envs.pruning_env import PruningEnv
from envs.registration import ENTRY_POINTS, register_envs
from envs.rewards import AlphaReward

EXPECTED_WARNINGS = (  # states and masks are matrices; the graph encoder and FlatFeatures read them
    "Your observation node_state has an unconventional shape",
    "Your observation site_state has an unconventional shape",
    "Your observation action_mask has an unconventional shape",
)

COMBINATIONS = list(
    itertools.product(
        (LayerObservation(), GraphObservation()),
        (RatioAction(), PatternAction()),
        (Layerwise(), Whole(max_steps=3)),
        (Wall(0.6), Band(0.6), Project(0.6), Unlimited()),
        (AlphaReward(0.5), AmcErrorReward()),
    )
)


def names(combination):
    return tuple(part.name for part in combination)


def makes_sense(combination):
    _, _, episode, budget, reward = names(combination)
    return not (
        (episode == "whole" and budget == "wall") or (budget == "none" and reward == "amc_error")
    )


SENSIBLE = [combination for combination in COMBINATIONS if makes_sense(combination)]
SENSELESS = [combination for combination in COMBINATIONS if not makes_sense(combination)]


def build(task, combination):
    observation, action, episode, budget, reward = combination
    return PruningEnv(
        task, observation=observation, action=action, episode=episode, budget=budget, reward=reward
    )


@pytest.mark.filterwarnings("ignore:.*render_mode")
@pytest.mark.parametrize("check", [check_env, check_env_for_sb3], ids=["gymnasium", "sb3"])
@pytest.mark.parametrize("env_id", ENTRY_POINTS)
def test_registered_env_keeps_the_contract(env_id, check, task):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(gymnasium.make(env_id, task=task).unwrapped)
    messages = [str(w.message).replace("\x1b[33mWARN: ", "") for w in caught]
    unexpected = [text for text in messages if not text.startswith(EXPECTED_WARNINGS)]
    assert not unexpected, unexpected


@pytest.mark.parametrize("combination", SENSIBLE, ids=lambda c: "-".join(names(c)))
def test_every_sensible_combination_runs_an_episode(combination, task, run_episode):
    env = build(task, combination)
    check_env(env, skip_render_check=True)
    history = len(env.history)
    observations, rewards, infos = run_episode(env, seed=1)
    assert all(observation in env.observation_space for observation in observations)
    assert rewards == [pytest.approx(sum(info["reward_terms"].values())) for info in infos[1:]]
    assert len(env.history) == history + 1
    assert infos[-1]["record"] is env.history[-1]
    assert all("record" not in info for info in infos[:-1])


@pytest.mark.parametrize("combination", SENSELESS, ids=lambda c: "-".join(names(c)))
def test_every_senseless_combination_is_refused_by_the_names_of_both_keys(combination, task):
    with pytest.raises(ValueError, match=r"=\w+ and (budget)=\w+ do not go together") as error:
        build(task, combination)
    assert f"budget={combination[3].name}" in str(error.value)


def test_registering_twice_changes_nothing():
    before = dict(gymnasium.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_envs()
    assert dict(gymnasium.registry) == before


def test_stepping_after_the_end_asks_for_a_reset(make_env, run_episode):
    env = make_env("AMC-v0")
    run_episode(env, seed=0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(env.action_space.sample())


def test_an_unknown_render_mode_is_refused(task):
    with pytest.raises(ValueError, match="rgb_array, ansi or None, got 'human'"):
        PruningEnv(
            task,
            observation=LayerObservation(),
            action=RatioAction(),
            episode=Layerwise(),
            budget=Wall(),
            reward=AmcErrorReward(),
            render_mode="human",
        )


def test_render_draws_what_each_site_keeps(make_env):
    env = make_env("AMC-v0", render_mode="ansi", budget=Unlimited(), reward=AlphaReward())
    env.reset()
    env.step(env.encode_ratios({"stem": 0.5}))
    lines = env.render().splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["stem", "|##########", "|", "50%", "0.5"]
    assert lines[1].startswith("> inner")
    picture = make_env("AMC-v0", render_mode="rgb_array")
    picture.reset()
    frame = picture.render()
    assert frame.shape == (4 + 4 * 14, 240 + 12, 3)
    assert frame.dtype == np.uint8


def test_a_registered_env_keeps_its_spec_with_a_task_in_its_arguments(task):
    env = gymnasium.make("AutoSculpt-v0", task=task)
    assert env.spec.id == "AutoSculpt-v0"
