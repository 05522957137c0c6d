"""What was measured on the test split is measured once."""

from __future__ import annotations

import json

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments.command_line import CONFIG_FOLDER
from experiments.evaluate_pruned import main as evaluate_pruned
from experiments.identity import RunIdentity
from experiments.measurements import Measurements
from experiments.pipeline import run_job
from networks.data import SampleSet
from pruning.evaluation import Evaluation, Evaluator, NonFiniteAccuracy
from pruning.keep_set import KeepSet
from pruning.plan import Candidate, Decision

RUN = (
    "agent=random",
    "+network.width=4",
    "pretrain.epochs=1",
    "search.evaluations=2",
    "fine_tune.epochs=0",
    "evaluation.latency.min_run_time=0.01",
    "evaluation.latency.onnxruntime=false",
    "logger=csv",
)
OWN_TO_A_RUN = ("wall_seconds", "search_seconds", "latency_ms")


@pytest.fixture
def counted(monkeypatch):
    """The sample sets that evaluators were asked to measure on, one entry per time."""
    calls = []
    measure = Evaluator.measure

    def counting(self, network, samples, **options):
        calls.append(samples)
        return measure(self, network, samples, **options)

    monkeypatch.setattr(Evaluator, "measure", counting)
    return calls


@pytest.fixture
def store(make_tiny_task, tiny_data, tmp_path):
    """Makes measurements of a run of its own, all in one folder."""

    def make(samples=None, network=None, folder=tmp_path / "store", **settings):
        task = make_tiny_task()
        for name, value in settings.items():
            setattr(task.evaluator, name, value)
        return task, Measurements(task, samples or tiny_data.test, folder, network or {})

    return make


def whole(task):
    return Candidate(KeepSet.full(task.graph))


def test_another_run_finds_what_the_first_has_measured(store, counted, tmp_path):
    results = []
    for checkpoint in ("here.pt", "there.pt"):
        task, measurements = store(network={"width": 1, "checkpoint": checkpoint})
        counted.clear()  # the task itself has measured its base on the reward split
        results.append(measurements.measure(task.network, whole(task)))
        results.append(measurements.measure(task.network, whole(task)))
        assert len(counted) == (1 if checkpoint == "here.pt" else 0)
    assert len(set(results)) == 1
    expected = task.evaluator.measure(task.network, measurements._samples, channels_last=True)
    assert results[0] == expected
    (file,) = (tmp_path / "store").iterdir()
    assert json.loads(file.read_text())["accuracy"] == results[0].accuracy


def test_without_a_folder_everything_is_measured_and_nothing_kept(store, counted, tmp_path):
    task, measurements = store(folder=None)
    counted.clear()
    for _ in range(2):
        measurements.measure(task.network, whole(task))
    assert len(counted) == 2
    assert list(tmp_path.iterdir()) == []


def change_weight(task):
    with torch.no_grad():
        task.network.conv2.weight[0, 0, 0, 0] += 1e-6


def change_statistics(task):
    task.network.bn1.running_mean[0] += 1e-6


def add_unsaved_buffer(task):
    task.network.register_buffer("shift", torch.ones(1), persistent=False)


@pytest.mark.parametrize("change", [change_weight, change_statistics, add_unsaved_buffer])
def test_a_network_that_differs_anywhere_is_measured(store, counted, change):
    task, measurements = store()
    measurements.measure(task.network, whole(task))
    change(task)
    counted.clear()
    measurements.measure(task.network, whole(task))
    assert len(counted) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"batch_size": 7},
        {"wants_channels_last": False},
        {"loss": lambda outputs, targets: float(len(targets))},
        {"network": {"width": 2}},
    ],
)
def test_another_way_to_measure_is_another_measurement(store, counted, other):
    task, measurements = store()
    measurements.measure(task.network, whole(task))
    task, measurements = store(**other)
    counted.clear()
    measurements.measure(task.network, whole(task))
    assert len(counted) == 1


def test_other_images_and_another_keep_set_are_other_measurements(store, counted, tiny_data):
    task, measurements = store()
    first = measurements.measure(task.network, whole(task))
    counted.clear()
    measurements.measure(task.network, task.candidate([Decision("conv1", ratio=0.5)]))
    assert len(counted) == 1
    relabelled = SampleSet(tiny_data.test.inputs, (tiny_data.test.targets + 1) % 3)
    assert store(samples=relabelled)[1].measure(task.network, whole(task)).loss != first.loss


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"accuracy": 0.5, "lo',
        b'{"accuracy": 0.5}',
        b"[1, 2, 3]",
        b'{"accuracy": NaN, "loss": 1.0, "num_samples": 20}',
        b'{"accuracy": 0.5, "loss": 1.0, "num_samples": 19}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_measured_again_with_one_warning(store, tmp_path, caplog, content):
    task, measurements = store()
    first = measurements.measure(task.network, whole(task))
    (file,) = (tmp_path / "store").iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    for _ in range(2):
        assert measurements.measure(task.network, whole(task)) == first
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert f"{file} is ignored, and the network measured again" in warning
    assert file.read_bytes() == good


def test_a_folder_that_cannot_be_written_costs_no_measurement(store, tmp_path, caplog):
    (tmp_path / "store").write_text("a file")
    task, measurements = store()
    assert isinstance(measurements.measure(task.network, whole(task)), Evaluation)
    assert "was not kept" in caplog.text


def test_a_network_that_gives_no_number_is_not_kept(store, tmp_path):
    task, measurements = store()
    with torch.no_grad():
        task.network.fc.bias[0] = float("nan")
    for _ in range(2):
        with pytest.raises(NonFiniteAccuracy, match="outputs hold NaN"):
            measurements.measure(task.network, whole(task))
    assert not (tmp_path / "store").exists()


def without_times(value):
    if isinstance(value, dict):
        return {
            key: without_times(inner) for key, inner in value.items() if key not in OWN_TO_A_RUN
        }
    return value


def test_a_run_reports_the_same_with_and_without_the_folder(tmp_path, counted):
    summaries, measured = [], []
    for name, folder in (("plain", "null"), ("first", tmp_path / "m"), ("second", tmp_path / "m")):
        (tmp_path / name).mkdir()
        options = (*RUN, f"cache_dir={tmp_path}/cache", f"measurements_dir={folder}")
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("train_agent", overrides=options)
        counted.clear()
        identity = RunIdentity("digits_resnet", "digits", "random", "autosculpt", options)
        run_job(config, tmp_path / name, identity)
        measured.append(len(counted))
        summaries.append(without_times(json.loads((tmp_path / name / "summary.json").read_text())))
    assert summaries[0] == summaries[1] == summaries[2]
    # base, pruned and uniform on the test split, and the base on the reward split
    assert measured == [4, 4, 1]
    assert evaluate_pruned([str(tmp_path / "second")]) == 0
