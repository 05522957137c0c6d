"""Importance from activations: what the readers of a channel read, over all samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from graphs.network_graph import Operator
from pruning.masks import output_axes
from pruning.patches import OperatorCall, run_batches
from pruning.scoring import ScoringInputs, add_to_units, refuse_uncovered, sum_over_scope

BATCH_SIZE = 128
"""Samples in one forward pass."""


def apoz(inputs: ScoringInputs) -> np.ndarray:
    """1 − APoZ: the mean fraction of a channel's activations that are not zero.

    The average percentage of zeros of "Network Trimming" (https://arxiv.org/abs/1607.03250),
    equation 1, turned round so that low scores go first. It is read where the channel is consumed,
    after normalisation, non-linearity, addition and pooling; every position of every reader
    counts alike. It tells channels apart only after a non-linearity that gives exact zeros (ReLU).

    Raises:
        ValueError: no samples, or a group that no convolution or linear layer reads.
    """
    return _mean_over_readers(inputs, lambda x: x != 0)


def activation_mean(inputs: ScoringInputs) -> np.ndarray:
    """Mean absolute activation of a channel.

    The mean-activation criterion of "Pruning Convolutional Neural Networks for Resource Efficient
    Inference" (https://arxiv.org/abs/1611.06440), of the feature map that the
    channel's readers read: after normalisation, non-linearity, addition and pooling.

    Raises:
        ValueError: no samples, or a group that no convolution or linear layer reads.
    """
    return _mean_over_readers(inputs, torch.abs)


def wanda(inputs: ScoringInputs) -> np.ndarray:
    """Σ |w_ij| ‖x_j‖₂ over the convolution and linear weights in scope.

    The score of one weight is that of "A Simple and Effective Pruning Approach for Large Language
    Models" (https://arxiv.org/abs/2306.11695), equation 1: x_j is the input channel that w_ij
    multiplies, its norm is taken over all samples and positions (and calls, where a weight is used
    more than once). A unit's score sums those of its filters (scope "producer"), of the kernels
    that read it ("consumer") or of both ("group").

    Raises:
        ValueError: no samples, or a group without a weight in scope.
    """
    graph = inputs.graph
    squares: dict[str, Tensor] = {}
    operators: dict[str, Operator] = {}

    def read(operator: Operator, rows: Tensor) -> None:
        found = rows.double().square().sum(1)
        squares[operator.weight] = squares.get(operator.weight, 0) + found
        operators[operator.weight] = operator

    _read_inputs(
        inputs,
        [op for op in graph.operators if op.weight and max(*op.in_units, *op.out_units) >= 0],
        read,
    )
    axes = output_axes(graph)

    def scores(name: str) -> Tensor | None:
        if name not in squares:
            return None
        weight, operator = inputs.tensors[name].double().abs(), operators[name]
        # the norms, one row per output channel: each block of a grouped convolution reads its own
        norms = squares[name].sqrt().reshape(operator.groups, -1)
        norms = norms.repeat_interleave(weight.shape[axes[name]] // operator.groups, 0)
        if axes[name] == 1:
            norms = norms.T  # a transposed convolution's inputs are along axis 0
        return weight * norms.reshape(*norms.shape, *[1] * (weight.dim() - 2))

    return sum_over_scope(inputs, scores)


def _mean_over_readers(inputs: ScoringInputs, measure: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Mean of `measure` over samples and space, then over the positions that read each unit."""
    graph = inputs.graph
    readers = [op for op in graph.operators if op.weight and max(op.in_units) >= 0]
    sums: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()

    def read(operator: Operator, rows: Tensor) -> None:
        found = measure(rows).sum(1, dtype=torch.float64)
        sums[operator.name] = sums.get(operator.name, 0) + found
        counts[operator.name] += rows.shape[1]

    _read_inputs(inputs, readers, read)
    total, positions = np.zeros(graph.num_units), np.zeros(graph.num_units)
    for operator in readers:
        add_to_units(total, operator.in_units, sums[operator.name] / counts[operator.name])
        add_to_units(positions, operator.in_units, torch.ones(len(operator.in_units)))
    refuse_uncovered(
        graph,
        positions > 0,
        f"is read by no convolution and no linear layer, whose inputs "
        f"importance.criterion={inputs.criterion} reads. Change importance.criterion to l1.",
    )
    return total / positions


def _read_inputs(
    inputs: ScoringInputs,
    operators: Sequence[Operator],
    read: Callable[[Operator, Tensor], None],
) -> None:
    """Run all samples; `read` is given each operator and its input, (channels, all the rest)."""

    def show(call: OperatorCall, start: int, stop: int) -> None:
        read(call.operator, call.inputs.transpose(0, 1).flatten(1))

    batches = (batch for batch, _ in inputs.batches(BATCH_SIZE))
    run_batches(inputs.network, operators, batches, show)
