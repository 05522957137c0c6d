"""Charts of the report page as plain geometry; the template turns them into inline SVG."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.comparison_results import Comparison
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


def y_scale(values: np.ndarray) -> Scale:
    """A vertical scale with some room around the values."""
    low, high = float(values.min()), float(values.max())
    margin = max(0.08 * (high - low), 0.005)
    return Scale(low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def percent_ticks(scale: Scale) -> tuple[Tick, ...]:
    """Round fractions as percentages."""
    return tuple(Tick(scale(v), _percent_text(v)) for v in nice_ticks(scale.low, scale.high))


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


@dataclass(frozen=True)
class Pareto:
    """Accuracy against relative MACs.

    Attributes:
        chart: the chart.
        hypervolume: share of the unit square (MACs removed, accuracy) that is dominated, in [0, 1].
        points: points on the front, as (relative MACs, accuracy), fewest MACs first.
        has_uniform: whether the uniform networks of the runs are in the chart.
    """

    chart: Chart
    hypervolume: float
    points: tuple[tuple[float, float], ...]
    has_uniform: bool


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
    # A comparison has a row of its own for uniform, and may not fine-tune that of every run.
    uniforms = sorted(
        {
            _point(run.summary["uniform"], run.summary["base"], metric)
            for run in runs
            if run.summary["uniform"][metric] is not None
        }
    )
    yardsticks = [(m, a, "uniform", f"uniform: {percent(a, 2)}", "diamond") for m, a in uniforms]
    base = runs[0].summary["base"][metric.removesuffix("_finetuned")]
    yardsticks.append((1.0, base, "base", f"unpruned: {percent(base, 2)}", "square"))
    marks = [*yardsticks, *marks]  # the kept plans lie on top
    x = Scale(0, 1.02, LEFT, WIDTH - RIGHT)
    y = y_scale(np.array([accuracy for _, accuracy, *_ in marks]))
    chart = Chart(
        title="Accuracy over relative MACs, with the Pareto front",
        x_label="relative MACs (left / before)",
        y_label=METRIC_NAMES[metric],
        x_ticks=tuple(Tick(x(value), percent(value)) for value in nice_ticks(0, 1)),
        y_ticks=percent_ticks(y),
        lines=(Line(_front_path(points, x, y), "front"),),
        marks=tuple(Mark(x(m), y(a), style, text, shape) for m, a, style, text, shape in marks),
    )
    return Pareto(chart, hypervolume(candidates), points, has_uniform=bool(uniforms))


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
    span = y_scale(every)
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


def _percent_text(value: float) -> str:
    return f"{100 * value:.6g} %"


def _front_path(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    path = f"M{x(points[0][0])},{y(0) if y.low < 0 else y.start}"
    for macs, accuracy in points:
        path += f" H{x(macs)} V{y(accuracy)}"
    return f"{path} H{x(1.0)}"
