"""Where a graph's picture has everything; one unit is the distance of columns, y grows upwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.draw_graph_layout import Layout, Spot
from graphs.network_graph import Edge, NetworkGraph

LEFT, TOP = -0.95, 0.75
"""Corner of the picture."""

BAR, SYMBOL, LANE, TALLEST = 0.30, 0.17, 1.9, 1.15
"""Width of a bar, radius of a symbol, distance of lanes, height of the widest feature map."""


@dataclass(frozen=True)
class Row:
    """Vertical extent of one row: its middle line, and the line along which edges leave it."""

    middle: float
    highest: float
    gutter: float


class Geometry:
    """Places of the bars, and the lines of the edges between them.

    Args:
        graph: the traced network.
        layout: where the feature maps go.

    Attributes:
        heights: of each feature map's bar.
        inputs: kinds of the edges that end at each feature map.
        rows: from the top.
        bottom: where the last row ends.
    """

    def __init__(self, graph: NetworkGraph, layout: Layout) -> None:
        self._graph, self._layout = graph, layout
        widest = max(len(node.units) for node in graph.feature_maps)
        self.heights = [
            0.3 + (TALLEST - 0.3) * math.log1p(len(node.units)) / math.log1p(widest)
            for node in graph.feature_maps
        ]
        self.inputs: dict[int, set[str]] = {}
        for edge in graph.edges:
            self.inputs.setdefault(edge.target, set()).add(edge.kind)
        self.rows, self.bottom = self._place_rows()

    def lines(self) -> Iterator[tuple[Edge, list[tuple[float, float]]]]:
        """Every edge with the points of its line."""
        crossings: dict[int, int] = {}
        for edge in self._graph.edges:
            source, target = (self._layout.spots[n] for n in (edge.source, edge.target))
            if source.row != target.row:
                yield edge, self._around(edge, crossings)
            elif target.column - source.column == 1:
                yield edge, self._straight(edge)
            else:
                yield edge, self._arc(edge)

    def centre(self, node: int) -> tuple[float, float]:
        """Middle of what is drawn for a node."""
        spot: Spot = self._layout.spots[node]
        return float(spot.column), self.rows[spot.row].middle - LANE * spot.lane

    def is_small(self, node: int) -> bool:
        """Whether a node is drawn as a symbol: it only sums or multiplies."""
        kinds = self.inputs.get(node, set())
        return bool(kinds) and kinds <= {"add", "mul"}

    def _place_rows(self) -> tuple[list[Row], float]:
        """The rows from the top, and where the last one ends."""
        rows, y = [], TOP - 0.75
        for row in range(len(self._layout.row_lengths)):
            highest = max([0.0, *(self._rise(edge) for edge in self._arcs(row))])
            middle = y - 0.5 - highest - TALLEST / 2
            lowest = middle - LANE * (self._layout.num_lanes(row) - 1) - TALLEST / 2 - 0.62
            leaving = {e.source for e in self._graph.edges if self._crosses(e, row)}
            gutter = lowest - 0.14
            rows.append(Row(middle, middle + TALLEST / 2 + highest + 0.36, gutter))
            y = gutter - (0.16 * len(leaving) + 0.12 if leaving else 0.1)
        return rows, y

    def _crosses(self, edge: Edge, row: int) -> bool:
        source, target = (self._layout.spots[n] for n in (edge.source, edge.target))
        return source.row == row != target.row

    def _arcs(self, row: int) -> list[Edge]:
        """Edges that leap over columns of a row."""
        spots = self._layout.spots
        return [
            edge
            for edge in self._graph.edges
            if spots[edge.source].row == spots[edge.target].row == row
            and spots[edge.target].column - spots[edge.source].column > 1
        ]

    def _rise(self, edge: Edge) -> float:
        """How far above the bars an arc goes."""
        spots = self._layout.spots
        span = spots[edge.target].column - spots[edge.source].column
        return min(1.3, 0.3 + 0.09 * span)

    def _half(self, node: int) -> float:
        """Half the width of what is drawn for a node."""
        return SYMBOL if self.is_small(node) else BAR / 2

    def _straight(self, edge: Edge) -> list[tuple[float, float]]:
        (x0, y0), (x1, y1) = self.centre(edge.source), self.centre(edge.target)
        start, end = (x0 + self._half(edge.source), y0), (x1 - self._half(edge.target), y1)
        if y0 == y1:
            return [start, end]
        middle = (start[0] + end[0]) / 2
        return [start, (middle, y0), (middle, y1), end]

    def _arc(self, edge: Edge) -> list[tuple[float, float]]:
        (x0, y0), (x1, y1) = self.centre(edge.source), self.centre(edge.target)
        middle = self.rows[self._layout.spots[edge.source].row].middle
        y = middle + TALLEST / 2 + self._rise(edge)
        start = y0 + self._reach(edge.source)
        end = y1 + self._reach(edge.target)
        return [(x0 + 0.06, start), (x0 + 0.06, y), (x1 - 0.06, y), (x1 - 0.06, end)]

    def _around(self, edge: Edge, crossings: dict[int, int]) -> list[tuple[float, float]]:
        """From the end of one row to a later one, through the space between them."""
        source, target = (self._layout.spots[n] for n in (edge.source, edge.target))
        (x0, y0), (x1, y1) = self.centre(edge.source), self.centre(edge.target)
        index = crossings.get(source.row, 0)
        crossings[source.row] = index + 1
        out = x0 + 0.42 + 0.1 * (index % 3)
        y = self.rows[source.row].gutter - 0.16 * (index % 3)
        points = [(x0 + BAR / 2, y0), (out, y0), (out, y)]
        if target.row > source.row + 1:  # along the left edge past the rows in between
            x, y_next = LEFT + 0.1 * (1 + index % 3), self.rows[target.row - 1].gutter
            points += [(x, y), (x, y_next)]
            y = y_next
        if target.column == 0:
            x = -0.62 + 0.1 * (index % 3)
            return [*points, (x, y), (x, y1), (x1 - self._half(edge.target), y1)]
        top = y1 + self._reach(edge.target)
        return [*points, (x1 - 0.06, y), (x1 - 0.06, top)]

    def _reach(self, node: int) -> float:
        """Distance from the centre of a node to its upper end."""
        return SYMBOL if self.is_small(node) else self.heights[node] / 2
