"""How much of its consumers' outputs a group's channels account for: pruning seen from close by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from graphs.network_graph import Group, NetworkGraph
from networks.data import SampleSet
from pruning.masks import output_axes
from pruning.patches import POSITIONS_PER_IMAGE, Draws, Moments, chunks, gather_moments

BATCH_SIZE = 128
"""Images in one forward pass of the unpruned network."""

GRAM_BYTES = 2**30
"""Most memory for the Gram matrices that are gathered in one run over the images."""


@dataclass(frozen=True, eq=False)
class LocalErrors:
    """What the operators that read a group lose with its channels, for every kept count.

    The error of a group that keeps c channels is the sum, over the operators that read it, of

        E |W_lost (x_lost - E x_lost)|^2 / E |W (x - E x)|^2,

    the part of the operator's output that the lost channels made, relative to the whole output;
    the inputs x are the unpruned network's. The quantity that channel pruning by reconstruction
    minimises (He, Zhang and Sun, https://arxiv.org/abs/1707.06168, equation 1), here without a
    refit, and centred because recalibrated batch norms make up for a constant.

    No labels and no pruned network: one run over the calibration images says it for all plans.

    Attributes:
        tables: one per group in graph order, float64 of shape (size + 1,): entry c is the error
            with c channels kept, at least 0; entry `size` is 0.
    """

    tables: tuple[np.ndarray, ...]

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        """Errors of plans, linear between whole counts.

        Args:
            kept: kept fraction of every group in [0, 1], shape (batch, num_groups).

        Returns:
            Error of every group, float64 (batch, num_groups).
        """
        columns = [
            np.interp(fractions * (len(table) - 1), np.arange(len(table)), table)
            for fractions, table in zip(np.asarray(kept).T, self.tables, strict=True)
        ]
        return np.stack(columns, axis=1)


def measure_local_errors(
    network: nn.Module,
    graph: NetworkGraph,
    scores: Mapping[str, np.ndarray],
    samples: SampleSet,
    *,
    positions_per_image: int = POSITIONS_PER_IMAGE,
    seed: int = 0,
) -> LocalErrors:
    """Run the unpruned network over some images and add up what every channel contributes.

    Args:
        network: left as it is.
        graph: its trace.
        scores: importance of each channel by group name, shape (size,): the lowest go first.
        samples: calibration images.
        positions_per_image: output positions sampled per image and operator, at least 1.
        seed: of the sampled positions.

    Raises:
        ValueError: no images, or a network that takes more than one input.
    """
    if len(samples) == 0 or len(graph.input_shapes) != 1:
        found = "no images" if len(samples) == 0 else f"{len(graph.input_shapes)} inputs"
        raise ValueError(
            f"Local errors are measured on calibration images of a network of one input, got "
            f"{found}. Raise data.calibration_size, or set agent.prior_weight=null."
        )
    reference = next(network.parameters())

    def batches() -> Iterator[Tensor]:
        for inputs, _ in samples.batches(BATCH_SIZE):
            yield inputs.to(reference)

    draws = Draws(graph, len(samples), positions_per_image, seed)
    units = {(piece.tensor, piece.axis): np.asarray(piece.units) for piece in graph.slices}
    axes = output_axes(graph)
    read = {
        operator.name: units[operator.weight, 1 - axes[operator.weight]]
        for operator in graph.operators
        if operator.weight and (operator.weight, 1 - axes[operator.weight]) in units
    }
    readers = [operator for operator in graph.operators if operator.name in read]
    removal = [_removal_order(group, scores[group.name]) for group in graph.groups]
    tables = [np.zeros(group.size + 1) for group in graph.groups]
    for operators in chunks(readers, GRAM_BYTES):
        moments = gather_moments(network, operators, batches(), draws)
        for operator in operators:
            if operator.name not in moments:
                continue  # an attention, whose inputs are read before it
            shares = _shares(moments[operator.name])
            for order, table in zip(removal, tables, strict=True):
                table += _table(shares, read[operator.name], order)
    return LocalErrors(tuple(tables))


def _removal_order(group: Group, scores: np.ndarray) -> np.ndarray:
    """The group's units, the first to go first; as `KeepSet.from_counts` removes them."""
    return np.asarray(group.units)[np.argsort(-np.asarray(scores), kind="stable")[::-1]]


def _shares(moments: Moments) -> np.ndarray:
    """The share of every pair of input channels in the output's variance, (C, C), sum 1."""
    call = moments.call
    rows = call.rows(call.weight.detach()).double()
    products = (rows.mT @ rows) * moments.centred  # (blocks, patch, patch)
    channels = products.shape[1] // call.kernel
    pairs = products.reshape(-1, channels, call.kernel, channels, call.kernel).sum((0, 2, 4))
    total = pairs.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return (pairs / total).cpu().numpy()


def _table(shares: np.ndarray, read: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Errors of one operator by the count that one group keeps, (size + 1,)."""
    rank = {unit: position for position, unit in enumerate(order)}
    ranks = np.array([rank.get(unit, -1) for unit in read[: len(shares)]])
    mine = np.flatnonzero(ranks >= 0)
    pairs = np.zeros((len(order), len(order)))
    np.add.at(pairs, np.ix_(ranks[mine], ranks[mine]), shares[np.ix_(mine, mine)])
    lost = np.append(0.0, pairs.cumsum(0).cumsum(1).diagonal())
    return np.maximum(lost, 0.0)[::-1]
