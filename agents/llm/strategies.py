"""From a proposal to a plan that the environment executes: repaired, or refused with a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import numpy as np

from agents.llm.granularity import GROUPS_ALONE, Granularity
from agents.llm.names import Refused, Value, assign, nearest
from agents.llm.schema import PatternProposal, RatioProposal, with_choices
from graphs.network_graph import Group
from pruning.keep_set import allowed_counts
from pruning.task import PruningTask


@dataclass(frozen=True)
class Plan(Generic[Value]):
    """What is executed.

    Attributes:
        values: pruning ratio after rounding, or pattern name, of every group.
        repairs: what was changed in the proposal, in words.
        importance: which channels go first; None where a proposal may not choose.
        fine_tune: settings of the final fine-tuning that differ from the run's; None for none.
    """

    values: Mapping[str, Value]
    repairs: tuple[str, ...]
    importance: str | None = None
    fine_tune: Mapping[str, Any] | None = None


class Strategies(Protocol):
    """One kind of plan that an environment executes."""

    @property
    def answer(self) -> Any:
        """Schema of a proposal."""

    def describe(self) -> dict[str, Any]:
        """What may be chosen, as JSON takes it."""

    def plan(self, proposal: Any, earlier: Mapping[int, Plan[Any]]) -> Plan[Any]:
        """Make a plan of a proposal.

        Args:
            proposal: an instance of `answer`.
            earlier: plans that were executed, by the number of their proposal.

        Raises:
            Refused: its intent is not clear, or it cannot be executed.
        """

    def action(self, env: Any, values: Mapping[str, Any]) -> np.ndarray:
        """The action of the environment that executes a plan."""


class RatioStrategies:
    """Plans of pruning ratios, for `env/action=ratio`.

    Args:
        task: what is pruned.
        largest_ratios: the largest pruning ratio of each group.
        granularity: what the entries of a proposal may stand for.
    """

    def __init__(
        self,
        task: PruningTask,
        largest_ratios: Mapping[str, float],
        granularity: Granularity = GROUPS_ALONE,
    ) -> None:
        self.answer = with_choices(RatioProposal, granularity.choices)
        self._groups = task.graph.groups
        self._largest = largest_ratios
        self._granularity = granularity

    def describe(self) -> dict[str, Any]:
        """Ratios, and the multiples that kept channels can be rounded to."""
        return {"kind": "ratios", "round_to": [1, 2, 4, 8, 16], **self._granularity.describe()}

    def plan(self, proposal: RatioProposal, earlier: Mapping[int, Plan[float]]) -> Plan[float]:
        """Ratios of all groups, rounded to channels.

        Raises:
            Refused: an unknown group, two ratios for one group, a ratio that makes no sense, or a
                granularity that is not executed here.
        """
        repairs: list[str] = []
        asked = assign(
            self._groups,
            [(entry.group, _ratio(entry.group, entry.ratio, repairs)) for entry in proposal.ratios],
            repairs,
            blocks=self._granularity.blocks_of(proposal),
        )
        default = 0.0
        if proposal.start_from is None:
            default = _ratio("default_ratio", proposal.default_ratio, repairs)
        rest = _rest(self._groups, default, proposal.start_from, earlier)
        values = {
            group.name: self._round(
                group, asked.get(group.name, rest[group.name]), proposal.round_to, repairs
            )
            for group in self._groups
        }
        return Plan(values, tuple(repairs))

    def action(self, env: Any, values: Mapping[str, float]) -> np.ndarray:
        """The nearest action; it rounds to the same channels."""
        return np.asarray(env.encode_ratios(values))

    def _round(self, group: Group, ratio: float, round_to: int, repairs: list[str]) -> float:
        largest = self._largest[group.name]
        if ratio > largest + 1e-9:
            repairs.append(f"{group.name}: ratio {ratio:g} lowered to the largest, {largest:g}")
        fewest = round(group.size * (1.0 - largest))
        counts = allowed_counts(group)
        step = 1 if group.kind == "heads" else round_to
        is_allowed = (counts >= fewest) & ((counts % step == 0) | (counts == group.size))
        options = counts[is_allowed]
        distance = np.round(np.abs(options - (1.0 - ratio) * group.size), 9)
        return 1.0 - float(options[np.argmin(distance)]) / group.size  # of two equal: fewer kept


class PatternStrategies:
    """Plans of patterns, for `env/action=pattern`: channels, filters, shapes within kernels.

    Args:
        task: what is pruned.
        granularity: what the entries of a proposal may stand for.
    """

    def __init__(self, task: PruningTask, granularity: Granularity = GROUPS_ALONE) -> None:
        self.answer = with_choices(PatternProposal, granularity.choices)
        self._task = task
        self._groups = task.graph.groups
        self._names = task.library.names
        self._granularity = granularity

    def describe(self) -> dict[str, Any]:
        """The library, and which of its entries are valid where."""
        return {
            "kind": "patterns",
            "patterns": [
                {
                    "name": pattern.name,
                    "family": pattern.family,
                    "channel_ratio": pattern.channel_ratio,
                }
                for pattern in self._task.library
            ],
            "not_valid": {
                group.name: [n for n, ok in zip(self._names, row, strict=True) if not ok]
                for group, row in zip(self._groups, self._task.valid, strict=True)
                if not row.all()
            },
            **self._granularity.describe(),
        }

    def plan(self, proposal: PatternProposal, earlier: Mapping[int, Plan[str]]) -> Plan[str]:
        """Patterns of all groups.

        Raises:
            Refused: an unknown group or pattern, two patterns for one group, one that is not valid
                there, or a granularity that is not executed here.
        """
        repairs: list[str] = []
        entries = [(e.group, self._pattern(e.pattern, repairs)) for e in proposal.patterns]
        blocks = self._granularity.blocks_of(proposal)
        self._refuse_masks(entries, proposal)
        asked = assign(self._groups, entries, repairs, blocks=blocks)
        default = self._names[0]
        if proposal.start_from is None:
            default = self._pattern(proposal.default_pattern, repairs)
        rest = _rest(self._groups, default, proposal.start_from, earlier)
        values = {}
        for group, valid in zip(self._groups, self._task.valid, strict=True):
            name = asked.get(group.name, rest[group.name])
            if not valid[self._names.index(name)]:
                if group.name in asked:
                    allowed = [n for n, ok in zip(self._names, valid, strict=True) if ok]
                    raise Refused(
                        f"the pattern {name!r} is not valid in group {group.name!r}; valid there: "
                        f"{', '.join(allowed)}"
                    )
                repairs.append(f"{group.name}: {name} is not valid there, left dense")
                name = self._names[0]
            values[group.name] = name
        return Plan(values, tuple(repairs))

    def action(self, env: Any, values: Mapping[str, str]) -> np.ndarray:
        """The indices of the patterns."""
        indices = [self._names.index(values[group.name]) for group in self._groups]
        return np.asarray(indices, dtype=np.int64)

    def _refuse_masks(self, entries: Sequence[tuple[str, str]], proposal: PatternProposal) -> None:
        if self._granularity.chosen(proposal) != "channel":
            return
        families = {pattern.name: pattern.family for pattern in self._task.library}
        for where, name in entries:
            if families[name] not in ("dense", "channel"):
                raise Refused(
                    f"{where}: the pattern {name!r} is of the family {families[name]}, and the "
                    f"granularity of the proposal is channel"
                )

    def _pattern(self, name: str, repairs: list[str]) -> str:
        return nearest(name, self._names, "pattern", repairs)


def _rest(
    groups: Sequence[Group],
    default: Value,
    start_from: int | None,
    earlier: Mapping[int, Plan[Value]],
) -> Mapping[str, Value]:
    """The values of groups that a proposal does not list."""
    if start_from is None:
        return {group.name: default for group in groups}
    if start_from not in earlier:
        known = ", ".join(map(str, earlier)) or "none yet"
        raise Refused(f"start_from={start_from} is no executed proposal; those are: {known}")
    return earlier[start_from].values


def _ratio(where: str, ratio: float, repairs: list[str]) -> float:
    if 2.0 <= ratio <= 100.0:
        repairs.append(f"{where}: {ratio:g} read as percent")
        return ratio / 100.0
    if not 0.0 <= ratio <= 1.0 or math.isnan(ratio):
        raise Refused(f"{where}: a ratio must be in [0, 1), got {ratio:g}")
    return ratio
