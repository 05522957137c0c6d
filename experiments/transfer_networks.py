"""The networks of a transfer study: what a policy learns on, and the one it never saw."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from experiments.command_line import closest, explain
from experiments.comparison_rows import Row
from experiments.composed_task import ComposedTask, as_plain


def read_sources(entries: Any, networks: Mapping[str, Sequence[str]]) -> tuple[Row, ...]:
    """The networks that `transfer.sources` names.

    Args:
        entries: names in `networks`, texts "label: override override", or mappings from a label
            to its overrides.
        networks: overrides of the known networks, by label.

    Raises:
        ValueError: a name is unknown, there is none, or two share a folder.
    """
    rows = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, Mapping):
            rows += [Row(str(label), tuple(overrides)) for label, overrides in entry.items()]
            continue
        label, colon, text = str(entry).partition(":")
        if not colon and label not in networks:
            raise ValueError(
                f"transfer.sources names no network {label!r}.{closest(label, list(networks))} The "
                f"choices are: {', '.join(networks)}; or one of your own: "
                "'label: network=NAME key=value'."
            )
        rows.append(Row(label.strip(), tuple(shlex.split(text) if colon else networks[label])))
    folders = [row.folder for row in rows]
    if not rows or not all(row.overrides for row in rows) or len(set(folders)) < len(folders):
        raise ValueError(
            f"transfer.sources must name one network or more, each once, got {entries!r}."
        )
    return tuple(rows)


def compose_source(row: Row, common: Sequence[str]) -> ComposedTask:
    """The network of a source, loaded or trained; needs an initialised Hydra.

    Overrides of the command line hold for it too, but those of the target's network and of how
    that is trained; and those of `data` where its data are the same kind.

    Args:
        row: label and overrides of the source.
        common: overrides of the command line.

    Raises:
        ValueError: a value of the config is wrong.
    """
    own = {_key(text) for text in row.overrides}
    kept = [
        text
        for text in common
        if _key(text).partition(".")[0] not in ("network", "pretrain", "transfer")
        and _key(text) not in own
    ]
    without_data = [text for text in kept if _key(text).partition(".")[0] != "data"]
    try:
        overrides = [*without_data, *row.overrides]
        config = compose("transfer", overrides)
        if config.data._target_ == compose("transfer", list(common)).data._target_:
            overrides = [*kept, *row.overrides]
            config = compose("transfer", overrides)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise ValueError(f"Source {row.label!r} of transfer.sources: {message}") from error
    return open_task(config, overrides)


def open_task(config: DictConfig, overrides: Sequence[str]) -> ComposedTask:
    """The network of a config of this study, loaded or trained.

    Args:
        config: the composed config, without Hydra's own section.
        overrides: those it was composed with.
    """
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "transfer"])
    return ComposedTask.from_config(job, as_plain(job, overrides))


def check_unseen(target: ComposedTask, sources: Mapping[str, ComposedTask]) -> None:
    """Refuse a source that is the target itself.

    Raises:
        ValueError: a source has the same graph and the same weights.
    """
    fingerprint = target.new_task().graph.fingerprint
    weights = target.network.state_dict()
    for label, source in sources.items():
        theirs = source.network.state_dict()
        if (
            source.new_task().graph.fingerprint == fingerprint
            and theirs.keys() == weights.keys()
            and all(torch.equal(theirs[name], value) for name, value in weights.items())
        ):
            raise ValueError(
                f"The source {label!r} is the target itself, which transfer must not have seen. "
                "Change transfer.sources or network."
            )


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]
