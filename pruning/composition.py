"""Several prunings one after the other as a single one of the network they began with."""

from __future__ import annotations

import numpy as np

from graphs.network_graph import NetworkGraph
from pruning.keep_set import KeepSet
from pruning.plan import Decision, PruningPlan


def compose_keep(
    graph: NetworkGraph, keep: KeepSet, slim_graph: NetworkGraph, slim_keep: KeepSet
) -> KeepSet:
    """What is left of a network after it was pruned twice.

    Args:
        graph: of the network before both.
        keep: what the first pruning left of it.
        slim_graph: of the network that the first pruning left, traced anew.
        slim_keep: what the second left of that.

    Returns:
        The channels of the first network that survive both; applied at once it gives tensors of
        the same shapes and, from the same weights, the same values.

    Raises:
        ValueError: the second graph is not that of the network which the first pruning left.
    """
    kept = np.append(keep.mask, True)  # FROZEN is -1 and reads the appended True
    kept_later = np.append(slim_keep.mask, True)
    later_units = {(part.tensor, part.axis): part.units for part in slim_graph.slices}
    mask = keep.mask.copy()
    for part in graph.slices:
        units = np.asarray(part.units)
        left = units[kept[units]]  # the unit of each position of the slim tensor
        later = later_units.get((part.tensor, part.axis))
        if later is None:
            continue  # nothing can be removed there any more
        if len(later) != len(left):
            raise ValueError(
                f"The first pruning leaves {len(left)} positions on axis {part.axis} of "
                f"{part.tensor!r}, the second one's graph has {len(later)}: it is of another "
                "network. Trace the network that the first pruning left."
            )
        gone = left[~kept_later[list(later)]]
        mask[gone[gone >= 0]] = False
    return KeepSet.from_indices(
        graph,
        {group.name: np.flatnonzero(mask[list(group.units)]).tolist() for group in graph.groups},
    )


def plan_of(graph: NetworkGraph, keep: KeepSet) -> PruningPlan:
    """A replayable plan that leaves exactly these channels; its decisions are their fractions."""
    kept = {group.name: tuple(keep.kept(group.name).tolist()) for group in graph.groups}
    decisions = tuple(
        Decision(group.name, ratio=1.0 - len(kept[group.name]) / group.size)
        for group in graph.groups
    )
    return PruningPlan(graph=graph.fingerprint, decisions=decisions, keep=kept)
