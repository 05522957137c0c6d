"""Where each feature map of a network graph is drawn: in rows that a person reads like text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graphs.network_graph import NetworkGraph


@dataclass(frozen=True)
class Spot:
    """The place of one feature map.

    Attributes:
        row: row of the picture, from 0 at the top.
        column: column in the row, from 0 at the left.
        lane: 0 on the longest path through the network, 1 and more for branches beside it.
    """

    row: int
    column: int
    lane: int


@dataclass(frozen=True)
class Stage:
    """Neighbouring columns of one row whose feature maps have one size.

    Attributes:
        row: row of the picture.
        first: first column.
        last: last column.
        size: spatial size or tokens, () when there is none.
    """

    row: int
    first: int
    last: int
    size: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Places of all feature maps.

    Attributes:
        spots: one per feature map.
        stages: in reading order.
        row_lengths: columns of each row.
    """

    spots: tuple[Spot, ...]
    stages: tuple[Stage, ...]
    row_lengths: tuple[int, ...]

    def num_lanes(self, row: int) -> int:
        """Lanes that a row needs, at least 1."""
        return 1 + max(spot.lane for spot in self.spots if spot.row == row)


def lay_out(graph: NetworkGraph, max_columns: int = 18) -> Layout:
    """Place every feature map by the longest path that leads to it.

    The depths become columns; the columns are cut into rows where the size of the feature maps
    changes, and inside a longer stage after a residual sum.

    Args:
        graph: the traced network.
        max_columns: most columns of a row, at least 2.
    """
    depths = longest_paths(len(graph.feature_maps), [(e.source, e.target) for e in graph.edges])
    heights = _heights(graph)
    columns: list[list[int]] = [[] for _ in range(max(depths) + 1)]
    for node, depth in enumerate(depths):
        columns[depth].append(node)
    for members in columns:  # the longest path through the network stays on the first lane
        members.sort(key=lambda node: (-heights[node], node))
    sizes = [_size(graph, members[0]) for members in columns]
    sums = {edge.target for edge in graph.edges if edge.kind == "add"}
    pieces = [
        piece
        for first, last in _runs(sizes)
        for piece in _split(first, last, max_columns, [columns[d][0] in sums for d in range(last)])
    ]
    rows = pack([last - first for first, last in pieces], max_columns)
    spots: dict[int, Spot] = {}
    stages, row_lengths = [], []
    for row, (begin, end) in enumerate(rows):
        start = pieces[begin][0]
        for first, last in pieces[begin:end]:
            size = graph.feature_maps[columns[first][0]].spatial
            stages.append(Stage(row, first - start, last - 1 - start, size))
        for depth in range(start, pieces[end - 1][1]):
            for lane, node in enumerate(columns[depth]):
                spots[node] = Spot(row, depth - start, lane)
        row_lengths.append(pieces[end - 1][1] - start)
    ordered = tuple(spots[node] for node in range(len(graph.feature_maps)))
    return Layout(ordered, tuple(stages), tuple(row_lengths))


def longest_paths(num_nodes: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Edges on the longest path from a node without predecessors to each node.

    Args:
        num_nodes: number of nodes.
        edges: pairs of source and target; a source comes before its targets in the numbering.
    """
    depths = [0] * num_nodes
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        depths[target] = max(depths[target], depths[source] + 1)
    return depths


def pack(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Share out pieces, in order, over as few rows as possible, the longest as short as possible.

    Args:
        lengths: of the pieces, each at most `most`.
        most: largest length of a row.

    Returns:
        First piece and one past the last piece of each row.
    """
    # best[i]: rows, longest row and the rows themselves, for the first i pieces
    best: list[tuple[int, int, list[tuple[int, int]]]] = [(0, 0, [])]
    for end in range(1, len(lengths) + 1):
        options = []
        for begin in range(end):
            length = sum(lengths[begin:end])
            if length <= most or begin == end - 1:
                rows, longest, those = best[begin]
                options.append((rows + 1, max(longest, length), [*those, (begin, end)]))
        best.append(min(options))
    return best[-1][2]


def _heights(graph: NetworkGraph) -> list[int]:
    """Edges on the longest path from each node to the end."""
    count = len(graph.feature_maps)
    reverse = [(count - 1 - edge.target, count - 1 - edge.source) for edge in graph.edges]
    return longest_paths(count, reverse)[::-1]


def _size(graph: NetworkGraph, node: int) -> int:
    """What tells stages apart: the height of an image, or the number of tokens."""
    return (*graph.feature_maps[node].spatial, 1)[0]


def _runs(values: Sequence[int]) -> list[tuple[int, int]]:
    """First index and one past the last of each run of equal values."""
    starts = [i for i, value in enumerate(values) if i == 0 or value != values[i - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))


def _split(first: int, last: int, most: int, is_sum: Sequence[bool]) -> list[tuple[int, int]]:
    """Cut a run that is too long into nearly equal pieces, after a residual sum when one is near.

    Args:
        first: first depth of the run.
        last: one past its last depth.
        most: largest length of a piece.
        is_sum: of each depth, whether its feature map is a residual sum.
    """
    pieces = []
    while last - first > most:
        wanted = first + math.ceil((last - first) / math.ceil((last - first) / most))
        near = [d + 1 for d in range(first + 1, min(first + most, last - 1)) if is_sum[d]]
        cut = min(near, key=lambda d: abs(d - wanted), default=wanted)
        cut = cut if abs(cut - wanted) <= most // 4 else wanted
        pieces.append((first, cut))
        first = cut
    return [*pieces, (first, last)]
