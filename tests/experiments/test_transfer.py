"""The study of transfer: what is counted, refused, done once, and reported."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from experiments.command_line import CONFIG_FOLDER
from experiments.comparison_rows import Row
from experiments.transfer import run_study
from experiments.transfer_networks import read_sources
from experiments.transfer_results import (
    LONG_SCRATCH,
    SCRATCH,
    TRANSFERRED,
    ZERO_SHOT,
    SeedRuns,
    curve,
    values,
)
from experiments.transfer_runs import Measurement, SearchRun

KNOWN = {"narrow": ["network=digits_resnet", "+network.width=8"]}
SMALL = (
    "+network.width=4",
    "+network.blocks=[1,1,1]",
    "pretrain.epochs=1",
    "agent=one_plus_one",
    "encoder=none",
    "search.evaluations=4",
    "transfer.source_evaluations=5",
    "transfer.seeds=[0]",
    "transfer.training.updates=3",
    "transfer.training.plans=4",
    "progress_bar=false",
)
SOURCES = (
    "transfer.sources=['a: +network.width=4 +network.blocks=[1,1,1] pretrain.epochs=1',"
    "{b: ['+network.width=4', '+network.blocks=[1,2,1]', 'pretrain.epochs=1']}]"
)
OTHER_WEIGHTS = ("pretrain.seed=5",)
"""Of the target: without them the source `a` is the target."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One cache of trained networks for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


def study(path, *overrides, folder="out"):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        given = [*SMALL, SOURCES, "transfer.name=test", *overrides]
        given = list({text.partition("=")[0]: text for text in given}.values())
        return run_study(compose("transfer", given), path / folder, given, network="digits_resnet")


def run(*rewards, free=()):
    """Measurements with these rewards; those at the positions `free` were known before."""
    counted, measurements = 0, []
    for index, reward in enumerate(rewards):
        counted += index not in free
        measurements.append(Measurement(counted, reward, reward + 2, -reward, (0.0,)))
    return SearchRun(counted, tuple(measurements), 0.0)


def test_the_best_plan_within_so_many_evaluations():
    searched = run(-1.0, -0.5, -0.2, -0.7, free=(2,))
    assert searched.evaluations == 3
    assert [searched.best_after(n).reward for n in (1, 2, 3)] == [-1.0, -0.2, -0.2]
    assert curve(searched, 3, "loss").tolist() == [1.0, 0.2, 0.2]
    with pytest.raises(ValueError, match="Nothing was measured within 0 evaluations"):
        searched.best_after(0)


def test_evaluations_of_sources_are_counted_beside_those_of_the_target():
    runs = SeedRuns(
        seed=3,
        sources={"a": run(-1.0, -1.0), "b": run(-1.0, -1.0, -1.0)},
        transferred=run(-0.5, -0.4),
        scratch=run(-0.9, -0.8, -0.7, -0.6, -0.5, -0.1, -0.05),
    )
    outcomes = runs.outcomes(2, long_scratch=True)
    told = {each.row: (each.target_evaluations, each.source_evaluations) for each in outcomes}
    assert told == {
        ZERO_SHOT: (1, 5), TRANSFERRED: (2, 5), SCRATCH: (2, 0), LONG_SCRATCH: (7, 0),
    }  # fmt: skip
    losses = {each.row: each.loss for each in outcomes}
    assert losses == {ZERO_SHOT: 0.5, TRANSFERRED: 0.4, SCRATCH: 0.8, LONG_SCRATCH: 0.05}
    assert values(outcomes, SCRATCH, "loss").tolist() == [0.8]
    rows = [each.row for each in runs.outcomes(2, long_scratch=False)]
    assert rows == [ZERO_SHOT, TRANSFERRED, SCRATCH]


def test_sources_are_names_texts_or_mappings():
    entries = ["narrow", "wide: network=digits_resnet +network.width=32", {"own": ["network=x"]}]
    assert read_sources(entries, KNOWN) == (
        Row("narrow", ("network=digits_resnet", "+network.width=8")),
        Row("wide", ("network=digits_resnet", "+network.width=32")),
        Row("own", ("network=x",)),
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["narow"], r"no network 'narow'\. Did you mean 'narrow'\?"),
        ([], "one network or more, each once"),
        (["narrow", "narrow"], "one network or more, each once"),
        (["empty:"], "one network or more, each once"),
    ],
)
def test_sources_that_cannot_be_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        read_sources(entries, KNOWN)


def test_a_study_counts_exactly_and_is_done_once(tmp_path, capsys, monkeypatch):
    accuracy = study(tmp_path, *OTHER_WEIGHTS)
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert (tmp_path / "out" / "transfer.png").stat().st_size > 1000
    spent = {
        row["row"]: (row["target_evaluations"], row["source_evaluations"]) for row in result["rows"]
    }
    assert spent == {
        "uniform": (1, 0), ZERO_SHOT: (1, 10), TRANSFERRED: (4, 10), SCRATCH: (4, 0),
        LONG_SCRATCH: (14, 0),
    }  # fmt: skip
    assert all(row in printed for row in spent)
    found = {row["row"]: row for row in result["rows"]}
    assert found[TRANSFERRED]["accuracy"] == accuracy
    assert found[TRANSFERRED]["loss"] <= found[ZERO_SHOT]["loss"]
    assert found[SCRATCH]["loss"] <= found["uniform"]["loss"]  # it begins there
    assert [source["evaluations"] for source in result["sources"]] == [5, 5]

    ours = json.loads((tmp_path / "out/seed_0/transferred/measurements.json").read_text())
    assert ours["evaluations"] == 4
    assert ours["measurements"][0]["evaluations"] == 1
    assert np.abs(ours["measurements"][0]["action"]).max() > 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/seed_0").rglob("*.json")}
    assert len(files) == 5

    def never(*args, **kwargs):
        raise AssertionError("this was done before")

    monkeypatch.setattr("experiments.transfer_runs.run_search", never)
    assert study(tmp_path, *OTHER_WEIGHTS) == accuracy
    assert files == {path: path.stat().st_mtime_ns for path in files}

    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"made with other settings.*transfer\.name=NAME"):
        study(tmp_path, *OTHER_WEIGHTS, "search.evaluations=3")

    given = f"transfer.policy='{tmp_path}/out/seed_{{seed}}/policy.safetensors'"
    study(tmp_path, *OTHER_WEIGHTS, given, "search.evaluations=1", folder="again")
    again = json.loads((tmp_path / "again" / "seed_0/transferred/measurements.json").read_text())
    assert again["evaluations"] == 1
    assert again["measurements"] == ours["measurements"][:1]  # zero-shot draws nothing
    result = json.loads((tmp_path / "again" / "transfer.json").read_text())
    assert {row["source_evaluations"] for row in result["rows"]} == {0}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["transfer.seeds=[0,0]"], r"transfer\.seeds must be different whole numbers"),
        (["transfer.policy_kwargs.offset_scale=1"], "offsets cannot be transferred"),
        (["transfer.training.plans=3"], r"plans=3 updates=3: wanted are an even number"),
        (["agent=random"], "RandomAgent cannot begin its search at a given plan"),
        (["transfer.policy=nowhere.safetensors"], r"no file nowhere.safetensors .*transfer.policy"),
        ([], "The source 'a' is the target itself"),
    ],
)
def test_studies_that_cannot_be_are_refused(tmp_path, overrides, message):
    weights = OTHER_WEIGHTS if overrides else ()
    with pytest.raises(ValueError, match=message):
        study(tmp_path, *weights, *overrides)
    assert not list(tmp_path.rglob("measurements.json"))  # refused before anything is measured
