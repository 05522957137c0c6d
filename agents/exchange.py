"""Local search around a plan: channels are taken from one group and given to another."""

from __future__ import annotations

import numpy as np

from agents.count_search import CountSpace, Search

WIDEN_AFTER = 50
"""Draws in a row without a new plan after which neighbours are one exchange further away."""

MAX_KNOWN = 500
"""Draws in a row without a new plan after which the neighbourhood counts as searched."""


def exchange_search(
    space: CountSpace, start: np.ndarray, score: float, rng: np.random.Generator, *, step: float
) -> Search:
    """Ask for neighbours of the best plan so far; one that scores higher takes its place.

    Args:
        space: the counts there are.
        start: kept channels per group, shape (S,), within budget.
        score: its reward.
        rng: draws the neighbours.
        step: largest fraction of a group's allowed counts that one exchange moves, in (0, 1].
    """
    best, known, num_known = np.array(start), {_key(start)}, 0
    while num_known < MAX_KNOWN:
        counts = best
        for _ in range(1 + num_known // WIDEN_AFTER):
            counts = exchanged(space, counts, rng, step)
        if _key(counts) in known:
            num_known += 1
            continue
        num_known = 0
        known.add(_key(counts))
        measured = yield counts
        if measured.score > score:
            best, score = counts, measured.score


def exchanged(
    space: CountSpace, counts: np.ndarray, rng: np.random.Generator, step: float
) -> np.ndarray:
    """A random neighbour within budget: one group shrinks, another takes what that saves.

    Args:
        space: the counts there are.
        counts: kept channels per group, shape (S,), within budget.
        rng: draws the two groups, and how far the first one shrinks.
        step: largest fraction of the group's allowed counts, in (0, 1].

    Returns:
        Kept channels per group, int64 (S,); what neither group takes is topped up in random order.
    """
    shrinking = [g for g, levels in enumerate(space.levels) if counts[g] > levels[0]]
    if not shrinking or len(space.levels) < 2:
        return np.array(counts, dtype=np.int64)
    loser = int(rng.choice(shrinking))
    winner = int(rng.choice([g for g in range(len(space.levels)) if g != loser]))
    levels = space.levels[loser]
    steps = int(rng.integers(1, max(1, round(step * len(levels))) + 1))
    index = int(np.searchsorted(levels, counts[loser]))
    changed = space.replaced(counts, loser, int(levels[max(0, index - steps)]))
    most = space.task.cost.max_keep(changed, winner, space.max_macs)
    changed[winner] = max(changed[winner], most)
    order = rng.random(len(counts))
    order[loser] = -1.0  # what was taken is given back last
    return space.filled(changed, changed + order)


def _key(counts: np.ndarray) -> bytes:
    return np.asarray(counts, dtype=np.int64).tobytes()
