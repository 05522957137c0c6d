"""Reading layer kind, position and pattern out of an encoder."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import probe
from experiments.probe_scores import chance, classify, regress, repeated


@pytest.fixture
def groups():
    return np.repeat(np.arange(30), 4)


def test_what_is_there_is_read_on_groups_never_seen(groups):
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"])[groups % 3]
    inputs = rng.normal(size=(120, 6))
    inputs[:, 0] += 6 * (labels == "a")
    inputs[:, 1] += 6 * (labels == "b")
    assert classify(inputs, labels, groups, folds=5, seed=0) > 0.95
    assert classify(inputs, labels, groups, folds=5, seed=0, shuffled=True) < 0.6
    assert classify(inputs, labels, groups, folds=5, seed=0, per_class=4) > 0.7
    assert chance(labels) == pytest.approx(1 / 3)


def test_what_names_the_group_alone_is_not_read(groups):
    """An embedding that only tells groups apart says nothing of a group that was held out."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(30, 8))[groups]
    labels = rng.integers(0, 2, 30)[groups]
    assert classify(inputs, labels, groups, folds=5, seed=0) < 0.75


def test_numbers_are_read_by_regression(groups):
    rng = np.random.default_rng(0)
    values = rng.random(30)[groups]
    inputs = np.stack([values, rng.normal(size=120)], axis=1)
    assert regress(inputs, values, groups, folds=5, seed=0) > 0.95
    assert regress(inputs, values, groups, folds=5, seed=0, shuffled=True) < 0.3


def test_a_probe_of_few_directions_reads_what_differs_most(groups):
    rng = np.random.default_rng(0)
    large, small = groups % 2, rng.integers(0, 2, 120)
    inputs = np.stack([9.0 * large, 0.1 * small, rng.normal(size=120)], axis=1)
    assert classify(inputs, small, groups, folds=5, seed=0) > 0.95
    assert classify(inputs, small, groups, folds=5, seed=0, directions=2) < 0.7
    assert classify(inputs, large, groups, folds=5, seed=0, directions=1) > 0.95


def test_a_class_counts_once_however_its_groups_fall():
    """A probe that knows nothing always names the larger class: right in four folds of six."""
    groups = np.repeat(np.arange(6), 5)
    labels = np.array(["a", "a", "a", "a", "b", "b"])[groups]
    score = classify(np.zeros((30, 1)), labels, groups, folds=6, seed=0)
    assert score == pytest.approx(chance(labels)) == 0.5


def test_labels_of_one_group_are_left_out():
    labels = np.array(["a", "a", "b", "b", "b"])
    assert repeated(labels, np.array([0, 0, 1, 2, 2])).tolist() == [False] * 2 + [True] * 3


def test_one_class_cannot_be_probed(groups):
    assert classify(np.ones((120, 2)), np.zeros(120), groups, folds=5, seed=0) is None


def test_the_command_probes_trained_and_untrained(tmp_path, capsys):
    small = ["+network.width=4", "pretrain.epochs=1", "search.evaluations=2", "patterns=mixed"]
    options = ["--seeds=1", "--assignments=6", "--folds=2", "--one-network"]
    arguments = [*small, f"cache_dir={tmp_path}", *options, "--output", str(tmp_path / "out")]
    assert probe.main(arguments) == 0
    assert "assigned pattern" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "probe.json").read_text())
    by_probe = {}
    for entry in result["scores"]:
        by_probe.setdefault(entry["probe"], {})[entry["source"]] = entry["of_seeds"]
    lines = (tmp_path / "out" / "probe.csv").read_text().splitlines()
    assert lines[0] == "probe,guessing,source,seed,score"
    assert len(lines) == 1 + 4 * len(by_probe)
    # "layer kind" is missing: this network has one kind of layer
    assert set(by_probe) == {
        "stage", "depth", "assigned pattern", "assigned pattern, few labels",
        "assigned pattern, 2 directions", "pattern of the next site", "which site, 2 directions",
        "stage, 2 directions",
    }  # fmt: skip
    for sources in by_probe.values():
        assert set(sources) == {"trained", "untrained", "raw node features", "shuffled labels"}
        assert all(len(values) == 1 and values[0] <= 1.0 for values in sources.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=0"], "--seeds must be 1 or more, got 0"),
        (["--folds=1"], "--folds must be 2 or more, got 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        probe.main(arguments)


def test_an_agent_without_an_encoder_is_refused(tmp_path):
    small = ["+network.width=4", "pretrain.epochs=1", f"cache_dir={tmp_path}", "--one-network"]
    with pytest.raises(ValueError, match="graph encoder"):
        probe.main([*small, "agent=random"])


def test_offsets_of_the_sites_are_refused(tmp_path):
    small = ["+network.width=4", "pretrain.epochs=1", f"cache_dir={tmp_path}", "--one-network"]
    with pytest.raises(ValueError, match=r"Set agent\.policy_kwargs\.offset_scale=0"):
        probe.main([*small, "+agent.policy_kwargs.offset_scale=1"])


def test_the_probed_agent_fits_the_further_networks(tmp_path):
    small = ["pretrain.epochs=1", "search.evaluations=2", f"cache_dir={tmp_path}"]
    options = ["--seeds=1", "--assignments=4", "--folds=2", "--output", str(tmp_path / "out")]
    assert probe.main([*small, *options]) == 0
    result = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert "assigned pattern, other network" in result["chance"]
