"""Agents that decide in several environments at once, and those that cannot."""

from __future__ import annotations

import functools
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.off_policy import _EpisodeExploration

HOW_TO_SET_ONE = "Set vec_env=dummy vec_env.num_envs=1"


def for_environments(make_agent: functools.partial[Any], num_envs: int) -> functools.partial[Any]:
    """What builds the same agent for several environments.

    On-policy agents count `n_steps` per environment; it is divided, so that an update sees as many
    steps as with one environment.

    Args:
        make_agent: builds the agent for one environment; called with `env`.
        num_envs: number of environments, at least 1.

    Raises:
        ValueError: the agent learns from one environment only, or its steps per update cannot be
            shared out equally.
    """
    kind = make_agent.func
    if num_envs == 1 or not isinstance(kind, type):
        return make_agent
    if issubclass(kind, OffPolicyAlgorithm):
        train_freq = make_agent.keywords.get("train_freq", 1)
        learns_by_episode = isinstance(train_freq, tuple | list) and "episode" in train_freq
        if learns_by_episode or issubclass(kind, _EpisodeExploration):
            raise ValueError(
                f"{kind.__name__} learns after every episode of one environment, and "
                f"vec_env.num_envs is {num_envs}. {HOW_TO_SET_ONE}, or take an agent that learns "
                "from several: agent=ppo, a2c, cmaes or random."
            )
    if issubclass(kind, OnPolicyAlgorithm) and "n_steps" in make_agent.keywords:
        n_steps = int(make_agent.keywords["n_steps"])
        if n_steps % num_envs:
            raise ValueError(
                f"{kind.__name__} learns from agent.n_steps={n_steps} steps at a time, which "
                f"vec_env.num_envs={num_envs} environments cannot share out equally. Set "
                "agent.n_steps to a multiple of vec_env.num_envs."
            )
        return functools.partial(make_agent, n_steps=n_steps // num_envs)
    return make_agent
