"""Figures of one run: how the search went, and what the best plan does to each group."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.recording import EpisodeRecord
from experiments.group_table import GroupRow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito colours: told apart with any kind of colour vision.
AGENT, UNIFORM, BASE, MUTED = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"

STYLE: Any = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "axes.edgecolor": "#666666",
}


def draw_search(
    records: Sequence[EpisodeRecord],
    path: Path,
    *,
    title: str,
    chosen: EpisodeRecord,
    uniform_accuracy: float,
    base_accuracy: float,
) -> None:
    """Reward and accuracy of every episode over the evaluations paid so far.

    Args:
        records: all episodes, in order.
        path: PNG file to write.
        title: what the run was.
        chosen: the measurement whose plan was kept.
        uniform_accuracy: reward-split accuracy of uniform pruning at equal MACs, in [0, 1].
        base_accuracy: reward-split accuracy of the unpruned network, in [0, 1].
    """
    evaluations = np.array([record.evaluations for record in records])
    met = np.array([record.met for record in records], dtype=bool)
    scores = np.array([record.score for record in records], dtype=float)
    accuracies = np.array(
        [np.nan if record.accuracy is None else record.accuracy for record in records], dtype=float
    )
    best = best_so_far(scores, met)
    with _figure(path, rows=2, size=(8.0, 6.0)) as (figure, (upper, lower)):
        # Penalties outside a budget are far below the rest: they lie on the lower edge.
        floor = _lower_edge(scores[met])
        _scatter(upper, evaluations, np.maximum(scores, floor), met)
        _trend_line(upper, evaluations[met], scores[met])
        _best_line(upper, evaluations, _at(scores, best))
        _star(upper, chosen.evaluations, chosen.score)
        upper.set_ylabel("reward of the plan")
        upper.set_ylim(bottom=floor if np.isfinite(floor) else None)
        upper.set_title(title)
        _scatter(lower, evaluations, accuracies, met)
        known = np.isfinite(accuracies)
        _trend_line(lower, evaluations[known], accuracies[known])
        _best_line(lower, evaluations, _at(accuracies, best))
        _star(lower, chosen.evaluations, chosen.accuracy)
        lower.axhline(base_accuracy, color=BASE, linestyle=":", linewidth=1.6, label="unpruned")
        lower.axhline(
            uniform_accuracy,
            color=UNIFORM,
            linestyle="--",
            linewidth=1.6,
            label="uniform, equal MACs",
        )
        lower.set_ylabel("reward-split accuracy")
        lower.set_xlabel("evaluations")
        lower.xaxis.set_major_locator(whole_ticks())
        lower.yaxis.set_major_formatter(percent_ticks())
        _legend_below(figure, lower)


def draw_groups(rows: Sequence[GroupRow], path: Path, *, title: str) -> None:
    """Pruning ratio of every group beside uniform's, with the channels that are left.

    Args:
        rows: one row per group, in execution order.
        path: PNG file to write.
        title: what the plan is.
    """
    from matplotlib.patches import Patch

    height = 1.7 + 0.27 * len(rows)
    with _figure(path, rows=1, size=(8.0, max(height, 3.0))) as (figure, (axes,)):
        positions = np.arange(len(rows))
        removed = np.array([row.pruning_ratio for row in rows])
        masked = np.array([(1 - row.pruning_ratio) * row.masked_ratio for row in rows])
        uniform = np.array([row.uniform_pruning_ratio for row in rows])
        axes.barh(positions, removed, height=0.72, color=AGENT)
        axes.barh(
            positions, masked, left=removed, height=0.72, facecolor="#9CCBE6", hatch="////",
            edgecolor="white", linewidth=0,
        )  # fmt: skip
        axes.vlines(uniform, positions - 0.44, positions + 0.44, color=UNIFORM, linewidth=2.4)
        for position, row in enumerate(rows):
            pattern = row.pattern if row.masked_ratio > 0 else ""
            unit = " channels" if position == 0 else ""
            axes.text(
                1.015,
                position,
                f"{row.channels} → {row.kept}{unit}" + (f"   {pattern}" if pattern else ""),
                va="center",
                fontsize=8.5,
                transform=axes.get_yaxis_transform(),
            )
        axes.set_yticks(positions, [row.group for row in rows], fontsize=8.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(percent_ticks())
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("removed from the group")
        axes.set_title(title)
        handles: list[Any] = [Patch(color=AGENT, label="channels removed")]
        if masked.any():
            handles.append(
                Patch(facecolor="#9CCBE6", hatch="////", edgecolor="white", label="weights zeroed")
            )
        handles.append(
            axes.plot([], [], color=UNIFORM, linewidth=2.4, label="uniform, equal MACs")[0]
        )
        _legend_below(figure, axes, handles)


def draw_tradeoff(
    records: Sequence[EpisodeRecord],
    path: Path,
    *,
    title: str,
    cost_name: str,
    chosen: EpisodeRecord,
    uniform: tuple[float, float],
    base_accuracy: float,
) -> None:
    """Accuracy over relative MACs of everything the search tried.

    Args:
        records: all episodes.
        path: PNG file to write.
        title: what the run was.
        cost_name: what the relative MACs count.
        chosen: the episode whose plan was kept.
        uniform: relative MACs and reward-split accuracy of uniform pruning at equal MACs.
        base_accuracy: reward-split accuracy of the unpruned network, in [0, 1].
    """
    known = [record for record in records if record.accuracy is not None]
    order = np.array([record.evaluations for record in known])
    with _figure(path, rows=1, size=(8.0, 5.0)) as (figure, (axes,)):
        points = axes.scatter(
            [record.relative_macs for record in known],
            [float(record.accuracy or 0.0) for record in known],
            c=order,
            cmap="viridis",
            s=22,
            alpha=0.75,
            linewidths=0,
        )
        axes.scatter(1.0, base_accuracy, s=70, marker="s", color=BASE, label="unpruned")
        axes.scatter(
            *uniform, s=80, marker="D", color=UNIFORM, label="uniform, equal MACs", zorder=4
        )
        axes.scatter(
            chosen.relative_macs, float(chosen.accuracy or 0.0), s=210, marker="*", color=AGENT,
            edgecolor="white", linewidth=0.8, label="kept plan", zorder=5,
        )  # fmt: skip
        axes.set_xlabel(f"relative {cost_name} (left / before)")
        axes.set_ylabel("reward-split accuracy")
        axes.set_xlim(0, 1.05)
        axes.xaxis.set_major_formatter(percent_ticks())
        axes.yaxis.set_major_formatter(percent_ticks())
        axes.set_title(title)
        figure.colorbar(points, ax=axes, label="evaluations so far", pad=0.02, ticks=whole_ticks())
        _legend_below(figure, axes)


def best_so_far(rewards: np.ndarray, met: np.ndarray) -> np.ndarray:
    """Index of the best episode so far at each one, shape (episodes,); -1 before the first.

    Only episodes within budget can be best; ties keep the earlier episode.
    """
    best, indices = -1, np.empty(len(rewards), dtype=np.int64)
    for index, (reward, is_met) in enumerate(zip(rewards, met, strict=True)):
        if is_met and (best < 0 or reward > rewards[best]):
            best = index
        indices[index] = best
    return indices


def _at(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.where(indices >= 0, values[indices], np.nan)


def _scatter(axes: Axes, evaluations: np.ndarray, values: np.ndarray, met: np.ndarray) -> None:
    axes.scatter(
        evaluations[met], values[met], s=14, color=AGENT, alpha=0.35, linewidths=0, label="episode"
    )
    if not met.all():
        axes.scatter(
            evaluations[~met], values[~met], s=16, color=MUTED, alpha=0.6, marker="x",
            linewidths=1, label="episode outside the budget",
        )  # fmt: skip


def _best_line(axes: Axes, evaluations: np.ndarray, values: np.ndarray) -> None:
    axes.step(
        evaluations, values, where="post", color=AGENT, linewidth=2.2, label="best plan so far"
    )


def _star(axes: Axes, evaluations: int, value: float | None) -> None:
    if value is not None:
        axes.scatter(
            evaluations, value, s=190, marker="*", color=AGENT, edgecolor="white", linewidth=0.8,
            zorder=5, label="kept plan",
        )  # fmt: skip


def _trend_line(axes: Axes, evaluations: np.ndarray, values: np.ndarray) -> None:
    """Median of the last tenth of the search at every episode: whether the agent learns."""
    window = max(5, len(values) // 10)
    if len(values) < 2 * window:
        return
    blocks = np.lib.stride_tricks.sliding_window_view(values, window)
    axes.plot(
        evaluations[window - 1 :],
        np.median(blocks, axis=1),
        color="#444444",
        linewidth=1.2,
        label=f"median of {window} episodes",
    )


def _lower_edge(values: np.ndarray) -> float:
    """A little below the smallest value; minus infinity when there is none."""
    if len(values) == 0:
        return -np.inf
    return float(values.min() - max(0.08 * np.ptp(values), 1e-3))


def whole_ticks() -> Any:
    """Ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def percent_ticks() -> Any:
    """Labels of fractions, as percentages."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{round(100 * value, 2):g}%")


def _legend_below(figure: Figure, axes: Axes, handles: Sequence[Any] | None = None) -> None:
    if handles is None:
        handles = axes.get_legend_handles_labels()[0]
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=len(handles) if len(handles) < 5 else 3,
        fontsize=9,
        columnspacing=1.4,
        handletextpad=0.6,
    )


@contextmanager
def page_of_axes(path: Path, number: int) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure of many small axes with common percent scales, at most four beside each other.

    Args:
        path: PNG file, written at the end.
        number: how many axes, at least 1.

    Yields:
        The figure and its axes.
    """
    columns = min(4, number)
    rows = -(-number // columns)
    with _styled(path) as figure:
        figure.set_size_inches(2.3 * columns + 0.6, 1.75 * rows + 0.9)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes in grid[number:]:
            axes.set_visible(False)
        for axes in grid[max(0, number - columns) : number]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
        grid[0].set_xlim(0, 1)
        grid[0].set_xticks([0.0, 0.25, 0.5, 0.75])  # the next panel begins where 1 would stand
        grid[0].xaxis.set_major_formatter(percent_ticks())
        grid[0].yaxis.set_major_formatter(percent_ticks())
        yield figure, list(grid[:number])


@contextmanager
def _figure(
    path: Path, *, rows: int, size: tuple[float, float]
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure with one column."""
    with open_figure(path, rows=rows, columns=1, size=size) as (figure, axes):
        yield figure, [row[0] for row in axes]


@contextmanager
def open_figure(
    path: Path, *, rows: int, columns: int, size: tuple[float, float], share_y: bool = False
) -> Iterator[tuple[Figure, Sequence[Sequence[Axes]]]]:
    """A figure in Topiary's style; written to `path` at the end, without a display.

    Args:
        path: PNG file to write; its folder is made.
        rows: rows of axes; those of a column share the x axis.
        columns: columns of axes.
        size: width and height in inches.
        share_y: whether the axes of a row share the y axis.

    Yields:
        The figure, and its axes as rows of columns.
    """
    with _styled(path) as figure:
        figure.set_size_inches(*size)
        axes = figure.subplots(
            rows, columns, sharex="col", sharey="row" if share_y else False, squeeze=False
        )
        yield figure, [list(row) for row in axes]


@contextmanager
def _styled(path: Path) -> Iterator[Figure]:
    """An empty figure in Topiary's style; written to `path` at the end, without a display."""
    # "generated new fontManager" on the first run of a machine is no news for the user
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
