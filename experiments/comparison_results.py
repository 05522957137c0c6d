"""What a comparison found, as data: small enough to commit, complete enough to draw from."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.run_folder import RunFolder, write_json, write_text
from experiments.statistics import (
    Estimate,
    bootstrap,
    interquartile_mean,
    probability_of_improvement,
    verdict,
)

FORMAT = 1
RIVALS = ("uniform", "random")
"""Policies that all others are held against."""

METRICS = ("reward_accuracy", "reward_loss", "test_accuracy", "test_accuracy_finetuned")
"""What the kept plans are compared in; all but the loss are better when higher."""


@dataclass(frozen=True)
class RunResult:
    """One finished run; accuracies are fractions in [0, 1].

    Attributes:
        label: row of the comparison.
        budget: relative MACs allowed.
        seed: seed of the run.
        folder: run folder, below that of the comparison.
        evaluations: evaluations spent.
        search_seconds: duration of the search.
        relative_macs: MACs of the kept plan over those of the unpruned network.
        within_budget: whether the kept plan is within budget.
        reward_accuracy: of the kept plan, on the reward split.
        reward_loss: of the kept plan, on the reward split; None when the run did not record it.
        test_accuracy: of the kept plan, before fine-tuning.
        test_accuracy_finetuned: after fine-tuning; None without.
        relative_dense_macs: MACs on dense hardware over those of the unpruned network; differs
            from `relative_macs` where the budget counts the weights that are not masked. None in
            comparisons of old.
    """

    label: str
    budget: float
    seed: int
    folder: str
    evaluations: int
    search_seconds: float
    relative_macs: float
    within_budget: bool
    reward_accuracy: float
    reward_loss: float | None
    test_accuracy: float
    test_accuracy_finetuned: float | None
    relative_dense_macs: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """Where the best plan so far of a run improved.

    Attributes:
        label: row of the comparison.
        budget: relative MACs allowed.
        seed: seed of the run.
        evaluations: evaluations spent until then.
        accuracy: best reward-split accuracy so far, within budget.
        loss: lowest reward-split loss so far, within budget.
    """

    label: str
    budget: float
    seed: int
    evaluations: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Comparison:
    """A comparison, with or without the folders of its runs.

    Attributes:
        about: network, data, number of evaluations, unpruned network, overrides of each row.
        runs: finished runs.
        curves: best so far of every run, where it improves.
        failures: runs that failed, with the reason.
    """

    about: Mapping[str, Any]
    runs: tuple[RunResult, ...]
    curves: tuple[CurvePoint, ...]
    failures: tuple[Mapping[str, str], ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the rows with a finished run, in the order of the comparison."""
        finished = {run.label for run in self.runs}
        return tuple(label for label in self.about["rows"] if label in finished)

    @property
    def budgets(self) -> tuple[float, ...]:
        """Budgets, largest first."""
        return tuple(sorted({run.budget for run in self.runs}, reverse=True))

    def values(self, metric: str, label: str, budget: float) -> np.ndarray:
        """A metric of one row at one budget, shape (seeds,); runs without it are left out."""
        values = [
            getattr(run, metric) for run in self.runs if (run.label, run.budget) == (label, budget)
        ]
        return np.array([value for value in values if value is not None], dtype=float)


def read_run(folder: Path, root: Path, label: str) -> tuple[RunResult, list[CurvePoint]]:
    """Result and curve of a finished run.

    Args:
        folder: the run folder.
        root: folder of the comparison.
        label: row the run belongs to.
    """
    run = RunFolder(folder)
    summary = run.read_summary()
    pruned, budget = summary["pruned"], float(summary["budget"]["relative_macs"])
    result = RunResult(
        label=label,
        budget=budget,
        seed=summary["seed"],
        folder=folder.relative_to(root).as_posix(),
        evaluations=summary["evaluations"],
        search_seconds=summary["search_seconds"],
        relative_macs=summary["relative_macs"],
        within_budget=summary["budget"]["met"],
        **{metric: pruned.get(metric) for metric in METRICS},
        relative_dense_macs=pruned["macs"] / summary["base"]["macs"],
    )
    return result, ending_with(read_curve(run.metrics, label, budget, summary["seed"]), result)


def read_curve(metrics: Path, label: str, budget: float, seed: int) -> list[CurvePoint]:
    """The points of `metrics.csv` at which accuracy or loss within budget improves.

    Of a search whose first evaluations saw a part of the images, those that saw all of them.
    """
    points: list[CurvePoint] = []
    accuracy, loss = -np.inf, np.inf
    rows = measured_rows(metrics)
    images = max(map(images_of, rows), default=0)
    for row in rows:
        if images_of(row) < images:
            continue
        better = max(accuracy, float(row["accuracy"])), min(loss, float(row["loss"]))
        if better != (accuracy, loss):
            accuracy, loss = better
            evaluations = int(row["evaluations"])
            points.append(CurvePoint(label, budget, seed, evaluations, accuracy, loss))
    return points


def measured_rows(metrics: Path) -> list[dict[str, str]]:
    """The lines of `metrics.csv` whose plan was measured and is within budget."""
    with metrics.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["met"] == "True" and row["accuracy"]]


def images_of(row: Mapping[str, str]) -> int:
    """Images that a line of `metrics.csv` was measured on; older files do not say."""
    return int(row.get("num_samples") or 0)


def ending_with(points: Sequence[CurvePoint], result: RunResult) -> list[CurvePoint]:
    """A curve that ends no lower than the kept plan.

    `metrics.csv` has one line per episode; an episode that measures at every step may have found
    the kept plan before its end.

    Args:
        points: of one run, in order.
        result: that run.
    """
    accuracy, loss = result.reward_accuracy, result.reward_loss
    if points:
        accuracy = max(points[-1].accuracy, accuracy)
        loss = points[-1].loss if loss is None else min(points[-1].loss, loss)
        if (accuracy, loss) == (points[-1].accuracy, points[-1].loss):
            return list(points)
    end = CurvePoint(
        result.label, result.budget, result.seed, result.evaluations, accuracy,
        np.nan if loss is None else loss,
    )  # fmt: skip
    return [*points, end]


def curve_on_grid(points: Sequence[CurvePoint], metric: str, grid: np.ndarray) -> np.ndarray:
    """Best so far of one run at each number of evaluations, shape (len(grid),); NaN before any.

    Args:
        points: of one run, in order.
        metric: "accuracy" or "loss".
        grid: numbers of evaluations, increasing.
    """
    at = np.array([point.evaluations for point in points])
    values = np.array([np.nan, *(getattr(point, metric) for point in points)])
    return values[np.searchsorted(at, grid, side="right")]


def statistics(comparison: Comparison) -> list[dict[str, Any]]:
    """Per budget, row and metric: mean, interquartile mean with interval, and who is beaten."""
    found: list[dict[str, Any]] = []
    for budget in comparison.budgets:
        for label in comparison.labels:
            for metric in METRICS:
                values = comparison.values(metric, label, budget)
                if len(values) > 0:
                    found.append(_row_statistics(comparison, budget, label, metric, values))
    return found


def _row_statistics(
    comparison: Comparison, budget: float, label: str, metric: str, values: np.ndarray
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "budget": budget,
        "label": label,
        "metric": metric,
        "seeds": len(values),
        "mean": float(values.mean()),
        "interquartile_mean": _as_data(bootstrap(interquartile_mean, [values])),
    }
    sign = -1.0 if metric == "reward_loss" else 1.0
    for rival in RIVALS:
        theirs = comparison.values(metric, rival, budget)
        if rival == label or len(theirs) == 0:
            continue
        better = probability_of_improvement([sign * values], [sign * theirs])
        row[f"over_{rival}"] = {
            "probability": _as_data(better),
            "beats": verdict(sign * values, sign * theirs),
        }
    return row


def _as_data(estimate: Estimate) -> dict[str, float]:
    return {name: round(value, 6) for name, value in asdict(estimate).items()}


def write_comparison(comparison: Comparison, prefix: Path) -> None:
    """Write PREFIX.json (runs and statistics), PREFIX.csv (runs) and PREFIX_curves.csv."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        prefix.with_name(f"{prefix.name}.json"),
        {
            "format": FORMAT,
            **comparison.about,
            "runs": [asdict(run) for run in comparison.runs],
            "statistics": statistics(comparison),
            "failures": list(comparison.failures),
        },
    )
    _write_csv(prefix.with_name(f"{prefix.name}.csv"), [asdict(run) for run in comparison.runs])
    curves = [
        {**asdict(point), "accuracy": f"{point.accuracy:.6g}", "loss": f"{point.loss:.6g}"}
        for point in comparison.curves
    ]
    _write_csv(prefix.with_name(f"{prefix.name}_curves.csv"), curves)


def read_comparison(file: Path) -> Comparison:
    """A comparison from NAME.json and NAME_curves.csv beside it.

    Raises:
        ValueError: the file is no comparison, or of another version.
    """
    data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("format") != FORMAT or "runs" not in data:
        raise ValueError(
            f"{file} is not a comparison of format {FORMAT}: give the comparison.json that "
            "experiments.compare_policies wrote."
        )
    curves = []
    with file.with_name(f"{file.stem}_curves.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            curves.append(
                CurvePoint(
                    row["label"], float(row["budget"]), int(row["seed"]),
                    int(row["evaluations"]), float(row["accuracy"]), float(row["loss"]),
                )
            )  # fmt: skip
    about = {
        key: value
        for key, value in data.items()
        if key not in ("format", "runs", "statistics", "failures")
    }
    runs = tuple(RunResult(**run) for run in data["runs"])
    return Comparison(about, runs, tuple(curves), tuple(data["failures"]))


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    import io

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
