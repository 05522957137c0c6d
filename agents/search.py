"""Searches with any agent under one bound, so that agents can be compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common import logger as sb3_logger
from stable_baselines3.common.callbacks import BaseCallback

from agents.callbacks import EvaluationLimit, Progress

ACTION_SPACES: dict[type, tuple[type[spaces.Space], ...]] = {
    DQN: (spaces.Discrete,),
    MaskablePPO: (spaces.Discrete, spaces.MultiDiscrete),
    SAC: (spaces.Box,),
    TD3: (spaces.Box,),  # DDPG is a TD3
}
"""Action spaces of the SB3 agents that do not take all of Box, Discrete and MultiDiscrete."""

STEPS_PER_EVALUATION = 200
"""Default bound: an agent that only repeats itself ends after so many times the steps it needs."""


@dataclass(frozen=True)
class SearchResult:
    """How a search ended; what it found is in `env.unwrapped.best` and `env.unwrapped.history`.

    Attributes:
        evaluations: counted evaluations of the env, those before this search included.
        cache_hits: evaluations of this search that were answered from the cache, free of charge.
        episodes: episodes of this search that ended.
        timesteps: environment steps of this search.
        seconds: wall time of this search.
        stop_reason: "evaluations", "max_timesteps", "minutes", "interrupted" (Ctrl-C), or
            "finished" when the agent had nothing more to try.
    """

    evaluations: int
    cache_hits: int
    episodes: int
    timesteps: int
    seconds: float
    stop_reason: str


def run_search(
    agent: Any,
    env: Any,
    *,
    evaluations: int,
    max_timesteps: int | None = None,
    minutes: float | None = None,
    progress: Progress | None = None,
    log_dir: str | Path | None = None,
    log_formats: Sequence[str] = ("csv",),
    callbacks: Sequence[BaseCallback] = (),
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """Let an agent decide until the environment has counted so many evaluations.

    Args:
        agent: an SB3 agent or a baseline, built with `env` or with a `PruningVecEnv` of it.
        env: the pruning environment; `env.unwrapped` has `num_evaluations`, `best` and `task`.
        evaluations: bound of `env.unwrapped.num_evaluations`, at least 1; met exactly, also with
            PPO's rollouts.
        max_timesteps: most environment steps; by default 200 x evaluations x steps of an episode,
            so that an agent ends that only repeats what is in the cache.
        minutes: most minutes of wall time.
        progress: called with (evaluations, best record) when one of them changed.
        log_dir: folder of the agent's own log (`progress.csv`); None writes nothing.
        log_formats: SB3's log formats: csv, json, log, stdout, tensorboard.
        callbacks: further SB3 callbacks.
        clock: seconds now, from any beginning; that of a journal counts the time before an
            interruption.

    Returns:
        How the search ended.

    Raises:
        ValueError: a bound is out of range, or agent and environment do not fit.
    """
    limits = {"evaluations": evaluations, "max_timesteps": max_timesteps, "minutes": minutes}
    for name, limit in limits.items():
        if limit is not None and limit <= 0:
            raise ValueError(f"search.{name}={limit}: wanted is a number above 0.")
    check_agent(type(agent), env)
    vec_env = _check_environment(agent, env)
    pruning_env = env.unwrapped
    evaluator = pruning_env.task.evaluator
    cache_hits_before = evaluator.num_cache_hits
    if max_timesteps is None:
        max_timesteps = STEPS_PER_EVALUATION * evaluations * len(pruning_env.task.sites)
    agent.set_logger(
        sb3_logger.Logger(folder=None, output_formats=[])
        if log_dir is None
        else sb3_logger.configure(str(log_dir), list(log_formats))
    )
    limit_callback = EvaluationLimit(
        env,
        evaluations,
        max_timesteps=max_timesteps,
        minutes=minutes,
        progress=progress,
        clock=clock,
    )
    if hasattr(vec_env, "limit_evaluations"):
        vec_env.limit_evaluations(evaluations)
    started = clock()
    stop_reason = "evaluations"
    if pruning_env.num_evaluations < evaluations:
        try:
            # First of the callbacks: SB3 calls all of them even when the first one says stop.
            agent.learn(max_timesteps, callback=[limit_callback, *callbacks])
            stop_reason = limit_callback.stop_reason or "finished"
        except KeyboardInterrupt:
            stop_reason = "interrupted"
    agent.logger.close()
    return SearchResult(
        evaluations=pruning_env.num_evaluations,
        cache_hits=evaluator.num_cache_hits - cache_hits_before,
        episodes=limit_callback.num_episodes,
        timesteps=limit_callback.num_steps,
        seconds=clock() - started,
        stop_reason=stop_reason,
    )


def check_agent(agent_class: type, env: Any) -> None:
    """Refuse an agent that cannot take an environment's actions or rewards, before it is built.

    Args:
        agent_class: class of the agent, such as `stable_baselines3.DDPG`.
        env: the environment.

    Raises:
        ValueError: they do not fit; the message names both and what fits.
    """
    reads_last_only = getattr(agent_class, "reads_last_reward_only", False)
    if reads_last_only and getattr(env.unwrapped, "pays_every_step", False):
        raise ValueError(
            f"{agent_class.__name__} gives the last reward of an episode to all of its steps, and "
            f"this environment pays at every step. Set env/shaping=none, or take an agent whose "
            f"returns begin at each step: agent=ddpg, td3 or sac."
        )
    allowed = next(
        (kinds for kind, kinds in ACTION_SPACES.items() if issubclass(agent_class, kind)), None
    )
    if allowed is None or isinstance(env.action_space, allowed):
        return
    wanted = " or ".join(kind.__name__ for kind in allowed)
    action = "ratio" if spaces.Box in allowed else "pattern"
    episode = " and env/episode=layerwise" if allowed == (spaces.Discrete,) else ""
    raise ValueError(
        f"{agent_class.__name__} decides {wanted} actions, and the actions of {env.unwrapped} are "
        f"{env.action_space}. Set env/action={action}{episode}, or take an agent that fits every "
        f"action: agent=ppo, a2c, random or uniform."
    )


def _check_environment(agent: Any, env: Any) -> Any:
    """The agent has to act in `env` itself: its evaluations are the ones that are counted.

    Returns:
        The agent's VecEnv.
    """
    vec_env = agent.get_env()
    if vec_env is None:
        raise ValueError(
            f"{type(agent).__name__} has no environment. Build it with the one of the search."
        )
    inner = vec_env.get_attr("unwrapped")
    if inner[0] is not env.unwrapped:
        raise ValueError(
            f"{type(agent).__name__} was built with another environment than the one to search in."
        )
    can_stop = hasattr(vec_env.unwrapped, "limit_evaluations")
    if len(inner) > 1 and not (can_stop and all(each.task is env.unwrapped.task for each in inner)):
        raise ValueError(
            f"{type(agent).__name__} has {len(inner)} environments, and a search counts their "
            "evaluations together. Build the agent with one environment, or with a PruningVecEnv."
        )
    return vec_env.unwrapped
