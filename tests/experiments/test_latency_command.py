"""The command that measures a latency table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import latency_table
from experiments.command_line import explain
from experiments.latency_table import rank_correlation
from graphs.tracing import trace_network
from networks.digits import digits_resnet, digits_splits
from pruning.latency_table import LatencyTable

SMALL = (
    "+network.width=4",
    "+network.blocks=[1,1,1]",
    "evaluation.latency.batch=2",
    "--rounds=1",
    "--seconds=1e-5",
    "--fractions=0.5,1",
    "--check=3",
)


def test_a_table_is_written_checked_and_kept(tmp_path, capsys):
    path = tmp_path / "table.json"
    assert latency_table.main([*SMALL, str(path)]) == 0
    printed = capsys.readouterr().out
    assert "batch 2, 1 thread, torch eager" in printed
    assert f"{path}: 1 rounds" not in printed
    assert f"{path}: 1 round" in printed
    assert (
        sum(line.endswith(tuple("0123456789")) and " ms" in line for line in printed.splitlines())
        == 3
    )
    correlation = float(printed.split("rank correlation ")[1])
    assert -1.0 <= correlation <= 1.0

    network = digits_resnet(width=4, blocks=(1, 1, 1))
    graph = trace_network(network, digits_splits().search.calibration.inputs[:1])
    table = LatencyTable.load(path, graph, batch=2, threads=1)
    assert table.latency_of_counts([g.size for g in graph.groups]) > 0

    written = path.read_text()
    assert latency_table.main([str(path), *SMALL, "--check=0"]) == 0
    assert "0 measurements to make" in capsys.readouterr().out
    assert path.read_text() == written
    assert latency_table.main([*SMALL, str(path), "--rounds=2", "--check=0"]) == 0
    assert len(json.loads(path.read_text())["operators"][0]["rounds"]) == 2


def test_a_file_of_another_setting_is_left_alone(tmp_path):
    path = tmp_path / "table.json"
    latency_table.main([*SMALL, str(path), "--check=0"])
    written = path.read_text()
    with pytest.raises(ValueError, match="batch 2 instead of 3") as refused:
        latency_table.main([*SMALL, str(path), "evaluation.latency.batch=3"])
    assert explain(refused.value) == str(refused.value)
    with pytest.raises(ValueError, match="is for the network graph"):
        latency_table.main([*SMALL[1:], str(path), "+network.width=8"])
    assert path.read_text() == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["agent=ppo"], "one file to write that ends in .json, got no file"),
        (["a.json", "b.json"], r"got a\.json b\.json"),
        (["table.csv"], r"got table\.csv"),
        (["none/table.json"], "There is no folder none"),
        (["table.json", "evaluation.latency.batch=0"], r"evaluation\.latency\.batch must be"),
        (["table.json", "--check=-1"], "--check must be 0 or more, got -1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        latency_table.main(arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, 2.0, 3.0], [10.0, 20.0, 90.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], 0.8),  # 1 - 6 * 2 / (4 * 15)
        ([1.0, 1.0, 2.0], [1.0, 2.0, 3.0], np.sqrt(3) / 2),
    ],
)
def test_rank_correlation(first, second, expected):
    assert rank_correlation(np.array(first), np.array(second)) == pytest.approx(expected)


def test_rank_correlation_of_equal_values_is_not_a_number():
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
