"""The table a comparison ends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.comparison_results import METRICS, RIVALS, Comparison, statistics

HEADINGS = {
    "reward_accuracy": "reward split",
    "reward_loss": "reward-split loss",
    "test_accuracy": "test split",
    "test_accuracy_finetuned": "fine-tuned",
}
ACCURACY_CAPTION = (
    "Accuracy in %: interquartile mean over seeds and its 95 % bootstrap interval.\n"
    "Fine-tuned: on the test split."
)
VERDICT_CAPTION = (
    "Beats: on the test split, before fine-tuning; P: how often one of its runs beats one\n"
    "of theirs."
)


def print_comparison(comparison: Comparison) -> None:
    """Print two tables per budget: accuracies with intervals, then costs and verdicts."""
    from rich.console import Console

    found = {(row["budget"], row["label"], row["metric"]): row for row in statistics(comparison)}
    console = Console(soft_wrap=False)
    for budget in comparison.budgets:
        labels = [label for label in comparison.labels if (budget, label, "test_accuracy") in found]
        seeds = max(found[budget, label, "test_accuracy"]["seeds"] for label in labels)
        headline = (
            f"{comparison.about['network']}, {budget:g} of the MACs, {seeds} "
            f"seed{'' if seeds == 1 else 's'}, {comparison.about['evaluations']} evaluations"
        )
        metrics = [metric for metric in METRICS if (budget, labels[0], metric) in found]
        accuracies = _table(headline, [HEADINGS[metric] for metric in metrics])
        counts = ["non-zero MACs", "dense MACs"] if _counts_masks(comparison) else ["MACs"]
        rivals = [rival for rival in RIVALS if rival in labels]
        costs = _table("", [*counts, "evaluations", "search", *(f"beats {r}?" for r in rivals)])
        accuracies.caption, costs.caption = ACCURACY_CAPTION, VERDICT_CAPTION if rivals else None
        for label in labels:
            cells = [estimate_cell(found[budget, label, metric], metric) for metric in metrics]
            accuracies.add_row(label, *cells)
            verdicts = [verdict_cell(found[budget, label, "test_accuracy"], r) for r in rivals]
            costs.add_row(label, *_costs(comparison, label, budget), *verdicts)
        console.print()
        console.print(accuracies)
        console.print(costs)
    base = comparison.about["base"]
    console.print(
        f"Unpruned: {_percent(base['reward_accuracy'])} on the reward split, "
        f"{_percent(base['test_accuracy'])} on the test split."
    )


def _table(title: str, columns: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", title_style="bold", caption_justify="left"
    )
    table.add_column("policy", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _costs(comparison: Comparison, label: str, budget: float) -> list[str]:
    def mean(metric: str) -> float:
        return float(np.mean(comparison.values(metric, label, budget)))

    within = bool(np.all(comparison.values("within_budget", label, budget)))
    dense = [f"{mean('relative_dense_macs'):.3f}"] if _counts_masks(comparison) else []
    return [
        f"{mean('relative_macs'):.3f}" + ("" if within else " over budget"),
        *dense,
        f"{mean('evaluations'):.0f}",
        f"{mean('search_seconds'):.0f} s",
    ]


def _counts_masks(comparison: Comparison) -> bool:
    """Whether the budget counts other MACs than dense hardware does, in any run."""
    return any(
        run.relative_dense_macs is not None
        and abs(run.relative_dense_macs - run.relative_macs) > 1e-9
        for run in comparison.runs
    )


def estimate_cell(row: dict[str, Any], metric: str) -> str:
    """An estimate with its interval below; of one seed the number alone."""
    estimate = row["interquartile_mean"]
    scale, digits = (1, 3) if metric == "reward_loss" else (100, 2)
    value, low, high = (scale * estimate[name] for name in ("value", "low", "high"))
    if row["seeds"] == 1:
        return f"{value:.{digits}f}"
    digits_of_ends = digits if metric == "reward_loss" else 1
    return f"{value:.{digits}f}\n[{low:.{digits_of_ends}f}, {high:.{digits_of_ends}f}]"


def verdict_cell(row: dict[str, Any], rival: str) -> str:
    """Whether a rival is beaten, with the probability of improvement; "" for the rival itself."""
    over = row.get(f"over_{rival}")
    return "" if over is None else f"{over['beats']}\nP {over['probability']['value']:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
