"""Every proposal with its reasoning and what it led to: the history that the model reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents.llm.json_lines import append_line, cut_partial_line, whole_lines

PROPOSALS_FILE = "llm_proposals.jsonl"

MEASURED, OUTSIDE_BAND, REFUSED = "measured", "outside_band", "refused"

LONGEST_REASONING = 400
"""Characters of an earlier reasoning that the model is shown again."""


@dataclass(frozen=True)
class Proposal:
    """One proposal of the model.

    Attributes:
        number: from 0.
        exchange: number of the exchange that held it.
        status: "measured", "outside_band" (costs no evaluation) or "refused" (no episode either).
        reasoning: the model's own words.
        asked: the whole proposal as it was given.
        repairs: what was changed in it, in words.
        refusal: why it was refused; None when it was executed.
        plan: pruning ratio after rounding, or pattern name, by group; None when refused.
        importance: which channels went first; None where a proposal may not choose.
        fine_tune: settings of the final fine-tuning that differ from the run's; None for none.
        episode: number of the episode in metrics.csv; None when refused.
        macs: MACs left; None when refused.
        relative_macs: as the budget counts them, over those of the unpruned network.
        error_percent: how far they lie outside the band, in percent of its nearest edge, above 0
            for too many; 0 inside.
        accuracy: on the reward split; None when not measured.
        loss: on the reward split; None when not measured, or not a number.
        score: reward of the episode; None when refused, or not a number.
    """

    number: int
    exchange: int
    status: str
    reasoning: str
    asked: Mapping[str, Any]
    repairs: tuple[str, ...] = ()
    refusal: str | None = None
    plan: Mapping[str, Any] | None = None
    episode: int | None = None
    macs: int | None = None
    relative_macs: float | None = None
    error_percent: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    score: float | None = None
    importance: str | None = None
    fine_tune: Mapping[str, Any] | None = None

    def view(self) -> dict[str, Any]:
        """What the model is shown of it: what matters, rounded."""
        shown: dict[str, Any] = {"number": self.number, "status": self.status}
        shown["reasoning"] = self.reasoning[:LONGEST_REASONING]
        if self.repairs:
            shown["repairs"] = list(self.repairs)
        if self.refusal is not None:
            return {**shown, "asked": dict(self.asked), "refusal": self.refusal}
        assert self.plan is not None, "executed"
        shown["plan"] = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in self.plan.items()
        }
        for name in ("importance", "fine_tune"):
            if getattr(self, name) is not None:
                shown[name] = getattr(self, name)
        for name, digits in (("relative_macs", 5), ("error_percent", 2), ("accuracy", 4)):
            value = getattr(self, name)
            shown[name] = None if value is None else round(value, digits)
        shown["loss"] = None if self.loss is None else round(self.loss, 4)
        return shown


def best_of(proposals: Sequence[Proposal]) -> Proposal | None:
    """The measured proposal of the highest reward, the first of equals."""
    measured = [proposal for proposal in proposals if proposal.status == MEASURED]
    return max(measured, key=_score) if measured else None


def _score(proposal: Proposal) -> float:
    return -math.inf if proposal.score is None else proposal.score


def shown_history(proposals: Sequence[Proposal], length: int) -> list[dict[str, Any]]:
    """The last proposals, and the best one when it is older."""
    recent = list(proposals[-length:]) if length else []
    best = best_of(proposals)
    if best is not None and best not in recent:
        recent.insert(0, best)
    return [proposal.view() for proposal in recent]


def progress(proposals: Sequence[Proposal]) -> dict[str, Any]:
    """How the search goes, in numbers: what the master judges by.

    `is_diverging`: none of the last three executed plans lies in the band, and each lies farther
    outside than the one before. `has_collapsed`: of the last three measured plans each has less
    than half of the best accuracy.
    """
    executed = [p for p in proposals if p.status != REFUSED]
    measured = [p for p in executed if p.status == MEASURED]
    best = best_of(proposals)
    errors = [abs(p.error_percent or 0.0) for p in executed[-3:]]
    accuracies = [p.accuracy or 0.0 for p in measured]
    return {
        "proposals": len(proposals),
        "refused": len(proposals) - len(executed),
        "outside_band": len(executed) - len(measured),
        "measured": len(measured),
        "best_proposal": None if best is None else best.number,
        "best_accuracy": None if best is None else round(best.accuracy or 0.0, 4),
        "proposals_since_best": None if best is None else len(proposals) - 1 - best.number,
        "is_diverging": len(errors) == 3 and 0.0 < errors[0] < errors[1] < errors[2],
        "has_collapsed": len(accuracies) > 3 and max(accuracies[-3:]) < 0.5 * max(accuracies),
    }


class ProposalLog:
    """One line of JSON per proposal, written at once.

    A search that goes on after a kill proposes the same again; lines that are there already and
    equal are left alone, and from the first that differs on they are replaced.

    Args:
        path: the file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []
        if path.exists():
            cut_partial_line(path)
            self._lines = whole_lines(path)

    def write(self, proposal: Proposal) -> None:
        """Write the line of a proposal; its number is the number of the line."""
        line = json.dumps(asdict(proposal), allow_nan=False)
        number = proposal.number
        if number < len(self._lines):
            if self._lines[number] == line:
                return
            self._lines = self._lines[:number]
            self._path.write_text("".join(f"{kept}\n" for kept in self._lines), encoding="utf-8")
        self._lines.append(line)
        append_line(self._path, line)
