"""From a proposal to a plan that the environment executes: repaired, or refused with a reason."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from agents.llm.schema import PatternProposal, RatioProposal
from graphs.network_graph import Group
from pruning.keep_set import allowed_counts
from pruning.task import PruningTask

Value = TypeVar("Value", float, str)


class Refused(Exception):  # noqa: N818 - said of a proposal
    """A proposal cannot be executed; the message is fed back to the model."""


@dataclass(frozen=True)
class Plan(Generic[Value]):
    """What is executed.

    Attributes:
        values: pruning ratio after rounding, or pattern name, of every group.
        repairs: what was changed in the proposal, in words.
    """

    values: Mapping[str, Value]
    repairs: tuple[str, ...]


class Strategies(Protocol):
    """One kind of plan that an environment executes."""

    @property
    def answer(self) -> Any:
        """Schema of a proposal."""

    def describe(self) -> dict[str, Any]:
        """What may be chosen, as JSON takes it."""

    def plan(self, proposal: Any, earlier: Mapping[int, Mapping[str, Any]]) -> Plan[Any]:
        """Make a plan of a proposal.

        Args:
            proposal: an instance of `answer`.
            earlier: the values of earlier plans by the number of their proposal.

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
    """

    answer = RatioProposal

    def __init__(self, task: PruningTask, largest_ratios: Mapping[str, float]) -> None:
        self._groups = task.graph.groups
        self._largest = largest_ratios

    def describe(self) -> dict[str, Any]:
        """Ratios, and the multiples that kept channels can be rounded to."""
        return {"kind": "ratios", "round_to": [1, 2, 4, 8, 16]}

    def plan(
        self, proposal: RatioProposal, earlier: Mapping[int, Mapping[str, float]]
    ) -> Plan[float]:
        """Ratios of all groups, rounded to channels.

        Raises:
            Refused: an unknown group, two ratios for one group, or a ratio that makes no sense.
        """
        repairs: list[str] = []
        asked = assign(
            self._groups,
            [(entry.group, _ratio(entry.group, entry.ratio, repairs)) for entry in proposal.ratios],
            repairs,
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
    """

    answer = PatternProposal

    def __init__(self, task: PruningTask) -> None:
        self._task = task
        self._groups = task.graph.groups
        self._names = task.library.names

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
        }

    def plan(
        self, proposal: PatternProposal, earlier: Mapping[int, Mapping[str, str]]
    ) -> Plan[str]:
        """Patterns of all groups.

        Raises:
            Refused: an unknown group or pattern, two patterns for one group, or one that is not
                valid there.
        """
        repairs: list[str] = []
        entries = [(e.group, self._pattern(e.pattern, repairs)) for e in proposal.patterns]
        asked = assign(self._groups, entries, repairs)
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

    def _pattern(self, name: str, repairs: list[str]) -> str:
        return _nearest(name, self._names, "pattern", repairs)


def assign(
    groups: Sequence[Group], entries: Sequence[tuple[str, Value]], repairs: list[str]
) -> dict[str, Value]:
    """Values by group name.

    A shell pattern stands for all groups it matches, and a group's own name beats one. The name of
    an operator stands for the group that is cut together with it, and a slip of the pen for the one
    group it is near to.

    Args:
        groups: the groups of the network.
        entries: names as the model gave them, with their values.
        repairs: what was changed is appended here.

    Raises:
        Refused: no group fits a name, or a group is given two values.
    """
    producers = {name: group.name for group in groups for name in group.producers}
    names = [group.name for group in groups]
    by_name: dict[str, Value] = {}
    by_pattern: dict[str, Value] = {}
    for text, value in entries:
        if text not in names and any(sign in text for sign in "*?"):
            matched, target = fnmatch.filter(names, text), by_pattern
            if not matched:
                raise Refused(f"no group matches {text!r}; {_known(text, names)}")
        elif text in producers and text not in names:
            matched, target = [producers[text]], by_name
            repairs.append(f"{text} is cut together with group {producers[text]}")
        else:
            matched, target = [_nearest(text, names, "group", repairs)], by_name
        for name in matched:
            if target.get(name, value) != value:
                raise Refused(f"group {name!r} is given both {target[name]} and {value}")
            target[name] = value
    return {**by_pattern, **by_name}


def _rest(
    groups: Sequence[Group],
    default: Value,
    start_from: int | None,
    earlier: Mapping[int, Mapping[str, Value]],
) -> Mapping[str, Value]:
    """The values of groups that a proposal does not list."""
    if start_from is None:
        return {group.name: default for group in groups}
    if start_from not in earlier:
        known = ", ".join(map(str, earlier)) or "none yet"
        raise Refused(f"start_from={start_from} is no executed proposal; those are: {known}")
    return earlier[start_from]


def _ratio(where: str, ratio: float, repairs: list[str]) -> float:
    if 2.0 <= ratio <= 100.0:
        repairs.append(f"{where}: {ratio:g} read as percent")
        return ratio / 100.0
    if not 0.0 <= ratio <= 1.0 or math.isnan(ratio):
        raise Refused(f"{where}: a ratio must be in [0, 1), got {ratio:g}")
    return ratio


def _nearest(text: str, names: Sequence[str], kind: str, repairs: list[str]) -> str:
    """The name itself, or the only one that differs in case, quotes or a letter or two."""
    if text in names:
        return text
    folded = {name.casefold(): name for name in names}
    stripped = text.strip(" \t\n\"'`").casefold()
    if stripped in folded and len(folded) == len(names):
        found = [folded[stripped]]
    else:
        found = difflib.get_close_matches(text, names, n=2, cutoff=0.9)
    if len(found) != 1:
        raise Refused(f"there is no {kind} {text!r}; {_known(text, names)}")
    repairs.append(f"{kind} {text!r} read as {found[0]!r}")
    return found[0]


def _known(text: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    return f"near to it are: {', '.join(near)}" if near else f"there are: {', '.join(names)}"
