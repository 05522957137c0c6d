"""What is known of a finished episode, and where it is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from pruning.plan import PruningPlan


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode, described by its last step.

    Two records are equal when the same was decided and measured; the counters and the clock, which
    depend on what happened before, do not take part.

    Attributes:
        episode: number of the episode, from 0.
        steps: steps taken.
        evaluations: counted evaluations since the task was built.
        cached: whether the evaluation was answered from memory.
        reward: sum of the rewards of the episode so far.
        score: what the plan is worth; `PruningEnv.best` has the highest. It is the reward of this
            step alone, or the merit of a reward that depends on earlier results.
        reward_terms: the terms of the reward of this step.
        accuracy: on the reward split, in [0, 1] or the user's metric; None when not measured.
        loss: on the reward split; None when not measured.
        num_samples: images of the reward split that both were measured on; 0 when not measured.
        relative_macs: MACs left over those of the unpruned network, as the budget counts them.
        macs: MACs left, dense hardware.
        nonzero_macs: MACs left with a weight that is not masked.
        params: parameters left.
        met: whether the budget is met.
        raw_action: all that the agent said in this episode (layerwise), or in its last step
            (whole).
        executed: name of each site and what was done there: a pruning ratio, or a pattern's name.
        clamps: decisions of the episode so far that were executed differently from what the agent
            asked for.
        seconds: wall time since the episode began.
        plan: all decisions, replayable.
        reward_state: numbers behind a reward that depends on earlier results, such as its
            multiplier; empty for others.
    """

    episode: int = field(compare=False)
    steps: int
    evaluations: int = field(compare=False)
    cached: bool = field(compare=False)
    reward: float
    score: float
    reward_terms: Mapping[str, float]
    accuracy: float | None
    loss: float | None
    num_samples: int
    relative_macs: float
    macs: int
    nonzero_macs: int
    params: int
    met: bool
    raw_action: tuple[float, ...]
    executed: tuple[tuple[str, float | str], ...]
    clamps: int
    seconds: float = field(compare=False)
    plan: PruningPlan
    reward_state: Mapping[str, float] = field(default_factory=dict, compare=False)


class EpisodeSink(Protocol):
    """Takes every finished episode."""

    def write(self, record: EpisodeRecord) -> None:
        """Called once per finished episode."""

    def close(self) -> None:
        """Called when the environment is closed; may be called again."""


def by_score(record: EpisodeRecord) -> float:
    """The rank of a record by what its plan is worth."""
    return record.score


@dataclass
class EpisodeLog:
    """What environments of one problem share.

    Attributes:
        sinks: take every finished episode.
        history: a record of every finished episode.
        best: the measured network within budget that ranks highest, of any step of any episode;
            None before the first.
        rank: key of a record; `best` has the highest.
    """

    sinks: tuple[EpisodeSink, ...]
    history: list[EpisodeRecord] = field(default_factory=list)
    best: EpisodeRecord | None = None
    rank: Callable[[EpisodeRecord], Any] = by_score

    def ranks_higher(self, record: EpisodeRecord) -> bool:
        """Whether a record ranks higher than the best so far; ties keep the earlier one.

        What was measured on more images ranks higher, whatever came of it.
        """
        return self.best is None or self.order(record) > self.order(self.best)

    def finalists(self, number: int, images: int) -> list[EpisodeRecord]:
        """The best different plans within budget by `rank` that saw fewer than so many images."""
        measured = [record for record in self.history if record.met and record.num_samples]
        last = {(tuple(r.plan.keep.items()), r.plan.masks): r for r in measured}
        partly = [record for record in last.values() if record.num_samples < images]
        return sorted(partly, key=self.rank, reverse=True)[:number]

    def order(self, record: EpisodeRecord) -> Any:
        """The key that records are ordered by: images first, then `rank`."""
        return (record.num_samples, self.rank(record))


class CsvSink:
    """Writes one line per episode; flushed per line, so that nothing is lost when a run is killed.

    The columns are those of `EpisodeRecord` without the plan: terms as `reward/<term>`, the state
    of a reward as `reward_state/<name>`, actions as JSON, what was not measured as an empty cell,
    and `seconds` last. A file that is already there is continued.

    Args:
        path: the file; its folder must exist.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file: TextIO | None = None
        self._columns: list[str] | None = None

    def write(self, record: EpisodeRecord) -> None:
        """Append one line.

        Raises:
            ValueError: the file that is there has other columns.
        """
        row = csv_row(record)
        if self._file is None:
            self._open(list(row))
        assert self._file is not None
        if list(row) != self._columns:
            raise ValueError(
                f"{self._path} has the columns {self._columns}, the episode has {list(row)}. "
                f"Write to another file when the reward changes."
            )
        csv.writer(self._file).writerow(row.values())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, columns: list[str]) -> None:
        is_new = not self._path.exists() or self._path.stat().st_size == 0
        if is_new:
            self._columns = columns
        else:
            with self._path.open(newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file))
        self._file = self._path.open("a", newline="", encoding="utf-8")
        if is_new:
            csv.writer(self._file).writerow(columns)


def csv_row(record: EpisodeRecord) -> dict[str, Any]:
    """A record as flat cells, in the order of the columns."""
    return {
        "episode": record.episode,
        "steps": record.steps,
        "evaluations": record.evaluations,
        "cached": record.cached,
        "reward": record.reward,
        "score": record.score,
        **{f"reward/{name}": value for name, value in record.reward_terms.items()},
        **{f"reward_state/{name}": value for name, value in record.reward_state.items()},
        "accuracy": "" if record.accuracy is None else record.accuracy,
        "loss": "" if record.loss is None else record.loss,
        "num_samples": record.num_samples,
        "relative_macs": record.relative_macs,
        "macs": record.macs,
        "nonzero_macs": record.nonzero_macs,
        "params": record.params,
        "met": record.met,
        "raw_action": json.dumps(record.raw_action),
        "executed": json.dumps(dict(record.executed)),
        "clamps": record.clamps,
        "seconds": round(record.seconds, 6),
    }
