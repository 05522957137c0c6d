"""Figures of a comparison: python -m experiments.comparison_figures NAME.json draws them again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.command_line import run_command
from experiments.comparison_results import Comparison, curve_on_grid, read_comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe-Ito and Tol's: told apart with any kind of colour vision. Yardsticks are grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
YARDSTICKS = {"uniform": ("#222222", (0, (5, 2))), "random": ("#888888", (0, (1.5, 1.5)))}


def draw_comparison(comparison: Comparison, prefix: Path) -> None:
    """Write PREFIX_curves.png and PREFIX_test.png."""
    draw_curves(comparison, prefix.with_name(f"{prefix.name}_curves.png"))
    draw_strip(comparison, prefix.with_name(f"{prefix.name}_test.png"))


def draw_curves(comparison: Comparison, path: Path) -> None:
    """Best reward-split accuracy and loss so far over evaluations; a column per budget.

    Lines are means over seeds, bands run from the worst to the best seed.

    Args:
        comparison: what to draw.
        path: PNG file to write.
    """
    from experiments.figures import open_figure

    budgets = comparison.budgets
    last = max(run.evaluations for run in comparison.runs)
    grid = np.arange(1, last + 1)
    width = 1.6 + 4.6 * len(budgets)
    with open_figure(path, rows=2, columns=len(budgets), size=(max(width, 7.6), 7.2)) as (
        figure, axes,
    ):  # fmt: skip
        for column, budget in enumerate(budgets):
            for row, metric in enumerate(("accuracy", "loss")):
                panel = axes[row][column]
                _curves(panel, comparison, budget, metric, grid)
                if row == 0:
                    panel.set_title(f"{comparison.about['network']}, {budget:g} of the MACs")
                else:
                    panel.set_xlabel("evaluations")
                if column == 0:
                    panel.set_ylabel(
                        "best reward-split accuracy so far"
                        if metric == "accuracy"
                        else "lowest reward-split loss so far"
                    )
        handles = [
            axes[0][0].plot([], [], color=colour, linestyle=dashes, linewidth=2.2, label=label)[0]
            for label, (colour, dashes) in line_styles(comparison.labels).items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)


def _curves(
    axes: Axes, comparison: Comparison, budget: float, metric: str, grid: np.ndarray
) -> None:
    from experiments.figures import percent_ticks, whole_ticks

    late: list[np.ndarray] = []
    for label, (colour, dashes) in line_styles(comparison.labels).items():
        seeds = sorted(
            {run.seed for run in comparison.runs if (run.label, run.budget) == (label, budget)}
        )
        if not seeds:
            continue
        curves = np.array(
            [
                curve_on_grid(
                    [
                        point
                        for point in comparison.curves
                        if (point.label, point.budget, point.seed) == (label, budget, seed)
                    ],
                    metric,
                    grid,
                )
                for seed in seeds
            ]
        )
        late.append(curves[:, len(grid) // 10 :])
        mean = curves.mean(axis=0)  # (evaluations,), NaN until every seed has a plan within budget
        axes.plot(grid, mean, color=colour, linestyle=dashes, linewidth=2.0, drawstyle="steps-post")
        if len(seeds) > 1:
            axes.fill_between(
                grid, curves.min(axis=0), curves.max(axis=0), step="post", color=colour,
                alpha=0.13, linewidth=0,
            )  # fmt: skip
    _focus(axes, np.concatenate([values.ravel() for values in late]), metric)
    axes.set_xlim(1 if len(grid) > 1 else 0, len(grid))
    axes.xaxis.set_major_locator(whole_ticks())
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(percent_ticks())
    else:
        axes.set_yscale("log")
        _plain_log_ticks(axes)


def _focus(axes: Axes, values: np.ndarray, metric: str) -> None:
    """Give the height to what happens after the first tenth of the search."""
    known = values[np.isfinite(values)]
    if len(known) == 0 or np.ptp(known) == 0:
        return
    if metric == "accuracy":
        margin = 0.06 * np.ptp(known)
        axes.set_ylim(known.min() - margin, known.max() + margin)
    else:
        margin = (known.max() / max(known.min(), 1e-12)) ** 0.06
        axes.set_ylim(known.min() / margin, known.max() * margin)


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_strip(comparison: Comparison, path: Path) -> None:
    """Test accuracy of every kept plan, before and after fine-tuning; a column per budget.

    Args:
        comparison: what to draw.
        path: PNG file to write.
    """
    from experiments.figures import open_figure, percent_ticks

    budgets, labels = comparison.budgets, comparison.labels
    tuned = any(run.test_accuracy_finetuned is not None for run in comparison.runs)
    metrics = ["test_accuracy", *(["test_accuracy_finetuned"] if tuned else [])]
    size = (max(1.6 + 4.6 * len(budgets), 7.6), 1.9 + 0.42 * len(labels))
    with open_figure(path, rows=1, columns=len(budgets), size=size, share_y=True) as (figure, axes):
        for column, budget in enumerate(budgets):
            panel = axes[0][column]
            for position, (label, (colour, _)) in enumerate(line_styles(labels).items()):
                for metric in metrics:
                    _strip(panel, comparison.values(metric, label, budget), position, colour,
                           filled=metric == metrics[-1])  # fmt: skip
            panel.axvline(
                comparison.about["base"]["test_accuracy"], color="#444444", linestyle=":",
                linewidth=1.4,
            )  # fmt: skip
            panel.set_yticks(range(len(labels)), labels)
            panel.set_ylim(len(labels) - 0.5, -0.5)
            panel.xaxis.set_major_formatter(percent_ticks())
            panel.set_xlabel("test accuracy")
            panel.set_title(f"{comparison.about['network']}, {budget:g} of the MACs")
        figure.legend(
            handles=_strip_legend(axes[0][0], tuned), loc="outside lower center", ncols=4,
            fontsize=9,
        )  # fmt: skip


def _strip(axes: Axes, values: np.ndarray, position: int, colour: str, *, filled: bool) -> None:
    if len(values) == 0:
        return
    # spread so that equal seeds stay visible, always the same way
    offsets = position + np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [position]
    face = colour if filled else "white"
    axes.scatter(
        values, offsets, s=34, facecolor=face, edgecolor=colour, linewidth=1.3, alpha=0.85, zorder=3
    )
    axes.vlines(values.mean(), position - 0.34, position + 0.34, color=colour, linewidth=2.2)


def _strip_legend(axes: Axes, tuned: bool) -> list[Any]:
    def mark(**style: Any) -> Any:
        return axes.plot([], [], color="#444444", **style)[0]

    handles = [mark(linestyle="", marker="o", label="after fine-tuning" if tuned else "one run")]
    if tuned:
        handles.insert(
            0, mark(linestyle="", marker="o", markerfacecolor="white", label="before fine-tuning")
        )
    return [
        *handles,
        mark(linestyle="", marker="|", markersize=13, markeredgewidth=2.2, label="mean"),
        mark(linestyle=":", linewidth=1.4, label="unpruned"),
    ]


def line_styles(labels: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Colour and dashes of each row; the yardsticks always look the same."""
    learners = [label for label in labels if label not in YARDSTICKS]
    styles: dict[str, tuple[str, Any]] = {}
    for label in labels:
        if label in YARDSTICKS:
            styles[label] = YARDSTICKS[label]
        else:
            index = learners.index(label)
            dashes = ("-", (0, (6, 1.5)), (0, (4, 1, 1, 1)))[index // len(COLOURS) % 3]
            styles[label] = (COLOURS[index % len(COLOURS)], dashes)
    return styles


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figures of a comparison again, beside its file.

    Args:
        arguments: of the command line; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.comparison_figures",
        description="Draw the figures of a comparison again, from NAME.json and NAME_curves.csv.",
    )
    parser.add_argument("file", type=Path, metavar="NAME.json")
    file: Path = parser.parse_args(arguments).file
    prefix = file.with_suffix("")
    draw_comparison(read_comparison(file), prefix)
    print(f"{prefix}_curves.png, {prefix}_test.png")
    return 0


if __name__ == "__main__":
    run_command(main)
