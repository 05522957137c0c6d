"""What a plan does to the operators and feature maps of a graph, in the words of a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from graphs.network_graph import FROZEN, Group, NetworkGraph
from patterns.dense import DensePattern
from patterns.library import PatternLibrary
from patterns.pattern import Pattern
from pruning.cost import CostModel
from pruning.keep_set import KeepSet, unclipped_count
from pruning.masks import PatternMasks
from pruning.plan import Decision, PruningPlan

KEPT, STAYS = "all kept", "cannot be removed"
"""Labels of what loses nothing: by choice, and because it has to stay."""

BINS = (0.25, 0.5, 0.75, 1.0)
"""Pruning ratios are drawn in four colours: up to so much removed."""


@dataclass(frozen=True)
class Stripe:
    """Output channels of one operator that share a label.

    Attributes:
        label: key of `PlanPicture.shapes`, KEPT or STAYS.
        share: fraction of the operator's output channels.
    """

    label: str
    share: float


@dataclass(frozen=True)
class PlanPicture:
    """What is drawn of a plan.

    Attributes:
        kept: channels left of each feature map.
        stripes: of each operator, in channel order.
        labels: what was chosen somewhere, mild first, KEPT and STAYS left out.
        shapes: cells of the labels that are 3x3 kernel shapes, three strings, "#" = kept.
        families: family of each label; "ratio" for a range of pruning ratios.
        groups: number of groups with each label.
        relative_macs: MACs left on dense hardware over those before.
    """

    kept: tuple[int, ...]
    stripes: tuple[tuple[Stripe, ...], ...]
    labels: tuple[str, ...]
    shapes: Mapping[str, tuple[str, ...]]
    families: Mapping[str, str]
    groups: Mapping[str, int]
    relative_macs: float


def picture_of(graph: NetworkGraph, plan: PruningPlan) -> PlanPicture:
    """Read a plan for drawing.

    Raises:
        ValueError: the plan is for another graph.
    """
    keep = plan.keep_set(graph)
    library = PatternLibrary.from_specs(plan.patterns)
    masks = dict(plan.masks)
    chosen = {decision.site: _label(decision) for decision in plan.decisions}
    named = {
        decision.site: library[library.index(decision.pattern)]
        for decision in plan.decisions
        if decision.pattern is not None
    }
    stripes = []
    for operator in graph.operators:
        shares: dict[str, float] = {}
        for unit in operator.out_units:
            label = STAYS
            if unit != FROZEN:
                group = graph.groups[graph.unit_group[unit]].name
                label = chosen.get(group, KEPT)
                pattern = named.get(group)
                # a mask pattern acts only in the operators it applies to
                if pattern is not None and pattern.channel_ratio == 0.0:
                    label = masks.get(f"{operator.name}@{group}", KEPT)
            shares[label] = shares.get(label, 0.0) + 1 / len(operator.out_units)
        stripes.append(tuple(Stripe(label, share) for label, share in shares.items()))
    cost = CostModel(graph)
    present = {stripe.label for those in stripes for stripe in those} - {KEPT, STAYS}
    order = [*library.names, *map(_range, BINS)]
    return PlanPicture(
        kept=tuple(_kept(node.units, keep) for node in graph.feature_maps),
        stripes=tuple(stripes),
        labels=tuple(label for label in order if label in present),
        shapes={p.name: tuple(p.rows) for p in library if hasattr(p, "rows")},
        families={
            **{pattern.name: pattern.family for pattern in library},
            **{_range(bound): "ratio" for bound in BINS},
        },
        groups={
            label: sum(chosen.get(group.name, KEPT) == label for group in graph.groups)
            for label in (*order, KEPT)
        },
        relative_macs=cost.macs(keep) / cost.base_macs,
    )


def unpruned_plan(graph: NetworkGraph) -> PruningPlan:
    """The plan that removes nothing."""
    return _plan(graph, [], KeepSet.full(graph), {}, ())


def random_plan(
    network: nn.Module, graph: NetworkGraph, library: PatternLibrary, seed: int
) -> PruningPlan:
    """A pattern for every site, drawn uniformly among those that make sense there.

    Args:
        network: holds the weights.
        graph: its trace.
        library: the patterns to choose from.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    where = PatternMasks(network, graph, library).where
    decisions, ratios, masks = [], {}, {}
    for group in graph.groups:
        places = {pattern.name: where(group, pattern) for pattern in library}
        allowed = [p for p in library if _makes_sense(p, group, places[p.name])]
        pattern = allowed[int(rng.integers(len(allowed)))]
        decisions.append(Decision(group.name, pattern=pattern.name))
        ratios[group.name] = pattern.channel_ratio
        masks.update(dict.fromkeys(places[pattern.name], pattern.name))
    return _plan(graph, decisions, KeepSet.from_ratios(graph, ratios), masks, tuple(library))


def _makes_sense(pattern: Pattern, group: Group, places: Sequence[str]) -> bool:
    """Whether a pattern does at a group what its name says; masks need a place to act."""
    if pattern.channel_ratio > 0.0:
        return group.min_keep <= unclipped_count(group, pattern.channel_ratio) < group.size
    return bool(places) or pattern.family == DensePattern.family


def _plan(
    graph: NetworkGraph,
    decisions: Sequence[Decision],
    keep: KeepSet,
    masks: Mapping[str, str],
    patterns: Sequence[Pattern],
) -> PruningPlan:
    return PruningPlan(
        graph=graph.fingerprint,
        decisions=tuple(decisions),
        keep={
            group.name: tuple(np.flatnonzero(keep.mask[list(group.units)]).tolist())
            for group in graph.groups
        },
        masks=tuple(sorted(masks.items())),
        patterns=tuple(pattern.spec for pattern in patterns),
    )


def _label(decision: Decision) -> str:
    if decision.pattern is not None:
        return KEPT if decision.pattern == DensePattern().name else decision.pattern
    assert decision.ratio is not None, "checked by Decision"
    if decision.ratio == 0.0:
        return KEPT
    return _range(next(bound for bound in BINS if decision.ratio <= bound))


def _range(bound: float) -> str:
    return f"{bound - 0.25:.0%} to {bound:.0%} of the channels"


def _kept(units: Sequence[int], keep: KeepSet) -> int:
    ids = np.asarray(units, dtype=np.int64)
    free = ids[ids != FROZEN]
    return int(keep.mask[free].sum()) + len(ids) - len(free)
