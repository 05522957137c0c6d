"""Base, pruned and uniform network, measured alike."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from experiments.final_report import FinalReport, ReportOptions, counted_macs
from experiments.group_table import group_rows
from pruning.distillation import Distillation
from pruning.keep_set import KeepSet
from pruning.plan import Candidate, Decision

RECIPE = {
    "epochs": 0,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "batch_size": 8,
    "nesterov": True,
    "label_smoothing": 0.0,
    "seed": 0,
    "augment": None,
}
# conv1: 36 positions x 9 x 1 x 4; conv2: 36 x 9 x 4 x 6; fc: 6 x 3
BASE_MACS = 1296 + 7776 + 18
# convolutions 36 and 216, batch norms 8 and 12, linear 18 + 3
BASE_PARAMS = 36 + 8 + 216 + 12 + 21


@pytest.fixture
def make_report(tiny_task, tiny_data):
    def make(epochs=0, onnxruntime=False, rewound=None, **recipe):
        options = ReportOptions(
            fine_tune={**RECIPE, "epochs": epochs, **recipe},
            recalibrate=True,
            latency_batch=4,
            latency_threads=1,
            latency_seconds=0.01,
            latency_onnxruntime=onnxruntime,
            rewound=rewound,
        )
        return FinalReport(tiny_task, tiny_data, options)

    return make


def test_macs_are_counted_on_the_network_itself(tiny_task):
    network = tiny_task.network
    assert counted_macs(network, ((1, 1, 6, 6),)) == BASE_MACS
    assert next(network.parameters()).device.type == "cpu"


def test_the_base_is_neither_recalibrated_nor_fine_tuned(make_report, tiny_task):
    before = {name: value.clone() for name, value in tiny_task.network.state_dict().items()}
    base = make_report(epochs=1).base()
    assert base.report.macs == base.report.nonzero_macs == BASE_MACS
    assert base.report.params == base.report.nonzero_params == BASE_PARAMS
    assert base.report.test_accuracy_finetuned is None
    assert base.report.reward_accuracy == tiny_task.base.accuracy
    assert base.report.latency_ms > 0
    after = base.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_removed_channels_lower_macs_and_parameters(make_report, tiny_task):
    candidate = tiny_task.candidate([Decision("conv1", ratio=0.5)])
    pruned = make_report().pruned(candidate)
    assert pruned.report.macs == pruned.report.nonzero_macs == 648 + 3888 + 18
    assert pruned.report.params == 18 + 4 + 108 + 12 + 21
    assert pruned.report.test_accuracy_finetuned is None
    assert pruned.test_correct == round(pruned.report.test_accuracy * 20)


def test_masked_weights_lower_only_the_nonzero_numbers(make_report, tiny_task):
    candidate = tiny_task.candidate([Decision("conv2", pattern="plus")])
    pruned = make_report().pruned(candidate)
    assert pruned.report.macs == BASE_MACS
    assert pruned.report.nonzero_macs == 1296 + 7776 * 5 // 9 + 18
    assert pruned.report.nonzero_params == BASE_PARAMS - 216 * 4 // 9


def test_masked_weights_stay_zero_while_fine_tuning(make_report, tiny_task):
    candidate = tiny_task.candidate([Decision("conv2", pattern="plus")])
    pruned = make_report(epochs=2).pruned(candidate)
    corners = pruned.network.conv2.weight[:, :, ::2, ::2]
    assert not corners.any()
    assert pruned.report.test_accuracy_finetuned is not None
    assert pruned.test_correct == round(pruned.report.test_accuracy_finetuned * 20)


def test_the_same_recipe_gives_the_same_network_twice(make_report, tiny_task):
    candidate = tiny_task.candidate([Decision("conv1", ratio=0.5)])
    first, second = (make_report(epochs=1).pruned(candidate) for _ in range(2))
    assert torch.equal(first.network.conv2.weight, second.network.conv2.weight)
    assert first.report.test_accuracy_finetuned == second.report.test_accuracy_finetuned


def test_a_wrong_cost_model_stops_the_report(make_report, tiny_task, monkeypatch):
    monkeypatch.setattr(tiny_task.cost, "macs", lambda keep: 1)
    with pytest.raises(AssertionError, match="The cost model says 1 MACs, the slim network does"):
        make_report().pruned(tiny_task.candidate([Decision("conv1", ratio=0.5)]))


def test_group_rows_tell_channels_patterns_and_masks(tiny_task):
    decisions = [Decision("conv1", pattern="channel_0.5"), Decision("conv2", pattern="plus")]
    candidate = tiny_task.candidate(decisions)
    uniform = KeepSet.from_counts(tiny_task.graph, [3, 5])
    first, second = group_rows(tiny_task, tiny_task.plan(decisions, candidate), candidate, uniform)
    assert (first.group, first.channels, first.kept, first.uniform_kept) == ("conv1", 4, 2, 3)
    assert (first.pruning_ratio, first.uniform_pruning_ratio) == (0.5, 0.25)
    assert (first.pattern, first.masked_ratio) == ("channel_0.5", 0.0)
    assert (second.kept, second.pruning_ratio, second.pattern) == (6, 0.0, "plus")
    assert second.masked_ratio == pytest.approx(4 / 9)


def test_group_rows_without_decisions_are_whole(tiny_task):
    whole = Candidate(KeepSet.full(tiny_task.graph))
    rows = group_rows(tiny_task, tiny_task.plan([], whole), whole, whole.keep)
    assert [(row.pruning_ratio, row.pattern, row.masked_ratio) for row in rows] == [
        (0.0, "", 0.0)
    ] * 2


def test_latency_in_onnxruntime_stands_beside_that_in_torch(make_report, tiny_task):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason="needs the optional dependencies: pip install '.[export]'")
    report = make_report(onnxruntime=None)
    assert report.latency_conditions.onnxruntime is None  # nothing is measured yet
    pruned = report.pruned(tiny_task.candidate([Decision("conv1", ratio=0.5)])).report
    assert 0 < pruned.latency_onnxruntime_ms < 1000
    assert pruned.latency_onnxruntime_ms != pruned.latency_ms
    assert report.latency_conditions.onnxruntime.startswith("onnxruntime 1.")
    assert report.latency_conditions.runtime == "torch eager"


def test_latency_in_onnxruntime_can_be_turned_off(make_report, monkeypatch):
    monkeypatch.setattr("experiments.final_report.measure_latency_exported", None)
    report = make_report(onnxruntime=False)
    assert report.base().report.latency_onnxruntime_ms is None
    assert report.latency_conditions.onnxruntime is None


def test_without_the_packages_one_line_says_what_to_install(
    make_report, tiny_task, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "onnx", None)
    report = make_report(onnxruntime=None)
    with caplog.at_level("INFO"):
        networks = [report.base(), report.pruned(tiny_task.candidate([]))]
    assert [network.report.latency_onnxruntime_ms for network in networks] == [None, None]
    (line,) = [record.message for record in caplog.records if "onnxruntime" in record.message]
    assert 'pip install -e ".[export]"' in line
    assert report.latency_conditions.onnxruntime is None


def refuse():
    raise ValueError("It cannot be exported.")


def test_a_network_that_cannot_be_exported_loses_one_number_and_not_the_report(
    make_report, tiny_task, monkeypatch, caplog
):
    pytest.importorskip("onnxscript", reason="needs the optional dependencies")
    for name in ("pruning.export._program", "torch.onnx.export"):
        monkeypatch.setattr(name, lambda *_, **__: refuse())
    with caplog.at_level("INFO"):
        network = make_report(onnxruntime=True).base()
    assert network.report.latency_onnxruntime_ms is None
    assert network.report.latency_ms > 0
    assert "It cannot be exported." in caplog.text


def test_fine_tuning_starts_from_the_rewound_weights(make_report, tiny_task):
    rewound = copy.deepcopy(tiny_task.network)
    with torch.no_grad():
        for index, parameter in enumerate(rewound.parameters()):
            parameter.fill_(float(index + 1))
    candidate = tiny_task.candidate([Decision("conv1", ratio=0.5)])
    report = make_report(epochs=1, rewound=rewound, learning_rate=1e-12)
    plain = make_report().pruned(candidate).report
    pruned = report.pruned(candidate)
    assert pruned.report.test_accuracy == plain.test_accuracy  # before: the pruned weights
    for index, parameter in enumerate(pruned.network.parameters()):
        torch.testing.assert_close(parameter, torch.full_like(parameter, index + 1.0))
    assert pruned.network.conv1.weight.shape == (2, 1, 3, 3)


def test_the_unpruned_network_is_the_teacher(make_report, tiny_task):
    """Labels left out, a hot student ends nearer to the base than without a teacher."""
    candidate = tiny_task.candidate([Decision("conv1", ratio=0.5)])
    before = copy.deepcopy(tiny_task.network.state_dict())
    images = tiny_task.search.train.inputs
    teaching = Distillation(temperature=1.0, weight=1.0)

    def distance(**recipe):
        student = make_report(epochs=30, **recipe).pruned(candidate).network
        with torch.inference_mode():
            return float(teaching.distance(student(images), tiny_task.network(images)))

    assert distance(distillation=teaching) < 0.5 * distance()
    after = tiny_task.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
