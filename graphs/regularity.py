"""After the run: what is removed of any activation must leave a tensor without holes.

A view of channels as (blocks, channels per block) can lose channel i of every block, or block j as
a whole, but not channel i of block j alone. Where labels would allow that, they are tied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphs.labels import shrink, tie_along, varying_axes
from graphs.trace_records import Trace

_STAYS = -1


def tie_irregular(trace: Trace) -> None:
    """Tie labels until every recorded box varies along one axis, and freeze channels read alone."""
    for before, after, place in trace.moves:
        lonely = trace.forest.roots(shrink(after))
        if not varying_axes(lonely) and varying_axes(trace.forest.roots(shrink(before))):
            trace.frozen.append((lonely, "one channel is read by its number", place))
    boxes = [small for box in trace.boxes if (small := shrink(box)).dim() > 1]
    boxes = [box for box in boxes if sum(size > 1 for size in box.shape) > 1]
    changed = True
    while changed:
        changed = _tie_broadcasts(trace)
        stays = frozen_labels(trace)
        for box in boxes:
            labels = with_frozen(trace, box, stays)
            axes = varying_axes(labels)
            if len(axes) > 1:
                widest = max(axes, key=lambda axis: (_distinct(labels, axis), axis))
                trace.forest.tie_across(box, widest)
                stays = frozen_labels(trace)
                changed = True


def _tie_broadcasts(trace: Trace) -> bool:
    """Tie, or freeze, what single channels and a tensor of the network have in common."""
    stays = frozen_labels(trace)
    open_ones = []
    for broadcast in trace.broadcasts:
        varying = varying_axes(with_frozen(trace, broadcast.labels, stays))
        if not set(varying) & set(broadcast.axes):
            open_ones.append(broadcast)
        elif broadcast.other is None:
            trace.frozen.append((broadcast.labels, broadcast.reason, broadcast.place))
        else:
            tie_along(trace.forest, broadcast.labels, broadcast.other, broadcast.axes)
    changed = len(open_ones) < len(trace.broadcasts)
    trace.broadcasts[:] = open_ones
    return changed


def frozen_labels(trace: Trace) -> Tensor:
    """Roots of the labels that must stay, sorted."""
    if not trace.frozen:
        return torch.empty(0, dtype=torch.int64)
    flat = torch.cat([shrink(labels).reshape(-1) for labels, _, _ in trace.frozen])
    return torch.unique(trace.forest.roots(flat))


def with_frozen(trace: Trace, labels: Tensor, stays: Tensor) -> Tensor:
    """Roots of labels, with one value for all that must stay."""
    roots = trace.forest.roots(labels)
    return roots.masked_fill(torch.isin(roots, stays), _STAYS)


def _distinct(labels: Tensor, axis: int) -> int:
    """Most different labels in one line along an axis."""
    lines = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)
    return max(len(torch.unique(lines[:, column])) for column in range(min(8, lines.shape[1])))
