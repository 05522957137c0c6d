"""How much each group minds being pruned alone, and the plans that follow from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agents.count_search import CountSearchAgent, CountSpace, Measured, Search
from agents.exchange import exchange_search
from pruning.keep_set import allowed_counts
from pruning.task import PruningTask

CURVES_FORMAT = "topiary-sensitivities-1"
CURVES_FILE = "sensitivities.json"
REFINEMENTS = ("none", "exchange")


@dataclass(frozen=True)
class GroupCurve:
    """Quality of the network with one group pruned and all others whole.

    Attributes:
        group: name of the group.
        size: channels before pruning.
        counts: kept channels, descending; the first is the size.
        losses: loss on the reward split for each count.
        accuracies: accuracy on the reward split, in [0, 1], or the user's metric.
    """

    group: str
    size: int
    counts: tuple[int, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]

    def increase(self, counts: np.ndarray) -> np.ndarray:
        """How much the loss rises, at least 0 and never falling as channels go.

        Args:
            counts: kept channels, shape (n,); between measured ones it is interpolated, and below
                the fewest the last slope goes on.

        Returns:
            Nats, float64 (n,).
        """
        rises = np.maximum.accumulate(np.maximum(np.asarray(self.losses) - self.losses[0], 0.0))
        removed = self.size - np.asarray(self.counts, dtype=float)
        wanted = self.size - np.asarray(counts, dtype=float)
        values = np.interp(wanted, removed, rises)
        if len(removed) > 1:
            slope = (rises[-1] - rises[-2]) / (removed[-1] - removed[-2])
            values = values + slope * np.maximum(wanted - removed[-1], 0.0)
        return values


@dataclass(frozen=True)
class Sensitivities:
    """One curve per group, in graph order.

    Attributes:
        curves: the curves.
    """

    curves: tuple[GroupCurve, ...]

    def to_json(self) -> str:
        """The curves as JSON text; `from_json` gives equal ones."""
        data = {"format": CURVES_FORMAT, "curves": [asdict(curve) for curve in self.curves]}
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Sensitivities:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is something else.
        """
        try:
            data = json.loads(text)
            if data["format"] != CURVES_FORMAT:
                raise ValueError(f"format {data['format']!r}")
            curves = [
                GroupCurve(
                    group=str(item["group"]),
                    size=int(item["size"]),
                    counts=tuple(map(int, item["counts"])),
                    losses=tuple(map(float, item["losses"])),
                    accuracies=tuple(map(float, item["accuracies"])),
                )
                for item in data["curves"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Not sensitivities of format {CURVES_FORMAT!r}: {error}.") from error
        return cls(tuple(curves))


def measure_sensitivities(
    task: PruningTask,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    *,
    smallest: Sequence[int] | np.ndarray | None = None,
    measure: Callable[[np.ndarray], Measured] | None = None,
) -> Sensitivities:
    """Prune every group alone by every ratio, and measure: groups x ratios counted evaluations.

    Args:
        task: what is pruned.
        ratios: fractions of a group's channels removed, in (0, 1); rounded to allowed counts.
        smallest: fewest channels of each group, shape (S,); None for as few as the graph allows.
        measure: from kept counts, shape (S,), to what was measured; None for the task's evaluator,
            which counts, and answers from memory what it knows.

    Returns:
        The curves; the unpruned network is their first point.

    Raises:
        ValueError: a ratio is out of range.
    """
    if smallest is None:
        smallest = [int(allowed_counts(group)[0]) for group in task.graph.groups]
    space = CountSpace.of(task, smallest, task.cost.base_macs)

    def evaluate(counts: np.ndarray) -> Measured:
        found = task.evaluator.evaluate(space.candidate(counts))
        return Measured(-found.loss, found.accuracy, found.loss, True)

    answer = evaluate if measure is None else measure
    scan = list(scan_counts(space, ratios))
    return curves_of(space, scan, [answer(space.replaced(space.sizes, g, c)) for g, c in scan])


def scan_counts(space: CountSpace, ratios: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Group and kept count of every point of a scan; equal counts of a group once.

    Raises:
        ValueError: a ratio is out of range.
    """
    if len(ratios) == 0 or not all(0.0 < ratio < 1.0 for ratio in ratios):
        raise ValueError(
            f"ratios={list(ratios)}: wanted are one or more numbers in (0, 1). Change agent.ratios."
        )
    for group, levels in enumerate(space.levels):
        wanted = (1.0 - np.asarray(ratios)) * levels[-1]
        nearest = {int(levels[np.argmin(np.abs(levels - count))]) for count in wanted}
        for count in sorted(nearest - {int(levels[-1])}, reverse=True):
            yield group, count


def curves_of(
    space: CountSpace, scan: Sequence[tuple[int, int]], answers: Sequence[Measured]
) -> Sensitivities:
    """The curves of what `scan_counts` asked for."""
    base = space.task.base
    curves = []
    for index, group in enumerate(space.task.graph.groups):
        points = [(c, a) for (g, c), a in zip(scan, answers, strict=True) if g == index]
        curves.append(
            GroupCurve(
                group=group.name,
                size=group.size,
                counts=(group.size, *(count for count, _ in points)),
                losses=(base.loss, *(answer.loss for _, answer in points)),
                accuracies=(base.accuracy, *(answer.accuracy for _, answer in points)),
            )
        )
    return Sensitivities(tuple(curves))


def threshold_plan(space: CountSpace, sensitivities: Sensitivities) -> np.ndarray:
    """Every group loses what raises the loss by at most one common amount.

    The amount is the smallest that meets the budget; then channels are given back, most to the
    groups that are furthest below what the next larger amount would not have taken.

    Returns:
        Kept channels per group, int64 (S,), within budget.
    """
    rises = _rises(space, sensitivities)

    def counts_at(amount: float) -> np.ndarray:
        return np.asarray(
            [
                levels[int(np.flatnonzero(rise <= amount)[0])]
                for levels, rise in zip(space.levels, rises, strict=True)
            ],
            dtype=np.int64,
        )

    amounts = np.unique(np.concatenate(rises))
    low, high = -1, len(amounts) - 1  # amounts[high] meets the budget, amounts[low] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if space.fits(counts_at(amounts[middle])) else (middle, high)
    wanted = space.sizes if low < 0 else counts_at(amounts[low])
    return space.filled(counts_at(amounts[high]), wanted.astype(float))


def additive_plan(space: CountSpace, sensitivities: Sensitivities) -> np.ndarray:
    """The plan of the lowest sum of the groups' loss increases, found greedily.

    Channels go one step at a time, where the increase per MAC saved is lowest. The increases are
    replaced by their lower convex hulls, so that no step hides a cheap one behind it.

    Returns:
        Kept channels per group, int64 (S,), within budget.
    """
    hulls = [
        _convex_hull(levels[-1] - levels[::-1], rise[::-1])[::-1]
        for levels, rise in zip(space.levels, _rises(space, sensitivities), strict=True)
    ]
    position = [len(levels) - 1 for levels in space.levels]
    counts = space.sizes
    while not space.fits(counts):
        macs, best, best_rate = space.macs(counts), -1, np.inf
        for group, levels in enumerate(space.levels):
            if position[group] == 0:
                continue
            below = position[group] - 1
            saved = macs - space.macs(space.replaced(counts, group, int(levels[below])))
            rate = (hulls[group][below] - hulls[group][below + 1]) / max(saved, 1)
            if best < 0 or rate < best_rate:
                best, best_rate = group, rate
        assert best >= 0, "the environment has checked that the budget can be reached"
        position[best] -= 1
        counts = space.replaced(counts, best, int(space.levels[best][position[best]]))
    # what is left of the budget goes to the groups whose next step lowers the loss most
    gains = [
        hull[at] - hull[at + 1] if at + 1 < len(hull) else 0.0
        for hull, at in zip(hulls, position, strict=True)
    ]
    return space.filled(counts, counts + np.argsort(np.argsort(gains)) / len(gains))


RULES: Mapping[str, Callable[[CountSpace, Sensitivities], np.ndarray]] = {
    "threshold": threshold_plan,
    "additive": additive_plan,
}
"""How a plan follows from the curves."""


class SensitivityAgent(CountSearchAgent):
    """Scans how much every group minds being pruned alone, and plans from the curves.

    First the scan: groups x ratios evaluations, fewer where `evaluations` has no room for all
    ratios. Then the plan: one evaluation. Then, with `refine="exchange"`, a local search around it.

    Args:
        env: an environment with ratio (or allocation) actions and a budget.
        ratios: fractions of a group's channels removed in the scan, in (0, 1).
        rule: a key of RULES.
        refine: one of REFINEMENTS.
        step: largest fraction of a group's allowed counts that one exchange moves, in (0, 1].
        evaluations: how many the search has in total; None when not known.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: same seed, same plans.
        verbose: not used.

    Raises:
        ValueError: a setting is out of range, there are too few evaluations for one ratio, or the
            environment has pattern actions or no budget.
    """

    def __init__(
        self,
        env: Any,
        *,
        ratios: Sequence[float] = (0.25, 0.5, 0.75),
        rule: str = "additive",
        refine: str = "none",
        step: float = 0.25,
        evaluations: int | None = None,
        policy: Any = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        for name, value, allowed in (("rule", rule, RULES), ("refine", refine, REFINEMENTS)):
            if value not in allowed:
                raise ValueError(
                    f"{name}={value!r}: wanted is one of {', '.join(allowed)}. Change agent.{name}."
                )
        check_step(step)
        self.ratios = tuple(float(ratio) for ratio in ratios)
        self.rule, self.refine, self.step = rule, refine, step
        super().__init__(env, seed=seed, evaluations=evaluations)

    def _search(self, space: CountSpace, rng: np.random.Generator) -> Search:
        scan = list(scan_counts(space, self._affordable(space)))
        answers = []
        for group, count in scan:
            answers.append((yield space.replaced(space.sizes, group, count)))
        sensitivities = curves_of(space, scan, answers)
        self._findings[CURVES_FILE] = sensitivities.to_json()
        plan = RULES[self.rule](space, sensitivities)
        measured = yield plan
        if self.refine == "exchange":
            yield from exchange_search(space, plan, measured.score, rng, step=self.step)

    def _affordable(self, space: CountSpace) -> Sequence[float]:
        """The ratios that leave an evaluation for the plan, spread over those asked for."""
        if self.evaluations is None:
            return self.ratios
        most = (self.evaluations - 1) // len(space.levels)
        if most < 1:
            raise ValueError(
                f"A sensitivity scan of {len(space.levels)} groups needs "
                f"{len(space.levels) + 1} evaluations or more, and has {self.evaluations}. "
                f"Raise search.evaluations."
            )
        if most >= len(self.ratios):
            return self.ratios
        chosen = np.linspace(0, len(self.ratios) - 1, most + 2)[1:-1]
        return tuple(self.ratios[round(index)] for index in chosen)

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "ratios": list(self.ratios),
            "rule": self.rule,
            "refine": self.refine,
            "step": self.step,
        }


def check_step(step: float) -> None:
    """Refuse a step that is no fraction of a group."""
    if not 0.0 < step <= 1.0:
        raise ValueError(f"step={step}: wanted is a number in (0, 1]. Change agent.step.")


def _rises(space: CountSpace, sensitivities: Sensitivities) -> list[np.ndarray]:
    """Loss increase at every level of each group."""
    pairs = zip(sensitivities.curves, space.levels, strict=True)
    return [curve.increase(levels) for curve, levels in pairs]


def _convex_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lower convex hull of the points (x, y), x ascending, at every x."""
    hull: list[int] = []
    for index in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[index] - x[a]) < (y[index] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(index)
    return np.interp(x, x[hull], y[hull])
