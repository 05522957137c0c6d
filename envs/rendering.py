"""Pictures of an assignment, drawn with numpy alone: one bar per site, as wide as what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BAR_HEIGHT = 10
BAR_WIDTH = 240
GAP = 4
BACKGROUND = (255, 255, 255)
REMOVED = (226, 226, 226)
KEPT = (46, 117, 89)
UNDECIDED = (160, 178, 170)
CURRENT = (204, 102, 0)


def draw_bars(kept: np.ndarray, decided: np.ndarray, current: int | None) -> np.ndarray:
    """One bar per site: green is kept, pale green not decided yet, grey removed.

    Args:
        kept: fraction kept of each site, (S,) in [0, 1].
        decided: which sites have been decided, bool (S,).
        current: the site to be decided now; it gets an orange mark.

    Returns:
        Picture, uint8 (GAP + S * (BAR_HEIGHT + GAP), BAR_WIDTH + 3 * GAP, 3).
    """
    height = GAP + len(kept) * (BAR_HEIGHT + GAP)
    picture = np.full((height, BAR_WIDTH + 3 * GAP, 3), BACKGROUND, dtype=np.uint8)
    for site, fraction in enumerate(kept):
        top = GAP + site * (BAR_HEIGHT + GAP)
        rows, left = slice(top, top + BAR_HEIGHT), 2 * GAP
        picture[rows, left : left + BAR_WIDTH] = REMOVED
        width = round(float(fraction) * BAR_WIDTH)
        picture[rows, left : left + width] = KEPT if decided[site] else UNDECIDED
        if site == current:
            picture[rows, :GAP] = CURRENT
    return picture


def write_bars(
    names: Sequence[str], kept: np.ndarray, labels: Sequence[str], current: int | None
) -> str:
    """The same as text, one line per site.

    Args:
        names: name of each site.
        kept: fraction kept of each site, (S,) in [0, 1].
        labels: what is assigned to each site.
        current: the site to be decided now; its line begins with ">".
    """
    longest = max(len(name) for name in names)
    lines = []
    for site, (name, fraction, label) in enumerate(zip(names, kept, labels, strict=True)):
        bar = "#" * round(20 * float(fraction))
        mark = ">" if site == current else " "
        lines.append(f"{mark} {name:<{longest}} |{bar:<20}| {fraction:4.0%} {label}")
    return "\n".join(lines)
