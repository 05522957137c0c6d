"""Analytic cost of a pruned network: MACs and parameters as bilinear forms of the kept counts.

MACs are those of convolutions, linear layers and the two matrix products of attention, for one
sample. For an operator
with n_in and n_out kept channels they are c * n_in * n_out, where n = A @ counts + b; A counts
how many positions of an
axis belong to each group, so concatenation, flattening and padded shortcuts need no special case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from graphs.network_graph import FROZEN, NetworkGraph, Operator
from pruning.keep_set import CountGrid, KeepSet, count_steps


class CostModel:
    """MACs and parameters of every keep-set of one network, in microseconds.

    Args:
        graph: the traced network.

    Attributes:
        base_macs: MACs of the unpruned network for one sample.
        base_params: parameters of the unpruned network, tied ones counted once.
    """

    def __init__(self, graph: NetworkGraph) -> None:
        self._graph = graph
        self._full_counts = np.array([group.size for group in graph.groups], dtype=np.float64)
        self._grid = CountGrid(graph.groups)
        is_rounded = any(group.round_to > 1 for group in graph.groups)
        self._remainder_unit = self._full_counts if is_rounded else np.ones(len(graph.groups))
        self._op_rows = _Bilinear(graph)
        for operator in graph.operators:
            for factor, axes in _mac_terms(operator):
                self._op_rows.add(factor, axes)
        self._op_rows.freeze()
        self._op_index = [
            index
            for index, operator in enumerate(graph.operators)
            for _ in range(len(_mac_terms(operator)))
        ]
        self._parameter_rows = _Bilinear(graph)
        slices: dict[str, list[tuple[int, ...]]] = {}
        sliced_axes: dict[str, list[int]] = {}
        for axis_slice in graph.slices:
            slices.setdefault(axis_slice.tensor, []).append(axis_slice.units)
            sliced_axes.setdefault(axis_slice.tensor, []).append(axis_slice.axis)
        for name, shape in graph.parameters.items():
            rest = [n for axis, n in enumerate(shape) if axis not in sliced_axes.get(name, [])]
            self._parameter_rows.add(math.prod(rest), slices.get(name, []))
        self._parameter_rows.freeze()
        self._parameter_names = list(graph.parameters)
        self.base_macs = int(self.macs_of_counts(self._full_counts))
        self.base_params = self.params_of_counts(self._full_counts)

    def macs_of_counts(self, counts: Sequence[int] | np.ndarray) -> int | np.ndarray:
        """MACs for kept counts.

        Args:
            counts: kept channels per group, shape (num_groups,) or (batch, num_groups).

        Returns:
            An integer, or an int64 array of shape (batch,).
        """
        array = np.asarray(counts, dtype=np.float64)
        if array.ndim == 1:
            return round(float(self._op_rows.total(array[None])[0]))
        return np.rint(self._op_rows.total(array)).astype(np.int64)

    def macs(self, keep: KeepSet) -> int:
        """MACs of the slim network for one sample."""
        return int(self.macs_of_counts(keep.counts))

    def params(self, keep: KeepSet) -> int:
        """Parameters of the slim network."""
        return self.params_of_counts(keep.counts)

    def params_of_counts(self, counts: Sequence[int] | np.ndarray) -> int:
        """Parameters for kept counts of shape (num_groups,)."""
        array = np.asarray(counts, dtype=np.float64)
        return round(float(self._parameter_rows.total(array[None])[0]))

    def macs_per_operator(self, keep: KeepSet) -> dict[str, int]:
        """MACs of the slim network for one sample, by operator name."""
        values = self._op_rows.values(keep.counts.astype(np.float64)[None])[0]
        per_operator = np.bincount(
            self._op_index, weights=values, minlength=len(self._graph.operators)
        )
        names = (operator.name for operator in self._graph.operators)
        return {name: round(float(value)) for name, value in zip(names, per_operator, strict=True)}

    def max_keep(self, counts: Sequence[int] | np.ndarray, group: int, budget_macs: float) -> int:
        """Most channels group number `group` may keep so that the network stays within a budget.

        Args:
            counts: kept channels per group; the entry of `group` is ignored.
            group: index of the group.
            budget_macs: upper bound on the MACs, inclusive.

        Returns:
            The group's size, a multiple of its `round_to`, or 0 when not even the least of these
            fits.
        """
        widths = np.append(0, count_steps(self._graph.groups[group]))
        options = np.tile(np.asarray(counts, dtype=np.float64), (len(widths), 1))
        options[:, group] = widths
        # MACs grow with every count, so the affordable widths are a prefix.
        affordable = np.asarray(self.macs_of_counts(options)) <= budget_macs
        affordable[0] = True
        return int(widths[np.flatnonzero(affordable)[-1]])

    def top_up(
        self, counts: Sequence[int] | np.ndarray, wanted: np.ndarray, budget_macs: float
    ) -> np.ndarray:
        """Add single channels, the largest remainder first, while any fits the budget.

        Where `round_to` is above 1 a step is that many channels (the last one may be shorter), and
        remainders are compared as fractions of the group: as many channels is more for a small one.

        Args:
            counts: allowed kept channels per group to start from, shape (num_groups,).
            wanted: kept channels before rounding; `wanted - counts` is the remainder.
            budget_macs: upper bound on the MACs, inclusive.

        Returns:
            Kept channels per group, int64 of shape (num_groups,).
        """
        counts = np.array(counts, dtype=np.int64)
        while True:
            larger = self._grid.next_up(counts)
            macs = np.asarray(self.macs_of_counts(counts + np.diag(larger - counts)))
            fits = (macs <= budget_macs) & (counts < self._full_counts)
            if not fits.any():
                return counts
            remainder = (wanted - counts) / self._remainder_unit
            chosen = int(np.argmax(np.where(fits, remainder, -np.inf)))
            counts[chosen] = larger[chosen]

    def nonzero_macs(self, keep: KeepSet, masks: Mapping[str, torch.Tensor]) -> int:
        """MACs of the weights that are not masked, in the slim network.

        Args:
            keep: the kept channels.
            masks: full-width boolean masks (True = kept) by weight name.
        """
        per_operator = self.macs_per_operator(keep)
        density = self._densities(keep, masks)
        return round(
            sum(
                macs * density.get(self._graph.operator_by_name[name].weight, 1.0)
                for name, macs in per_operator.items()
            )
        )

    def nonzero_params(self, keep: KeepSet, masks: Mapping[str, torch.Tensor]) -> int:
        """Parameters of the slim network that are not masked."""
        values = self._parameter_rows.values(keep.counts.astype(np.float64)[None])[0]
        density = self._densities(keep, masks)
        return round(
            sum(
                float(value) * density.get(name, 1.0)
                for name, value in zip(self._parameter_names, values, strict=True)
            )
        )

    def _densities(self, keep: KeepSet, masks: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Share of unmasked entries among the kept entries of each masked tensor."""
        kept_mask = np.append(keep.mask, True)  # index FROZEN (-1) reads the appended True
        densities = {}
        for name, mask in masks.items():
            kept = mask
            for axis_slice in self._graph.slices:
                if axis_slice.tensor == name:
                    index = np.flatnonzero(kept_mask[list(axis_slice.units)])
                    kept = kept.index_select(axis_slice.axis, torch.from_numpy(index))
            densities[name] = float(kept.count_nonzero()) / max(1, kept.numel())
        return densities


class _Bilinear:
    """Rows c * (A1 @ n + b1) * (A2 @ n + b2), and a third factor where a row has one."""

    def __init__(self, graph: NetworkGraph) -> None:
        self._graph = graph
        self._constants: list[float] = []
        self._axes: list[list[tuple[np.ndarray, float]]] = [[], [], []]

    def add(self, constant: float, axes: Sequence[tuple[int, ...]]) -> None:
        """Append the row constant * product over axes of the kept positions of that axis."""
        assert len(axes) <= 3, "a tensor with more than three channel axes has no cost row"
        self._constants.append(float(constant))
        for number in range(3):
            if number < len(axes):
                self._axes[number].append(self._position_counts(axes[number]))
            else:
                self._axes[number].append((np.zeros(len(self._graph.groups)), 1.0))

    def freeze(self) -> None:
        """Stack the rows once all are added."""
        shape = (len(self._constants), len(self._graph.groups))
        self._c = np.array(self._constants)
        used = [number for number, axis in enumerate(self._axes) if number < 2 or _matters(axis)]
        self._factors = [
            (
                np.array([row for row, _ in self._axes[number]], dtype=np.float64)
                .reshape(shape)
                .T.copy(),
                np.array([offset for _, offset in self._axes[number]]),
            )
            for number in used
        ]

    def values(self, counts: np.ndarray) -> np.ndarray:
        """Value of every row, shape (batch, num_rows), for counts of shape (batch, num_groups)."""
        return self._products(counts) * self._c

    def total(self, counts: np.ndarray) -> np.ndarray:
        """Sum over the rows, shape (batch,)."""
        return self._products(counts) @ self._c

    def _products(self, counts: np.ndarray) -> np.ndarray:
        first, second, *third = (counts @ matrix + offset for matrix, offset in self._factors)
        return first * second * third[0] if third else first * second

    def _position_counts(self, units: tuple[int, ...]) -> tuple[np.ndarray, float]:
        """Positions of an axis that belong to each group, and the number that stay in any case.

        Every unit of a group must hold equally many positions, or a count could not tell the cost.
        """
        array = np.asarray(units, dtype=np.int64)
        frozen = float((array == FROZEN).sum())
        array = array[array != FROZEN]
        row = np.zeros(len(self._graph.groups))
        per_unit = np.bincount(array, minlength=self._graph.num_units)
        for index, group in enumerate(self._graph.groups):
            positions = per_unit[list(group.units)]
            assert (positions == positions[0]).all(), (
                f"units of {group.name!r} differ in their number of positions"
            )
            row[index] = positions[0]
        return row, frozen


def _matters(axis: list[tuple[np.ndarray, float]]) -> bool:
    """Whether a factor is other than 1 in some row."""
    return any(row.any() or offset != 1.0 for row, offset in axis)


def _mac_terms(operator: Operator) -> list[tuple[float, list[tuple[int, ...]]]]:
    """(constant, axes) terms whose sum is the operator's MACs."""
    if operator.kind == "attention":
        # q k^T and a v: positions = query tokens x key tokens, channels summed over heads
        return [
            (operator.positions, [operator.in_units]),
            (operator.positions, [operator.out_units]),
        ]
    kernel = operator.positions * math.prod(operator.kernel_size)
    if operator.depthwise:
        return [(kernel, [operator.out_units])]
    if operator.repeat_units:
        return [(kernel, [operator.in_units, operator.out_units, operator.repeat_units])]
    return [(kernel / operator.groups, [operator.in_units, operator.out_units])]
