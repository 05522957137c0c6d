"""One page about the stages of iterative pruning, in units of the unpruned network."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report_charts import (
    LEFT,
    RIGHT,
    WIDTH,
    Chart,
    Line,
    Mark,
    Scale,
    Tick,
    nice_ticks,
    percent,
    percent_ticks,
    style_of,
    y_scale,
)
from experiments.report_commands import evaluation_command
from experiments.report_curves import search_curves
from experiments.report_rendering import render, shown
from experiments.report_runs import ReportRun, open_run
from experiments.report_structure import read_structure
from experiments.run_folder import RunFolder

RESULT = "iterative.json"
"""What all stages together came to; `experiments.iterative` writes it last."""


def holds_stages(folder: Path) -> bool:
    """Whether a folder is one of `experiments.iterative`, with all its stages."""
    return (folder / RESULT).is_file()


def write_stages_page(folder: Path, path: Path) -> None:
    """Write the page about all stages.

    Args:
        folder: of `experiments.iterative`.
        path: HTML file to write.
    """
    render("stages.html.jinja", stages_page(folder), path)


def stages_page(folder: Path) -> dict[str, Any]:
    """All that the template shows.

    Args:
        folder: of `experiments.iterative`.
    """
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    stages = result["stages"]
    runs = [_open(folder / stage["folder"], f"stage {stage['stage']}") for stage in stages]
    styles = style_of([run.label for run in runs])
    count = f"{len(stages)} stage{'s' if len(stages) > 1 else ''}"
    return {
        "title": f"{result['network']} on {result['data']}",
        "subtitle": f"Pruned in {count} by {result['agent']} in {result['env']}",
        "base": result["base"] | {"latency_ms": runs[0].summary["base"]["latency_ms"]},
        "stages": stages,
        "last": stages[-1],
        "last_run": runs[-1],
        "epochs": result["fine_tune_epochs"],
        "styles": styles,
        "accuracy": accuracy_over_macs(result),
        "curves": search_curves(runs, styles),
        "structure": read_structure({"all stages": folder}, RunFolder(runs[0].folder).graph),
        "structure_styles": {"all stages": "s0"},
        "tests": [(run.label, evaluation_command(run)) for run in runs],
        "again": _again(result.get("overrides", [])),
        "file": repr(f"{shown(folder)}/pruned.safetensors"),
    }


def accuracy_over_macs(result: Mapping[str, Any]) -> Chart:
    """Test accuracy of every stage over its MACs: before and after fine-tuning, and uniform.

    Args:
        result: what `iterative.json` holds.
    """
    base, stages = (1.0, result["base"]["test_accuracy"]), result["stages"]
    before = [(stage["relative_macs"], stage["test_accuracy"]) for stage in stages]
    after = _measured(stages, "test_accuracy_finetuned")
    uniform = _measured(stages, "uniform_test_accuracy_finetuned")
    rows = [
        ("before fine-tuning", before, "s1", "ring"),
        ("fine-tuned", after, "s0", "dot"),
        ("uniform, fine-tuned", uniform, "uniform", "diamond"),
    ]
    every = np.array([value for _, points, *_ in rows for _, value in points] + [base[1]])
    x, y = Scale(0, 1.02, LEFT, WIDTH - RIGHT), y_scale(every)
    marks = [Mark(x(1.0), y(base[1]), "base", f"unpruned: {percent(base[1], 2)}", "square")]
    lines = []
    for name, points, style, shape in rows:
        if not points:
            continue
        # Uniform prunes what the stage before has left, so it is no line of its own.
        if name != "uniform, fine-tuned":
            path = " L".join(f"{x(macs)},{y(value)}" for macs, value in [base, *points])
            lines.append(Line(f"M{path}", style))
        for macs, value in points:
            text = f"{name}, {percent(macs, 1)} of the MACs: {percent(value, 2)}"
            marks.append(Mark(x(macs), y(value), style, text, shape))
    return Chart(
        title="Test accuracy of every stage over its relative MACs",
        x_label="relative MACs (left / unpruned)",
        y_label="test accuracy",
        x_ticks=tuple(Tick(x(value), percent(value)) for value in nice_ticks(0, 1)),
        y_ticks=percent_ticks(y),
        lines=tuple(lines),
        marks=tuple(marks),
    )


def _measured(stages: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["relative_macs"], row[key]) for row in stages if row[key] is not None]


def _open(folder: Path, label: str) -> ReportRun:
    return replace(open_run(folder, RunFolder(folder).read_summary()), label=label)


def _again(overrides: Sequence[str]) -> str:
    words = " ".join(shlex.quote(text) for text in overrides)
    return f"python -m experiments.iterative {words}" if overrides else ""
