"""Lines and bands of a graph's picture, with round corners."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = 0.86
"""Of one column, on paper."""

BAND = 0.16
"""Breadth of an operator's band, in columns."""


def stamp_place(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Middle of the last straight part of an edge's line."""
    (x0, y0), (x1, y1) = points[-2], points[-1]
    return (x0 + x1) / 2 - (0.03 if y0 == y1 else 0.0), (y0 + y1) / 2


def line(axes: Axes, points: Sequence[tuple[float, float]], *, color: str, width: float) -> None:
    """Draw a line with round corners and a small head.

    Args:
        axes: to draw on.
        points: corners of the line, in columns.
        color: of line and head.
        width: in points.
    """
    from matplotlib.patches import FancyArrowPatch

    axes.add_patch(
        FancyArrowPatch(
            path=_rounded(points), arrowstyle="-|>,head_length=2.2,head_width=1.2", color=color,
            linewidth=width, shrinkA=0, shrinkB=0, zorder=3, capstyle="butt", joinstyle="round",
        )
    )  # fmt: skip


def band(
    axes: Axes,
    points: list[tuple[float, float]],
    stripes: Sequence[tuple[str, float]],
    *,
    breadth: float,
) -> None:
    """Draw a broad line whose stripes, side by side, are as broad as their share.

    Args:
        axes: to draw on.
        points: corners of the line, in columns.
        stripes: colour and share of each stripe; the shares sum to 1.
        breadth: of all stripes together, in columns.
    """
    from matplotlib.patches import PathPatch, Polygon

    (x0, y0), (x1, y1) = points[-2], points[-1]
    length = math.hypot(x1 - x0, y1 - y0)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    base = (x1 - 0.11 * ux, y1 - 0.11 * uy)
    line = [*points[:-1], base]
    offset = breadth / 2
    for colour, share in stripes:
        part = breadth * share
        offset -= part
        # Stripes differ in y: the parts of a band that are not horizontal are short.
        moved = [(x, y + offset + part / 2) for x, y in line]
        axes.add_patch(
            PathPatch(
                _rounded(moved), fill=False, edgecolor=colour, linewidth=72 * INCHES * part,
                capstyle="butt", joinstyle="round", zorder=2,
            )
        )  # fmt: skip
    wide = BAND * 0.95
    axes.add_patch(
        Polygon(
            [(x1, y1), (base[0] - uy * wide, base[1] + ux * wide),
             (base[0] + uy * wide, base[1] - ux * wide)],
            facecolor=stripes[-1][0], linewidth=0, zorder=2,
        )
    )  # fmt: skip


def _rounded(points: Sequence[tuple[float, float]], radius: float = 0.12) -> Any:
    """A path through the points with its corners rounded."""
    from matplotlib.path import Path as Outline

    vertices, codes = [points[0]], [Outline.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        for other, code in ((before, Outline.LINETO), (after, Outline.CURVE3)):
            length = math.dist(other, corner)
            part = min(radius, length / 2) / length if length else 0.0
            near = tuple(c + part * (o - c) for c, o in zip(corner, other, strict=True))
            if code == Outline.CURVE3:
                vertices.append(corner)
                codes.append(code)
            vertices.append((near[0], near[1]))
            codes.append(code)
    return Outline([*vertices, points[-1]], [*codes, Outline.LINETO])
