"""Static features of the nodes, edges and sites of a network graph, computed from the real network.

Every feature lies in [0, 1] and is scaled by a constant, not by the network at hand, so that one
encoder can read the graphs of networks of any size. The columns are listed in NODE_FEATURES,
EDGE_FEATURES and SITE_FEATURES; what changes in an episode is in the observation instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphs.network_graph import EDGE_KINDS, FROZEN, NetworkGraph, Operator

NODE_FEATURES = (
    "channels",  # log2(1 + channels) / log2(1 + MOST_CHANNELS)
    "positions",  # the same for spatial positions or tokens, with MOST_POSITIONS
    "fixed",  # fraction of the channels that cannot be removed
    "macs_in",  # share of the network's MACs in the operators that make the feature map
    "macs_out",  # share of the network's MACs in the operators that read it
    "weight_mean",  # of the operators that make it: see _weight_statistics
    "weight_std",
    "weight_spread",
    "importance_mean",  # importance of the channels, each group's largest being 1
    "importance_std",
    "depth",  # position in execution order
)
EDGE_FEATURES = (
    *(f"is_{kind}" for kind in EDGE_KINDS),
    "kernel",  # mean kernel length / LARGEST_KERNEL
    "stride",  # mean stride / LARGEST_STRIDE
    "grouping",  # log of the number of convolution groups
    "in_channels",  # log of the channels read
    "out_channels",  # log of the channels made
    "macs",  # share of the network's MACs
    "params",  # share of the weights of all operators
    "weight_mean",  # mean |w| * sqrt(fan-in), squashed by x / (1 + x)
    "weight_std",  # standard deviation, likewise
    "weight_spread",  # standard deviation over mean of the output channels' norms, squashed
)
SITE_FEATURES = (
    "channels",  # log of the channels of the group
    "min_keep",  # fraction of the channels that must stay
    "heads",  # 1 when a channel of the group is an attention head
    "producers",  # log of the operators whose output carries the group
    "consumers",  # log of the operators that read it
    "macs",  # share of the network's MACs in its producers
    "saving",  # share of the network's MACs that removing all but min_keep channels saves
    "importance_q10",  # quantiles of the importance, the largest being 1
    "importance_q25",
    "importance_q50",
    "importance_q75",
    "importance_q90",
    "depth",  # position among the sites
)

MOST_CHANNELS = 4096
MOST_POSITIONS = 65536
MOST_OPERATORS = 256
LARGEST_KERNEL = 7.0
LARGEST_STRIDE = 4.0


@dataclass(frozen=True)
class NetworkFacts:
    """What the features are computed from, besides the graph.

    Attributes:
        weights: weight of each operator by state-dict name, output channels on axis 0.
        importances: importance per channel by group name, shape (size,).
        operator_macs: MACs of the unpruned network by operator name.
        savings: share of all MACs saved by pruning one group as far as it goes, per group.
        sites: operators of each site (group), in graph order.
    """

    weights: Mapping[str, np.ndarray]
    importances: Mapping[str, np.ndarray]
    operator_macs: Mapping[str, int]
    savings: Sequence[float]
    sites: Sequence[tuple[str, ...]]


def node_features(graph: NetworkGraph, facts: NetworkFacts) -> np.ndarray:
    """Static node features.

    Returns:
        float32 array of shape (num_nodes, len(NODE_FEATURES)) with values in [0, 1].
    """
    shares = _cost_shares(graph, facts)
    unit_importance = _unit_importances(graph, facts)
    made_by: list[list[int]] = [[] for _ in graph.feature_maps]
    read_by: list[list[int]] = [[] for _ in graph.feature_maps]
    for edge in graph.edges:
        if edge.operator is not None:
            made_by[edge.target].append(edge.operator)
            read_by[edge.source].append(edge.operator)
    rows = []
    for index, node in enumerate(graph.feature_maps):
        units = np.asarray(node.units, dtype=np.int64)
        free = units[units != FROZEN]
        importance = unit_importance[free] if len(free) else np.ones(1)
        makers = sorted(set(made_by[index]))
        statistics = [_weight_statistics(graph.operators[i], facts) for i in makers]
        rows.append(
            (
                _log_scale(len(units), MOST_CHANNELS),
                _log_scale(math.prod(node.spatial), MOST_POSITIONS),
                1.0 - len(free) / max(1, len(units)),
                sum(shares[i] for i in makers),
                sum(shares[i] for i in set(read_by[index])),
                *(np.mean(statistics, axis=0) if statistics else (0.0, 0.0, 0.0)),
                importance.mean(),
                importance.std(),
                index / max(1, len(graph.feature_maps) - 1),
            )
        )
    return _as_features(rows, NODE_FEATURES)


def edge_features(graph: NetworkGraph, facts: NetworkFacts) -> np.ndarray:
    """Static edge features.

    Returns:
        float32 array of shape (num_edges, len(EDGE_FEATURES)) with values in [0, 1].
    """
    shares = _cost_shares(graph, facts)
    sizes = [_weight(operator, facts).size for operator in graph.operators]
    num_weights = max(1, sum(sizes))
    rows = []
    for edge in graph.edges:
        kind = [float(edge.kind == name) for name in EDGE_KINDS]
        if edge.operator is None:
            source, target = graph.feature_maps[edge.source], graph.feature_maps[edge.target]
            rows.append(
                (
                    *kind,
                    *(0.0, 0.0, 0.0),
                    _log_scale(len(source.units), MOST_CHANNELS),
                    _log_scale(len(target.units), MOST_CHANNELS),
                    *(0.0,) * 5,
                )
            )
            continue
        operator = graph.operators[edge.operator]
        rows.append(
            (
                *kind,
                mean_length(operator.kernel_size) / LARGEST_KERNEL,
                mean_length(operator.stride) / LARGEST_STRIDE,
                _log_scale(operator.groups - 1, MOST_CHANNELS),
                _log_scale(len(operator.in_units), MOST_CHANNELS),
                _log_scale(len(operator.out_units), MOST_CHANNELS),
                shares[edge.operator],
                sizes[edge.operator] / num_weights,
                *_weight_statistics(operator, facts),
            )
        )
    return _as_features(rows, EDGE_FEATURES)


def site_features(graph: NetworkGraph, facts: NetworkFacts) -> np.ndarray:
    """Static features of the sites, one per dependency group.

    Returns:
        float32 array of shape (num_sites, len(SITE_FEATURES)) with values in [0, 1].
    """
    shares = dict(zip((op.name for op in graph.operators), _cost_shares(graph, facts), strict=True))
    rows = []
    for index, (group, operators) in enumerate(zip(graph.groups, facts.sites, strict=True)):
        importance = _relative(facts.importances[group.name])
        rows.append(
            (
                _log_scale(group.size, MOST_CHANNELS),
                group.min_keep / group.size,
                float(group.kind == "heads"),
                _log_scale(len(group.producers), MOST_OPERATORS),
                _log_scale(len(group.consumers), MOST_OPERATORS),
                sum(shares[name] for name in operators),
                facts.savings[index],
                *np.quantile(importance, (0.1, 0.25, 0.5, 0.75, 0.9)),
                index / max(1, len(graph.groups) - 1),
            )
        )
    return _as_features(rows, SITE_FEATURES)


def site_edges(graph: NetworkGraph, sites: Sequence[tuple[str, ...]]) -> np.ndarray:
    """The edges whose operator produces the group of a site.

    Returns:
        int64 array of shape (2, K): rows of site and edge indices, sorted by site, then edge.
    """
    pairs = [
        (site, index)
        for site, operators in enumerate(sites)
        for index, edge in enumerate(graph.edges)
        if edge.operator is not None and graph.operators[edge.operator].name in operators
    ]
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T.copy()


def owning_site(graph: NetworkGraph, sites: Sequence[tuple[str, ...]]) -> np.ndarray:
    """The one site each operator is counted at: the first whose group it produces.

    Returns:
        int64 array of shape (num_operators,); -1 for operators that produce no group, such as the
        classifier.
    """
    owner = np.full(len(graph.operators), -1, dtype=np.int64)
    for site in reversed(range(len(sites))):
        for index, operator in enumerate(graph.operators):
            if operator.name in sites[site]:
                owner[index] = site
    return owner


def mean_length(lengths: tuple[int, ...]) -> float:
    """Geometric mean of a kernel or a stride; 1 when the operator has none."""
    return math.prod(lengths) ** (1.0 / len(lengths)) if lengths else 1.0


def _cost_shares(graph: NetworkGraph, facts: NetworkFacts) -> list[float]:
    """Share of the network's MACs of each operator."""
    total = max(1, sum(facts.operator_macs.values()))
    return [facts.operator_macs[operator.name] / total for operator in graph.operators]


def _unit_importances(graph: NetworkGraph, facts: NetworkFacts) -> np.ndarray:
    """Importance of each unit over the largest of its group, shape (num_units,)."""
    importance = np.zeros(graph.num_units)
    for group in graph.groups:
        importance[list(group.units)] = _relative(facts.importances[group.name])
    return importance


def _relative(importance: np.ndarray) -> np.ndarray:
    """Importances with the largest at 1; equal ones, also all zero, are all 1."""
    values = np.asarray(importance, dtype=np.float64)
    values = values - min(0.0, values.min())
    largest = values.max()
    return values / largest if largest > 0 else np.ones_like(values)


def _weight(operator: Operator, facts: NetworkFacts) -> np.ndarray:
    """Weight of an operator, output channels first; empty for attention, which has none."""
    return facts.weights[operator.weight] if operator.weight else np.zeros((0, 0))


def _weight_statistics(operator: Operator, facts: NetworkFacts) -> tuple[float, float, float]:
    """Mean |w| and standard deviation in units of 1 / sqrt(fan-in), and the spread of the norms."""
    weight = _weight(operator, facts)
    if not weight.size:
        return 0.0, 0.0, 0.0
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    fan_in = math.sqrt(rows.shape[1])
    norms = np.sqrt((rows**2).sum(axis=1))
    spread = norms.std() / norms.mean() if norms.mean() > 0 else 0.0
    return (
        _squash(np.abs(rows).mean() * fan_in),
        _squash(rows.std() * fan_in),
        _squash(float(spread)),
    )


def _squash(value: float) -> float:
    """A value in [0, inf) as one in [0, 1)."""
    return float(value / (1.0 + value))


def _log_scale(count: int, largest: int) -> float:
    """A count on a log scale: 0 at 0, 1 at `largest`."""
    return math.log1p(count) / math.log1p(largest)


def _as_features(rows: Sequence[tuple[float, ...]], columns: tuple[str, ...]) -> np.ndarray:
    features = np.asarray(rows, dtype=np.float32).reshape(len(rows), len(columns))
    assert np.isfinite(features).all(), "a static feature is not finite"
    return np.clip(features, 0.0, 1.0)
