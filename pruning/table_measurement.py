"""Filling a latency table: all operators at all widths, round after round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from torch import Tensor, nn

from graphs.network_graph import NetworkGraph
from pruning.keep_set import KeepSet, kept_count
from pruning.latency_table import LatencyTable, TableSetting
from pruning.operator_timing import (
    NetworkTimes,
    OperatorShape,
    OperatorTimes,
    Scratch,
    operator_call,
    operator_shape,
    time_call,
)
from pruning.slimming import Slimmer

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Widths of the grid as fractions of the full one; the smallest width is there in any case."""

Progress = Callable[[], None]
"""Called after every measurement."""


@dataclass
class TableMeasurement:
    """One measurement of a table; `run` may be called again after it was interrupted.

    Every round measures everything once, so that a load that comes and goes falls on all alike.

    Args:
        network: the network; left unchanged.
        graph: its graph.
        inputs: one batch.
        setting: what is measured; its batch is that of `inputs`.
        fractions: widths of the grid as fractions of the full one, in (0, 1].
        num_rounds: rounds, 1 or more.
        seconds: length of one block of repeats, above 0.
        previous: a table of the same setting whose measurements are kept.

    Raises:
        ValueError: an argument is out of range, or `previous` is of another setting.
    """

    network: nn.Module
    graph: NetworkGraph
    inputs: Tensor
    setting: TableSetting
    fractions: Sequence[float] = FRACTIONS
    num_rounds: int = 7
    seconds: float = 0.005
    previous: LatencyTable | None = None
    table: LatencyTable = field(init=False)

    def __post_init__(self) -> None:
        if not self.fractions or not all(0.0 < fraction <= 1.0 for fraction in self.fractions):
            raise ValueError(
                f"Widths are fractions of the full width in (0, 1], got {list(self.fractions)}."
            )
        if self.num_rounds < 1:
            raise ValueError(f"A table needs at least 1 round, got {self.num_rounds}.")
        if not self.seconds > 0:
            raise ValueError(f"A block of repeats lasts more than 0 s, got {self.seconds}.")
        if self.previous is not None and self.previous.setting != self.setting:
            names = [each.name for each in fields(TableSetting)]
            raise ValueError(
                f"The measurements so far are of another setting: "
                f"{self.previous.setting.differences(self.setting, names)}. Write to another file."
            )
        assert len(self.inputs) == self.setting.batch, "the setting says how large the batch is"
        self.table = LatencyTable(self.graph, self.setting, self._operators(), self._networks())
        # calls per block, found out in the first round
        self._numbers: dict[object, int] = {}

    @property
    def num_measurements(self) -> int:
        """Measurements that are still to be made."""
        per_round = [
            (len(times.rounds), len(times.in_widths) * len(times.out_widths))
            for times in self.table.operators
        ]
        per_round += [(len(times.rounds), 1) for times in self.table.networks]
        return sum(max(0, self.num_rounds - done) * number for done, number in per_round)

    def run(
        self,
        *,
        on_measurement: Progress = lambda: None,
        on_round: Callable[[LatencyTable], None] = lambda table: None,
    ) -> LatencyTable:
        """Measure all that is missing.

        Args:
            on_measurement: called after every measurement, for a progress bar.
            on_round: called with the table after every round, to save it.
        """
        slimmer, scratch = Slimmer(self.network, self.graph, verify=False), Scratch()
        slim = [
            slimmer.materialize(_keep(self.graph, times.counts)).eval()
            for times in self.table.networks
        ]
        while self.num_measurements:
            operators = [
                self._operator_round(t, scratch, on_measurement) for t in self.table.operators
            ]
            networks = [
                self._network_round(times, network, on_measurement)
                for times, network in zip(self.table.networks, slim, strict=True)
            ]
            self.table = replace(self.table, operators=tuple(operators), networks=tuple(networks))
            on_round(self.table)
        return self.table

    def _operators(self) -> tuple[OperatorTimes, ...]:
        """Every distinct operator with its grid, and the rounds that are known."""
        names: dict[OperatorShape, list[str]] = {}
        for operator in self.graph.operators:
            shape = operator_shape(operator, self.network, self.graph)
            names.setdefault(shape, []).append(operator.name)
        known = {times.shape: times for times in self.previous.operators} if self.previous else {}
        operators = []
        for shape, those in names.items():
            in_widths = grid_widths(
                shape.main_width,
                shape.in_varies or (shape.is_tied and shape.out_varies),
                shape.multiple,
                self.fractions,
            )
            out_widths = (
                (shape.out_width,)
                if shape.is_tied
                else grid_widths(shape.out_width, shape.out_varies, shape.multiple, self.fractions)
            )
            times = OperatorTimes(shape, tuple(those), in_widths, out_widths)
            old = known.get(shape)
            if old is not None and (old.in_widths, old.out_widths) == (in_widths, out_widths):
                times = replace(times, rounds=old.rounds)
            operators.append(times)
        return tuple(operators)

    def _networks(self) -> tuple[NetworkTimes, ...]:
        """The whole network, and thinner ones, for the remainder."""
        known = {times.counts: times for times in self.previous.networks} if self.previous else {}
        networks = {}
        for fraction in sorted({*self.fractions, 1.0}, reverse=True):
            counts = tuple(kept_count(g, 1.0 - fraction) for g in self.graph.rounded(1).groups)
            networks[counts] = known.get(counts, NetworkTimes(counts))
        return tuple(networks.values())

    def _operator_round(
        self, times: OperatorTimes, scratch: Scratch, on_measurement: Progress
    ) -> OperatorTimes:
        if len(times.rounds) >= self.num_rounds:
            return times
        seconds: list[list[float]] = []
        for n_in in times.in_widths:
            seconds.append([])
            for n_out in times.out_widths:
                call = operator_call(times.shape, n_in, n_out, self.setting.batch, scratch)
                seconds[-1].append(self._time((times.shape, n_in, n_out), call, self.seconds))
                on_measurement()
        this_round = tuple(tuple(row) for row in seconds)
        return replace(times, rounds=(*times.rounds, this_round))

    def _network_round(
        self, times: NetworkTimes, network: nn.Module, on_measurement: Progress
    ) -> NetworkTimes:
        if len(times.rounds) >= self.num_rounds:
            return times
        # there are few of them, and the remainder hangs on them
        seconds = self._time(times.counts, lambda: network(self.inputs), 20 * self.seconds)
        on_measurement()
        return replace(times, rounds=(*times.rounds, seconds))

    def _time(self, key: object, call: Callable[[], object], seconds: float) -> float:
        number = self._numbers.get(key)
        found, self._numbers[key] = time_call(
            call, threads=self.setting.threads, seconds=seconds, number=number
        )
        return found


def grid_widths(
    full: int, varies: bool, multiple: int, fractions: Sequence[float]
) -> tuple[int, ...]:
    """Widths that an axis is measured at.

    Args:
        full: channels of the unpruned axis.
        varies: whether kept counts change it; otherwise only the full width is measured.
        multiple: every width is a multiple of this.
        fractions: of the full width.

    Returns:
        Ascending: the smallest multiple, each fraction with the next larger multiple, the full
        width. Kernels work in blocks of 8 or 16 channels, so the time is a staircase, and one
        channel past a block is where it steps up.
    """
    if not varies or not full:
        return (full,)
    widths = {multiple, full}
    for fraction in fractions:
        rounded = multiple * round(fraction * full / multiple)
        widths |= {rounded, rounded + multiple}
    return tuple(sorted(width for width in widths if multiple <= width <= full))


def measure_networks(
    network: nn.Module,
    graph: NetworkGraph,
    inputs: Tensor,
    counts: Sequence[Sequence[int]],
    *,
    threads: int,
    num_rounds: int = 7,
    seconds: float = 0.1,
    on_measurement: Progress = lambda: None,
) -> np.ndarray:
    """Really measured latency of slim networks, round after round, to compare a table with.

    Args:
        network: the network; left unchanged.
        graph: its graph.
        inputs: one batch.
        counts: kept channels per group of each slim network.
        threads: CPU threads.
        num_rounds: rounds, 1 or more.
        seconds: length of one block of repeats, above 0.
        on_measurement: called after every measurement.

    Returns:
        Median seconds of one forward pass, float64 (len(counts),).
    """
    slimmer = Slimmer(network, graph, verify=False)
    slim = [slimmer.materialize(_keep(graph, those)).eval() for those in counts]
    found = np.empty((num_rounds, len(slim)))
    for row in found:
        for index, one in enumerate(slim):
            row[index], _ = time_call(
                lambda one=one: one(inputs),  # type: ignore[misc]
                threads=threads,
                seconds=seconds,
            )
            on_measurement()
    return np.median(found, axis=0)


def _keep(graph: NetworkGraph, counts: Sequence[int]) -> KeepSet:
    """The first channels of every group; which ones makes no difference to the time."""
    return KeepSet.from_indices(
        graph, {group.name: range(n) for group, n in zip(graph.groups, counts, strict=True)}
    )
