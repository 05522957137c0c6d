"""The table of importances: which networks are measured, and how the table is written."""

from __future__ import annotations

import csv

import pytest
import torch

from experiments.benchmark import main
from experiments.benchmark_importance import (
    COLUMNS,
    ImportanceRow,
    ImportanceTable,
    measure_importances,
)
from pruning.keep_set import KeepSet
from pruning.recalibration import recalibrate_batch_norm
from pruning.reconstruction import LeastSquares


@pytest.fixture
def table():
    rows = (
        ImportanceRow("l1", {column: 0.1 * i for i, column in enumerate(COLUMNS)}),
        ImportanceRow("bn_gamma", {}, "it has no batch norm"),
    )
    return ImportanceTable("my_network", "digits", 0.499, 0.9925, 400, 100, rows)


def test_every_column_measures_its_own_network(tiny_task, tiny_data):
    calibration = tiny_data.search.calibration
    cells = []
    (row,) = measure_importances(
        tiny_task, tiny_data.test, [2, 3], importances=["l1"], settings=LeastSquares(ridge=1e-3),
        calibration=calibration, advance=lambda: cells.append(1),
    )  # fmt: skip
    assert len(cells) == len(COLUMNS)
    keep = KeepSet.from_counts(tiny_task.graph, [2, 3], tiny_task.scores)
    for column, (mode, recalibrate) in COLUMNS.items():
        overlay = {}
        if mode is not None:
            refit = LeastSquares(mode=mode, ridge=1e-3)
            refit = refit.bind(tiny_task.slimmer, calibration, recalibrate=recalibrate)
            overlay = refit.overlay(keep)
            assert "conv2.weight" in overlay
        slim = tiny_task.slimmer.materialize(keep, overlay=overlay)
        if recalibrate:
            recalibrate_batch_norm(slim, calibration)
        with torch.no_grad():
            found = slim(tiny_data.test.inputs).argmax(1)
        expected = (found == tiny_data.test.targets).double().mean().item()
        assert row.accuracies[column] == pytest.approx(expected)


def test_an_importance_that_cannot_score_the_network_is_a_row_with_a_reason(tiny_task, tiny_data):
    cells = []
    rows = measure_importances(
        tiny_task, tiny_data.test, [2, 3], importances=["l1", "fpgm"], settings=LeastSquares(),
        calibration=tiny_data.search.calibration, scope="nothing", advance=lambda: cells.append(1),
    )  # fmt: skip
    assert [row.importance for row in rows] == ["l1", "fpgm"]
    assert all("scope must be one of" in row.reason and row.accuracies == {} for row in rows)
    assert len(cells) == 2 * len(COLUMNS)


def test_the_table_as_markdown_and_csv(table):
    lines = table.to_markdown().splitlines()
    assert "49.9% of the MACs" in lines[0]
    assert "unpruned 99.25%" in lines[0]
    assert lines[2].split(" | ")[1:] == [*list(COLUMNS)[:-1], f"{list(COLUMNS)[-1]} |"]
    assert lines[4] == "| l1 | 0.00% | 10.00% | 20.00% | 30.00% | 40.00% | 50.00% |"
    assert lines[5] == "| bn_gamma | - | - | - | - | - | - |"
    assert "- bn_gamma: it has no batch norm" in lines
    first, second = csv.DictReader(table.to_csv().splitlines())
    assert float(first["BN"]) == pytest.approx(0.1)
    assert second == {"importance": "bn_gamma", **dict.fromkeys(COLUMNS, "")}


def test_the_command_measures_the_network_of_the_config(tmp_path, capsys):
    arguments = [
        "importance", "--importances", "l1", "--images", "50", "--output", str(tmp_path / "out"),
        "budget.relative_macs=0.6", "pretrain.epochs=1", f"cache_dir={tmp_path}",
        "+network.width=4", "+network.blocks=[1,1,1]", "progress_bar=false",
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "digits_resnet on digits" in printed
    (row,) = csv.DictReader((tmp_path / "out" / "importance.csv").read_text().splitlines())
    assert all(0 <= float(row[column]) <= 1 for column in COLUMNS)
    assert "on 50 test images" in (tmp_path / "out" / "importance.md").read_text()


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="--images must be 1 or more, got 0"):
        main(["importance", "--images", "0"])
    with pytest.raises(ValueError, match=r"no importance 'l3'.*l1, l2"):
        main(["importance", "--importances", "l1,l3"])
