"""Scales a choice of patterns to a budget, as `envs.budgets.Project` scales ratios."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def project_patterns(
    kept: np.ndarray,
    choices: np.ndarray,
    preferred: np.ndarray,
    fits: Callable[[np.ndarray], bool],
) -> np.ndarray:
    """The patterns that are nearest to a choice, on a common scale, and fit a budget.

    The log kept fractions of all sites are shifted by one common amount, as far up as the budget
    allows, and every site takes the mildest pattern that keeps no more than that. Where several
    sites would change at once they do so one after the other, in the order of the sites; then
    single sites become milder while any fits. A site whose kept fraction stays as it is keeps the
    pattern chosen.

    Args:
        kept: fraction of a site that each pattern keeps, above 0, nan where it is not valid,
            shape (S, P).
        choices: a valid pattern for every site, int64 (S,).
        preferred: patterns that are taken first among equal kept fractions, bool (P,).
        fits: whether patterns (S,) are within the budget.

    Returns:
        Patterns, int64 (S,). They fit, unless the heaviest patterns of all sites do not.
    """
    ladders = [_ladder(*row, preferred) for row in zip(kept, choices, strict=True)]
    logs = [np.log(kept[site, ladder]) for site, ladder in enumerate(ladders)]
    # (shift at which it is taken, site, rung) of every rung above a site's lowest
    steps = sorted(
        (float(logs[site][rung]) - float(np.log(kept[site, choices[site]])), site, rung)
        for site, ladder in enumerate(ladders)
        for rung in range(1, len(ladder))
    )

    def after(count: int) -> np.ndarray:
        patterns = np.asarray([ladder[0] for ladder in ladders], dtype=np.int64)
        for _, site, rung in steps[:count]:
            patterns[site] = ladders[site][rung]
        return patterns

    low, high = 0, len(steps) + 1  # after(low) fits, after(high) does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(after(middle)) else (low, middle)
    patterns, stuck = after(low), set()
    for _, site, rung in steps[low:]:
        if site in stuck:
            continue
        milder = patterns.copy()
        milder[site] = ladders[site][rung]
        if fits(milder):
            patterns = milder
        else:
            stuck.add(site)
    return patterns


def _ladder(kept: np.ndarray, choice: int, preferred: np.ndarray) -> list[int]:
    """One pattern for each kept fraction of a site, from heavy to mild; the choice is one."""
    rungs: dict[float, int] = {}
    for pattern in np.lexsort((~preferred, kept)):  # the preferred ones first among equals
        if not np.isnan(kept[pattern]):
            rungs.setdefault(float(kept[pattern]), int(pattern))
    rungs[float(kept[choice])] = int(choice)
    return list(rungs.values())
