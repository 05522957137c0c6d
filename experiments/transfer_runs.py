"""The parts of a transfer study, each in a folder of its own and done once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from agents.allocation_policy import AllocationPolicy
from agents.reward_model import RewardModel
from agents.search import run_search
from agents.transfer import (
    Lesson,
    check_transferable,
    load_shared,
    save_shared,
    start_at,
    train_shared,
    zero_shot_action,
)
from envs.pruning_env import PruningEnv
from envs.recording import EpisodeRecord
from experiments.composed_task import ComposedTask, new_agent
from experiments.patience import Patience
from experiments.pipeline import seed_everything
from experiments.resume import HARMLESS
from experiments.run_folder import write_json

NOT_COMPARED = (*HARMLESS, "transfer", "seed")
"""Root keys that say nothing about one search; its seed is in the name of its folder."""


@dataclass(frozen=True)
class Measurement:
    """One plan that was measured.

    Attributes:
        evaluations: counted evaluations of its network by then.
        reward: what it was paid.
        accuracy: on the reward split, in [0, 1].
        loss: on the reward split.
        action: the decision, shape (S,).
    """

    evaluations: int
    reward: float
    accuracy: float
    loss: float
    action: tuple[float, ...]


@dataclass(frozen=True)
class SearchRun:
    """What one search measured.

    Attributes:
        evaluations: counted evaluations.
        measurements: every episode, in order; known plans are free and counted once.
        seconds: wall time of the search.
    """

    evaluations: int
    measurements: tuple[Measurement, ...]
    seconds: float

    def best_after(self, evaluations: int) -> Measurement:
        """The plan with the highest reward within so many evaluations, the earliest of equals.

        Raises:
            ValueError: nothing was measured by then.
        """
        known = [each for each in self.measurements if each.evaluations <= evaluations]
        if not known:
            raise ValueError(f"Nothing was measured within {evaluations} evaluations.")
        return max(known, key=lambda each: each.reward)


def check_study(target: ComposedTask, options: DictConfig) -> None:
    """Refuse what cannot work before anything is measured.

    Args:
        target: the network that is searched with the policy's help.
        options: the section `transfer`.

    Raises:
        ValueError: the policy cannot be transferred, the agent cannot begin at its plan, or an
            option is out of range.
    """
    _check_training(options.training)
    env = target.new_env(target.new_task())
    policy, observation = new_policy(env, options.policy_kwargs), env.first_observation()
    agent = new_agent(target.config, env)
    start_at(agent, observation, zero_shot_action(policy, observation))


def given_policy(pattern: str, seed: int) -> Path:
    """The file of `transfer.policy` for a seed.

    Raises:
        ValueError: there is none.
    """
    path = Path(pattern.replace("{seed}", str(seed))).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no file {path} with a policy. Change transfer.policy.")
    return path


def search_once(
    composed: ComposedTask,
    folder: Path,
    *,
    seed: int,
    evaluations: int,
    begin: Callable[[PruningEnv, Any], np.ndarray] | None = None,
    about: Mapping[str, Any] | None = None,
) -> SearchRun:
    """Let the agent of the config search, unless its folder holds what it found.

    Args:
        composed: network, data and config.
        folder: gets `measurements.json` when the search has ended.
        seed: of the agent.
        evaluations: bound of the counted evaluations, that of `begin` among them.
        begin: prepares the agent and gives the plan that is measured first.
        about: what else the search depends on; kept in the file and compared.

    Raises:
        ValueError: the folder holds a search of other settings, or nothing met the budget.
    """
    file = folder / "measurements.json"
    settings = _settings(composed, evaluations, about)
    found = _read_done(file, settings)
    if found is not None:
        return _as_run(found)
    started = time.monotonic()
    seed_everything(seed)
    env = composed.new_env(composed.new_task())
    agent = new_agent(composed.config, env, seed=seed)
    if begin is not None:
        first = begin(env, agent)
        env.reset()
        env.step(first)
    if env.num_evaluations < evaluations:
        run_search(
            agent,
            env,
            evaluations=evaluations,
            max_timesteps=composed.settings.max_timesteps,
            minutes=composed.settings.minutes,
            callbacks=[Patience(env, composed.settings.patience)],
        )
    env.close()
    run = SearchRun(env.num_evaluations, _measured(env.history), time.monotonic() - started)
    if not run.measurements:
        raise ValueError(f"No plan of {folder.name} met the budget. Change budget.relative_macs.")
    write_json(_made(file), {"settings": settings, **asdict(run)})
    return run


def train_policy(
    sources: Mapping[str, tuple[ComposedTask, SearchRun]],
    options: DictConfig,
    path: Path,
    *,
    seed: int,
) -> None:
    """Train a policy on what was measured on the sources, unless it is there.

    Args:
        sources: network and measurements by label.
        options: the section `transfer`.
        path: gets the weights that fit any network; the file beside it says how they came about.
        seed: of the weights and of the imagined plans.

    Raises:
        ValueError: the policy cannot be transferred, or an option is out of range.
    """
    training: dict[str, Any] = OmegaConf.to_container(options.training, resolve=True)  # type: ignore[assignment]
    settings = {
        "model": OmegaConf.to_container(options.model, resolve=True),
        "policy_kwargs": OmegaConf.to_container(options.policy_kwargs, resolve=True),
        "training": training,
        "sources": {
            label: _settings(composed, run.evaluations, None)
            for label, (composed, run) in sources.items()
        },
    }
    log_file = path.with_suffix(".json")
    if path.is_file() and _read_done(log_file, settings) is not None:
        return
    seed_everything(seed)
    lessons = []
    for composed, run in sources.values():
        env = composed.new_env(composed.new_task())
        model: RewardModel = instantiate(options.model, _convert_="all")
        actions = np.asarray([each.action for each in run.measurements])
        rewards = np.asarray([each.reward for each in run.measurements])
        model.bind(env.observation_space, env.first_observation())
        model.fit(env.preview(actions, rounded=True), rewards)
        policy = new_policy(env, options.policy_kwargs)
        lessons.append(Lesson(policy, env.first_observation(), env.preview, model))
    progress = train_shared(lessons, seed=seed, **training)
    save_shared(lessons[0].policy, _made(path))
    write_json(log_file, {"settings": settings, "worth": progress})


def new_policy(env: PruningEnv, policy_kwargs: DictConfig) -> AllocationPolicy:
    """A policy for a network, with shared weights only.

    Args:
        env: the environment of the network.
        policy_kwargs: the section `transfer.policy_kwargs`.

    Raises:
        ValueError: such a policy cannot be transferred.
    """
    kwargs = instantiate(policy_kwargs, _convert_="all")
    policy = AllocationPolicy(env.observation_space, env.action_space, lambda _: 1e-3, **kwargs)
    check_transferable(policy)
    return policy


def transferred(
    target: ComposedTask, policy: Path, policy_kwargs: DictConfig, folder: Path, *, seed: int
) -> SearchRun:
    """The policy's plan on the target, and the search that begins there.

    Args:
        target: a network that the policy never saw.
        policy: what `train_policy` wrote.
        policy_kwargs: the section `transfer.policy_kwargs`.
        folder: of the search.
        seed: of the agent.
    """

    def begin(env: PruningEnv, agent: Any) -> np.ndarray:
        shared = new_policy(env, policy_kwargs)
        load_shared(shared, policy)
        observation = env.first_observation()
        action = zero_shot_action(shared, observation)
        start_at(agent, observation, action, policy)
        return action

    return search_once(
        target,
        folder,
        seed=seed,
        evaluations=target.settings.evaluations,
        begin=begin,
        about={"policy": hashlib.sha256(policy.read_bytes()).hexdigest()},
    )


def measure_uniform(target: ComposedTask, folder: Path) -> SearchRun:
    """The uniform plan of the target: one evaluation, counted for nobody."""
    file = folder / "measurements.json"
    settings = _settings(target, 1, None)
    found = _read_done(file, settings)
    if found is not None:
        return _as_run(found)
    env = target.new_env(target.new_task())
    env.reset()
    env.step(env.encode_ratios(env.uniform_ratios()))
    run = SearchRun(env.num_evaluations, _measured(env.history), 0.0)
    write_json(_made(file), {"settings": settings, **asdict(run)})
    return run


def _as_run(found: Mapping[str, Any]) -> SearchRun:
    measurements = tuple(
        Measurement(**{**each, "action": tuple(each["action"])}) for each in found["measurements"]
    )
    return SearchRun(found["evaluations"], measurements, found["seconds"])


def _measured(history: Sequence[EpisodeRecord]) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(each.evaluations, each.score, each.accuracy, each.loss, each.raw_action)
        for each in history
        if each.met and each.accuracy is not None and each.loss is not None
    )


def _settings(
    composed: ComposedTask, evaluations: int, about: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a search depends on."""
    plain = {key: value for key, value in composed.plain.items() if key not in NOT_COMPARED}
    plain["search"] = {**plain["search"], "evaluations": evaluations}
    for name in ("agent", "fine_tune"):  # the seed of the run is in the name of the folder
        plain[name] = {key: value for key, value in plain[name].items() if key != "seed"}
    return json.loads(json.dumps({**plain, **(about or {})}, default=str))


def _read_done(file: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a part that is finished left; None where it is not.

    Raises:
        ValueError: it was done with other settings.
    """
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        raise ValueError(
            f"{file} was made with other settings. Give this study a name of its own, "
            "transfer.name=NAME, or remove that folder."
        )
    return found


def _check_training(training: Mapping[str, Any]) -> None:
    plans, updates = training["plans"], training["updates"]
    if plans < 2 or plans % 2 or updates < 1:
        raise ValueError(
            f"transfer.training.plans={plans} updates={updates}: wanted are an even number of "
            "plans, 2 or more, and one update or more."
        )
    for name in ("deviation", "learning_rate"):
        if not training[name] > 0:
            raise ValueError(f"transfer.training.{name}={training[name]}: wanted is above 0.")


def _made(file: Path) -> Path:
    """The file, in a folder that is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
