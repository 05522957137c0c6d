"""Latency looked up instead of measured: interpolation, remainder, files, and what is measured."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from torch import nn
from zoo import ZOO, build

import pruning.table_measurement as measurement_module
from graphs.tracing import trace_network
from networks.vit import vit
from pruning.keep_set import KeepSet
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
from pruning.table_measurement import TableMeasurement, grid_widths, measure_networks

FIXED, PER_ACTIVATION = 3e-4, 2e-8
SINGLE_INPUT = [name for name in ZOO if name != "TwoInputsDictOutput"]


def planted(n_in, n_out):
    """Seconds of an operator that a bilinear interpolation gives back exactly."""
    return 1e-6 * (3 + 2 * n_in + 5 * n_out + n_in * n_out)


@pytest.fixture
def clock(monkeypatch):
    """Replaces the clock: operators take the planted time, networks the sum and a remainder."""

    def call(shape, n_in, n_out, batch, scratch):
        return lambda: planted(n_in, n_out)

    def time(call, *, threads, seconds, number=None):
        return call(), 1

    def network_round(self, times, network, on_measurement):
        if len(times.rounds) >= self.num_rounds:
            return times
        on_measurement()
        widths = slim_widths(self.network, self.graph, times.counts)
        seconds = sum(planted(*width) for width in widths.values())
        activations = self.table._activations(np.array(times.counts))
        seconds += FIXED + PER_ACTIVATION * float(activations)
        return dataclasses.replace(times, rounds=(*times.rounds, seconds))

    monkeypatch.setattr(measurement_module, "operator_call", call)
    monkeypatch.setattr(measurement_module, "time_call", time)
    monkeypatch.setattr(TableMeasurement, "_network_round", network_round)


def slim_widths(network, graph, counts):
    """Input and output channels of every weight of the slim network, read off the network."""
    keep = KeepSet.from_counts(graph, counts)
    slim = Slimmer(network, graph, verify=False).materialize(keep)
    return {
        name: (module.weight.shape[1], module.weight.shape[0])
        for name, module in slim.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def make(network, inputs, **options):
    graph = trace_network(network, inputs)
    setting = TableSetting.here(graph, batch=len(inputs), threads=1)
    options = {"num_rounds": 1, "seconds": 1e-5, **options}
    return TableMeasurement(network, graph, inputs, setting, **options)


@pytest.fixture
def measurement(clock, network):
    return make(network, torch.zeros(2, 3, 6, 6))


@pytest.mark.parametrize(
    ("full", "varies", "multiple", "fractions", "expected"),
    [
        (16, True, 1, (0.25, 0.5, 0.75, 1.0), (1, 4, 5, 8, 9, 12, 13, 16)),
        (3, True, 1, (0.25, 0.5, 0.75, 1.0), (1, 2, 3)),
        (16, False, 1, (0.5,), (16,)),
        (24, True, 4, (0.5,), (4, 12, 16, 24)),
        (1, True, 1, (0.5,), (1,)),
        (0, False, 1, (0.5,), (0,)),
    ],
)
def test_the_grid_holds_the_fractions_and_the_step_behind_each(
    full, varies, multiple, fractions, expected
):
    assert grid_widths(full, varies, multiple, fractions) == expected


@pytest.mark.parametrize("name", ["Residual", "DenseConcat", "FlattenSpatial", "Gated"])
def test_between_the_widths_the_time_is_interpolated_in_both(name, clock):
    network, (inputs,) = build(name)
    table = make(network, inputs).run()
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = KeepSet.random(table.graph, rng).counts
        found = table.per_operator(counts)
        for module, width in slim_widths(network, table.graph, counts).items():
            assert found[module] == pytest.approx(planted(*width), rel=1e-12)


def test_a_cell_of_the_grid_is_interpolated_as_by_hand(network):
    graph = trace_network(network, torch.zeros(1, 3, 6, 6))  # groups of 8 and 12 channels
    shapes = {op.name: operator_shape(op, network, graph) for op in graph.operators}
    grids = {
        "conv1": ((3,), (4, 8), ((1.0, 2.0),)),
        "conv2": ((4, 8), (6, 12), ((1.0, 3.0), (5.0, 11.0))),
        "fc": ((6, 12), (4,), ((0.5,), (0.7,))),
    }
    operators = tuple(
        OperatorTimes(shapes[name], (name,), n_in, n_out, (times,))
        for name, (n_in, n_out, times) in grids.items()
    )
    setting = TableSetting.here(graph, batch=1, threads=1)
    table = LatencyTable(graph, setting, operators, (NetworkTimes((8, 12), (13.7,)),))
    per_operator = table.per_operator([5, 9])
    assert per_operator["conv1"] == pytest.approx(1.25)
    # a quarter of the way in, half of the way out: 0.75 * (1 + 3) / 2 + 0.25 * (5 + 11) / 2
    assert per_operator["conv2"] == pytest.approx(3.5)
    assert per_operator["fc"] == pytest.approx(0.6)
    # outside the grid the nearest width counts
    assert table.per_operator([1, 1]) == pytest.approx({"conv1": 1.0, "conv2": 1.0, "fc": 0.5})
    assert table.latency_of_counts([8, 12]) == pytest.approx(13.7)
    assert table.remainder == (0.0, 0.0)


def test_the_remainder_is_fitted_and_added(measurement):
    table = measurement.run()
    assert table.remainder == pytest.approx((FIXED, PER_ACTIVATION))
    # per sample: 6x6 images of 3 colours, two convolutions of 3 and 5 channels; 5 means, 4 scores
    feature_maps = {
        m.name: len(m.units) * int(np.prod(m.spatial)) for m in table.graph.feature_maps
    }
    assert sum(feature_maps.values()) == table._activations(np.array([8, 12]))
    total = table.latency_of_counts([3, 5])
    operators = planted(3, 3) + planted(3, 5) + planted(5, 4)
    thinner = table._activations(np.array([3, 5]))
    assert total == pytest.approx(operators + FIXED + PER_ACTIVATION * thinner, rel=1e-9)
    removed = 36 * (8 - 3) + 36 * (12 - 5)
    assert table._activations(np.array([8, 12])) - thinner >= removed


def test_a_remainder_below_zero_is_none(network):
    graph = trace_network(network, torch.zeros(1, 3, 6, 6))
    operators = tuple(
        OperatorTimes(operator_shape(op, network, graph), (op.name,), (1,), (1,), (((1.0,),),))
        for op in graph.operators
    )
    networks = (NetworkTimes((8, 12), (2.0,)), NetworkTimes((4, 6), (2.5,)))
    setting = TableSetting.here(graph, batch=1, threads=1)
    assert LatencyTable(graph, setting, operators, networks).remainder == (0.0, 0.0)


def test_many_counts_are_looked_up_at_once(measurement):
    table, rng = measurement.run(), np.random.default_rng(0)
    counts = np.stack([KeepSet.random(table.graph, rng).counts for _ in range(7)])
    found = table.latency_of_counts(counts)
    assert found.shape == (7,)
    np.testing.assert_allclose(found, [table.latency_of_counts(row) for row in counts])
    assert isinstance(table.latency_of_counts(counts[0]), float)
    per_operator = table.per_operator(counts)
    assert {value.shape for value in per_operator.values()} == {(7,)}
    np.testing.assert_allclose(sum(per_operator.values()) + table._remainder(counts), found)
    with pytest.raises(ValueError, match=r"shape \(2,\) or \(batch, 2\), got \(3,\)"):
        table.latency_of_counts([1, 2, 3])


def test_the_median_over_the_rounds_counts(network):
    graph = trace_network(network, torch.zeros(1, 3, 6, 6))
    shape = operator_shape(graph.operators[0], network, graph)
    rounds = (((1.0, 5.0),), ((9.0, 6.0),), ((2.0, 7.0),))
    times = OperatorTimes(shape, ("conv1",), (3,), (4, 8), rounds)
    assert times.medians.tolist() == [[2.0, 6.0]]


def test_a_saved_table_gives_the_same_latencies(measurement, tmp_path):
    table = measurement.run()
    path = tmp_path / "table.json"
    table.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
    for graph in (table.graph, table.graph.rounded(8)):  # rounding changes no latency
        loaded = LatencyTable.load(path, graph, batch=2, threads=1)
        assert loaded.latency_of_counts([3, 5]) == table.latency_of_counts([3, 5])
        assert loaded.setting == table.setting
        assert loaded.operators == table.operators
    json.loads(path.read_text())


def test_tables_for_something_else_are_refused(measurement, tmp_path, network):
    path = tmp_path / "table.json"
    measurement.run().save(path)
    graph = measurement.graph
    with pytest.raises(ValueError, match=r"batch 2 instead of 4, threads 1 instead of 3.*another"):
        LatencyTable.load(path, graph, batch=4, threads=3)
    other = trace_network(network, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=f"is for the network graph {graph.fingerprint}"):
        LatencyTable.load(path, other, batch=2, threads=1)
    with pytest.raises(ValueError, match="batch of 1 or more, got 0"):
        LatencyTable.load(path, graph, batch=0, threads=1)
    with pytest.raises(FileNotFoundError):
        LatencyTable.load(tmp_path / "none.json", graph, batch=2, threads=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04\x95", "is not a latency table"),
        (b"[1, 2]", "found 'list'"),
        (b'{"format": "topiary-latency-table-1"}', "not a complete latency table.*setting"),
    ],
)
def test_other_files_are_refused(content, message, measurement, tmp_path):
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        LatencyTable.load(path, measurement.graph, batch=2, threads=1)


def test_a_table_of_another_machine_is_used_with_a_warning(measurement, tmp_path, caplog):
    table = measurement.run()
    path = tmp_path / "table.json"
    setting = dataclasses.replace(table.setting, hardware="Abacus, 10 cores")
    dataclasses.replace(table, setting=setting).save(path)
    with caplog.at_level(logging.WARNING):
        loaded = LatencyTable.load(path, table.graph, batch=2, threads=1)
    assert "hardware 'Abacus, 10 cores' instead of" in caplog.text
    assert loaded.latency_of_counts([3, 5]) == table.latency_of_counts([3, 5])


def test_an_interrupted_measurement_goes_on_with_what_was_saved(clock, network, tmp_path):
    inputs, path = torch.zeros(2, 3, 6, 6), tmp_path / "table.json"
    first, made = make(network, inputs, num_rounds=3), 0
    per_round = first.num_measurements // 3

    def stop():
        nonlocal made
        made += 1
        if made == 2 * per_round + 5:  # in the third round
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(on_measurement=stop, on_round=lambda table: table.save(path))
    saved = LatencyTable.read(path, first.graph)
    assert saved.num_rounds == 2
    second = make(network, inputs, num_rounds=3, previous=saved)
    assert second.num_measurements == per_round
    made = -1000
    table = second.run(on_measurement=stop)
    assert made == -1000 + per_round
    assert table.num_rounds == 3
    assert make(network, inputs, num_rounds=3, previous=table).num_measurements == 0
    wider = make(network, inputs, num_rounds=3, previous=table, fractions=(0.3,))
    assert wider.num_measurements > 0  # another grid is measured anew


def test_an_unfinished_table_cannot_be_looked_up(measurement, tmp_path):
    path = tmp_path / "table.json"
    measurement.table.save(path)
    with pytest.raises(ValueError, match=r"is not finished.*goes on where it stopped"):
        LatencyTable.load(path, measurement.graph, batch=2, threads=1)


def test_measurements_of_another_setting_are_not_mixed(measurement, network):
    table = measurement.run()
    setting = dataclasses.replace(table.setting, torch_version="1.0")
    previous = dataclasses.replace(table, setting=setting)
    with pytest.raises(ValueError, match=r"another setting: torch_version '1\.0' instead of"):
        make(network, torch.zeros(2, 3, 6, 6), previous=previous)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": ()}, r"in \(0, 1\], got \[\]"),
        ({"fractions": (0.5, 1.5)}, r"got \[0\.5, 1\.5\]"),
        ({"num_rounds": 0}, "at least 1 round, got 0"),
        ({"seconds": 0.0}, r"more than 0 s, got 0\.0"),
    ],
)
def test_impossible_options_are_refused(options, message, network):
    with pytest.raises(ValueError, match=message):
        make(network, torch.zeros(2, 3, 6, 6), **options)


@pytest.mark.parametrize("name", [*SINGLE_INPUT, "vit"])
def test_every_operator_is_run_at_its_own_size_and_at_all_widths(name):
    network, inputs = (vit().eval(), (torch.zeros(1, 3, 32, 32),)) if name == "vit" else build(name)
    graph = trace_network(network, inputs)
    measurement = make(network, inputs[0])
    scratch = Scratch()
    by_name = {n: times for times in measurement.table.operators for n in times.names}
    assert set(by_name) == set(graph.operator_by_name)
    for operator in graph.operators:
        times = by_name[operator.name]
        shape = times.shape
        output = operator_call(shape, shape.main_width, shape.out_width, 3, scratch)()
        assert len(output) == 3 * shape.repeat
        if operator.kind == "conv":
            assert tuple(output.shape[1:]) == (shape.out_width, *operator.output_size)
        elif operator.kind == "linear":
            assert output.numel() == 3 * shape.repeat * operator.positions * shape.out_width
        else:
            queries, keys = shape.input_size
            assert queries * keys == operator.positions
            last = shape.out_width // shape.groups or keys  # q k^T alone has one column per key
            assert tuple(output.shape[1:]) == (shape.groups, queries, last)
        for n_in in times.in_widths:
            for n_out in times.out_widths:
                operator_call(shape, n_in, n_out, 1, scratch)()


def test_the_configuration_is_that_of_the_module():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2, padding_mode="zeros")
            self.b = nn.Conv2d(8, 8, 3, padding="same", groups=2, bias=False)
            self.c = nn.Conv2d(8, 16, 5, padding=1, groups=8)
            self.d = nn.ConvTranspose2d(16, 4, 2, stride=2, output_padding=0)
            self.weight = nn.Parameter(torch.zeros(5, 4, 3, 3))

        def forward(self, x):
            x = self.d(self.c(self.b(self.a(x).relu()).relu()).relu()).relu()
            return nn.functional.conv2d(x, self.weight, padding=1).mean((2, 3))

    network = Network().eval()
    graph = trace_network(network, torch.zeros(1, 3, 16, 16))
    a, b, c, d, e = (operator_shape(op, network, graph) for op in graph.operators)
    assert (a.stride, a.padding, a.dilation, a.bias) == ((2, 2), (2, 2), (2, 2), True)
    assert (a.in_varies, a.out_varies) == (False, True)
    assert (b.padding, b.groups, b.bias, b.multiple) == ((1, 1), 2, False, 2)
    assert (c.depthwise, c.is_tied, c.multiple) == (True, True, 1)
    assert (d.kind, d.output_padding, d.kernel_size) == ("transposed", (0, 0), (2, 2))
    assert (e.padding, e.bias, e.out_varies) == ((1, 1), False, False)


def test_equal_operators_are_measured_once():
    network = vit().eval()
    measurement = make(network, torch.zeros(1, 3, 32, 32))
    times = measurement.table.operators
    assert sum(len(entry.names) for entry in times) == len(measurement.graph.operators)
    assert len(times) < len(measurement.graph.operators) / 2
    attention = next(entry for entry in times if entry.shape.kind == "attention")
    heads = next(g for g in measurement.graph.groups if g.kind == "heads")
    assert attention.shape.groups == heads.size
    head_width = attention.shape.in_width // heads.size
    assert all(width % head_width == 0 for width in attention.in_widths)
    assert attention.in_widths[0] == head_width


def test_calls_are_timed_in_inference_mode_and_threads_are_restored():
    seen = []
    threads = torch.get_num_threads()

    def call():
        seen.append((torch.is_inference_mode_enabled(), torch.get_num_threads()))

    seconds, number = time_call(call, threads=threads + 1, seconds=1.0, number=5)
    assert seconds > 0
    assert number == 5
    assert len(seen) >= 5
    assert set(seen) == {(True, threads + 1)}
    assert torch.get_num_threads() == threads
    assert time_call(call, threads=1, seconds=1e-9)[1] == 1


def test_a_table_of_a_real_network_is_measured_and_compared(network):
    inputs = torch.zeros(2, 3, 6, 6)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measurement = make(network, inputs, num_rounds=2, fractions=(0.5, 1.0))
    calls = []
    total = measurement.num_measurements
    table = measurement.run(on_measurement=lambda: calls.append(1))
    assert len(calls) == total
    assert measurement.num_measurements == 0
    looked_up = table.latency_of_counts([[8, 12], [2, 3]])
    measured = measure_networks(
        network, table.graph, inputs, [[8, 12], [2, 3]], threads=1, num_rounds=2, seconds=1e-3
    )
    assert measured.shape == looked_up.shape == (2,)
    assert (looked_up > 0).all()
    assert (measured > 0).all()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert isinstance(table.operators[0].shape, OperatorShape)
