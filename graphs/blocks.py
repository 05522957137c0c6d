"""Blocks that a connection goes around: what is left when they shrink is that connection."""

from __future__ import annotations

from collections.abc import Collection

from graphs.network_graph import Group, NetworkGraph


def bypassed_blocks(graph: NetworkGraph) -> dict[str, tuple[str, ...]]:
    """The smallest modules with groups of their own that the network's data can go around.

    A group belongs to a module when all operators that produce it lie inside. Data can go around
    when, with those operators taken away, a path still leads from an input to every output that
    one led to before: in a ResNet the inner convolutions of every residual block, in a transformer
    the attention and the MLP of every layer. The residual stream itself belongs to no block.

    Args:
        graph: the traced network.

    Returns:
        Names of the groups inside, by module path, in execution order; empty for a plain chain.
    """
    candidates: dict[str, tuple[str, ...]] = {}
    for path in dict.fromkeys(
        path for group in graph.groups for name in group.producers for path in _parents(name)
    ):
        inside = [group for group in graph.groups if _is_inside(group, path)]
        taken = {name for group in inside for name in group.producers}
        if inside and _outputs(graph, taken) == _outputs(graph, ()):
            candidates[path] = tuple(group.name for group in inside)
    return {
        path: groups
        for path, groups in candidates.items()
        if not any(other.startswith(f"{path}.") for other in candidates)
    }


def _parents(name: str) -> list[str]:
    """The module paths that an operator lies in, itself excluded."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _is_inside(group: Group, path: str) -> bool:
    return all(name == path or name.startswith(f"{path}.") for name in group.producers)


def _outputs(graph: NetworkGraph, taken: Collection[str]) -> set[int]:
    """The outputs that a path leads to from an input, without the operators that are taken away."""
    made = {edge.target for edge in graph.edges}
    read = {edge.source for edge in graph.edges}
    reached = set(range(len(graph.feature_maps))) - made
    for edge in graph.edges:  # in execution order: a source is made before it is read
        is_taken = edge.operator is not None and graph.operators[edge.operator].name in taken
        if edge.source in reached and not is_taken:
            reached.add(edge.target)
    return reached - read
