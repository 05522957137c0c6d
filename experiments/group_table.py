"""What a plan does to each dependency group, beside uniform pruning at the same MACs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from graphs.network_graph import FROZEN
from pruning.keep_set import KeepSet
from pruning.masks import output_axes
from pruning.plan import Candidate, PruningPlan
from pruning.task import PruningTask


@dataclass(frozen=True)
class GroupRow:
    """One dependency group in the final plan.

    Attributes:
        group: name of the group.
        channels: channels before pruning.
        kept: channels the plan keeps.
        uniform_kept: channels uniform pruning keeps.
        pruning_ratio: fraction of the channels removed, in [0, 1).
        uniform_pruning_ratio: the same for uniform pruning.
        pattern: pattern decided for the group, "" for a plain ratio.
        masked_ratio: fraction of the weights of the kept channels that a mask zeroes, in [0, 1].
    """

    group: str
    channels: int
    kept: int
    uniform_kept: int
    pruning_ratio: float
    uniform_pruning_ratio: float
    pattern: str
    masked_ratio: float


def group_rows(
    task: PruningTask, plan: PruningPlan, candidate: Candidate, uniform: KeepSet
) -> tuple[GroupRow, ...]:
    """One row per group, in execution order."""
    patterns = {decision.site: decision.pattern or "" for decision in plan.decisions}
    rows = []
    for index, site in enumerate(task.sites):
        group = task.graph.groups[index]
        kept, uniform_kept = int(candidate.keep.counts[index]), int(uniform.counts[index])
        rows.append(
            GroupRow(
                group=group.name,
                channels=group.size,
                kept=kept,
                uniform_kept=uniform_kept,
                pruning_ratio=1 - kept / group.size,
                uniform_pruning_ratio=1 - uniform_kept / group.size,
                pattern=patterns.get(site.name, ""),
                masked_ratio=_masked_ratio(task, candidate, index),
            )
        )
    return tuple(rows)


def _masked_ratio(task: PruningTask, candidate: Candidate, index: int) -> float:
    """Fraction of the weights that produce the kept channels of a group and are zeroed by masks."""
    graph = task.graph
    masks, axes = task.mask_tensors(candidate), output_axes(graph)
    owner = np.append(graph.unit_group, FROZEN)  # FROZEN is -1: the last entry
    is_kept = np.append(candidate.keep.mask, True)
    total, nonzero = 0, 0
    for name in task.sites[index].operators:
        operator = graph.operator_by_name[name]
        if not operator.weight:
            continue
        units = np.asarray(operator.out_units)
        channels = np.flatnonzero((owner[units] == index) & is_kept[units])
        shape = graph.parameters[operator.weight]
        size = math.prod(shape) // len(units) * len(channels)
        total += size
        mask = masks.get(operator.weight)
        if mask is None:
            nonzero += size
        else:
            rows = mask.index_select(axes[operator.weight], torch.from_numpy(channels))
            nonzero += int(rows.count_nonzero())
    return 1 - nonzero / total if total else 0.0
