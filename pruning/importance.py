"""Importance scores: one number per channel of every group; the lowest are removed first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from graphs.network_graph import NetworkGraph
from networks.data import SampleSet
from pruning.activation_importance import activation_mean, apoz, wanda
from pruning.gradient_importance import obd, taylor
from pruning.lasso import lasso
from pruning.scoring import (
    SCOPES,
    Loss,
    ScoringInputs,
    add_to_units,
    refuse_uncovered,
    slices_in_scope,
    sum_over_scope,
)

Criterion = Callable[[ScoringInputs], np.ndarray]
"""Gives one finite score per unit of the graph, shape (num_units,)."""


def score_groups(
    network: nn.Module,
    graph: NetworkGraph,
    criterion: str = "l1",
    data: SampleSet | None = None,
    *,
    scope: str = "producer",
    seed: int = 0,
    loss: Loss | None = None,
) -> dict[str, np.ndarray]:
    """Score every channel of every group.

    Args:
        network: the unpruned network; only read. Criteria that need samples run it in eval mode
            and leave its weights, buffers, gradients, modes and torch's random state as they were.
        graph: its trace.
        criterion: a key of CRITERIA; the function of that name says what it computes. From weights
            alone: "l1", "l2", "bn_gamma", "fpgm"; from gradients: "taylor", "obd"; from
            activations: "apoz", "activation_mean", "wanda", "lasso"; "random" is uniform.
        data: samples, for criteria from gradients or activations; all of them are used.
        scope: weights that "l1", "l2", "taylor", "obd" and "wanda" read; the others have no
            choice. "producer": the filters that compute the channel, without bias, as in "Pruning
            Filters for Efficient ConvNets" (https://arxiv.org/abs/1608.08710); "consumer": the
            kernels that read it; "group": every parameter that goes away with it, as in DepGraph
            (https://arxiv.org/abs/2301.12900).
        seed: seed of "random" and of the positions that "lasso" samples.
        loss: from outputs and targets of a batch to the mean loss, differentiable; read by
            "taylor" and "obd". None for cross-entropy.

    Returns:
        Scores by group name, float64 of shape (size,) in channel order.

    Raises:
        ValueError: unknown criterion or scope, no samples for a criterion that needs some, a group
            the criterion cannot score, or a score that is not finite.
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
    inputs = ScoringInputs(criterion, network, graph, network.state_dict(), data, scope, seed, loss)
    of_units = CRITERIA[criterion](inputs)
    scores = {group.name: of_units[list(group.units)] for group in graph.groups}
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"The {criterion} scores of group {name!r} are not finite: {values}. "
                f"Check the weights of the network (network.checkpoint) and the samples (data)."
            )
    return scores


def l1(inputs: ScoringInputs) -> np.ndarray:
    """Sum of absolute weights."""
    return sum_over_scope(inputs, lambda name: inputs.tensors[name].abs())


def l2(inputs: ScoringInputs) -> np.ndarray:
    """Square root of the sum of squared weights."""
    return np.sqrt(sum_over_scope(inputs, lambda name: inputs.tensors[name].square()))


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
            add_to_units(total, piece.units, inputs.tensors[piece.tensor].abs())
            add_to_units(count, piece.units, torch.ones(len(piece.units)))
    refuse_uncovered(
        graph,
        count > 0,
        "has no batch norm with a scale, which importance.criterion=bn_gamma reads. "
        "Change importance.criterion to l1 or l2.",
    )
    return total / count


def fpgm(inputs: ScoringInputs) -> np.ndarray:
    """Sum of the Euclidean distances of a filter to all filters of its layer.

    From "Filter Pruning via Geometric Median" (https://arxiv.org/abs/1811.00250): the
    filters that the others can replace go first. Summed over the filters of a unit.

    Raises:
        ValueError: a group with a channel that no filter computes.
    """
    graph = inputs.graph
    total, covered = np.zeros(graph.num_units), np.zeros(graph.num_units)
    for piece in slices_in_scope(graph, "producer"):
        filters = inputs.tensors[piece.tensor].movedim(piece.axis, 0).flatten(1).double()
        # differences, not products: opposite and nearly equal filters come out exactly
        distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
        add_to_units(total, piece.units, distances.sum(1))
        add_to_units(covered, piece.units, torch.ones(len(piece.units)))
    refuse_uncovered(
        graph,
        covered > 0,
        "has no filter, which importance.criterion=fpgm reads. "
        "Change importance.criterion to l1 and importance.scope to group.",
    )
    return total


def random(inputs: ScoringInputs) -> np.ndarray:
    """Uniform in [0, 1); the same for the same seed."""
    return np.random.default_rng(inputs.seed).random(inputs.graph.num_units)


CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "bn_gamma": bn_gamma,
    "random": random,
    "fpgm": fpgm,
    "taylor": taylor,
    "obd": obd,
    "apoz": apoz,
    "activation_mean": activation_mean,
    "wanda": wanda,
    "lasso": lasso,
}
"""The criteria by name."""
