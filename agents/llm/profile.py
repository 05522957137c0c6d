"""The network as data for a language model: groups, cost shares, couplings, free sensitivities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from graphs.network_graph import Group
from pruning.keep_set import KeepSet
from pruning.task import PruningTask

SHARES = (0.25, 0.5, 0.75)
"""Fractions of a group's channels whose summed importance is told."""


def describe_network(
    task: PruningTask, limits: Any, largest_ratios: Mapping[str, float]
) -> dict[str, Any]:
    """All that a search knows before its first measurement, as JSON takes it.

    Nothing of it costs an evaluation. The sensitivities are the analytic kind: what half of one
    group saves, and how much of the group's importance its least important channels hold.

    Args:
        task: what is pruned.
        limits: the band in MACs, with `lower`, `upper` and `base`.
        largest_ratios: the largest pruning ratio of each group.
    """
    cost, groups = task.cost, task.graph.groups
    sizes = np.array([group.size for group in groups])
    per_operator = cost.macs_per_operator(KeepSet.from_counts(task.graph, sizes, task.scores))
    descriptions = []
    for index, group in enumerate(groups):
        halved = sizes.copy()
        halved[index] = max(group.min_keep, group.size // 2)
        saved = 1.0 - float(cost.macs_of_counts(halved)) / cost.base_macs
        made = sum(per_operator.get(name, 0) for name in group.producers)
        descriptions.append(
            {
                "name": group.name,
                "unit": "attention head" if group.kind == "heads" else "channel",
                "size": group.size,
                "largest_ratio": round(largest_ratios[group.name], 4),
                "cut_together": list(group.producers),
                "read_by": list(group.consumers),
                "macs_share_of_producers": round(made / cost.base_macs, 4),
                "macs_saved_by_removing_half": round(saved, 4),
                "importance_held_by_the_least_important": _held(task.scores[group.name]),
            }
        )
    return {
        "macs": cost.base_macs,
        "parameters": cost.base_params,
        "accuracy": round(task.base.accuracy, 4),
        "band": {
            "lowest_relative_macs": round(limits.lower / limits.base, 5),
            "highest_relative_macs": round(limits.upper / limits.base, 5),
        },
        "groups": descriptions,
    }


def fingerprint(groups: tuple[Group, ...], limits: Any, strategies: Mapping[str, Any]) -> str:
    """Short hash of what a search is about: the groups, the band in MACs, the kind of plans.

    Args:
        groups: the groups of the network.
        limits: the band in MACs, with `lower`, `upper` and `base`.
        strategies: what a plan may choose, as `Strategies.describe` says it.
    """
    about: list[Any] = [[[group.name, group.size, group.round_to] for group in groups]]
    about += [limits.lower, limits.upper, limits.base, strategies["kind"]]
    about += [strategies[name] for name in ("importances", "fine_tune") if name in strategies]
    text = json.dumps(about)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _held(scores: np.ndarray) -> dict[str, float | None]:
    """Share of the summed importance that the least important channels hold, by their fraction."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    total = float(np.abs(ordered).sum())
    return {
        f"{share:.0%}": (
            round(float(np.abs(ordered[: int(share * len(ordered))]).sum()) / total, 3)
            if np.isfinite(total) and total > 0
            else None
        )
        for share in SHARES
    }
