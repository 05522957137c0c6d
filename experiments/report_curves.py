"""How searches went, for the report page: what they were paid, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.comparison_results import images_of, measured_rows
from experiments.kept_plan import RANKS
from experiments.report_charts import (
    LEFT,
    RIGHT,
    WIDTH,
    Chart,
    Line,
    Scale,
    Tick,
    nice_ticks,
    percent_ticks,
    y_scale,
)
from experiments.report_runs import ReportRun
from experiments.run_folder import RunFolder, flatten

Points = tuple[tuple[int, float], ...]
"""Evaluations and a value, where it improves."""


@dataclass(frozen=True)
class _Plan:
    """A measured plan within budget."""

    evaluations: int
    images: int
    score: float
    accuracy: float
    loss: float


KEPT_BY = {"reward": "highest reward", "accuracy": "highest accuracy", "loss": "lowest loss"}


@dataclass(frozen=True)
class Curves:
    """A chart of searches, and what it shows.

    Attributes:
        heading: of the chart.
        note: what is to be known to read it.
        chart: the chart.
        labels: whose searches it shows.
    """

    heading: str
    note: str
    chart: Chart
    labels: tuple[str, ...]


def search_curves(runs: Sequence[ReportRun], styles: Mapping[str, str]) -> tuple[Curves, ...]:
    """Best reward so far, a chart for each reward that was paid, then accuracy of the kept plan.

    Rewards of different kinds have no common scale, and one that pays for MACs may rise while the
    accuracy falls; so what a search optimised stands beside the accuracy that all share.

    Args:
        runs: of one network and one budget.
        styles: style class of each label of the page.
    """
    searches = [_Search.of(run) for run in runs]
    labels = tuple(dict.fromkeys(search.label for search in searches))
    by_reward: dict[str, list[_Search]] = {}
    for search in searches:
        by_reward.setdefault(search.paid_by, []).append(search)
    length = max(run.summary["evaluations"] for run in runs)
    charts = []
    for name, paid in by_reward.items():
        points = [(search.label, search.reward) for search in paid]
        chart = _chart(points, styles, length, "best reward so far", _number_ticks)
        if chart is not None:
            theirs = tuple(dict.fromkeys(search.label for search in paid))
            charts.append(Curves("What the search optimised", f"Paid by {name}.", chart, theirs))
    points = [(search.label, search.accuracy) for search in searches]
    name = "reward-split accuracy of the kept plan"
    chart = _chart(points, styles, length, name, percent_ticks)
    if chart is not None:
        words = " or ".join(KEPT_BY[keep] for keep in sorted({_kept_by(run) for run in runs}))
        note = f"Of the plan with the {words} so far: the one that is kept."
        charts.append(Curves("What came of it", note, chart, labels))
    return tuple(charts)


def reward_name(run: ReportRun) -> str:
    """The reward that paid a run's search, with its settings."""
    section = dict(run.config.get("reward") or {})
    name = str(section.pop("_target_", "reward")).rpartition(".")[2]
    settings = [
        f"{key.removesuffix(' _target_')} {str(value).rpartition('.')[2]}"
        if key.endswith("_target_")
        else f"{key} {value}"
        for key, value in flatten(section, " ").items()
        if value is not None
    ]
    return ", ".join([name, *settings])


@dataclass(frozen=True)
class _Search:
    """Best so far of one run, where it improves.

    Attributes:
        label: of the run.
        paid_by: its reward, with settings.
        reward: evaluations and the highest reward.
        accuracy: evaluations and the accuracy of the plan that would have been kept.
    """

    label: str
    paid_by: str
    reward: Points
    accuracy: Points

    @classmethod
    def of(cls, run: ReportRun) -> _Search:
        rank = RANKS[_kept_by(run)]
        rewards: list[tuple[int, float]] = []
        kept: list[tuple[int, float]] = []
        paid: _Plan | None = None
        best: _Plan | None = None
        for plan in _measured(run):  # what was measured on more images counts more
            if paid is None or (plan.images, plan.score) > (paid.images, paid.score):
                paid = plan
                rewards.append((plan.evaluations, plan.score))
            if best is None or (plan.images, *rank(plan)) > (best.images, *rank(best)):
                best = plan
                kept.append((plan.evaluations, plan.accuracy))
        # An episode that measures at every step may have found the kept plan before its end, and
        # the file has one line per episode.
        summary = run.summary
        end, pruned = summary["evaluations"], summary["pruned"]["reward_accuracy"]
        if not kept or kept[-1][1] != pruned:
            kept.append((end, pruned))
        if paid is not None and summary["best_reward"] > paid.score:
            rewards.append((end, summary["best_reward"]))
        return cls(run.label, reward_name(run), tuple(rewards), tuple(kept))


def _kept_by(run: ReportRun) -> str:
    return str((run.config.get("search") or {}).get("keep", "reward"))


def _measured(run: ReportRun) -> list[_Plan]:
    return [
        _Plan(
            int(row["evaluations"]),
            images_of(row),
            float(row["score"]),
            float(row["accuracy"]),
            float(row["loss"]),
        )
        for row in measured_rows(RunFolder(run.folder).metrics)
    ]


def _chart(
    searches: Sequence[tuple[str, Points]],
    styles: Mapping[str, str],
    length: int,
    name: str,
    ticks: Callable[[Scale], tuple[Tick, ...]],
) -> Chart | None:
    """Mean over the seeds of each label, and their range; None where nothing was measured."""
    grid = np.arange(1, length + 1)
    curves: dict[str, list[np.ndarray]] = {}
    for label, points in searches:
        curves.setdefault(label, []).append(_on_grid(points, grid))
    late = np.concatenate([row[length // 10 :] for rows in curves.values() for row in rows])
    if not np.isfinite(late).any():
        return None
    y = y_scale(late[np.isfinite(late)])
    x = Scale(0, float(length), LEFT, WIDTH - RIGHT)
    areas, lines = [], []
    for label, rows in curves.items():
        values = np.array(rows)
        known = np.isfinite(values).all(axis=0)
        at = grid[known]
        if len(at) == 0:
            continue
        if len(values) > 1:
            low, high = values[:, known].min(axis=0), values[:, known].max(axis=0)
            areas.append(Line(_band(at, low, high, x, y), styles[label]))
        lines.append(Line(_steps(at, values[:, known].mean(axis=0), x, y), styles[label]))
    return Chart(
        title=f"{name}, over evaluations",
        x_label="evaluations",
        y_label=name,
        x_ticks=tuple(Tick(x(v), f"{v:g}") for v in nice_ticks(0, length) if v == int(v)),
        y_ticks=ticks(y),
        areas=tuple(areas),
        lines=tuple(lines),
    )


def _number_ticks(scale: Scale) -> tuple[Tick, ...]:
    return tuple(Tick(scale(v), f"{v:.6g}") for v in nice_ticks(scale.low, scale.high))


def _on_grid(points: Points, grid: np.ndarray) -> np.ndarray:
    """The last value at or before each number of evaluations; NaN before the first."""
    if not points:
        return np.full(len(grid), np.nan)
    at, values = (np.array(column) for column in zip(*points, strict=True))
    index = np.searchsorted(at, grid, side="right") - 1
    return np.where(index >= 0, values[np.maximum(index, 0)], np.nan)


def _steps(at: np.ndarray, values: np.ndarray, x: Scale, y: Scale) -> str:
    """A staircase; only its corners."""
    path = f"M{x(at[0])},{y(values[0])}"
    for index in np.flatnonzero(np.diff(values)) + 1:
        path += f" H{x(at[index])} V{y(values[index])}"
    return f"{path} H{x(at[-1])}"


def _band(at: np.ndarray, low: np.ndarray, high: np.ndarray, x: Scale, y: Scale) -> str:
    back = f"L{x(at[-1])},{y(low[-1])}"
    for index in (np.flatnonzero(np.diff(low)) + 1)[::-1]:
        back += f" H{x(at[index])} V{y(low[index - 1])}"
    return f"{_steps(at, high, x, y)} {back} H{x(at[0])} Z"
