"""Greedy pruning: always the step that costs least per MAC saved, until the budget is met."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from agents.count_search import CountSearchAgent, CountSpace, Search
from agents.exchange import exchange_search
from agents.sensitivity import check_step

log = logging.getLogger(__name__)


class GreedyAgent(CountSearchAgent):
    """Prunes step by step: of all groups the one whose step raises the loss least per MAC saved.

    Once the budget is met, what is left of it is filled up, and a local search goes on from there
    for as many evaluations as there are. When evaluations run out before, the last one measures
    the plan so far, shrunk to the budget by one common factor.

    Args:
        env: an environment with ratio (or allocation) actions and a budget.
        step: fraction of a group's channels that one step removes, in (0, 1]; at least one channel.
        lazy: measure a group again only when its last rate is the lowest of all, as in
            "Accelerated greedy algorithms" (Minoux 1978); exact when steps never become cheaper.
            False measures every group before every step.
        exchange: largest fraction of a group's allowed counts that one exchange of the local search
            moves, in (0, 1]; 0 for no local search.
        evaluations: how many the search has in total; None when not known.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: same seed, same plans.
        verbose: not used.

    Raises:
        ValueError: a setting is out of range, or the environment has pattern actions or no budget.
    """

    def __init__(
        self,
        env: Any,
        *,
        step: float = 0.125,
        lazy: bool = True,
        exchange: float = 0.25,
        evaluations: int | None = None,
        policy: Any = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        check_step(step)
        if not 0.0 <= exchange <= 1.0:
            raise ValueError(
                f"exchange={exchange}: wanted is a number in [0, 1]. Change agent.exchange."
            )
        self.step, self.lazy, self.exchange = step, lazy, exchange
        super().__init__(env, seed=seed, evaluations=evaluations)

    def _search(self, space: CountSpace, rng: np.random.Generator) -> Search:
        counts, loss = space.sizes, space.task.base.loss
        rates = np.full(len(space.levels), -np.inf)  # unknown rates are looked at first
        losses = np.empty(len(space.levels))
        fresh = np.zeros(len(space.levels), dtype=bool)
        num_asked = 0
        while not space.fits(counts):
            if self.evaluations is not None and num_asked >= self.evaluations - 1:
                log.warning(
                    "Greedy search used its %d evaluations at %.3f of the MACs: the rest of the "
                    "way is uniform. Raise search.evaluations or agent.step.",
                    num_asked, space.macs(counts) / space.macs(space.sizes),
                )  # fmt: skip
                break
            smaller = self._smaller(space, counts)
            open_groups = smaller < counts
            rates[~open_groups] = np.inf
            group = int(np.argmin(rates))
            is_known = fresh[group] if self.lazy else fresh[open_groups].all()
            if is_known:
                counts, loss = space.replaced(counts, group, smaller[group]), losses[group]
                fresh[:] = False
                rates[group] = -np.inf
                continue
            if not self.lazy:
                group = int(np.flatnonzero(open_groups & ~fresh)[0])
            asked = space.replaced(counts, group, smaller[group])
            measured = yield asked
            num_asked += 1
            saved = space.macs(counts) - space.macs(asked)
            losses[group], fresh[group] = measured.loss, True
            rates[group] = (measured.loss - loss) / max(saved, 1)
        plan = space.shrunk(counts)
        if space.fits(counts):
            plan = space.filled(counts, counts + rng.random(len(counts)))
        measured = yield plan
        if self.exchange > 0.0:
            yield from exchange_search(space, plan, measured.score, rng, step=self.exchange)

    def _smaller(self, space: CountSpace, counts: np.ndarray) -> np.ndarray:
        """What one step leaves of each group, int64 (S,)."""
        wanted = counts - np.maximum(1.0, self.step * space.sizes)
        return space.round_down(wanted)

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "step": self.step,
            "lazy": self.lazy,
            "exchange": self.exchange,
        }
