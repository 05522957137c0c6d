"""The graph observation: where environments and agents meet.

What never changes in one graph is the `Topology`; it rides on the observation space, so a policy
needs nothing but the space. What changes in an episode is the observation, a dict of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from gymnasium import spaces

from graphs.features import (
    NetworkFacts,
    edge_features,
    node_features,
    site_edges,
    site_features,
)
from graphs.network_graph import NetworkGraph

NODE_STATE = ("kept", "decided")
SITE_STATE = ("removed", "decided", "current")
GLOBALS = ("relative_macs", "budget", "progress", "quality")


@dataclass(frozen=True, eq=False)
class Topology:
    """What never changes in one graph; equal by value.

    Attributes:
        edge_index: source and target node of each edge, int64 (2, E).
        node_features: static node features in [0, 1], float32 (N, Fn).
        edge_features: static edge features in [0, 1], float32 (E, Fe).
        site_edges: rows (site, edge): the edges whose operator produces the site's group,
            int64 (2, K).
        site_features: static site features in [0, 1], float32 (S, Fs).
        num_sites: sites S, one per dependency group.
        num_patterns: patterns P that "edge_pattern" counts; 1 when actions are ratios.
        is_sequential: whether one site is decided per step.
    """

    edge_index: np.ndarray
    node_features: np.ndarray
    edge_features: np.ndarray
    site_edges: np.ndarray
    site_features: np.ndarray
    num_sites: int
    num_patterns: int
    is_sequential: bool

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topology):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
        )

    def __hash__(self) -> int:
        return hash((self.edge_index.tobytes(), self.num_sites, self.num_patterns))

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return len(self.node_features)

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return len(self.edge_features)


def build_topology(
    graph: NetworkGraph,
    facts: NetworkFacts,
    *,
    num_patterns: int,
    is_sequential: bool,
    more_site_features: np.ndarray | None = None,
) -> Topology:
    """The topology of a traced network.

    Args:
        graph: the traced network.
        facts: its weights, importances and costs.
        num_patterns: length of the pattern library; 1 when actions are ratios.
        is_sequential: whether one site is decided per step.
        more_site_features: columns after SITE_FEATURES, in [0, 1], (S, K); None for none.
    """
    sites = site_features(graph, facts)
    if more_site_features is not None:
        sites = np.concatenate([sites, more_site_features.astype(np.float32)], axis=1)
    edges = [(edge.source, edge.target) for edge in graph.edges]
    return Topology(
        edge_index=np.asarray(edges, dtype=np.int64).reshape(-1, 2).T.copy(),
        node_features=node_features(graph, facts),
        edge_features=edge_features(graph, facts),
        site_edges=site_edges(graph, facts.sites),
        site_features=sites,
        num_sites=len(graph.groups),
        num_patterns=num_patterns,
        is_sequential=is_sequential,
    )


class GraphObservationSpace(spaces.Dict):
    """Space of graph observations, with the topology attached.

    The entries, all float32:

    | key | shape | range | columns |
    |---|---|---|---|
    | `node_state` | (N, 2) | [0, 1] | kept fraction of the channels, decided fraction |
    | `edge_pattern` | (E,) | [0, P - 1] | pattern now assigned to the edge's operator |
    | `site_state` | (S, 3) | [0, 1] | fraction removed, decided, is the current site |
    | `globals` | (4,) | [0, 1] | relative MACs, budget, step fraction, last quality |
    | `action_mask` | (P,) or (S, P) | {0, 1} | 1 = allowed; pattern actions only |

    Args:
        topology: what never changes in the graph.
        has_action_mask: whether the observation carries the action mask.

    Attributes:
        topology: what never changes in the graph.
    """

    def __init__(self, topology: Topology, *, has_action_mask: bool) -> None:
        self.topology = topology
        num_sites, num_patterns = topology.num_sites, topology.num_patterns
        entries: dict[str, spaces.Space[Any]] = {
            "node_state": _unit_box(topology.num_nodes, len(NODE_STATE)),
            "edge_pattern": spaces.Box(
                0.0, float(max(1, num_patterns - 1)), (topology.num_edges,), np.float32
            ),
            "site_state": _unit_box(num_sites, len(SITE_STATE)),
            "globals": _unit_box(len(GLOBALS)),
        }
        if has_action_mask:
            shape = (num_patterns,) if topology.is_sequential else (num_sites, num_patterns)
            entries["action_mask"] = _unit_box(*shape)
        super().__init__(entries)

    def __eq__(self, other: object) -> bool:
        """Equal when the entries and the topology are."""
        return (
            isinstance(other, GraphObservationSpace)
            and super().__eq__(other)
            and self.topology == other.topology
        )


def _unit_box(*shape: int) -> spaces.Box:
    return spaces.Box(0.0, 1.0, shape, np.float32)
