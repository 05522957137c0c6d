"""One threshold on the importance of all channels of the network, solved to the budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agents.count_search import CountSearchAgent, CountSpace, Search


def _lamp(scores: np.ndarray) -> np.ndarray:
    """Each score over the sum of those that are not below it, once sorted."""
    scores = np.maximum(scores, 0.0)
    order = np.argsort(scores, kind="stable")
    tails = np.cumsum(scores[order][::-1])[::-1]
    result = np.empty_like(scores)
    result[order] = scores[order] / np.maximum(tails, np.finfo(float).tiny)
    return result


def _divided(by: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], np.ndarray]:
    def normalise(scores: np.ndarray) -> np.ndarray:
        unit = float(by(np.abs(scores)))
        return scores / unit if unit > 0.0 else scores

    return normalise


NORMALISATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda scores: scores,
    "mean": _divided(np.mean),
    "max": _divided(np.max),
    "l2": _divided(np.linalg.norm),
    "lamp": _lamp,
}
"""How scores of one group, shape (size,), become comparable with those of others.

"mean", "max" and "l2" divide by that of the absolute scores; "l2" is the rescaling of "Pruning
Convolutional Neural Networks for Resource Efficient Inference" (https://arxiv.org/abs/1611.06440),
section 2.2. "lamp" divides each score by the sum of those that are not below it, as in "Layer-
adaptive sparsity for the Magnitude-based Pruning" (https://arxiv.org/abs/2010.07611), with channels
in the place of weights, and whatever the task's importance is in the place of squared magnitudes;
scores below 0 count as 0. The best channel of every group then has the same score, 1, so that no
group is emptied for lack of scale.
"""


class MagnitudeAgent(CountSearchAgent):
    """Removes the channels of lowest importance in the whole network, until the budget is met.

    The importance of a channel is the task's, normalised per group, over its MACs to the power
    `cost_power`. All channels above one threshold stay, where the threshold is the lowest that the
    budget allows; then the next ones in the ranking stay too, as long as they fit. One evaluation
    per entry of `cost_powers`; the best of the plans by reward is kept. With one entry, evaluations
    beyond the first are not used.

    Args:
        env: an environment with ratio (or allocation) actions and a budget.
        normalise: a key of NORMALISATIONS.
        cost_powers: each at least 0. 0: importance alone. 1: importance per MAC that the removal of
            the channel saves in the unpruned network. More entries, more evaluations.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: as in SB3; the result does not depend on it.
        verbose: not used.

    Raises:
        ValueError: a setting is out of range, or the environment has pattern actions or no budget.
    """

    def __init__(
        self,
        env: Any,
        *,
        normalise: str = "lamp",
        cost_powers: Sequence[float] = (0.0,),
        policy: Any = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        if normalise not in NORMALISATIONS:
            raise ValueError(
                f"normalise={normalise!r}: wanted is one of {', '.join(NORMALISATIONS)}. "
                f"Change agent.normalise."
            )
        if not cost_powers or not all(0.0 <= power < np.inf for power in cost_powers):
            raise ValueError(
                f"cost_powers={list(cost_powers)}: wanted are one or more numbers of at least 0. "
                f"Change agent.cost_powers."
            )
        self.normalise = normalise
        self.cost_powers = tuple(float(power) for power in cost_powers)
        super().__init__(env, seed=seed)

    def _search(self, space: CountSpace, rng: np.random.Generator) -> Search:
        scores = self._scores(space)
        for power in self.cost_powers:
            yield threshold_counts(space, scores, cost_power=power)

    def _scores(self, space: CountSpace) -> list[np.ndarray]:
        """Comparable importance of the channels of each group."""
        normalise = NORMALISATIONS[self.normalise]
        groups = space.task.graph.groups
        return [normalise(np.asarray(space.task.scores[group.name], float)) for group in groups]

    def _settings(self) -> dict[str, Any]:
        return {"normalise": self.normalise, "cost_powers": list(self.cost_powers)}


def threshold_counts(
    space: CountSpace, scores: Sequence[np.ndarray], *, cost_power: float = 0.0
) -> np.ndarray:
    """Kept counts of one threshold for all groups, as low as the budget allows.

    Where counts have steps (`round_to`), a step is worth the mean of its channels.

    Args:
        space: the counts there are, and the budget.
        scores: comparable importance of the channels of each group, shapes (size,).
        cost_power: scores are divided by the MACs of one channel to this power, at least 0.

    Returns:
        Kept channels per group, int64 (S,), within budget; no group can have one step more.
    """
    values, places = [], []
    for group, (levels, raw) in enumerate(zip(space.levels, scores, strict=True)):
        ranked = np.sort(raw)[::-1] / _channel_share(space, group) ** cost_power
        for start, stop in itertools.pairwise(levels):
            values.append(float(ranked[start:stop].mean()))
            places.append((group, int(start), int(stop)))
    counts = space.smallest
    for index in np.argsort(-np.asarray(values), kind="stable"):
        group, start, stop = places[index]
        if counts[group] != start:  # an earlier step of the group did not fit
            continue
        larger = space.replaced(counts, group, stop)
        if space.fits(larger):
            counts = larger
    return counts


def _channel_share(space: CountSpace, group: int) -> float:
    """Share of the unpruned network's MACs that removing one channel of a group saves."""
    levels, sizes = space.levels[group], space.sizes
    if len(levels) == 1:
        return 1.0
    smaller = space.replaced(sizes, group, int(levels[-2]))
    saved = (space.macs(sizes) - space.macs(smaller)) / (levels[-1] - levels[-2])
    return max(float(saved), 1.0) / space.macs(sizes)
