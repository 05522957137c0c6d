"""Rows of a comparison: from the config to one job per policy, budget and seed, all fair."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from experiments.command_line import CONFIG_FOLDER, closest, explain
from experiments.identity import RunIdentity
from experiments.study_overrides import last_of_each, override_key, study_overrides

SHARED = (
    "network", "data", "pretrain", "fine_tune", "importance", "reconstruction", "evaluation",
    "search", "frozen", "attention", "round_to", "num_threads",
)  # fmt: skip
"""What all rows have in common: only then does a difference come from the policy."""

CHOSEN_BY_AGENT = {"importances": "importance", "proposes_fine_tune": "fine_tune"}
"""Keys of an agent that let it choose what else is in common, and the section of that."""

BOOKKEEPING = (
    "progress_bar", "cache_dir", "measurements_dir", "fine_tune_uniform", "debug", "logger",
    "resume", "export",
)  # fmt: skip
"""What changes no number of a run's own network."""


@dataclass(frozen=True)
class Row:
    """One policy of the comparison.

    Attributes:
        label: its name in table and figures.
        overrides: what it overrides of the common config.
    """

    label: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^A-Za-z0-9_.+-]+", "-", self.label).strip("-.") or "row"


@dataclass(frozen=True)
class Job:
    """One run: a row at one budget with one seed.

    Attributes:
        row: its row.
        budget: relative MACs allowed.
        seed: seed of the run.
        folder: the run folder.
        config: the composed config, as YAML with its interpolations.
        identity: how the run is called.
        overrides: of train_agent.py, that give the same run.
    """

    row: Row
    budget: float
    seed: int
    folder: Path
    config: str
    identity: RunIdentity
    overrides: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """One line for the log."""
        return f"{self.row.label}, {self.budget:g} of the MACs, seed {self.seed}"

    def open_config(self) -> DictConfig:
        """The config, ready to be run."""
        config = OmegaConf.create(self.config)
        assert isinstance(config, DictConfig)
        return config


def read_rows(entries: Sequence[Any], policies: Mapping[str, Sequence[str]]) -> tuple[Row, ...]:
    """The rows that `compare.agents` names.

    Args:
        entries: names of policies or agents, texts "label: override override", or mappings from
            a label to its overrides.
        policies: overrides of the known policies, by label.

    Raises:
        ValueError: a name is unknown, a row overrides nothing, or two rows have one folder.
    """
    rows = []
    for entry in entries:
        if isinstance(entry, Mapping):
            rows += [Row(str(label), tuple(overrides)) for label, overrides in entry.items()]
        else:
            rows.append(_read_row(str(entry), policies))
    if not rows:
        raise ValueError("compare.agents names no row. Give some: 'compare.agents=[uniform,ppo]'.")
    known: dict[str, str] = {}
    for row in rows:
        other = known.setdefault(row.folder, row.label)
        if other != row.label or [r.label for r in rows].count(row.label) > 1:
            raise ValueError(
                f"Two rows of compare.agents would share the folder {row.folder!r}: {other!r} and "
                f"{row.label!r}. Give them labels that differ in letters or digits."
            )
    return tuple(rows)


def _read_row(entry: str, policies: Mapping[str, Sequence[str]]) -> Row:
    label, colon, text = entry.partition(":")
    if colon:
        overrides = tuple(shlex.split(text))
        if not label.strip() or not overrides:
            raise ValueError(
                f"A row of compare.agents is 'label: agent=NAME key=value ...', got {entry!r}."
            )
        return Row(label.strip(), overrides)
    if entry in policies:
        return Row(entry, tuple(policies[entry]))
    agents = sorted(path.stem for path in (CONFIG_FOLDER / "agent").glob("*.yaml"))
    if entry in agents:
        return Row(entry, (f"agent={entry}",))
    choices = sorted({*policies, *agents})
    raise ValueError(
        f"compare.agents names no policy {entry!r}.{closest(entry, choices)} The choices are: "
        f"{', '.join(choices)}; or a row of your own: 'label: agent=ppo env=autosculpt'."
    )


def make_jobs(
    rows: Sequence[Row],
    compare: Mapping[str, Any],
    common: Sequence[str],
    folder: Path,
    config_name: str = "compare_policies",
) -> tuple[Job, ...]:
    """Compose the config of every run, and refuse what would make the comparison unfair.

    Needs an initialised Hydra, as there is inside a Hydra job.

    Args:
        rows: the policies.
        compare: the section `compare` as plain data.
        common: the overrides of the command line, those of `compare` left out.
        folder: folder of the comparison.
        config_name: the config that everything overrides.

    Returns:
        The jobs; all rows of one seed come before the next seed, so that a comparison that is
        killed has compared something.

    Raises:
        ValueError: seeds or budgets are not what they must be, or rows differ in more than policy.
    """
    seeds = _seeds(compare["seeds"])
    budgets: Sequence[float | None] = _budgets(compare["budgets"]) or [None]
    axes = _study_axes(compare["study_axes"])
    jobs = []
    for seed in seeds:
        for budget in budgets:
            fixed = [f"seed={seed}"]
            fixed += [] if budget is None else [f"budget.relative_macs={budget}"]
            jobs += [_make_job(row, common, fixed, folder, config_name) for row in rows]
    check_fairness([(job.row.label, job.budget, _plain(job.open_config())) for job in jobs], axes)
    return tuple(jobs)


def _make_job(
    row: Row, common: Sequence[str], fixed: Sequence[str], folder: Path, config_name: str
) -> Job:
    for reserved in ("seed", "budget.relative_macs", "search.evaluations", "compare"):
        if any(override_key(override) == reserved for override in row.overrides):
            raise ValueError(
                f"Row {row.label!r} overrides {reserved}, which is the same for all rows: "
                "set it outside compare.agents."
            )
    own = {override_key(override) for override in row.overrides}
    overrides = [text for text in (*common, *fixed) if override_key(text) not in own] + list(
        row.overrides
    )
    try:
        composed = compose(config_name, overrides=overrides, return_hydra_config=True)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise ValueError(f"Row {row.label!r} of compare.agents: {message}") from error
    choices = composed.hydra.runtime.choices
    names = {}
    for section in ("network", "data", "agent", "env"):
        is_own = any(override_key(text) == f"{section}._target_" for text in overrides)
        names[section] = str(composed[section]["_target_"] if is_own else choices[section])
    config = OmegaConf.masked_copy(
        composed, [str(key) for key in composed if key not in ("hydra", "compare")]
    )
    if config.measurements_dir is None:  # base and uniform network are the same in many runs
        config.measurements_dir = str(folder / "measurements")
    budget = OmegaConf.select(config, "budget.relative_macs")
    if budget is None:
        raise ValueError(
            f"Row {row.label!r} has no budget, so it cannot be compared at equal MACs. "
            "Choose budget=wall, band or project."
        )
    seed = int(config.seed)
    return Job(
        row=row,
        budget=float(budget),
        seed=seed,
        folder=folder / f"relative_macs_{float(budget):g}" / row.folder / f"seed_{seed}",
        config=OmegaConf.to_yaml(config),
        identity=RunIdentity(
            **names, overrides=tuple(overrides), sweep=f"{config_name}_{folder.name}"
        ),
        overrides=last_of_each([*study_overrides(config_name), *overrides]),
    )


def check_fairness(
    configs: Sequence[tuple[str, float, Mapping[str, Any]]], study_axes: Sequence[str]
) -> None:
    """Refuse rows that differ in more than their policy.

    Args:
        configs: label, budget and plain config of each run.
        study_axes: sections that may differ.

    Raises:
        ValueError: rows differ where they must not.
    """
    first_label, _, first = configs[0]
    for label, _, config in configs[1:]:
        for section in SHARED:
            if section in study_axes:
                continue
            ours = dict(_flat(config.get(section), section, config["seed"]))
            theirs = dict(_flat(first.get(section), section, first["seed"]))
            for key in sorted({*ours, *theirs}):
                if ours.get(key) != theirs.get(key):
                    raise ValueError(
                        f"Rows {first_label!r} and {label!r} differ in {key}: {theirs.get(key)!r} "
                        f"and {ours.get(key)!r}. Only the policy may differ (agent, env, encoder, "
                        f"reward, patterns, kind of budget). Set {key} for all rows, or say that "
                        f"it is what you study: 'compare.study_axes=[{section}]'."
                    )
        for key, default in (("cost", "macs"),):
            pair = (first["budget"].get(key, default), config["budget"].get(key, default))
            if pair[0] != pair[1]:
                raise ValueError(
                    f"Rows {first_label!r} and {label!r} count their budget in {pair[0]} and "
                    f"{pair[1]}. Set budget.cost alike."
                )
    for label, _, config in configs if len(configs) > 1 else ():
        for key, section in CHOSEN_BY_AGENT.items():
            if config["agent"].get(key) and section not in study_axes:
                raise ValueError(
                    f"Row {label!r} lets its agent choose {section}, which all rows have in "
                    f"common. Leave out agent.{key}, or say that it is what you study: "
                    f"'compare.study_axes=[{section}]'."
                )


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Keys in which a finished run differs from the one that is wanted, bookkeeping left out.

    Args:
        wanted: plain config of the job.
        found: plain config of the run.
    """
    ours, theirs = dict(_flat(wanted, "")), dict(_flat(found, ""))
    return [
        key
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and key.split(".")[0] not in BOOKKEEPING
    ]


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _flat(value: Any, prefix: str, seed: int | None = None) -> list[tuple[str, Any]]:
    """Leaves of nested data with dotted keys; a number that is the run's seed becomes a mark."""
    if isinstance(value, Mapping) and value:
        return [
            leaf
            for key, inner in value.items()
            for leaf in _flat(inner, f"{prefix}.{key}" if prefix else str(key), seed)
        ]
    if seed is not None and prefix.endswith(".seed") and prefix.startswith("fine_tune"):
        value = "the seed of the run" if value == seed else value
    return [(prefix, value)]


def _seeds(seeds: Any) -> list[int]:
    is_list = isinstance(seeds, list) and len(seeds) > 0
    if not is_list or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"compare.seeds must be whole numbers, such as [0,1,2], got {seeds!r}.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"compare.seeds names a seed twice: {seeds!r}.")
    return list(seeds)


def _budgets(budgets: Any) -> list[float]:
    if budgets is None:
        return []
    is_list = isinstance(budgets, list) and len(budgets) > 0
    if not is_list or not all(
        isinstance(budget, int | float) and not isinstance(budget, bool) and 0 < budget <= 1
        for budget in budgets
    ):
        raise ValueError(
            "compare.budgets must be null or relative MACs in (0, 1], such as [0.3,0.5], "
            f"got {budgets!r}."
        )
    return [float(budget) for budget in budgets]


def _study_axes(axes: Any) -> list[str]:
    if not isinstance(axes, list) or not set(axes) <= set(SHARED):
        raise ValueError(
            f"compare.study_axes must be a list of sections among {', '.join(SHARED)}, "
            f"got {axes!r}."
        )
    return list(axes)
