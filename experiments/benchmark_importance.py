"""Accuracy right after uniform pruning: every importance, with and without reconstruction.

Overrides are those of train_agent.py, such as network=resnet56_cifar10 data.root=DIR
network.checkpoint=FILE budget.relative_macs=0.5 reconstruction=least_squares.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.building import build_data, own_options
from experiments.command_line import CONFIG_FOLDER
from experiments.pipeline import build_task, seed_everything, trained_network
from experiments.progress import shows_progress
from experiments.run_folder import write_text
from experiments.settings import Settings
from networks.data import DataSplits, SampleSet
from pruning.folding import folded
from pruning.importance import CRITERIA, score_groups
from pruning.keep_set import KeepSet
from pruning.recalibration import recalibrate_batch_norm
from pruning.reconstruction import LeastSquares, Reconstructor
from pruning.task import PruningTask

COLUMNS: dict[str, tuple[str | None, bool]] = {
    "none": (None, False),
    "BN": (None, True),
    "dense LS": ("dense", False),
    "dense LS + BN": ("dense", True),
    "sequential LS": ("sequential", False),
    "sequential LS + BN": ("sequential", True),
}
"""For each column the mode of the least squares, and whether batch norms are recalibrated."""

log = logging.getLogger(__name__)

LEGEND = (
    "BN: batch norms recalibrated. LS: weights refitted by least squares, both on the calibration "
    "split. Nothing is fine-tuned."
)


@dataclass(frozen=True)
class ImportanceRow:
    """What one importance is worth.

    Attributes:
        importance: name of the criterion.
        accuracies: test accuracy in [0, 1] by column; empty when the network cannot be scored.
        reason: why it cannot be scored, or "".
    """

    importance: str
    accuracies: Mapping[str, float]
    reason: str = ""


@dataclass(frozen=True)
class ImportanceTable:
    """The result of the benchmark.

    Attributes:
        network: chosen network.
        data: name of the data.
        relative_macs: MACs left of the uniform pruning, fraction of the unpruned network's.
        base_accuracy: test accuracy of the unpruned network, in [0, 1].
        test_images: images it is measured on.
        calibration_images: images of the calibration split.
        rows: one per importance.
    """

    network: str
    data: str
    relative_macs: float
    base_accuracy: float
    test_images: int
    calibration_images: int
    rows: tuple[ImportanceRow, ...]

    @property
    def title(self) -> str:
        """What was measured, in one line."""
        return (
            f"{self.network} on {self.data}, {self.relative_macs:.1%} of the MACs left in every "
            f"group alike: accuracy on {self.test_images} test images, unpruned "
            f"{self.base_accuracy:.2%}, {self.calibration_images} calibration images"
        )

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text, percentages with two digits."""
        return [
            [row.importance, *(_percent(row.accuracies.get(column)) for column in COLUMNS)]
            for row in self.rows
        ]

    @property
    def reasons(self) -> list[str]:
        """Why some rows are empty."""
        return [f"{row.importance}: {row.reason}" for row in self.rows if row.reason]

    def to_markdown(self) -> str:
        """Title, table, legend and reasons as Markdown."""
        lines = [
            f"{self.title}.",
            "",
            "| importance | " + " | ".join(COLUMNS) + " |",
            "|---|" + "---:|" * len(COLUMNS),
            *("| " + " | ".join(cells) + " |" for cells in self.cells),
            "",
            LEGEND,
            *(f"\n- {reason}" for reason in self.reasons),
        ]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """One line per importance, accuracies as fractions."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["importance", *COLUMNS])
        for row in self.rows:
            writer.writerow([row.importance, *(row.accuracies.get(c, "") for c in COLUMNS)])
        return text.getvalue()


def measure_importances(
    task: PruningTask,
    test: SampleSet,
    counts: Any,
    *,
    importances: Sequence[str],
    settings: LeastSquares,
    seed: int = 0,
    scope: str = "producer",
    calibration: SampleSet,
    advance: Callable[[], None] = lambda: None,
) -> list[ImportanceRow]:
    """Prune by each importance and test in every column.

    Args:
        task: holds the network, its graph and the slimmer.
        test: the test split.
        counts: kept channels per group, int of shape (num_groups,).
        importances: keys of CRITERIA.
        settings: of the least squares; the columns choose its mode.
        seed: of importances that draw.
        scope: see `pruning.importance.score_groups`.
        calibration: images for scores, batch norms and least squares.
        advance: called after every cell.

    Returns:
        One row per importance, in order.
    """
    refits: dict[tuple[str | None, bool], Reconstructor] = {}
    for mode, recalibrate in COLUMNS.values():
        # the dense mode is the same for both, so its Gram matrices are gathered once
        key = (mode, recalibrate and mode == "sequential")
        if mode is not None and key not in refits:
            bound = replace(settings, mode=mode)
            refits[key] = bound.bind(task.slimmer, calibration, recalibrate=key[1])
    rows = []
    for importance in importances:
        try:
            scores = score_groups(
                task.network, task.graph, importance, calibration, scope=scope, seed=seed
            )
        except ValueError as error:
            rows.append(ImportanceRow(importance, {}, str(error)))
            for _ in COLUMNS:
                advance()
            continue
        keep = KeepSet.from_counts(task.graph, counts, scores)
        accuracies = {}
        for column, (mode, recalibrate) in COLUMNS.items():
            overlay: Mapping[str, Tensor] = {}
            if mode is not None:
                overlay = refits[mode, recalibrate and mode == "sequential"].overlay(keep)
            slim = task.slimmer.materialize(keep, overlay=overlay)
            if recalibrate:
                recalibrate_batch_norm(slim, calibration, task.evaluator.batch_size)
            with folded(slim, task.graph.folds):  # faster; changes outputs by rounding only
                accuracies[column] = task.evaluator.measure(slim, test).accuracy
            advance()
        rows.append(ImportanceRow(importance, accuracies))
        log.info(
            "%s: %s", importance,
            ", ".join(f"{column} {_percent(value)}" for column, value in accuracies.items()),
        )  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it as Markdown and CSV.

    Returns:
        0.

    Raises:
        ValueError: an option or an override is wrong.
    """
    options = _parser().parse_intermixed_args(arguments)
    if options.images is not None and options.images < 1:
        raise ValueError(f"--images must be 1 or more, got {options.images}.")
    unknown = [name for name in options.importances if name not in CRITERIA]
    if unknown:
        raise ValueError(
            f"There is no importance {unknown[0]!r}. Those of --importances are: "
            f"{', '.join(CRITERIA)}."
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        composed = compose("train_agent", options.overrides, return_hydra_config=True)
    choices = composed.hydra.runtime.choices
    config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    table = _measure(config, str(choices.network), options)
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "importance.md", table.to_markdown())
    write_text(folder / "importance.csv", table.to_csv())
    _print(table, Console(width=120))
    print(f"Written to {folder / 'importance.md'} and {folder / 'importance.csv'}.")
    return 0


def _measure(config: DictConfig, network_name: str, options: argparse.Namespace) -> ImportanceTable:
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    for section in ("network", "data"):
        plain[section] = own_options(section, plain[section], options.overrides)
    settings = Settings.from_config(plain, show_progress=shows_progress(plain["progress_bar"]))
    torch.set_num_threads(settings.num_threads)
    seed_everything(settings.seed)
    data = build_data(plain["data"])
    test = data.test
    if options.images is not None:
        test = test.subset(range(min(options.images, len(test))))
    network = trained_network(config, plain, data, settings)
    task = _task(config, plain, network, data, settings)
    relative_macs = float(plain["budget"].get("relative_macs", 0.5))
    counts = task.uniform_counts(relative_macs * task.cost.base_macs)
    chosen = instantiate(config.reconstruction)
    bar = _bar(len(options.importances) * len(COLUMNS), enabled=settings.show_progress)
    rows = measure_importances(
        task,
        test,
        counts,
        importances=options.importances,
        settings=chosen if isinstance(chosen, LeastSquares) else LeastSquares(),
        seed=settings.seed,
        scope=plain["importance"].get("scope", "producer"),
        calibration=data.search.calibration,
        advance=bar.update,
    )
    bar.close()
    return ImportanceTable(
        network=network_name,
        data=data.name,
        relative_macs=float(task.cost.macs_of_counts(counts) / task.cost.base_macs),
        base_accuracy=task.evaluator.measure(network, test).accuracy,
        test_images=len(test),
        calibration_images=len(data.search.calibration),
        rows=tuple(rows),
    )


def _task(
    config: DictConfig,
    plain: dict[str, Any],
    network: torch.nn.Module,
    data: DataSplits,
    settings: Settings,
) -> PruningTask:
    """The task of the main job; its own importance is the one that scores every network."""
    own = {**plain, "importance": {"criterion": "random"}}
    without = OmegaConf.merge(config, {})
    assert isinstance(without, DictConfig), "it was a mapping"
    without.reconstruction = {}
    return build_task(without, own, network, data, settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark importance", description=__doc__
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config")
    parser.add_argument(
        "--importances",
        metavar="A,B,...",
        type=lambda text: text.split(","),
        default=list(CRITERIA),
        help=f"some of {', '.join(CRITERIA)}; all by default",
    )
    parser.add_argument("--images", type=int, help="test images, the first ones; all by default")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmark_importance"),
        help="folder of importance.md and importance.csv",
    )
    return parser


def _print(table: ImportanceTable, console: Console) -> None:
    view = Table(title=table.title, title_justify="left")
    for column in ("importance", *COLUMNS):
        view.add_column(column, justify="left" if column == "importance" else "right")
    for cells in table.cells:
        view.add_row(*cells)
    console.print(view)
    for line in (LEGEND, *table.reasons):
        console.print(line, markup=False, highlight=False)


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.2%}"


def _bar(total: int, *, enabled: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="importances", unit=" cell", disable=not enabled)
