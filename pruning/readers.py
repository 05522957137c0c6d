"""What reads a group's channels, and what every pair of them adds to the outputs together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from graphs.network_graph import NetworkGraph, Operator
from pruning.patches import OperatorCall


def weighted_readers(graph: NetworkGraph) -> list[Operator]:
    """Convolutions, linear layers and attentions whose inputs are channels of a group.

    A depthwise convolution passes a channel on to an output that goes with it; it counts only
    where nothing else reads its channels.
    """
    readers = [op for op in graph.operators if op.weight and max(op.in_units) >= 0]
    mixed = {unit for op in readers if not op.depthwise for unit in op.in_units}
    return [op for op in readers if not op.depthwise or not mixed.issuperset(op.in_units)]


def tap_products(call: OperatorCall, moments: Tensor) -> Tensor:
    """<z_s, z_t> of what every two taps of an operator's patches add to its output.

    Args:
        call: the operator with its weight.
        moments: second moments of its patches, float64 (blocks, patch, patch); centred or not.

    Returns:
        float64 (blocks, patch, patch); its sum is the energy of the whole output.
    """
    rows = call.rows(call.weight.detach()).double()
    return moments * (rows.mT @ rows)


def unit_grams(
    graph: NetworkGraph, call: OperatorCall, products: Tensor
) -> Iterator[tuple[int, np.ndarray]]:
    """<Z_u, Z_v> of the units of every group that an operator reads.

    Z_u is what unit u adds to the operator's output.

    Args:
        graph: where the operator is from.
        call: the operator.
        products: of its taps, as `tap_products` gives them.

    Yields:
        Index of a group and float64 (size, size), in the order of its units.
    """
    units = np.asarray(call.operator.in_units)
    owner = np.append(graph.unit_group, -1)[units]
    for index in np.unique(owner[owner >= 0]):
        group = graph.groups[index]
        place = {unit: i for i, unit in enumerate(group.units)}
        places = np.array([place.get(unit, group.size) for unit in units.tolist()])
        blocks = places.reshape(call.operator.groups, -1).repeat(call.kernel, axis=1)
        yield index, _sum_to_units(products, torch.from_numpy(blocks), group.size)


def _sum_to_units(products: Tensor, columns: Tensor, size: int) -> np.ndarray:
    """Block sums of (blocks, patch, patch) to (size, size); column number `size` is left out."""
    total = torch.zeros((size + 1, size + 1), dtype=torch.float64, device=products.device)
    for block, column in zip(products, columns.to(products.device), strict=True):
        by_row = block.new_zeros((size + 1, block.shape[1])).index_add_(0, column, block)
        total += by_row.new_zeros((size + 1, size + 1)).index_add_(1, column, by_row)
    return total[:size, :size].cpu().numpy()
