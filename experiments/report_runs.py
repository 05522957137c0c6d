"""Runs as the report page sees them: found below a folder, each with a label."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.comparison_results import (
    METRICS,
    Comparison,
    RunResult,
)
from experiments.comparison_rows import BOOKKEEPING
from experiments.run_folder import RunFolder, flatten
from experiments.study_overrides import last_of_each, overrides_file, study_overrides

SEARCHED_BY = ("agent", "encoder")
DECIDED_IN = ("env", "budget", "reward", "patterns", "encoder", "agent")
"""Sections of the config that a choice of agent or of environment changes as a whole."""


@dataclass(frozen=True)
class ReportRun:
    """A finished run.

    Attributes:
        folder: the run folder.
        label: what sets it apart from the others; runs that differ in the seed alone share it.
        summary: its `summary.json`.
        config: its resolved config.
        overrides: what was given on its command line, as far as that is known.
    """

    folder: Path
    label: str
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    overrides: tuple[str, ...]

    @property
    def result(self) -> RunResult:
        """Its numbers, as a comparison holds them."""
        summary, pruned = self.summary, self.summary["pruned"]
        return RunResult(
            label=self.label,
            budget=float(summary["budget"]["relative_macs"]),
            seed=summary["seed"],
            folder=str(self.folder),
            evaluations=summary["evaluations"],
            search_seconds=summary["search_seconds"],
            relative_macs=pruned["macs"] / summary["base"]["macs"],
            within_budget=summary["budget"]["met"],
            **{metric: pruned.get(metric) for metric in METRICS},
        )


def find_runs(folder: Path) -> tuple[ReportRun, ...]:
    """The finished runs in a folder: itself, those of a sweep, or those of a comparison.

    Raises:
        ValueError: there is no finished run.
    """
    found = sorted({path.parent for path in (folder, *_below(folder)) if path.name}, key=_order)
    runs = tuple(
        open_run(path, RunFolder(path).read_summary()) for path in found if _is_finished(path)
    )
    if not runs:
        raise ValueError(
            f"{folder} holds no finished run. Give the folder of a run, of a multirun sweep or of "
            "a comparison; a run is finished when it holds a summary.json."
        )
    comparison = folder / "comparison.json"
    if comparison.is_file():
        return _labelled_by_comparison(runs, comparison)
    return _labelled_by_difference(runs)


def open_run(folder: Path, summary: Mapping[str, Any]) -> ReportRun:
    """A run by itself, called by its agent and environment.

    Args:
        folder: the run folder.
        summary: its summary, perhaps not written yet.
    """
    overrides: tuple[str, ...] = ()
    if overrides_file(folder).is_file():
        from omegaconf import OmegaConf

        overrides = tuple(str(text) for text in OmegaConf.load(overrides_file(folder)))
    return ReportRun(
        folder=folder,
        label=f"{summary['agent']} ({summary['env']})",
        summary=summary,
        config=RunFolder(folder).read_config(),
        overrides=overrides,
    )


def as_comparison(runs: Sequence[ReportRun]) -> Comparison:
    """The runs as a comparison, for its statistics."""
    first = runs[0].summary
    about = {
        "network": first["network"],
        "data": first["data"],
        "evaluations": max(run.summary["evaluations"] for run in runs),
        "base": first["base"],
        "rows": dict.fromkeys(run.label for run in runs),
    }
    return Comparison(about, tuple(run.result for run in runs), ())


def _below(folder: Path) -> list[Path]:
    return [folder / "summary.json", *folder.rglob("summary.json")]


def _is_finished(folder: Path) -> bool:
    run = RunFolder(folder)
    return run.summary.is_file() and run.config.is_file() and run.metrics.is_file()


def _order(folder: Path) -> tuple[Any, ...]:
    """Folders as a person orders them: 2_ppo before 10_ppo."""
    return tuple(
        (int(head), part) if head.isdigit() else (-1, part)
        for part in folder.parts
        for head in [part.partition("_")[0]]
    )


def _labelled_by_comparison(runs: Sequence[ReportRun], file: Path) -> tuple[ReportRun, ...]:
    data = json.loads(file.read_text(encoding="utf-8"))
    rows = {(file.parent / run["folder"]).resolve(): run["label"] for run in data["runs"]}
    order = list(data["rows"])
    labelled = [
        replace(
            run,
            label=rows[run.folder.resolve()],
            overrides=run.overrides or _as_far_as_known(data, rows[run.folder.resolve()], run),
        )
        for run in runs
        if run.folder.resolve() in rows
    ]  # fmt: skip
    return tuple(sorted(labelled, key=lambda run: (order.index(run.label), run.summary["seed"])))


def _as_far_as_known(data: Mapping[str, Any], label: str, run: ReportRun) -> tuple[str, ...]:
    """Overrides of a run that kept none; a comparison names no folder or file of a machine."""
    given = [*data["overrides"], *data["rows"][label], f"seed={run.summary['seed']}"]
    budget = f"budget.relative_macs={run.summary['budget']['relative_macs']}"
    return last_of_each([*study_overrides("compare_policies"), budget, *given])


def _labelled_by_difference(runs: Sequence[ReportRun]) -> tuple[ReportRun, ...]:
    """Name every run of a sweep by the settings in which the runs differ, the seed left out."""
    agents = {run.summary["agent"] for run in runs}
    envs = {run.summary["env"] for run in runs}
    skipped = {"seed", *BOOKKEEPING}
    skipped |= set(SEARCHED_BY) if len(agents) > 1 else set()
    skipped |= set(DECIDED_IN) if len(envs) > 1 else set()
    leaves = [
        {
            key: value
            for key, value in flatten(run.config, ".").items()
            if key.split(".")[0] not in skipped and not key.endswith("seed")
        }
        for run in runs
    ]
    keys = [
        key
        for key in dict.fromkeys(key for leaf in leaves for key in leaf)
        if len({repr(leaf.get(key)) for leaf in leaves}) > 1
    ]
    chosen = _choices(runs) if len(agents) == len(envs) == 1 else None
    if chosen is not None:
        settings = [tuple(repr(leaf.get(key)) for key in keys) for leaf in leaves]
        if len(set(chosen)) == len(set(settings)) == len(set(zip(chosen, settings, strict=True))):
            # what was asked for explains all that differs; "encoder gin" says more than its class
            return tuple(replace(run, label=name) for run, name in zip(runs, chosen, strict=True))
    labelled = []
    for run, leaf in zip(runs, leaves, strict=True):
        names = [run.summary["agent"]] if len(agents) > 1 or not keys else []
        names += [f"({run.summary['env']})"] if len(envs) > 1 or not keys else []
        names += [f"{key.split('.')[-1]} {leaf.get(key, '–')}" for key in keys]
        labelled.append(replace(run, label=" ".join(names)))
    return tuple(labelled)


def _choices(runs: Sequence[ReportRun]) -> list[str] | None:
    """What each run was asked for that others were not, the seed left out; None when unknown."""
    asked = [dict(text.lstrip("+~").partition("=")[::2] for text in run.overrides) for run in runs]
    keys = [
        key
        for key in asked[0]
        if key != "seed" and key.split(".")[0] not in BOOKKEEPING
        if len({of_run.get(key) for of_run in asked}) > 1
    ]
    if not keys or any(key not in of_run for of_run in asked for key in keys):
        return None
    return [" ".join(f"{key.split('.')[-1]} {of_run[key]}" for key in keys) for of_run in asked]
