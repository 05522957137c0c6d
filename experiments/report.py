"""One page about a run, a sweep or a comparison: python -m experiments.report RUN_OR_SWEEP_DIR.

The stages of `experiments.iterative` have one page, too. A page is one file without scripts and
without anything from elsewhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.command_line import run_command
from experiments.comparison_results import RIVALS, Comparison, statistics
from experiments.comparison_table import estimate_cell
from experiments.report_charts import (
    fine_tuning,
    pareto,
    shown_metric,
    style_of,
)
from experiments.report_commands import evaluation_command, search_command
from experiments.report_curves import search_curves
from experiments.report_reasoning import read_reasoning
from experiments.report_rendering import render, shown
from experiments.report_runs import ReportRun, as_comparison, find_runs
from experiments.report_stages import holds_stages, write_stages_page
from experiments.report_structure import read_structure
from experiments.sweep_results import draw_tradeoff, spread_lines, write_csv


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page.

    Args:
        arguments: of the command line; those of the process by default.

    Raises:
        ValueError: there is no finished run, or the runs are of several networks.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Write report.html: one page about a run, a multirun sweep, a comparison, or "
        "the stages of experiments.iterative.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN_OR_SWEEP_DIR")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of report.html there")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE",
        help="also write a line per run, and print mean and standard deviation over the seeds",
    )  # fmt: skip
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw accuracy over MACs as a PNG"
    )
    options = parser.parse_args(arguments)
    path = options.output or options.folder / "report.html"
    if holds_stages(options.folder):
        if options.csv is not None or options.picture is not None:
            raise ValueError(
                f"{options.folder} holds the stages of one pruning, which are of several networks; "
                "--csv and --picture are for runs of one. Leave them out."
            )
        write_stages_page(options.folder, path)
        print(path)
        return 0
    runs = find_runs(options.folder)
    write_page(runs, path)
    print(path)
    if options.csv is not None:
        write_csv(runs, options.csv)
        print(options.csv, "", *spread_lines(runs), sep="\n")
    if options.picture is not None:
        draw_tradeoff(runs, options.picture)
        print(options.picture)
    return 0


def write_page(runs: Sequence[ReportRun], path: Path) -> None:
    """Write the page about some runs.

    Args:
        runs: finished runs of one network.
        path: HTML file to write.

    Raises:
        ValueError: the runs are of several networks.
    """
    networks = {(run.summary["network"], run.summary["base"]["macs"]) for run in runs}
    if len(networks) > 1:
        names = ", ".join(sorted(str(name) for name, _ in networks))
        raise ValueError(
            f"The runs are of several networks ({names}); a page is about one. Give the folder of "
            "the runs of one of them."
        )
    render("report.html.jinja", page(runs), path)


def page(runs: Sequence[ReportRun]) -> dict[str, Any]:
    """All that the template shows.

    Args:
        runs: finished runs of one network.
    """
    comparison = as_comparison(runs)
    labels = comparison.labels
    _, metric_name = shown_metric(runs)
    # chosen as a search chooses: by the test split it would be the luckiest, not the best
    best = max(runs, key=lambda run: run.summary["pruned"]["reward_accuracy"])
    best_of = {
        label: max(
            (run for run in runs if run.label == label),
            key=lambda run: run.summary["pruned"]["reward_accuracy"],
        )
        for label in labels
    }
    first, styles = runs[0].summary, style_of(labels)
    rivals = [rival for rival in RIVALS if len(labels) > 1 and rival in labels]
    return {
        "title": f"{first['network']} on {first['data']}",
        "subtitle": _subtitle(runs, labels),
        "base": first["base"],
        "best": best,
        "metric_name": metric_name,
        "seconds": sum(run.summary["search_seconds"] for run in runs),
        "evaluations": sum(run.summary["evaluations"] for run in runs),
        "styles": styles,
        "tables": [
            {
                "budget": budget,
                "rivals": rivals,
                "rows": _table(comparison, budget, rivals),
            }
            for budget in comparison.budgets
        ],
        "curves": [
            (budget, search_curves([run for run in runs if run.result.budget == budget], styles))
            for budget in comparison.budgets
        ],
        "tuned": [
            (budget, chart)
            for budget in comparison.budgets
            if (chart := fine_tuning(comparison, budget)) is not None
        ],
        "pareto": pareto(runs),
        "structure": read_structure({label: run.folder for label, run in best_of.items()}),
        "reasoning": read_reasoning(runs),
        "runs": [{"run": run, **_replay(run)} for run in runs],
        "is_single": len(runs) == 1,
        "kept_by": "" if len(runs) == 1 else " in the plan of the best seed on the reward split",
    }


def _subtitle(runs: Sequence[ReportRun], labels: Sequence[str]) -> str:
    if len(runs) == 1:
        run = runs[0]
        return (
            f"Pruned by {run.summary['agent']} in {run.summary['env']}, seed {run.summary['seed']}"
        )
    seeds = len({run.summary["seed"] for run in runs})
    return (
        f"{len(labels)} polic{'y' if len(labels) == 1 else 'ies'} or settings, {seeds} "
        f"seed{'' if seeds == 1 else 's'}, {len(runs)} runs"
    )


def _table(comparison: Comparison, budget: float, rivals: Sequence[str]) -> list[dict[str, Any]]:
    found = {
        (row["label"], row["metric"]): row
        for row in statistics(comparison)
        if row["budget"] == budget
    }
    rows = []
    for label in comparison.labels:
        if (label, "test_accuracy") not in found:
            continue

        def mean(metric: str, label: str = label) -> float:
            return float(comparison.values(metric, label, budget).mean())

        rows.append(
            {
                "label": label,
                "seeds": found[label, "test_accuracy"]["seeds"],
                "cells": [
                    _cell(found.get((label, metric)), metric)
                    for metric in ("reward_accuracy", "test_accuracy", "test_accuracy_finetuned")
                ],
                "relative_macs": mean("relative_macs"),
                "within": bool(comparison.values("within_budget", label, budget).all()),
                "evaluations": mean("evaluations"),
                "seconds": mean("search_seconds"),
                "over": [found[label, "test_accuracy"].get(f"over_{rival}") for rival in rivals],
            }
        )
    return rows


def _cell(row: Mapping[str, Any] | None, metric: str) -> tuple[str, str]:
    """A value and its interval."""
    if row is None:
        return "–", ""
    value, _, interval = estimate_cell(dict(row), metric).partition("\n")
    return value, interval


def _replay(run: ReportRun) -> dict[str, str]:
    """Commands that repeat a run and test its network again, and where its plan lies."""
    return {
        "test": evaluation_command(run),
        "again": search_command(run),
        "plan": repr(f"{shown(run.folder)}/plan.json"),
        "graph": repr(f"{shown(run.folder)}/graph.json"),
    }


if __name__ == "__main__":
    run_command(main)
