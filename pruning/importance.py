"""Importance scores: one number per channel of every group; the lowest are removed first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphs.network_graph import AxisSlice, NetworkGraph
from pruning.masks import output_axes

SCOPES = ("producer", "consumer", "group")


@dataclass(frozen=True)
class ScoringInputs:
    """What a criterion may read.

    Attributes:
        graph: the traced network.
        tensors: parameters and buffers by state-dict name.
        data: samples for criteria that need some; None for those that read weights alone.
        scope: one of SCOPES, which weights count.
        seed: of criteria that draw.
    """

    graph: NetworkGraph
    tensors: Mapping[str, Tensor]
    data: Any
    scope: str
    seed: int


Criterion = Callable[[ScoringInputs], np.ndarray]
"""Gives one finite score per unit of the graph, shape (num_units,)."""


def score_groups(
    network: nn.Module,
    graph: NetworkGraph,
    criterion: str = "l1",
    data: Any = None,
    *,
    scope: str = "producer",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Score every channel of every group.

    Args:
        network: the unpruned network; only read.
        graph: its trace.
        criterion: a key of CRITERIA. "l1" and "l2" are the norms of the weights in `scope`,
            "bn_gamma" the mean absolute scale of the channel's batch norms, "random" is uniform.
        data: samples, for criteria that need some; the present ones need none.
        scope: weights that "l1" and "l2" read. "producer": the filters that compute the channel,
            without bias, as in "Pruning Filters for Efficient ConvNets"
            (https://arxiv.org/abs/1608.08710); "consumer": the kernels that read it; "group":
            every parameter that goes away with it, as in DepGraph
            (https://arxiv.org/abs/2301.12900).
        seed: seed of "random".

    Returns:
        Scores by group name, float64 of shape (size,) in channel order.

    Raises:
        ValueError: unknown criterion or scope, a group the criterion cannot score, or a score
            that is not finite.
    """
    if criterion not in CRITERIA:
        raise ValueError(
            f"No importance criterion is called {criterion!r}. The criteria are: "
            f"{', '.join(CRITERIA)}. Change importance.criterion."
        )
    if scope not in SCOPES:
        raise ValueError(
            f"The importance scope must be one of {', '.join(SCOPES)}, got {scope!r}. "
            f"Change importance.scope."
        )
    inputs = ScoringInputs(graph, network.state_dict(), data, scope, seed)
    of_units = CRITERIA[criterion](inputs)
    scores = {group.name: of_units[list(group.units)] for group in graph.groups}
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"The {criterion} scores of group {name!r} are not finite: {values}. "
                f"Check the weights of the network (network.checkpoint)."
            )
    return scores


def l1(inputs: ScoringInputs) -> np.ndarray:
    """Sum of absolute weights."""
    return _sum_over_scope(inputs, torch.abs)


def l2(inputs: ScoringInputs) -> np.ndarray:
    """Square root of the sum of squared weights."""
    return np.sqrt(_sum_over_scope(inputs, torch.square))


def bn_gamma(inputs: ScoringInputs) -> np.ndarray:
    """Mean absolute scale of the batch norms a channel passes through.

    From "Learning Efficient Convolutional Networks through Network Slimming"
    (https://arxiv.org/abs/1708.06519), where a channel has one batch norm; the mean serves
    channels that pass through several.

    Raises:
        ValueError: a group with a channel that passes through no batch norm with a scale.
    """
    graph = inputs.graph
    sliced = {piece.tensor for piece in graph.slices}
    folded = {fold.norm for fold in graph.folds}
    total, count = np.zeros(graph.num_units), np.zeros(graph.num_units)
    for piece in graph.slices:
        module, _, leaf = piece.tensor.rpartition(".")
        # running statistics tell a batch norm from a layer norm or a PReLU
        is_batch_norm = module in folded or f"{module}.running_var" in sliced
        if leaf == "weight" and is_batch_norm:
            _add(total, piece, inputs.tensors[piece.tensor].abs())
            _add(count, piece, torch.ones(len(piece.units)))
    _refuse_uncovered(
        graph,
        count > 0,
        "has no batch norm with a scale, which importance.criterion=bn_gamma reads. "
        "Change importance.criterion to l1 or l2.",
    )
    return total / count


def random(inputs: ScoringInputs) -> np.ndarray:
    """Uniform in [0, 1); the same for the same seed."""
    return np.random.default_rng(inputs.seed).random(inputs.graph.num_units)


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "bn_gamma": bn_gamma, "random": random}
"""The criteria by name."""


def _sum_over_scope(inputs: ScoringInputs, function: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Sum of `function` of each weight in the scope, per unit."""
    graph = inputs.graph
    total, covered = np.zeros(graph.num_units), np.zeros(graph.num_units)
    for piece in _slices_in_scope(graph, inputs.scope):
        values = function(inputs.tensors[piece.tensor])
        others = [axis for axis in range(values.ndim) if axis != piece.axis]
        _add(total, piece, values.sum(others, dtype=torch.float64) if others else values)
        _add(covered, piece, torch.ones(len(piece.units)))
    _refuse_uncovered(
        graph,
        covered > 0,
        f"has no weight that importance.scope={inputs.scope} reads. "
        f"Change importance.scope to group.",
    )
    return total


def _slices_in_scope(graph: NetworkGraph, scope: str) -> Iterator[AxisSlice]:
    """The tensor axes whose weights count; each parameter axis once, however often it is used."""
    axes = output_axes(graph)
    for piece in graph.slices:
        side = None
        if piece.tensor in axes:
            side = "producer" if axes[piece.tensor] == piece.axis else "consumer"
        if piece.tensor in graph.parameters and scope in ("group", side):
            yield piece


def _add(total: np.ndarray, piece: AxisSlice, values: Tensor) -> None:
    """Add one value per position of an axis to the units that own the positions."""
    units = np.asarray(piece.units)
    owned = units >= 0  # FROZEN positions belong to no unit
    array = values.to("cpu", torch.float64).numpy()
    np.add.at(total, units[owned], array[owned])


def _refuse_uncovered(graph: NetworkGraph, covered: np.ndarray, reason: str) -> None:
    """Raise for the first group with a unit that was given no score."""
    for group in graph.groups:
        if not covered[list(group.units)].all():
            raise ValueError(f"Group {group.name!r} {reason}")
