"""What a proposal may choose beside its ratios or patterns: the importance, the fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agents.llm.names import Refused, nearest
from agents.llm.schema import FineTune, with_choices
from agents.llm.strategies import Plan, Strategies
from pruning.task import PruningTask

NUMBERS: dict[str, tuple[float, float]] = {
    "epochs": (0, math.inf),
    "learning_rate": (1e-12, math.inf),
    "weight_decay": (0, math.inf),
    "label_smoothing": (0, 0.999),
}
"""Settings of the fine-tuning that are numbers, and what `fine_tune` itself takes."""


@dataclass(frozen=True)
class FineTuneLimits:
    """What a proposal may set of the fine-tuning.

    Attributes:
        ranges: lowest and highest value by the name of a setting; one without is not to be set.
        distillation: whether it may be switched, to one of these.
    """

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    distillation: tuple[bool, ...] = ()

    @classmethod
    def from_config(cls, limits: Mapping[str, Any]) -> FineTuneLimits:
        """Read `agent.fine_tune_limits`.

        Raises:
            ValueError: an unknown setting, or limits that are none.
        """
        ranges = {}
        for name, limit in limits.items():
            if name == "distillation":
                continue
            key = f"agent.fine_tune_limits.{name}"
            if name not in NUMBERS:
                allowed = ", ".join((*NUMBERS, "distillation"))
                raise ValueError(f"{key}: there is no such setting. Those are: {allowed}.")
            if not _is_range(limit, *NUMBERS[name]):
                raise ValueError(
                    f"{key} must be a lowest and a highest value within {list(NUMBERS[name])}, "
                    f"got {limit!r}."
                )
            ranges[name] = (limit[0], limit[1])
        switch = limits.get("distillation", [])
        if not isinstance(switch, list) or not all(type(value) is bool for value in switch):
            raise ValueError(
                "agent.fine_tune_limits.distillation must be a list of what is allowed, such as "
                f"[false, true], got {switch!r}."
            )
        return cls(ranges, tuple(switch))

    def describe(self) -> dict[str, Any]:
        """What may be set, as JSON takes it."""
        return {
            **{name: list(limit) for name, limit in self.ranges.items()},
            "distillation": list(self.distillation),
        }

    def check(self, asked: FineTune) -> dict[str, Any]:
        """The settings that a proposal changes.

        Raises:
            Refused: one is not to be set, or outside its limits.
        """
        changes = {key: value for key, value in asked.model_dump().items() if value is not None}
        for name, value in changes.items():
            if name == "distillation":
                if value not in self.distillation:
                    raise Refused(f"fine_tune.distillation={value} is not allowed here")
                continue
            if name not in self.ranges:
                raise Refused(f"fine_tune.{name} is not to be set here")
            lowest, highest = self.ranges[name]
            if not lowest <= value <= highest:
                raise Refused(
                    f"fine_tune.{name}={value:g} is outside its limits, {lowest:g} to {highest:g}"
                )
        return changes


class ChoosingStrategies:
    """Plans of another kind, with an importance and a fine-tuning that the proposal may choose.

    Args:
        inner: the plans of ratios or patterns.
        task: what is pruned; scores the groups by an importance when one is first named.
        importances: what may be named beside the task's own, of `task.importances`.
        fine_tune: what may be set of the fine-tuning; None for nothing.

    Raises:
        ValueError: an importance that the task was not built with.
    """

    def __init__(
        self,
        inner: Strategies,
        task: PruningTask,
        importances: Sequence[str],
        fine_tune: FineTuneLimits | None,
    ) -> None:
        self._inner = inner
        unknown = [name for name in importances if name not in task.importances]
        if unknown:
            raise ValueError(
                f"agent.importances names {', '.join(unknown)}, and the task scores by "
                f"{', '.join(task.importances)}. Build it with importances=."
            )
        names = tuple(dict.fromkeys((task.criterion, *importances)))
        self._task = task
        self._importances = names if len(names) > 1 else ()
        self._fine_tune = fine_tune
        is_open = {"importance": bool(self._importances), "fine_tune": fine_tune is not None}
        self.answer = with_choices(inner.answer, [name for name, on in is_open.items() if on])

    def describe(self) -> dict[str, Any]:
        """What the plans may choose, and what is added to it."""
        described = self._inner.describe()
        if self._importances:
            described["importances"] = list(self._importances)
        if self._fine_tune is not None:
            described["fine_tune"] = self._fine_tune.describe()
        return described

    def plan(self, proposal: Any, earlier: Mapping[int, Plan[Any]]) -> Plan[Any]:
        """The plan with its importance and fine-tuning.

        Raises:
            Refused: as the inner plans, or an importance or a setting that is not allowed.
        """
        plan = self._inner.plan(proposal, earlier)
        repairs = list(plan.repairs)
        start = None if proposal.start_from is None else earlier[proposal.start_from]
        importance = self._importance(proposal, start, repairs)
        return replace(
            plan,
            repairs=tuple(repairs),
            importance=importance,
            fine_tune=self._fine_tuning(proposal, start),
        )

    def action(self, env: Any, values: Mapping[str, Any]) -> np.ndarray:
        """The action of the inner plans."""
        return self._inner.action(env, values)

    def _importance(self, proposal: Any, start: Plan[Any] | None, repairs: list[str]) -> str | None:
        """The importance that is named, else that of the plan it starts from, else the task's."""
        if not self._importances:
            return None
        if proposal.importance is None:
            return self._importances[0] if start is None else start.importance
        name = nearest(proposal.importance, self._importances, "importance", repairs)
        try:
            self._task.scores_by(name)
        except ValueError as error:
            raise Refused(f"the importance {name!r} cannot be used: {error}") from error
        return name

    def _fine_tuning(self, proposal: Any, start: Plan[Any] | None) -> Mapping[str, Any] | None:
        """The settings that are changed, else those of the plan it starts from."""
        if self._fine_tune is None:
            return None
        if proposal.fine_tune is None:
            return None if start is None else start.fine_tune
        return self._fine_tune.check(proposal.fine_tune)


def _is_range(limit: Any, least: float, most: float) -> bool:
    """Whether it is a list of two numbers in order, both within `least` and `most`."""
    is_pair = isinstance(limit, list) and len(limit) == 2
    if not is_pair or not all(type(end) in (int, float) for end in limit):
        return False
    return bool(least <= limit[0] <= limit[1] <= most)
