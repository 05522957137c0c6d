"""What a transfer study found: rows, table, file and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.run_folder import write_json
from experiments.statistics import bootstrap, mean, verdict

if TYPE_CHECKING:
    from rich.table import Table

    from experiments.transfer_runs import SearchRun

UNIFORM, ZERO_SHOT, TRANSFERRED, SCRATCH, LONG_SCRATCH = (
    "uniform",
    "zero-shot",
    "transferred",
    "scratch",
    "scratch, all evaluations",
)
METRICS = ("accuracy", "loss")


@dataclass(frozen=True)
class Outcome:
    """The best plan of the target that one way of searching had, with one seed.

    Attributes:
        row: which way.
        seed: of its searches.
        accuracy: on the reward split, in [0, 1].
        loss: on the reward split.
        target_evaluations: counted evaluations of the target.
        source_evaluations: counted evaluations of all sources together.
    """

    row: str
    seed: int
    accuracy: float
    loss: float
    target_evaluations: int
    source_evaluations: int


@dataclass(frozen=True)
class SeedRuns:
    """The searches of one seed.

    Attributes:
        seed: which one.
        sources: by label; empty where the policy was given.
        transferred: on the target, from the policy's plan.
        scratch: on the target, from the uniform plan.
    """

    seed: int
    sources: Mapping[str, SearchRun]
    transferred: SearchRun
    scratch: SearchRun

    @property
    def source_evaluations(self) -> int:
        """Counted evaluations of all sources together."""
        return sum(run.evaluations for run in self.sources.values())

    def outcomes(self, evaluations: int, *, long_scratch: bool) -> list[Outcome]:
        """All rows but uniform.

        Args:
            evaluations: of the target, that transferred and scratch are compared at.
            long_scratch: whether scratch went on to as many as sources and target together.
        """
        spent = self.source_evaluations
        ends = [
            (ZERO_SHOT, self.transferred, 1, spent),
            (TRANSFERRED, self.transferred, evaluations, spent),
            (SCRATCH, self.scratch, evaluations, 0),
        ]
        if long_scratch and spent:
            ends.append((LONG_SCRATCH, self.scratch, spent + evaluations, 0))
        outcomes = []
        for row, run, bound, before in ends:
            best = run.best_after(bound)
            spent_here = min(bound, run.evaluations)
            outcomes.append(Outcome(row, self.seed, best.accuracy, best.loss, spent_here, before))
        return outcomes


def curve(run: SearchRun, evaluations: int, metric: str) -> np.ndarray:
    """A metric of the best plan so far after 1, 2, ... evaluations, shape (evaluations,)."""
    return np.array(
        [getattr(run.best_after(count), metric) for count in range(1, evaluations + 1)], dtype=float
    )


def values(outcomes: Sequence[Outcome], row: str, metric: str) -> np.ndarray:
    """A metric of one row, (seeds,) in the order of the seeds."""
    found = sorted((each.seed, getattr(each, metric)) for each in outcomes if each.row == row)
    return np.array([value for _, value in found], dtype=float)


def write_results(
    path: Path,
    about: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    seeds: Sequence[SeedRuns],
    evaluations: int,
) -> None:
    """Write everything as JSON.

    Args:
        path: the file.
        about: what was studied.
        outcomes: of all rows and seeds.
        seeds: the searches.
        evaluations: length of the curves.
    """
    curves = [
        {
            "seed": runs.seed,
            "row": row,
            **{metric: curve(run, evaluations, metric).tolist() for metric in METRICS},
        }
        for runs in seeds
        for row, run in ((TRANSFERRED, runs.transferred), (SCRATCH, runs.scratch))
    ]
    sources = [
        {
            "seed": runs.seed,
            "label": label,
            "evaluations": run.evaluations,
            "seconds": run.seconds,
            "first_accuracy": run.measurements[0].accuracy,
            "best_accuracy": run.best_after(run.evaluations).accuracy,
        }
        for runs in seeds
        for label, run in runs.sources.items()
    ]
    rows = [asdict(outcome) for outcome in outcomes]
    write_json(path, {"about": dict(about), "rows": rows, "curves": curves, "sources": sources})


def make_table(about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Table:
    """The rows, averaged over the seeds.

    Args:
        about: with `target`, `sources` and `relative_macs`.
        outcomes: of all rows and seeds.
    """
    from rich.table import Table

    num_seeds = len({each.seed for each in outcomes})
    table = Table(
        title=f"{', '.join(about['sources'])} → {about['target']}, {about['relative_macs']:g} of "
        f"the MACs, {num_seeds} seed{'' if num_seeds == 1 else 's'}",
        title_justify="left",
        title_style="bold",
        caption="Best plan by reward, on the reward split, before fine-tuning: mean"
        + (" and bootstrap interval." if num_seeds > 1 else "."),
        caption_justify="left",
    )
    table.add_column("policy", no_wrap=True)
    for column in (
        "accuracy",
        "loss",
        "target evaluations",
        "source evaluations",
        "beats scratch?",
    ):
        table.add_column(column, justify="right")
    scratch = values(outcomes, SCRATCH, "loss")
    for row in dict.fromkeys(each.row for each in outcomes):
        losses = values(outcomes, row, "loss")
        is_rival = row in (ZERO_SHOT, TRANSFERRED)
        table.add_row(
            row,
            _cell(values(outcomes, row, "accuracy"), scale=100.0, digits=2),
            _cell(losses, scale=1.0, digits=3),
            *(
                f"{values(outcomes, row, key).mean():.0f}"
                for key in ("target_evaluations", "source_evaluations")
            ),
            verdict(-losses, -scratch) if is_rival and num_seeds > 1 else "",
        )
    return table


def draw_curves(
    path: Path,
    title: str,
    seeds: Sequence[SeedRuns],
    uniform: SearchRun,
    evaluations: int,
) -> None:
    """Accuracy and loss of the best plan so far over the evaluations of the target.

    Args:
        path: PNG file.
        title: what was studied.
        seeds: the searches; mean and range are drawn.
        uniform: the uniform plan of the target.
        evaluations: length of the curves.
    """
    from experiments.figures import AGENT, BASE, open_figure, percent_ticks, whole_ticks
    from experiments.figures import UNIFORM as UNIFORM_COLOUR

    counts = np.arange(1, evaluations + 1)
    with open_figure(path, rows=1, columns=2, size=(9.0, 4.0)) as (figure, ((left, right),)):
        for axes, metric in ((left, "accuracy"), (right, "loss")):
            for row, colour in ((TRANSFERRED, AGENT), (SCRATCH, BASE)):
                runs = [each.transferred if row == TRANSFERRED else each.scratch for each in seeds]
                curves = np.array([curve(run, evaluations, metric) for run in runs])
                axes.plot(
                    counts, curves.mean(axis=0), color=colour, linewidth=2.2, label=row,
                    drawstyle="steps-post",
                )  # fmt: skip
                if len(curves) > 1:
                    axes.fill_between(
                        counts, curves.min(axis=0), curves.max(axis=0), step="post", color=colour,
                        alpha=0.15, linewidth=0,
                    )  # fmt: skip
                if row == TRANSFERRED:
                    axes.plot(
                        1, curves[:, 0].mean(), marker="*", markersize=13, color=colour,
                        markeredgecolor="white", linestyle="", label=ZERO_SHOT, zorder=5,
                    )  # fmt: skip
            axes.axhline(
                getattr(uniform.measurements[0], metric), color=UNIFORM_COLOUR, linestyle="--",
                linewidth=1.6, label=UNIFORM,
            )  # fmt: skip
            axes.set_xlabel("evaluations of the target")
            axes.set_ylabel(f"reward-split {metric}, best plan so far")
            axes.xaxis.set_major_locator(whole_ticks())
        left.yaxis.set_major_formatter(percent_ticks())
        left.set_title(title)
        figure.legend(
            handles=left.get_legend_handles_labels()[0], loc="outside lower center", ncols=4,
            fontsize=9,
        )  # fmt: skip


def _cell(found: np.ndarray, *, scale: float, digits: int) -> str:
    if len(found) == 1:
        return f"{scale * found[0]:.{digits}f}"
    estimate = bootstrap(mean, [scale * found])
    return f"{estimate.value:.{digits}f}\n[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
