"""A network graph as a picture: feature maps are bars, operators bands in a pattern's colour."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.draw_graph_geometry import BAR, LEFT, SYMBOL, TOP, Geometry
from experiments.draw_graph_layout import Layout
from experiments.draw_graph_plan import KEPT, STAYS, PlanPicture
from experiments.draw_graph_strokes import BAND, INCHES, band, line, stamp_place
from experiments.figures import STYLE
from graphs.network_graph import Edge, NetworkGraph, Operator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, BODY, REMOVED = "#2B2B2B", "#8C8C8C", "#4A5568", "#E9E9E9"
PLAIN, FIXED = "#B9C0C7", "#DDDDDD"
STAGE_TINTS = ("#F5F7FA", "#EBEFF4")
SHAPE_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#7A4FBF", "#56B4E9", "#A6761D",
)  # fmt: skip
"""Patterns without an order, told apart with any kind of colour vision (after Okabe and Ito)."""

FAMILY_MAPS = ("viridis_r", "YlOrRd", "PuRd", "YlGn", "Greys")
"""Patterns from mild to heavy, one map for each family."""

STAMP = 0.36
"""Side of a stamp, in columns."""

SYMBOLS = {"add": "+", "mul": "×", "concat": "||", "pool": "pool", "move": "move"}


def draw_graph(
    graph: NetworkGraph, plan: PlanPicture, layout: Layout, path: Path, *, title: str
) -> None:
    """Draw a network with its patterns.

    Args:
        graph: the traced network.
        plan: what is drawn of its plan.
        layout: where the feature maps go.
        path: file to write; its suffix says the format.
        title: above the picture.
    """
    import matplotlib
    from matplotlib.figure import Figure

    picture = _Picture(graph, plan, layout)
    # Text stays text in an SVG, to be searched and edited.
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "none", "axes.grid": False}):
        figure = Figure(figsize=(picture.width * INCHES, picture.height * INCHES))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_xlim(LEFT, LEFT + picture.width)
        axes.set_ylim(-picture.height + TOP, TOP)
        picture.draw(axes, title)
        figure.savefig(path, dpi=150)


class _Picture:
    """Geometry and drawing; one unit is the distance of two columns, y grows upwards."""

    def __init__(self, graph: NetworkGraph, plan: PlanPicture, layout: Layout) -> None:
        self._graph, self._plan, self._layout = graph, plan, layout
        self._colours = pattern_colours(plan)
        self._geometry = geometry = Geometry(graph, layout)
        columns = max(7, *layout.row_lengths)
        self._legend_columns = max(2, int((columns + 0.9) / 3.4))
        lines = math.ceil(len(self._legend_items()) / self._legend_columns)
        self.width = columns + 0.9
        self.height = TOP - geometry.bottom + 0.55 * lines + 0.35

    def draw(self, axes: Axes, title: str) -> None:
        """Everything, from the background up."""
        axes.text(LEFT + 0.3, TOP - 0.4, title, fontsize=12, weight="bold", color=INK)
        self._draw_stages(axes)
        for edge, points in self._geometry.lines():
            self._draw_edge(axes, edge, points)
        for node in range(len(self._graph.feature_maps)):
            self._draw_node(axes, node)
        self._draw_legend(axes)

    def _draw_stages(self, axes: Axes) -> None:
        from matplotlib.patches import FancyBboxPatch

        for index, stage in enumerate(self._layout.stages):
            row = self._geometry.rows[stage.row]
            bottom, height = row.gutter + 0.1, row.highest - row.gutter - 0.1
            axes.add_patch(
                FancyBboxPatch(
                    (stage.first - 0.44, bottom),
                    stage.last - stage.first + 0.88,
                    height,
                    boxstyle="round,pad=0,rounding_size=0.12",
                    facecolor=STAGE_TINTS[index % 2],
                    edgecolor="none",
                    zorder=0,
                )
            )
            name = " × ".join(map(str, stage.size)) if stage.size else "vector"
            if len(stage.size) == 1:
                name = f"{stage.size[0]} tokens"
            axes.text(
                stage.first - 0.36, row.highest - 0.06, name, va="top", fontsize=7.5, color=FAINT
            )

    def _draw_edge(self, axes: Axes, edge: Edge, points: list[tuple[float, float]]) -> None:
        if edge.operator is None:
            line(axes, points, color=INK if edge.kind == "add" else FAINT, width=1.1)
            return
        stripes = self._plan.stripes[edge.operator]
        is_long = len(points) > 4  # a broad band around a whole row would drown the picture
        colours = [(self._colours[s.label], s.share) for s in stripes]
        band(axes, points, colours, breadth=BAND / 2 if is_long else BAND)
        x, y = stamp_place(points)
        stamped = [s for s in stripes if s.label in self._plan.shapes]
        for index, stripe in enumerate(stamped):
            offset = (index - (len(stamped) - 1) / 2) * (STAMP + 0.05)
            self._draw_stamp(axes, x, y + offset, stripe.label, STAMP)

    def _draw_stamp(self, axes: Axes, x: float, y: float, label: str, side: float) -> None:
        """A 3x3 kernel, kept cells in colour."""
        from matplotlib.patches import Rectangle

        cell, colour = side / 3, self._colours[label]
        for row, cells in enumerate(self._plan.shapes[label]):
            for column, kept in enumerate(cells):
                axes.add_patch(
                    Rectangle(
                        (x - side / 2 + column * cell, y + side / 2 - (row + 1) * cell),
                        cell,
                        cell,
                        facecolor=colour if kept == "#" else "white",
                        edgecolor=colour,
                        linewidth=0.5,
                        zorder=4,
                    )
                )

    def _draw_node(self, axes: Axes, node: int) -> None:
        from matplotlib.patches import Circle, Rectangle

        x, y = self._geometry.centre(node)
        channels, kept = len(self._graph.feature_maps[node].units), self._plan.kept[node]
        if self._geometry.is_small(node):
            axes.add_patch(Circle((x, y), SYMBOL, facecolor="white", edgecolor=INK, lw=1, zorder=5))
            kind = min(self._geometry.inputs[node])
            axes.text(
                x, y - 0.012, SYMBOLS[kind], ha="center", va="center", fontsize=9, color=INK,
                zorder=6,
            )  # fmt: skip
            self._label(axes, x, y - SYMBOL, kept, channels, "")
            return
        height = self._geometry.heights[node]
        low, filled = y - height / 2, height * kept / max(1, channels)
        for part, colour in ((height, REMOVED), (filled, BODY)):
            axes.add_patch(
                Rectangle((x - BAR / 2, low), BAR, part, facecolor=colour, linewidth=0, zorder=5)
            )
        axes.add_patch(
            Rectangle((x - BAR / 2, low), BAR, height, fill=False, edgecolor=INK, lw=0.7, zorder=6)
        )
        self._label(axes, x, low, kept, channels, self._name(node))

    def _label(self, axes: Axes, x: float, low: float, kept: int, channels: int, name: str) -> None:
        count = str(channels) if kept == channels else f"{kept}/{channels}"
        axes.text(
            x, low - 0.05, count, ha="center", va="top", fontsize=6.5, color=INK, weight="bold",
            zorder=7,
        )  # fmt: skip
        axes.text(
            x, low - 0.2, name, ha="center", va="top", fontsize=4.8, color="#555555", zorder=7,
            linespacing=1.1,
        )  # fmt: skip

    def _name(self, node: int) -> str:
        """Operator that makes a feature map, its kind and its kernel, on short lines."""
        makers = [
            self._graph.operators[e.operator]
            for e in self._graph.edges
            if e.target == node and e.operator is not None
        ]
        if not makers:
            kinds = sorted(self._geometry.inputs.get(node, ()))
            return SYMBOLS.get(kinds[0], kinds[0]) if kinds else "input"
        name, kind = makers[0].name, describe(makers[0])
        return name if name == kind else "\n".join([*_broken(name), kind])

    def _legend_items(self) -> list[tuple[str, str]]:
        """Label and text of each entry."""
        plan = self._plan
        used = {stripe.label for those in plan.stripes for stripe in those}
        items = [(label, _counted(label, plan.groups[label])) for label in plan.labels]
        if KEPT in used:
            items.insert(0, (KEPT, _counted(KEPT, plan.groups[KEPT])))
        if STAYS in used:
            items.append((STAYS, STAYS))
        return [*items, ("", "feature map: channels kept / before")]

    def _draw_legend(self, axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        width = (self.width - 0.6) / self._legend_columns
        for index, (label, text) in enumerate(self._legend_items()):
            line, column = divmod(index, self._legend_columns)
            x, y = LEFT + 0.5 + column * width, self._geometry.bottom - 0.35 - 0.55 * line
            if label in self._plan.shapes:
                self._draw_stamp(axes, x, y, label, STAMP)
            elif label:
                axes.add_patch(
                    Rectangle((x - 0.2, y - 0.08), 0.4, 0.16, facecolor=self._colours[label], lw=0)
                )
            else:
                for part, colour in ((0.4, REMOVED), (0.24, BODY)):
                    corner = (x - 0.08, y - 0.2)
                    axes.add_patch(Rectangle(corner, 0.16, part, facecolor=colour, linewidth=0))
            axes.text(x + 0.3, y, text, va="center", fontsize=8, color=INK)


def pattern_colours(plan: PlanPicture) -> dict[str, str]:
    """A colour for each label: shapes get unlike ones, the others go from light to dark.

    Args:
        plan: what is drawn.
    """
    import matplotlib
    from matplotlib.colors import to_hex

    colours = {KEPT: PLAIN, STAYS: FIXED}
    by_family: dict[str, list[str]] = {}
    for label in plan.labels:
        by_family.setdefault(plan.families[label], []).append(label)
    maps = iter(FAMILY_MAPS * 2)
    for labels in by_family.values():
        if all(label in plan.shapes for label in labels):
            for index, label in enumerate(labels):
                colours[label] = SHAPE_COLOURS[index % len(SHAPE_COLOURS)]
            continue
        colour_map = matplotlib.colormaps[next(maps)]
        for index, label in enumerate(labels):
            colours[label] = to_hex(colour_map(0.12 + 0.83 * index / max(1, len(labels) - 1)))
    return colours


def describe(operator: Operator) -> str:
    """Kind and kernel of an operator, such as "conv 3×3"."""
    kind = "depthwise" if operator.depthwise else operator.kind
    kernel = "×".join(map(str, operator.kernel_size))
    return f"{kind} {kernel}".strip()


def _broken(name: str, longest: int = 17) -> list[str]:
    """A dotted name on lines of at most `longest` characters where its dots allow."""
    lines = [""]
    for part in name.replace(".", ".\0").split("\0"):
        if lines[-1] and len(lines[-1] + part) > longest:
            lines.append("")
        lines[-1] += part
    return lines


def _counted(label: str, count: int) -> str:
    return f"{label} ({count} {'group' if count == 1 else 'groups'})"
