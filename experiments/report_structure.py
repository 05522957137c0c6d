"""The network's structure with what plans keep of it, laid out for the report page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.report_charts import Line
from experiments.run_folder import RunFolder

ROW = 24.0
GUTTER = 56.0
LANE = 7.0


@dataclass(frozen=True)
class Kept:
    """What one plan keeps of a feature map.

    Attributes:
        channels: channels left.
        share: of the channels, in [0, 1].
        pattern: pattern decided for the group of these channels, "" for none.
    """

    channels: int
    share: float
    pattern: str


@dataclass(frozen=True)
class MapRow:
    """A feature map of the network.

    Attributes:
        name: what made it.
        kind: kind of the edge that made it: conv, linear, add, ...
        y: height of its row.
        channels: channels before pruning.
        is_fixed: whether none of its channels can go.
        kept: what each plan keeps, in the order of the plans.
    """

    name: str
    kind: str
    y: float
    channels: int
    is_fixed: bool
    kept: tuple[Kept, ...]


@dataclass(frozen=True)
class Structure:
    """A network drawn from top to bottom.

    Attributes:
        labels: of the plans.
        rows: feature maps in execution order.
        links: paths between the maps; those that skip rows run in lanes at the left.
        height: of the drawing.
    """

    labels: tuple[str, ...]
    rows: tuple[MapRow, ...]
    links: tuple[Line, ...]
    height: float


def read_structure(folders: Mapping[str, Path], graph_file: Path | None = None) -> Structure:
    """The structure of a network and what the plans of some runs keep.

    Args:
        folders: run folders by label; all of one network.
        graph_file: the traced network; that of the first folder by default.
    """
    file = graph_file or RunFolder(next(iter(folders.values()))).graph
    graph = json.loads(file.read_text(encoding="utf-8"))
    plans = [
        json.loads(RunFolder(folder).plan.read_text(encoding="utf-8"))
        for folder in folders.values()
    ]
    units = [_Units.of(graph, plan) for plan in plans]
    made_by = {edge["target"]: edge["kind"] for edge in graph["edges"]}
    rows = []
    for index, feature_map in enumerate(graph["feature_maps"]):
        ids = feature_map["units"]
        rows.append(
            MapRow(
                name=feature_map["name"],
                kind=made_by.get(index, "input"),
                y=ROW * (index + 1.5),
                channels=len(ids),
                is_fixed=all(unit < 0 for unit in ids),
                kept=tuple(plan.kept(ids) for plan in units),
            )
        )
    links = _links(graph["edges"], rows)
    return Structure(tuple(folders), tuple(rows), links, ROW * (len(rows) + 1.5))


@dataclass(frozen=True)
class _Units:
    """Which units a plan keeps, and the pattern of each."""

    stays: frozenset[int]
    patterns: Mapping[int, str]

    @classmethod
    def of(cls, graph: Mapping[str, Any], plan: Mapping[str, Any]) -> _Units:
        by_site = {row["site"]: row["pattern"] or "" for row in plan["decisions"]}
        stays: set[int] = set()
        patterns: dict[int, str] = {}
        for group in graph["groups"]:
            kept = plan["keep"].get(group["name"])
            ids = group["units"]
            stays.update(ids if kept is None else (ids[position] for position in kept))
            patterns |= dict.fromkeys(ids, by_site.get(group["name"], ""))
        return cls(frozenset(stays), patterns)

    def kept(self, ids: Sequence[int]) -> Kept:
        channels = sum(unit < 0 or unit in self.stays for unit in ids)
        patterns = {self.patterns[unit] for unit in ids if unit >= 0} - {""}
        return Kept(channels, channels / len(ids), ", ".join(sorted(patterns)))


def _links(edges: Sequence[Mapping[str, Any]], rows: Sequence[MapRow]) -> tuple[Line, ...]:
    """Straight to the next row, around in the first free lane otherwise."""
    lanes: list[int] = []  # row where each lane is free again
    links = []
    for edge in sorted(edges, key=lambda edge: (edge["source"], edge["target"])):
        source, target = edge["source"], edge["target"]
        start, end = rows[source].y, rows[target].y
        if target == source + 1:
            links.append(Line(f"M{GUTTER},{start} V{end}", "link"))
            continue
        lane = next((i for i, free in enumerate(lanes) if free <= source), len(lanes))
        lanes[lane : lane + 1] = [target]
        x = max(GUTTER - 14 - LANE * lane, 4)
        path = (
            f"M{GUTTER},{start} Q{x},{start} {x},{start + 10} V{end - 10} Q{x},{end} {GUTTER},{end}"
        )
        links.append(Line(path, "skip"))
    return tuple(links)
