"""What a command that studies a search starts from: a composed config, trained network and task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from agents.search import check_agent
from envs.pruning_env import PruningEnv
from envs.recording import EpisodeSink
from experiments.building import build_data, own_options
from experiments.command_line import CONFIG_FOLDER
from experiments.pipeline import build_task, seed_everything, trained_network
from experiments.progress import shows_progress
from experiments.search_stage import build_parts
from experiments.settings import Settings
from networks.data import DataSplits
from pruning.task import PruningTask


@dataclass(frozen=True)
class ComposedTask:
    """A trained network with its data, ready to be searched any number of times.

    Attributes:
        config: the config of the main job.
        plain: the same as plain data.
        settings: its root keys.
        data: the four splits.
        network: the trained network; its weights are never written.
    """

    config: DictConfig
    plain: dict[str, Any]
    settings: Settings
    data: DataSplits
    network: nn.Module

    @classmethod
    def from_overrides(cls, overrides: Sequence[str]) -> ComposedTask:
        """Compose the config, seed everything, load the data and train or load the network.

        Args:
            overrides: of the config of the main job.

        Raises:
            ValueError: a value of the config is wrong.
        """
        return cls.from_config(*compose_config(overrides))

    @classmethod
    def from_config(cls, config: DictConfig, plain: dict[str, Any]) -> ComposedTask:
        """Seed everything, load the data and train or load the network.

        Args:
            config: the config of the main job.
            plain: the same as plain data.

        Raises:
            ValueError: a value of the config is wrong.
        """
        settings = Settings.from_config(plain, show_progress=shows_progress(plain["progress_bar"]))
        torch.set_num_threads(settings.num_threads)
        seed_everything(settings.seed)
        build_parts(config)  # refuses what is out of range before anything costs time
        data = build_data(plain["data"])
        network = trained_network(config, plain, data, settings)
        return cls(config, plain, settings, data, network)

    def new_task(self) -> PruningTask:
        """A task of its own, with no evaluation counted and nothing in its cache."""
        return build_task(self.config, self.plain, self.network, self.data, self.settings)

    def new_env(self, task: PruningTask, sinks: Sequence[EpisodeSink] = ()) -> PruningEnv:
        """The environment of the config on a task."""
        return PruningEnv(task, **build_parts(self.config), sinks=sinks)


def compose_config(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The config of the main job with these overrides, also as plain data."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train_agent", list(overrides))
    return config, as_plain(config, overrides)


def as_plain(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """A config as plain data; of network and data only the keys that belong to their functions."""
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    for section in ("network", "data"):
        plain[section] = own_options(section, plain[section], overrides)
    return plain


def new_agent(config: DictConfig, env: PruningEnv, **changes: Any) -> Any:
    """The agent of a config in an environment.

    Args:
        config: the config of the main job.
        env: where the agent decides.
        changes: arguments of the agent that differ from the config, such as `seed`.

    Raises:
        ValueError: agent and environment do not fit.
    """
    make_agent = instantiate(config.agent, _partial_=True, _convert_="all")
    check_agent(make_agent.func, env)
    return make_agent(env=env, **changes)


def unscaled(overrides: Sequence[str]) -> list[str]:
    """Overrides with a band that plans may miss, unless they choose a budget themselves.

    What is assigned is then what was asked for: a list of all plans, or a state to look at.

    Args:
        overrides: of the config of the main job, whose budget is a band.
    """
    chooses = any(override.startswith(("budget=", "env=", "preset=")) for override in overrides)
    return list(overrides) if chooses else ["budget.project=false", *overrides]
