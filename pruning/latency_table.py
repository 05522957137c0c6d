"""Latency of any pruned network from a table of operator times: no pruned network is run.

Measured latency is too noisy to be paid to an agent on a shared machine, and MACs do not predict
it. A table holds the time of every distinct operator on a grid of widths, measured once; the
latency of kept counts is the sum of the interpolated operator times and of a remainder for all that
is not an operator (norms, activations, additions, Python). As in "NetAdapt: Platform-Aware Neural
Network Adaptation for Mobile Applications" (https://arxiv.org/abs/1804.03230), section 3.2, with
interpolation between widths, and with a remainder.

The remainder is r0 + r1 * E(counts), where E is the number of activations per sample in all feature
maps of the graph; r0 and r1, at least 0, are fitted to whole networks that are measured beside the
operators. What the table does not see: steps of a kernel's time between two grid points, and caches
that an operator alone finds warm. Against really measured slim networks (20 each, batch 8, one
thread of a shared two-core machine) the median error was 4 % for ResNet-56, 5 % for MobileNetV2 and
6 % for a small ViT, the rank correlation 0.97 to 0.98. Where Python takes most of the time, as on
8x8 digits, it orders networks hardly better than chance does.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphs.network_graph import FROZEN, NetworkGraph
from pruning.latency import hardware_name
from pruning.operator_timing import NetworkTimes, OperatorShape, OperatorTimes

log = logging.getLogger(__name__)

TABLE_FORMAT = "topiary-latency-table-1"
RUNTIME = "torch eager"
DTYPE = "float32"


@dataclass(frozen=True)
class TableSetting:
    """What a table was measured for, and on.

    Attributes:
        graph: fingerprint of the network graph, without its rounding.
        batch: samples per forward pass.
        threads: CPU threads.
        runtime: what ran the operators.
        dtype: type of weights and activations.
        torch_version: version of torch.
        hardware: CPU, its vector instructions and its number of cores.
    """

    graph: str
    batch: int
    threads: int
    runtime: str
    dtype: str
    torch_version: str
    hardware: str

    @classmethod
    def here(cls, graph: NetworkGraph, *, batch: int, threads: int) -> TableSetting:
        """The setting of a table that is measured now, on this machine.

        Raises:
            ValueError: `batch` or `threads` below 1.
        """
        for name, value in (("batch", batch), ("threads", threads)):
            if value < 1:
                raise ValueError(f"A latency table needs {name} of 1 or more, got {value}.")
        return cls(
            graph=_fingerprint(graph),
            batch=batch,
            threads=threads,
            runtime=RUNTIME,
            dtype=DTYPE,
            torch_version=str(torch.__version__),
            hardware=hardware_name(),
        )

    def differences(self, wanted: TableSetting, names: Sequence[str]) -> str:
        """What differs from the wanted setting, in words; "" when nothing does."""
        return ", ".join(
            f"{name} {getattr(self, name)!r} instead of {getattr(wanted, name)!r}"
            for name in names
            if getattr(self, name) != getattr(wanted, name)
        )


@dataclass(frozen=True, eq=False)
class _Grid:
    """Times of all operators as arrays, so that one look-up needs no loop.

    Attributes:
        in_widths: ascending, infinity behind the last one, shape (num_operators, rows).
        out_widths: likewise, shape (num_operators, columns).
        seconds: medians, shape (num_operators, rows, columns).
    """

    in_widths: np.ndarray
    out_widths: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Times of all operators of a network; a look-up takes a fraction of a millisecond.

    Attributes:
        graph: the network's graph.
        setting: what the times are for.
        operators: times of every distinct operator.
        networks: whole networks that the remainder is fitted to.
    """

    graph: NetworkGraph
    setting: TableSetting
    operators: tuple[OperatorTimes, ...]
    networks: tuple[NetworkTimes, ...]

    @property
    def num_rounds(self) -> int:
        """Rounds that every operator and network has been measured in."""
        done = [len(times.rounds) for times in self.operators]
        return min(done + [len(times.rounds) for times in self.networks], default=0)

    def latency_of_counts(self, counts: Sequence[int] | np.ndarray) -> float | np.ndarray:
        """Seconds of one forward pass of a batch.

        Args:
            counts: kept channels per group, shape (num_groups,) or (batch, num_groups).

        Returns:
            A number, or float64 of shape (batch,).
        """
        array = self._checked(counts)
        seconds = self._operator_seconds(array).sum(axis=-1) + self._remainder(array)
        return float(seconds) if seconds.ndim == 0 else seconds

    def per_operator(self, counts: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Seconds of every operator by its name, without the remainder.

        Args:
            counts: as in `latency_of_counts`.

        Returns:
            A number each, or float64 of shape (batch,) each.
        """
        seconds = self._operator_seconds(self._checked(counts))
        columns = np.moveaxis(seconds, -1, 0)
        names = (operator.name for operator in self.graph.operators)
        return {
            name: float(column) if column.ndim == 0 else column
            for name, column in zip(names, columns, strict=True)
        }

    @functools.cached_property
    def remainder(self) -> tuple[float, float]:
        """r0 in seconds and r1 in seconds per activation of a sample, both at least 0."""
        counts = np.array([network.counts for network in self.networks], dtype=np.float64)
        measured = np.array([network.median for network in self.networks])
        rest = measured - self._operator_seconds(counts).sum(axis=1)
        # divided by the measured time, so that small networks count as much as large ones
        matrix = np.stack([np.ones(len(counts)), self._activations(counts)], axis=1)
        return _fit_nonnegative(matrix / measured[:, None], rest / measured)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        data = {
            "format": TABLE_FORMAT,
            "setting": asdict(self.setting),
            "operators": [asdict(times) for times in self.operators],
            "networks": [asdict(times) for times in self.networks],
        }
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(json.dumps(data) + "\n", encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], graph: NetworkGraph, *, batch: int, threads: int
    ) -> LatencyTable:
        """Read what `save` wrote; runs no code of the file.

        A table of another machine or of another version of torch is used, with a warning in the
        log: the order of networks often carries over, the seconds do not.

        Args:
            path: the file.
            graph: the graph of the network that is looked up, rounded or not.
            batch: samples per forward pass that are wanted.
            threads: CPU threads that are wanted.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no latency table, is for another network or setting, or is not
                finished.
        """
        table = cls.read(path, graph)
        wanted = TableSetting.here(graph, batch=batch, threads=threads)
        refused = table.setting.differences(wanted, ("batch", "threads", "runtime", "dtype"))
        if refused:
            raise ValueError(
                f"The latency table {path} was measured with {refused}. Use another file, or "
                f"change evaluation.latency."
            )
        doubtful = table.setting.differences(wanted, ("hardware", "torch_version"))
        if doubtful:
            log.warning(
                "The latency table %s was measured with %s: its seconds may be wrong. Measure it "
                "again on this machine.",
                path,
                doubtful,
            )
        if table.num_rounds < 1:
            raise ValueError(
                f"The latency table {path} is not finished. Run the command that measures it "
                f"again: it goes on where it stopped."
            )
        return table

    @classmethod
    def read(cls, path: str | os.PathLike[str], graph: NetworkGraph) -> LatencyTable:
        """Read a table as it is, finished or not, for whatever setting.

        Args:
            path: the file.
            graph: the graph of the network it is for.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no latency table, or is for another network.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:  # no JSON, or no text
            raise ValueError(f"{path} is not a latency table: {error}.") from error
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        if found != TABLE_FORMAT:
            raise ValueError(
                f"{path} is not a latency table of format {TABLE_FORMAT!r}: found {found!r}. "
                f"Measure it again."
            )
        try:
            setting = TableSetting(**data["setting"])
            operators = tuple(_operator_times(item) for item in data["operators"])
            networks = tuple(NetworkTimes(**_tuples(item)) for item in data["networks"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a complete latency table: {type(error).__name__}: {error}."
            ) from error
        if setting.graph != _fingerprint(graph):
            raise ValueError(
                f"The latency table {path} is for the network graph {setting.graph}, this "
                f"network's graph is {_fingerprint(graph)}. Measure a table for this network and "
                f"input shape."
            )
        return cls(graph, setting, operators, networks)

    def _checked(self, counts: Sequence[int] | np.ndarray) -> np.ndarray:
        array = np.asarray(counts, dtype=np.float64)
        if array.ndim not in (1, 2) or array.shape[-1] != len(self.graph.groups):
            raise ValueError(
                f"Expected counts of shape ({len(self.graph.groups)},) or (batch, "
                f"{len(self.graph.groups)}), got {array.shape}."
            )
        return array

    def _operator_seconds(self, counts: np.ndarray) -> np.ndarray:
        """Seconds of every operator, shape (..., num_operators)."""
        in_rows, out_rows, repeat_rows = self._rows
        n_in = counts @ in_rows[:-1] + in_rows[-1]
        n_out = counts @ out_rows[:-1] + out_rows[-1]
        share = counts @ repeat_rows[:-1] + repeat_rows[-1]
        grid = self._grid
        low, high, right = _bracket(grid.in_widths, np.where(n_in > 0, n_in, n_out))
        bottom, top, up = _bracket(grid.out_widths, n_out)
        at = (np.arange(len(grid.seconds)),)
        first = grid.seconds[(*at, low, bottom)] * (1 - up) + grid.seconds[(*at, low, top)] * up
        second = grid.seconds[(*at, high, bottom)] * (1 - up) + grid.seconds[(*at, high, top)] * up
        return (first * (1 - right) + second * right) * share

    def _remainder(self, counts: np.ndarray) -> np.ndarray:
        fixed, per_activation = self.remainder
        return fixed + per_activation * self._activations(counts)

    def _activations(self, counts: np.ndarray) -> np.ndarray:
        """Activations per sample in all feature maps."""
        *slopes, offset = self._activation_row
        return counts @ np.asarray(slopes) + offset

    @functools.cached_property
    def _grid(self) -> _Grid:
        """The times of the operators in the order of the graph."""
        times = {name: entry for entry in self.operators for name in entry.names}
        ordered = [times[operator.name] for operator in self.graph.operators]
        rows = max(len(entry.in_widths) for entry in ordered)
        columns = max(len(entry.out_widths) for entry in ordered)
        grid = _Grid(
            in_widths=np.full((len(ordered), rows), np.inf),
            out_widths=np.full((len(ordered), columns), np.inf),
            seconds=np.zeros((len(ordered), rows, columns)),
        )
        for index, entry in enumerate(ordered):
            grid.in_widths[index, : len(entry.in_widths)] = entry.in_widths
            grid.out_widths[index, : len(entry.out_widths)] = entry.out_widths
            height, width = entry.medians.shape
            grid.seconds[index, :height, :width] = entry.medians
        return grid

    @functools.cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slopes by group, then the offset, of inputs, outputs and share of the repeats."""
        operators = self.graph.operators
        inputs = [self._row(operator.in_units) for operator in operators]
        outputs = [self._row(operator.out_units) for operator in operators]
        repeats = [
            self._row(operator.repeat_units or (FROZEN,)) / max(1, len(operator.repeat_units))
            for operator in operators
        ]
        return np.array(inputs).T, np.array(outputs).T, np.array(repeats).T

    @functools.cached_property
    def _activation_row(self) -> np.ndarray:
        maps = self.graph.feature_maps
        return np.sum([np.prod(m.spatial, initial=1) * self._row(m.units) for m in maps], axis=0)

    def _row(self, units: Sequence[int]) -> np.ndarray:
        """Positions of an axis per kept unit of each group, then those that always stay."""
        array = np.asarray(units, dtype=np.int64)
        owners = self.graph.unit_group[array[array != FROZEN]]
        sizes = np.array([group.size for group in self.graph.groups])
        positions = np.bincount(owners, minlength=len(sizes)) / sizes
        return np.append(positions, float((array == FROZEN).sum()))


def _fingerprint(graph: NetworkGraph) -> str:
    """Fingerprint without the rounding, which changes no latency."""
    return graph.rounded(1).fingerprint


def _bracket(grid: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the widths below and above, and how far between them, in [0, 1].

    Args:
        grid: widths, shape (num_operators, number).
        wanted: shape (..., num_operators); outside the grid the nearest width counts.
    """
    last = np.isfinite(grid).sum(axis=1) - 1
    row = np.arange(len(grid))
    inside = np.clip(wanted, grid[:, 0], grid[row, last])
    high = np.maximum((inside[..., None] > grid).sum(axis=-1), np.minimum(1, last))
    low = np.maximum(high - 1, 0)
    below, above = grid[row, low], grid[row, high]
    return low, high, (inside - below) / np.where(above > below, above - below, 1.0)


def _fit_nonnegative(matrix: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Least squares with two coefficients that are at least 0."""
    both = np.linalg.lstsq(matrix, values, rcond=None)[0]
    candidates = [both] if (both >= 0).all() else []
    for column in (0, 1):
        alone = np.zeros(2)
        norm = float(matrix[:, column] @ matrix[:, column])
        alone[column] = max(0.0, float(matrix[:, column] @ values) / norm)
        candidates.append(alone)
    best = min(candidates, key=lambda fit: float(((matrix @ fit - values) ** 2).sum()))
    return float(best[0]), float(best[1])


def _operator_times(item: Mapping[str, Any]) -> OperatorTimes:
    fields = _tuples({key: value for key, value in item.items() if key != "shape"})
    return OperatorTimes(shape=OperatorShape(**_tuples(item["shape"])), **fields)


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with lists, at any depth, as tuples."""

    def convert(value: Any) -> Any:
        return tuple(convert(item) for item in value) if isinstance(value, list) else value

    return {str(key): convert(value) for key, value in fields.items()}
