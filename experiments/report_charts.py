"""Charts of the report page as plain geometry; the template turns them into inline SVG."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.comparison_results import Comparison, curve_on_grid
from experiments.report_runs import ReportRun
from experiments.run_folder import RunFolder

WIDTH, HEIGHT = 480.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 12.0, 40.0

NUM_COLOURS = 8
"""Colours of the page's palette, s0 to s7; more series repeat them."""


@dataclass(frozen=True)
class Tick:
    """A tick: where, in units of the drawing, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line or an area as an SVG path, with the style class of its series."""

    path: str
    style: str


@dataclass(frozen=True)
class Mark:
    """A point with the text that shows when the mouse rests on it."""

    x: float
    y: float
    style: str
    text: str
    shape: str = "dot"


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: what it shows, for readers who cannot see it.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        x_ticks: of the horizontal axis.
        y_ticks: of the vertical axis, or names of rows.
        areas: drawn first.
        lines: drawn next.
        marks: drawn last.
        height: of the drawing.
        left: where the plot area begins.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    areas: tuple[Line, ...] = ()
    lines: tuple[Line, ...] = ()
    marks: tuple[Mark, ...] = ()
    height: float = HEIGHT
    left: float = LEFT

    @property
    def right(self) -> float:
        """Where the plot area ends."""
        return WIDTH - RIGHT

    @property
    def bottom(self) -> float:
        """Where the plot area ends below."""
        return self.height - BOTTOM

    @property
    def top(self) -> float:
        """Where the plot area begins above."""
        return TOP

    @property
    def width(self) -> float:
        """Width of the drawing."""
        return WIDTH


@dataclass(frozen=True)
class Scale:
    """A linear scale from data to the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies; values outside lie on the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 2)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in [low, high]."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def style_of(labels: Sequence[str]) -> dict[str, str]:
    """Style class of each label; the yardsticks always look the same."""
    learners = [label for label in labels if label not in ("uniform", "random")]
    return {
        label: f"s{learners.index(label) % NUM_COLOURS}" if label in learners else label
        for label in labels
    }


def percent(value: float, digits: int = 0) -> str:
    """A fraction as a percentage."""
    return f"{100 * value:.{digits}f} %"


def learning_curves(comparison: Comparison, budget: float) -> Chart:
    """Best reward-split accuracy so far: mean over seeds, and the range of the seeds."""
    grid = np.arange(1, max(run.evaluations for run in comparison.runs) + 1)
    curves = {}
    for label in comparison.labels:
        seeds = [run.seed for run in comparison.runs if (run.label, run.budget) == (label, budget)]
        if seeds:
            curves[label] = np.array(
                [_one_curve(comparison, label, budget, s, grid) for s in seeds]
            )
    late = np.concatenate([values[:, len(grid) // 10 :].ravel() for values in curves.values()])
    y = _y_scale(late[np.isfinite(late)])
    x = Scale(0, float(len(grid)), LEFT, WIDTH - RIGHT)
    styles, areas, lines = style_of(comparison.labels), [], []
    for label, values in curves.items():
        known = np.isfinite(values).all(axis=0)
        at = grid[known]
        if len(at) == 0:
            continue
        if len(values) > 1:
            low, high = values[:, known].min(axis=0), values[:, known].max(axis=0)
            areas.append(Line(_band(at, low, high, x, y), styles[label]))
        lines.append(Line(_steps(at, values[:, known].mean(axis=0), x, y), styles[label]))
    return Chart(
        title="Best reward-split accuracy so far over evaluations",
        x_label="evaluations",
        y_label="best reward-split accuracy so far",
        x_ticks=tuple(Tick(x(v), f"{v:g}") for v in nice_ticks(0, len(grid)) if v == int(v)),
        y_ticks=_percent_ticks(y),
        areas=tuple(areas),
        lines=tuple(lines),
    )


def _one_curve(
    comparison: Comparison, label: str, budget: float, seed: int, grid: np.ndarray
) -> np.ndarray:
    points = [p for p in comparison.curves if (p.label, p.budget, p.seed) == (label, budget, seed)]
    return curve_on_grid(points, "accuracy", grid)


@dataclass(frozen=True)
class Pareto:
    """Accuracy against relative MACs.

    Attributes:
        chart: the chart.
        hypervolume: share of the unit square (MACs removed, accuracy) that is dominated, in [0, 1].
        points: points on the front, as (relative MACs, accuracy), fewest MACs first.
    """

    chart: Chart
    hypervolume: float
    points: tuple[tuple[float, float], ...]


def pareto(runs: Sequence[ReportRun]) -> Pareto:
    """Test accuracy of the kept plans over their MACs; of one run, all that it measured."""
    is_single = len(runs) == 1
    styles = style_of(list(dict.fromkeys(run.label for run in runs)))
    marks: list[tuple[float, float, str, str, str]] = []
    if is_single:
        marks += [
            (
                macs,
                accuracy,
                "tried",
                f"{percent(macs, 1)} of the MACs: {percent(accuracy, 2)}",
                "dot",
            )
            for macs, accuracy in _measured(runs[0])
        ]
    metric, _ = shown_metric(runs)
    for run in runs:
        macs = run.summary["pruned"]["macs"] / run.summary["base"]["macs"]
        accuracy = run.summary["pruned"][metric]
        text = f"{run.label}, seed {run.summary['seed']}: {percent(accuracy, 2)}"
        marks.append((macs, accuracy, styles[run.label], text, "star" if is_single else "dot"))
    candidates = [(macs, accuracy) for macs, accuracy, *_ in marks]
    points = front(candidates)
    uniforms = sorted({_point(run.summary["uniform"], run.summary["base"], metric) for run in runs})
    yardsticks = [(m, a, "uniform", f"uniform: {percent(a, 2)}", "diamond") for m, a in uniforms]
    base = runs[0].summary["base"][metric.removesuffix("_finetuned")]
    yardsticks.append((1.0, base, "base", f"unpruned: {percent(base, 2)}", "square"))
    marks = [*yardsticks, *marks]  # the kept plans lie on top
    x = Scale(0, 1.02, LEFT, WIDTH - RIGHT)
    y = _y_scale(np.array([accuracy for _, accuracy, *_ in marks]))
    chart = Chart(
        title="Accuracy over relative MACs, with the Pareto front",
        x_label="relative MACs (left / before)",
        y_label=METRIC_NAMES[metric],
        x_ticks=tuple(Tick(x(value), percent(value)) for value in nice_ticks(0, 1)),
        y_ticks=_percent_ticks(y),
        lines=(Line(_front_path(points, x, y), "front"),),
        marks=tuple(Mark(x(m), y(a), style, text, shape) for m, a, style, text, shape in marks),
    )
    return Pareto(chart, hypervolume(candidates), points)


METRIC_NAMES = {
    "reward_accuracy": "reward-split accuracy",
    "test_accuracy": "test accuracy",
    "test_accuracy_finetuned": "test accuracy, fine-tuned",
}


def shown_metric(runs: Sequence[ReportRun]) -> tuple[str, str]:
    """The accuracy that a page of these runs is about, and its name."""
    if len(runs) == 1:  # beside everything that the search measured
        return "reward_accuracy", METRIC_NAMES["reward_accuracy"]
    tuned = all(run.summary["pruned"]["test_accuracy_finetuned"] is not None for run in runs)
    key = "test_accuracy_finetuned" if tuned else "test_accuracy"
    return key, METRIC_NAMES[key]


def front(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Points that no other beats in both fewer MACs and higher accuracy, fewest MACs first."""
    kept: list[tuple[float, float]] = []
    for macs, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((macs, accuracy))
    return tuple(kept)


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area that (MACs removed, accuracy) dominates in the unit square, from the corner (0, 0).

    Args:
        points: relative MACs and accuracy, both in [0, 1].
    """
    area, below = 0.0, 0.0
    for macs, accuracy in front(points):  # fewest MACs first: widest rectangle first
        area += max(1 - macs, 0.0) * (accuracy - below)
        below = accuracy
    return area


def fine_tuning(comparison: Comparison, budget: float) -> Chart | None:
    """Test accuracy before and after fine-tuning, a row per label; None without fine-tuning."""
    labels = [
        label
        for label in comparison.labels
        if len(comparison.values("test_accuracy_finetuned", label, budget)) > 0
    ]
    if not labels:
        return None
    row, left = 34.0, 128.0
    height = TOP + BOTTOM + row * len(labels)
    pairs = {
        label: (
            comparison.values("test_accuracy", label, budget),
            comparison.values("test_accuracy_finetuned", label, budget),
        )
        for label in labels
    }
    base = comparison.about["base"]["test_accuracy"]
    every = np.concatenate([np.concatenate(pair) for pair in pairs.values()] + [np.array([base])])
    span = _y_scale(every)
    x = Scale(span.low, span.high, left, WIDTH - RIGHT)
    styles, lines, marks, names = style_of(comparison.labels), [], [], []
    for index, (label, (before, after)) in enumerate(pairs.items()):
        y = TOP + row * (index + 0.5)
        names.append(Tick(y, label if len(label) < 20 else f"{label[:18]}…"))
        lines.append(Line(f"M{x(before.mean())},{y} H{x(after.mean())}", styles[label]))
        for values, shape, when in ((before, "ring", "before"), (after, "dot", "after")):
            marks += [
                Mark(x(value), y, styles[label], f"{label}, {when}: {percent(value, 2)}", shape)
                for value in values
            ]
    lines.append(Line(f"M{x(base)},{TOP} V{height - BOTTOM}", "base"))
    return Chart(
        title="Test accuracy before and after fine-tuning",
        x_label="test accuracy",
        y_label="",
        x_ticks=tuple(Tick(x(v), _percent_text(v)) for v in nice_ticks(span.low, span.high, 4)),
        y_ticks=tuple(names),
        lines=tuple(lines),
        marks=tuple(marks),
        height=height,
        left=left,
    )


def _measured(run: ReportRun) -> list[tuple[float, float]]:
    """Relative MACs and reward-split accuracy of all that a run measured."""
    base = run.summary["base"]["macs"]
    with RunFolder(run.folder).metrics.open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [(int(row["macs"]) / base, float(row["accuracy"])) for row in rows if row["accuracy"]]


def _point(report: dict[str, Any], base: dict[str, Any], metric: str) -> tuple[float, float]:
    return report["macs"] / base["macs"], report[metric]


def _y_scale(values: np.ndarray) -> Scale:
    low, high = float(values.min()), float(values.max())
    margin = max(0.08 * (high - low), 0.005)
    return Scale(low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _percent_ticks(scale: Scale) -> tuple[Tick, ...]:
    return tuple(Tick(scale(v), _percent_text(v)) for v in nice_ticks(scale.low, scale.high))


def _percent_text(value: float) -> str:
    return f"{100 * value:.6g} %"


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


def _front_path(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    path = f"M{x(points[0][0])},{y(0) if y.low < 0 else y.start}"
    for macs, accuracy in points:
        path += f" H{x(macs)} V{y(accuracy)}"
    return f"{path} H{x(1.0)}"
