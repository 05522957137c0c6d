"""Files of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.run_folder import RunFolder, flatten, write_json, write_text
from experiments.settings import Settings

GOOD = {
    "seed": 3,
    "frozen": ["conv1", "layer1.*"],
    "attention": "head_dims",
    "round_to": 8,
    "num_threads": 2,
    "cache_dir": "cache",
    "measurements_dir": "shared",
    "fine_tune_uniform": False,
    "export": ["onnx", "pt2"],
    "search": {
        "evaluations": 5,
        "minutes": None,
        "max_timesteps": None,
        "patience": None,
        "keep": "loss",
    },
    "vec_env": {"num_envs": 4, "workers": 2},
    "evaluation": {
        "latency": {"batch": 8, "threads": 1, "min_run_time": 0.1, "onnxruntime": "auto"}
    },
}


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_text(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.run_folder.os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "summary.json", {"accuracy": float("nan")})
    assert not (tmp_path / "summary.json").exists()
    write_json(tmp_path / "summary.json", {"accuracy": 0.5})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"accuracy": 0.5}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not the folder of a run: it holds no config\.yaml"):
        RunFolder(tmp_path).read_config()


def test_a_run_without_a_summary_is_not_finished(tmp_path):
    with pytest.raises(ValueError, match=r"is not finished: it holds no summary\.json"):
        RunFolder(tmp_path).read_summary()


def test_nested_summaries_are_flattened():
    assert flatten({"base": {"macs": 3, "x": {"y": 1}}, "seed": 0}, "/") == {
        "base/macs": 3,
        "base/x/y": 1,
        "seed": 0,
    }


def test_settings_are_read():
    settings = Settings.from_config(GOOD, show_progress=False)
    assert (settings.seed, settings.num_threads, settings.evaluations) == (3, 2, 5)
    assert settings.minutes is None
    assert (settings.num_envs, settings.workers) == (4, 2)
    assert settings.latency_seconds == 0.1
    assert settings.latency_onnxruntime is None
    assert settings.round_to == 8
    assert settings.measurements_dir == Path("shared")
    assert not settings.fine_tune_uniform
    assert settings.keep == "loss"
    assert settings.export == ("onnx", "pt2")
    assert (settings.frozen, settings.attention) == (("conv1", "layer1.*"), "head_dims")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, r"seed must be a whole number, in \[0, 4294967295\], got -1"),
        ({"seed": "abc"}, r"seed must be a whole number.*got 'abc'"),
        ({"seed": True}, r"seed must be a whole number.*got True"),
        ({"frozen": "conv1"}, r"frozen must be a list of names or shell patterns.*got 'conv1'"),
        ({"attention": "tails"}, r"attention must be one of heads, head_dims, none, got 'tails'"),
        (
            {"search": {**GOOD["search"], "keep": "macs"}},
            r"search\.keep must be one of reward, accuracy, loss, got 'macs'",
        ),
        ({"round_to": 0}, r"round_to must be a whole number, 1 or more, got 0"),
        ({"round_to": 2.0}, r"round_to must be a whole number.*got 2\.0"),
        (
            {"evaluation": {"latency": {**GOOD["evaluation"]["latency"], "onnxruntime": "yes"}}},
            r"evaluation\.latency\.onnxruntime must be auto, true or false, got 'yes'",
        ),
        ({"num_threads": 0}, r"num_threads must be a whole number, 1 or more, got 0"),
        (
            {"vec_env": {"num_envs": 2, "workers": 3}},
            r"vec_env\.workers must be a whole number, in \[0, 2\], got 3",
        ),
        ({"cache_dir": None}, r"cache_dir must be a folder, got None"),
        ({"measurements_dir": ""}, r"measurements_dir must be null or a folder, got ''"),
        ({"fine_tune_uniform": "no"}, r"fine_tune_uniform must be true or false, got 'no'"),
        ({"export": "tflite"}, r"export must be null, one of onnx, pt2, or a list of them"),
        (
            {"search": {**GOOD["search"], "evaluations": 0}},
            r"search\.evaluations must be a whole number, 1 or more, got 0",
        ),
        (
            {"search": {**GOOD["search"], "minutes": 0}},
            r"search\.minutes must be a number above 0 or null, got 0",
        ),
        (
            {"search": {**GOOD["search"], "max_timesteps": 1.5}},
            r"search\.max_timesteps must be a whole number, 1 or more, got 1\.5",
        ),
        (
            {"evaluation": {"latency": {**GOOD["evaluation"]["latency"], "batch": 0}}},
            r"evaluation\.latency\.batch must be a whole number, 1 or more, got 0",
        ),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings.from_config({**GOOD, **changes}, show_progress=False)


def test_a_resumed_search_keeps_what_was_measured_and_fine_tuned(tmp_path):
    run = RunFolder(tmp_path)
    kept = (run.config, run.journal, run.fine_tuning("pruned"), run.fine_tuning("uniform"))
    for path in (*kept, run.metrics, run.summary):
        path.touch()
    run.forget_results(evaluations=False)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    run.forget_results(evaluations=True)
    assert list(tmp_path.iterdir()) == [run.config]
