"""How much of its consumers' outputs a group's channels account for: pruning seen from close by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from graphs.network_graph import NetworkGraph
from networks.data import SampleSet
from pruning.patches import POSITIONS_PER_IMAGE, Draws, chunks, gather_moments
from pruning.readers import tap_products, unit_grams, weighted_readers

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
    removal = [_removal_order(scores[group.name]) for group in graph.groups]
    tables = [np.zeros(group.size + 1) for group in graph.groups]
    for operators in chunks(weighted_readers(graph), GRAM_BYTES):
        for moments in gather_moments(network, operators, batches(), draws).values():
            products = tap_products(moments.call, moments.centred)
            whole = max(float(products.sum()), np.finfo(np.float64).tiny)
            for index, gram in unit_grams(graph, moments.call, products):
                tables[index] += _lost(gram, removal[index]) / whole
    return LocalErrors(tuple(tables))


def _removal_order(scores: np.ndarray) -> np.ndarray:
    """Places of a group's units, the first to go first; as `KeepSet.from_counts` removes them."""
    return np.argsort(-np.asarray(scores), kind="stable")[::-1]


def _lost(gram: np.ndarray, order: np.ndarray) -> np.ndarray:
    """What the lost units make of an operator's output, by the count that is kept, (size + 1,)."""
    sums = gram[np.ix_(order, order)].cumsum(0).cumsum(1).diagonal()
    return np.maximum(np.append(0.0, sums), 0.0)[::-1]
