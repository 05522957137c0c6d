"""LASSO channel selection: which channels together give back what a group's readers compute."""

from __future__ import annotations

import warnings

import numpy as np

from pruning.patches import POSITIONS_PER_IMAGE, Draws, chunks, gather_moments
from pruning.readers import tap_products, unit_grams, weighted_readers
from pruning.scoring import ScoringInputs, refuse_uncovered

BATCH_SIZE = 128
"""Samples in one forward pass."""

GRAM_BYTES = 2**28
"""Most memory for Gram matrices; more operators than fit are read in several runs."""


def lasso(inputs: ScoringInputs, positions_per_image: int = POSITIONS_PER_IMAGE) -> np.ndarray:
    """Order in which channels enter the LASSO path of their readers' outputs.

    Equation 2 of "Channel Pruning for Accelerating Very Deep Neural Networks"
    (https://arxiv.org/abs/1707.06168): with Z_u what unit u adds to the outputs of the
    convolutions and linear layers that read it, and Y the sum of all Z_u,
    min over beta of |Y - sum_u beta_u Z_u|^2 + lambda |beta|_1. The whole path in lambda comes
    from one run of LARS on the Gram matrix <Z_u, Z_v>. Units that enter first stay longest; those
    that never enter go first, the smallest |Z_u| of all before the others.

    Outputs are sampled at `positions_per_image` positions of every image and reader. Readers of
    one group are stacked, each divided by the square root of sum_u |Z_u|^2: the scale of an output
    that a norm layer reads next means nothing. A depthwise convolution passes a channel on to an
    output that goes with it; it is read only where nothing else is. Attentions are not read.

    A unit that leaves the path again keeps the place of its first entry, so that a lower count
    always keeps a subset of what a higher one keeps.

    Args:
        inputs: what is scored; its seed draws the positions.
        positions_per_image: output positions per image and reader, at least 1.

    Raises:
        ValueError: no samples, or a group that no convolution or linear layer reads.
    """
    graph = inputs.graph
    draws = Draws(graph, len(inputs.samples), positions_per_image, inputs.seed)
    covered = np.zeros(graph.num_units, dtype=bool)
    grams = [np.zeros((group.size, group.size)) for group in graph.groups]
    sides = [np.zeros(group.size) for group in graph.groups]
    for operators in chunks(weighted_readers(graph), GRAM_BYTES):
        batches = (batch for batch, _ in inputs.batches(BATCH_SIZE))
        for name, moments in gather_moments(inputs.network, operators, batches, draws).items():
            products = tap_products(moments.call, moments.gram)
            for index, gram in unit_grams(graph, moments.call, products):
                energy = np.trace(gram)
                if energy > 0:
                    grams[index] += gram / energy
                    sides[index] += gram.sum(1) / energy
            units = np.asarray(graph.operator_by_name[name].in_units)
            covered[units[units >= 0]] = True
    refuse_uncovered(
        graph,
        covered,
        "is read by no convolution and no linear layer, whose outputs "
        "importance.criterion=lasso reconstructs. Change importance.criterion to l1.",
    )
    scores = np.zeros(graph.num_units)
    for group, gram, side in zip(graph.groups, grams, sides, strict=True):
        scores[list(group.units)] = path_scores(gram, side)
    return scores


def path_scores(gram: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Scores by the order of entry into the LASSO path.

    Args:
        gram: <Z_u, Z_v>, shape (units, units).
        side: <Z_u, Y>, shape (units,).

    Returns:
        For a unit that enters, 1 plus the number of units that enter after it; for one that never
        enters, its norm, scaled to at most 0.5. Shape (units,).
    """
    from sklearn.exceptions import ConvergenceWarning  # slow to import, and only needed here
    from sklearn.linear_model import lars_path_gram

    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    largest = norms.max(initial=0.0)
    scores = norms / (2.0 * largest) if largest > 0 else np.zeros_like(norms)
    alive = np.flatnonzero(norms > 1e-12 * largest) if largest > 0 else np.array([], dtype=int)
    if len(alive) == 0:
        return scores
    with warnings.catch_warnings():
        # the path of linearly dependent units ends early; the rest goes by norm
        warnings.simplefilter("ignore", ConvergenceWarning)
        _, _, path = lars_path_gram(
            side[alive],
            gram[np.ix_(alive, alive)],
            n_samples=1,  # scales lambda only
            method="lasso",
            max_iter=20 * len(alive),
        )
    knots = path != 0
    first = np.where(knots.any(1), knots.argmax(1), path.shape[1])  # the knot a unit enters at
    entered = np.flatnonzero(first < path.shape[1])
    order = alive[entered[np.lexsort((-norms[alive[entered]], first[entered]))]]
    scores[order] = np.arange(len(order), 0, -1)
    return scores
