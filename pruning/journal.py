"""Counted evaluations on disk, so that a killed search can be replayed without measuring again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pruning.evaluation import Evaluation, NonFiniteAccuracy, Outcome
from pruning.plan import Candidate

JOURNAL_FORMAT = "topiary-evaluations-1"


@dataclass(frozen=True)
class JournalSubject:
    """What the evaluations of a journal were measured on.

    Attributes:
        graph: fingerprint of the graph of the network that is pruned.
        base: the unpruned network on the reward split.
    """

    graph: str
    base: Evaluation


@dataclass(frozen=True)
class _Entry:
    """One line of the journal: an outcome, and where the line begins in the file."""

    candidate: str
    outcome: Outcome
    seconds: float
    offset: int


class EvaluationJournal:
    """Every counted evaluation of a search, one JSON line each; what is there is replayed.

    A search is deterministic but for its measurements. So a killed one needs no checkpoint of the
    agent: it starts again with the same seed, its first evaluations are answered from here and
    counted as if they were measured, and everything else (agent, replay buffer, random numbers,
    best plan, cache) comes out as it was, at the price of the agent's own steps.

    The first line says what was measured on. A line is on the disk before the evaluation is used.
    A last line that is not complete was cut off by the end of the process and is dropped. When the
    search asks for another candidate than it did before (another CPU or version of a library), a
    warning is given, the lines from there on are moved to `evaluations_abandoned.jsonl`, and it
    goes on with measuring.

    Args:
        path: the file; continued when it is there. Its folder must exist.
        subject: what is measured now.

    Attributes:
        num_replayed: evaluations answered from the file so far.
        seconds_before: seconds the search had taken at the last evaluation of the file when it was
            opened; 0 for a new file.

    Raises:
        ValueError: a line in the middle cannot be read, or the file was measured on something else.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | Path, subject: JournalSubject) -> None:
        self.num_replayed = 0
        self._path = Path(path)
        self._file = self._path.open("r+b" if self._path.exists() else "w+b", buffering=0)
        try:
            self._entries, self._end = self._read(subject)
            self._file.truncate(self._end)
            self._file.seek(self._end)
            if self._end == 0:
                self._append(_header(subject))
        except BaseException:
            self._file.close()
            raise
        self.seconds_before = self._entries[-1].seconds if self._entries else 0.0
        self._num_lines = len(self._entries)
        self._seconds = 0.0
        self._since = time.monotonic()

    def __len__(self) -> int:
        return self._num_lines

    @property
    def num_pending(self) -> int:
        """Evaluations that are still to be replayed."""
        return len(self._entries) - self.num_replayed

    def elapsed(self) -> float:
        """Seconds the search has taken, from the opening of the journal.

        The time before an interruption counts, up to the last evaluation that is in the file; the
        interruption and the replay do not.
        """
        return self._seconds + time.monotonic() - self._since

    def holds(self, candidate: Candidate) -> bool:
        """Whether a candidate is still to be replayed, so that it need not be measured ahead."""
        name = digest(candidate)
        return any(entry.candidate == name for entry in self._entries[self.num_replayed :])

    def replay(self, candidate: Candidate) -> Outcome | None:
        """What was measured at this point of the search, or None when it has to be measured."""
        if self.num_pending == 0:
            return None
        entry = self._entries[self.num_replayed]
        if entry.candidate != digest(candidate):
            self._diverge(entry)
            return None
        self.num_replayed += 1
        self._seconds, self._since = entry.seconds, time.monotonic()
        return entry.outcome

    def record(self, candidate: Candidate, outcome: Outcome) -> None:
        """Write one counted evaluation; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written; the lines before are whole.
        """
        line: dict[str, Any] = {
            "evaluation": self._num_lines + 1,
            "candidate": digest(candidate),
            "counts": candidate.keep.counts.tolist(),
            "masks": candidate.masks,
        }
        if isinstance(outcome, NonFiniteAccuracy):
            line["error"] = str(outcome)
        else:
            line |= {
                "accuracy": outcome.accuracy,
                "loss": outcome.loss,
                "num_samples": outcome.num_samples,
            }
        self._append({**line, "seconds": round(self.elapsed(), 6)})
        self._num_lines += 1

    def close(self) -> None:
        """Close the file; may be called again."""
        self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        try:
            _write(self._file.fileno(), data)
        except OSError as error:
            self._file.truncate(self._end)  # a torn line would hide those that follow it
            raise OSError(
                error.errno,
                f"{error.strerror}. The {self._num_lines} evaluations before are kept; mend it and "
                "start the same command again with resume=auto. The file",
                str(self._path),
            ) from error
        self._end += len(data)

    def _diverge(self, entry: _Entry) -> None:
        """Go another way than the file from here on; what it says is kept in another one."""
        number = self.num_replayed + 1
        self._file.seek(entry.offset)
        abandoned = self._path.with_name(f"{self._path.stem}_abandoned{self._path.suffix}")
        with abandoned.open("ab") as file:
            file.write(self._file.read())
            file.flush()
            os.fsync(file.fileno())
        self._file.truncate(entry.offset)
        self._file.seek(entry.offset)
        self._end, self._num_lines = entry.offset, self.num_replayed
        del self._entries[self.num_replayed :]
        warnings.warn(
            f"From evaluation {number} on the search decides differently than before it was "
            "interrupted (another CPU, number of threads or version of a library); it goes its own "
            f"way, and the earlier lines are kept in {abandoned.name}.",
            stacklevel=4,
        )

    def _read(self, subject: JournalSubject) -> tuple[list[_Entry], int]:
        """The entries of the file, and where the last whole line ends."""
        entries: list[_Entry] = []
        end = 0
        lines = self._file.read().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("it does not end")
                data = json.loads(line)
                if number == 1:
                    _check_header(data)
                else:
                    entries.append(_entry(data, number - 1, end))
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):  # the process ended while it wrote this line
                    break
                what = f"no {error}" if isinstance(error, KeyError) else error
                raise ValueError(
                    f"{self._path}, line {number} is not a line of a journal of evaluations: "
                    f"{what}. The file was changed or damaged. Delete this line and all that "
                    "follow to go on from there, or start afresh with resume=null."
                ) from error
            if number == 1:
                self._check_subject(data, subject)
            end += len(line)
        return entries, end

    def _check_subject(self, header: dict[str, Any], subject: JournalSubject) -> None:
        """Refuse measurements of another network or other data.

        Another CPU may move the loss a little, so it need not be equal.
        """
        base = subject.base
        is_same = (
            header["graph"] == subject.graph
            and header["num_samples"] == base.num_samples
            and math.isclose(header["base_loss"], base.loss, rel_tol=1e-3, abs_tol=1e-6)
        )
        if not is_same:
            raise ValueError(
                f"{self._path} was measured on another network or other data: there the unpruned "
                f"network has the graph {header['graph']} and loss {header['base_loss']:.6g} on "
                f"{header['num_samples']} images, here the graph {subject.graph} and loss "
                f"{base.loss:.6g} on {base.num_samples}. Bring back the weights and the data of "
                "then, or start afresh with resume=null."
            )


def digest(candidate: Candidate) -> str:
    """Short name of a candidate; equal for equal candidates, in any process."""
    hashed = hashlib.sha256(np.packbits(candidate.keep.mask).tobytes())
    hashed.update(json.dumps(candidate.masks).encode())
    return hashed.hexdigest()[:32]


def _header(subject: JournalSubject) -> dict[str, Any]:
    return {
        "format": JOURNAL_FORMAT,
        "graph": subject.graph,
        "base_loss": subject.base.loss,
        "num_samples": subject.base.num_samples,
    }


def _check_header(data: Any) -> None:
    found = data.get("format") if isinstance(data, dict) else type(data).__name__
    if found != JOURNAL_FORMAT:
        raise ValueError(f"the format is {found!r}, not {JOURNAL_FORMAT!r}")
    missing = {"graph", "base_loss", "num_samples"} - data.keys()
    if missing:
        raise ValueError(f"it has no {', '.join(sorted(missing))}")


def _entry(data: Any, number: int, offset: int) -> _Entry:
    if not isinstance(data, dict):
        raise TypeError(f"it holds a {type(data).__name__}")
    if data["evaluation"] != number:
        raise ValueError(f"it is evaluation {data['evaluation']}, and {number} is its turn")
    outcome: Outcome
    if "error" in data:
        outcome = NonFiniteAccuracy(str(data["error"]))
    else:
        outcome = Evaluation(float(data["accuracy"]), float(data["loss"]), int(data["num_samples"]))
    return _Entry(str(data["candidate"]), outcome, float(data["seconds"]), offset)


def _write(descriptor: int, data: bytes) -> None:
    """Write all bytes and wait until they are on the disk."""
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
