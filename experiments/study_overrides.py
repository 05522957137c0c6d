"""What a study's config changes of the main job, as overrides of train_agent.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.command_line import CONFIG_FOLDER
from experiments.run_folder import flatten, write_text

NOT_OF_A_RUN = ("defaults", "hydra", "compare", "resume", "measurements_dir")
"""Root keys of a study's config that say nothing about a single run of it."""

KEYWORDS = ("null", "true", "false", "nan", "inf")
"""Words that Hydra does not read as texts."""


def study_overrides(config_name: str) -> tuple[str, ...]:
    """The overrides of train_agent.py that give what a study's config gives.

    Args:
        config_name: of a file in conf/ that builds on train_agent.yaml, such as "compare_policies".
    """
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / f"{config_name}.yaml"))
    overrides: list[str] = []
    for entry in config["defaults"]:
        if isinstance(entry, str):
            inherits = entry not in ("_self_", "train_agent")
            overrides += study_overrides(entry) if inherits else ()
            continue
        ((key, choice),) = entry.items()
        group = key.removeprefix("override ")
        if group != key and group not in NOT_OF_A_RUN:
            overrides.append(f"{group}={choice}")
    own = {key: value for key, value in config.items() if key not in NOT_OF_A_RUN}
    overrides += [f"{key}={as_override(value)}" for key, value in flatten(own, ".").items()]
    return last_of_each(overrides)


def last_of_each(overrides: Iterable[str]) -> tuple[str, ...]:
    """Overrides without those that a later one of the same key makes void."""
    latest: dict[str, str] = {}
    for text in overrides:
        key = override_key(text)
        latest.pop(key, None)
        latest[key] = text
    return tuple(latest.values())


def override_key(override: str) -> str:
    """The key of an override, without what it does to it."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def as_override(value: Any) -> str:
    """A value in the grammar of Hydra's overrides, where texts are quoted and keys are not."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_override(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_override, value)) + "]"
    if isinstance(value, str) and value.isidentifier() and value.lower() not in KEYWORDS:
        return value
    return json.dumps(value)


def overrides_file(folder: Path) -> Path:
    """Where Hydra keeps the overrides of a run."""
    return folder / ".hydra" / "overrides.yaml"


def write_overrides(folder: Path, overrides: Iterable[str]) -> None:
    """Keep the overrides of a run that Hydra has not started itself."""
    file = overrides_file(folder)
    file.parent.mkdir(exist_ok=True)
    write_text(file, OmegaConf.to_yaml(OmegaConf.create(list(overrides))))
