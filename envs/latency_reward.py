"""A reward for networks that are fast on one machine, and not only small."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from envs.rewards import Reward, Transition, check_quality, quality_kept
from pruning.latency_table import LatencyTable
from pruning.task import PruningTask


@dataclass(frozen=True)
class LatencyReward:
    """Weighs the latency that is saved against the quality that is kept.

        alpha * (1 - latency / base latency) + (1 - alpha) * min(1, quality / base quality)

    The latency is looked up in a table of measured operator times, so it costs nothing and is the
    same at every call. It is that of dense hardware: masks save nothing.

    Args:
        table: file that `python -m experiments.latency_table` wrote for this network.
        alpha: weight of latency in [0, 1]; higher prunes more.
        quality: one of envs.rewards.QUALITIES.
        batch: samples per forward pass that the table must be for.
        threads: CPU threads that it must be for.

    Raises:
        ValueError: an argument is out of range, or there is no such file.
    """

    table: str | None
    alpha: float = 0.5
    quality: str = "likelihood"
    batch: int = 32
    threads: int = 1

    name = "latency"
    bounds = (0.0, 1.0)
    pays_for_compression = True
    term_names = ("latency", "quality")

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}. Change reward.alpha.")
        check_quality(self.quality)
        if self.table is None or not Path(self.table).expanduser().is_file():
            raise ValueError(
                f"reward=latency needs a latency table of the network, and reward.table="
                f"{'null' if self.table is None else self.table} is no file. Measure one with "
                f"python -m experiments.latency_table network=NETWORK FILE, and set "
                f"reward.table=FILE."
            )

    def bind(self, task: PruningTask) -> Reward:
        """The reward for the network of a task.

        Raises:
            ValueError: the table is for another network or setting, or is not finished.
        """
        assert self.table is not None
        path = Path(self.table).expanduser()
        try:
            table = LatencyTable.load(path, task.graph, batch=self.batch, threads=self.threads)
        except ValueError as error:
            raise ValueError(f"reward.table={self.table} cannot be used: {error}") from error
        sizes = [group.size for group in task.graph.groups]
        return TableReward(self, table, float(table.latency_of_counts(sizes)))


@dataclass(frozen=True)
class TableReward:
    """`LatencyReward` bound to a task.

    Args:
        settings: the weights.
        table: times of the network's operators.
        base_seconds: latency of the unpruned network, above 0.
    """

    settings: LatencyReward
    table: LatencyTable
    base_seconds: float

    name = LatencyReward.name
    bounds = LatencyReward.bounds
    pays_for_compression = True
    term_names = LatencyReward.term_names

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The terms `latency` in [0, alpha] and `quality` in [0, 1 - alpha].

        A network that is slower than the unpruned one is paid like that one.
        """
        seconds = float(self.table.latency_of_counts(transition.counts))
        saved = min(1.0, max(0.0, 1.0 - seconds / self.base_seconds))
        alpha = self.settings.alpha
        return {
            "latency": alpha * saved,
            "quality": (1.0 - alpha) * quality_kept(self.settings.quality, transition),
        }
