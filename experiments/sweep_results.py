"""What the runs of a sweep found, to commit: a small CSV and a picture of the trade-off."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.comparison_figures import line_styles
from experiments.report_charts import METRIC_NAMES, front, shown_metric
from experiments.report_runs import ReportRun
from experiments.run_folder import write_text

SPREAD = ("relative_macs", "best_reward", "reward_accuracy", "test_accuracy")
"""What the label's mean and standard deviation are written of."""

COLUMNS = (
    "label", "seed", "evaluations", "best_reward", "relative_macs", "reward_accuracy",
    "reward_loss", "test_accuracy", "test_accuracy_finetuned", "uniform_reward_accuracy",
    "uniform_test_accuracy",
)  # fmt: skip


def write_csv(runs: Sequence[ReportRun], path: Path) -> None:
    """A line per run; numbers of the kept plan, and of the uniform one with equal MACs.

    Args:
        runs: finished runs of one network.
        path: CSV file to write.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        row = _row(run)
        writer.writerow({name: _text(row[name]) for name in COLUMNS})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, file.getvalue())


def spread_lines(runs: Sequence[ReportRun]) -> list[str]:
    """Mean and sample standard deviation over the seeds of every label, as a Markdown table."""
    import statistics

    lines = ["| | seeds | " + " | ".join(SPREAD) + " |", "|---|" + "---:|" * (len(SPREAD) + 1)]
    for label in dict.fromkeys(run.label for run in runs):
        rows = [_row(run) for run in runs if run.label == label]
        cells = []
        for name in SPREAD:
            values = [float(row[name]) for row in rows]
            deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{deviation}")
        lines.append(f"| {label} | {len(rows)} | " + " | ".join(cells) + " |")
    return lines


def draw_tradeoff(runs: Sequence[ReportRun], path: Path) -> None:
    """Accuracy of every kept plan over its MACs, the front, and uniform plans of equal MACs.

    Args:
        runs: finished runs of one network.
        path: PNG file to write.
    """
    from experiments.figures import MUTED, open_figure, percent_ticks

    metric, _ = shown_metric(runs)
    base = runs[0].summary["base"]
    points = {
        label: [
            (_relative_macs(run, "pruned"), run.summary["pruned"][metric])
            for run in runs
            if run.label == label
        ]
        for label in dict.fromkeys(run.label for run in runs)
    }
    colours = line_styles(tuple(points))
    with open_figure(path, rows=1, columns=1, size=(7.6, 4.6)) as (figure, ((axes,),)):
        best = front([point for of_label in points.values() for point in of_label])
        axes.step(
            *zip(*best, strict=True), where="post", color=MUTED, linewidth=1.4, zorder=1,
            label="front",
        )  # fmt: skip
        uniform = [run for run in runs if run.summary["uniform"][metric] is not None]
        if uniform:
            axes.scatter(
                [_relative_macs(run, "uniform") for run in uniform],
                [run.summary["uniform"][metric] for run in uniform],
                marker="D", s=26, facecolors="none", edgecolors=MUTED, label="uniform, equal MACs",
            )  # fmt: skip
        for label, of_label in points.items():
            axes.scatter(
                [macs for macs, _ in of_label],
                [accuracy for _, accuracy in of_label],
                s=46, color=colours[label][0], zorder=3, edgecolors="white", linewidths=0.8,
                label=label,
            )  # fmt: skip
        unpruned = base[metric.removesuffix("_finetuned")]
        axes.scatter(
            [1.0], [unpruned], marker="s", s=46, color="#222222", zorder=3, label="unpruned"
        )
        axes.set_xlim(0, 1.03)
        axes.set_xlabel("relative MACs (left / before)")
        axes.set_ylabel(METRIC_NAMES[metric])
        axes.xaxis.set_major_formatter(percent_ticks())
        axes.yaxis.set_major_formatter(percent_ticks())
        seeds = len({run.summary["seed"] for run in runs})
        axes.set_title(
            f"{runs[0].summary['network']} on {runs[0].summary['data']}, {seeds} "
            f"seed{'' if seeds == 1 else 's'}"
        )
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)


def _row(run: ReportRun) -> dict[str, Any]:
    summary, pruned, uniform = run.summary, run.summary["pruned"], run.summary["uniform"]
    return {
        "label": run.label,
        "seed": summary["seed"],
        "evaluations": summary["evaluations"],
        "best_reward": summary["best_reward"],
        "relative_macs": _relative_macs(run, "pruned"),
        **{
            name: pruned[name]
            for name in (
                "reward_accuracy", "reward_loss", "test_accuracy", "test_accuracy_finetuned",
            )
        },
        "uniform_reward_accuracy": uniform["reward_accuracy"],
        "uniform_test_accuracy": uniform["test_accuracy"],
    }  # fmt: skip


def _relative_macs(run: ReportRun, network: str) -> float:
    return float(run.summary[network]["macs"] / run.summary["base"]["macs"])


def _text(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else value
