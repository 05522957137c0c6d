"""What the benchmark of the evaluation found, as figures and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.stopwatch import Taken

MASKED, RECALIBRATED, PLAIN, BARE, HIT, POLICY = (
    "masked network",
    "evaluation, recalibrated",
    "evaluation",
    "bare forward",
    "cache hit",
    "policy",
)

MEANINGS: dict[str, str] = {
    MASKED: "removed channels zeroed, full width, eager, NCHW, every batch norm, scored",
    RECALIBRATED: "a new candidate: slimmed, batch norms recalibrated, folded, run, scored",
    PLAIN: "the same without recalibration (evaluation.recalibrate=false)",
    BARE: "only the forward pass of the slim network, folded and laid out before: the yardstick",
    HIT: "a candidate that was measured before",
    POLICY: "what the agent and the environment add: predict and step, the evaluation left out",
}
"""What is measured, in the order of the table."""

COLUMNS = ("", "ms", "× bare", "CPU ms", "× bare CPU", "what is measured")

GOAL = 1.15
"""Wanted is at most so many times the bare forward for an evaluation without recalibration."""

LEGEND = (
    "Medians. Every round takes a new candidate, with the same channel counts and other channels, "
    "and measures all rows in turns; ratios are medians of the ratios within a round. CPU: "
    "processor time of all threads, which waiting for other programs does not lengthen. Gradient "
    "steps of the agent are not part of it."
)


@dataclass(frozen=True)
class EvaluationFigures:
    """What one evaluation costs.

    Attributes:
        taken: of each round, by what is measured (keys of MEANINGS).
        loss_differences: largest |loss - loss of the masked network| of the ways that should agree,
            relative to 1 + the masked network's loss.
    """

    taken: Mapping[str, Sequence[Taken]]
    loss_differences: Mapping[str, float]

    def median(self, name: str) -> Taken:
        """Medians of a row, in seconds."""
        rounds = self.taken[name]
        return Taken(
            statistics.median(each.wall for each in rounds),
            statistics.median(each.cpu for each in rounds),
        )

    def ratio(self, name: str) -> Taken:
        """Medians over the rounds of a row over the bare forward."""
        pairs = list(zip(self.taken[name], self.taken[BARE], strict=True))
        return Taken(
            statistics.median(own.wall / bare.wall for own, bare in pairs),
            statistics.median(own.cpu / bare.cpu for own, bare in pairs),
        )


@dataclass(frozen=True)
class EvaluationTable:
    """The result of the benchmark.

    Attributes:
        network: chosen network.
        data: name of the data.
        relative_macs: MACs left in the candidates, fraction of the unpruned network's.
        images: images of the reward split.
        calibration_images: images of the calibration split.
        batch_size: images per forward pass.
        threads: CPU threads of torch.
        figures: what was measured.
    """

    network: str
    data: str
    relative_macs: float
    images: int
    calibration_images: int
    batch_size: int
    threads: int
    figures: EvaluationFigures

    @property
    def title(self) -> str:
        """What was measured, in one line."""
        rounds = len(self.figures.taken[BARE])
        return (
            f"One evaluation of {self.network} on {self.data}, {self.relative_macs:.1%} of the "
            f"MACs left, {self.images} images in batches of {self.batch_size}, "
            f"{self.calibration_images} calibration images, {self.threads} thread(s), "
            f"{rounds} rounds"
        )

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text, see COLUMNS."""
        rows = []
        for name, meaning in MEANINGS.items():
            if name in self.figures.taken:
                median, ratio = self.figures.median(name), self.figures.ratio(name)
                numbers = (1e3 * median.wall, ratio.wall, 1e3 * median.cpu, ratio.cpu)
                rows.append([name, *(f"{number:.3f}" for number in numbers), meaning])
        return rows

    @property
    def verdict(self) -> str:
        """The ratio that has a goal, and whether the ways agree."""
        ratio, worst = self.figures.ratio(PLAIN), max(self.figures.loss_differences.values())
        return (
            f"An evaluation without recalibration takes {ratio.wall:.3f} times the bare forward, "
            f"{ratio.cpu:.3f} times in processor time (goal: at most {GOAL}). Its loss is the "
            f"masked network's within {worst:.1e} (relative)."
        )

    def to_markdown(self) -> str:
        """Title, table, verdict and legend as Markdown."""
        lines = [
            f"{self.title}.",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|---|---:|---:|---:|---:|---|",
            *("| " + " | ".join(cells) + " |" for cells in self.cells),
            "",
            self.verdict,
            "",
            LEGEND,
        ]
        return "\n".join(lines) + "\n"
