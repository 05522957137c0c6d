import dataclasses
import os
import time

import pytest
import torch
from torch import nn

from pruning.latency import hardware_name, measure_latency, measure_latency_exported


class Sleeper(nn.Module):
    """Takes a known time, and notes the circumstances it ran in."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.seen = set()

    def forward(self, *inputs):
        self.seen.add((self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        time.sleep(self.seconds)
        return inputs[0]


def test_median_is_the_time_of_one_forward_pass_in_milliseconds():
    latency = measure_latency(Sleeper(0.005), torch.zeros(3, 2), min_run_time=0.1)
    assert 5.0 <= latency.median_ms < 10.0
    assert latency.iqr_ms >= 0.0


def test_everything_that_belongs_to_the_number_is_named():
    latency = measure_latency(Sleeper(0.0), (torch.zeros(3, 2), torch.zeros(1)), min_run_time=0.01)
    assert latency.batch == 3
    assert latency.threads == 1
    assert latency.runtime == "torch eager"
    assert latency.torch_version == torch.__version__
    assert latency.processor
    with pytest.raises(dataclasses.FrozenInstanceError):
        latency.median_ms = 0.0


def test_it_runs_in_eval_and_inference_mode_and_restores_mode_and_threads():
    sleeper = Sleeper(0.0).train()
    network = nn.Sequential(sleeper, nn.Dropout().eval())
    threads = torch.get_num_threads()
    measure_latency(network, torch.zeros(1), threads=threads + 1, min_run_time=0.01)
    assert sleeper.seen == {(False, True, threads + 1)}
    assert torch.get_num_threads() == threads
    assert sleeper.training
    assert not network[1].training


def test_threads_and_mode_are_restored_when_the_network_fails():
    network = nn.Linear(2, 2)
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        measure_latency(network, torch.zeros(1, 3), threads=threads + 1, min_run_time=0.01)
    assert torch.get_num_threads() == threads
    assert network.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads=0"),
        ({"min_run_time": 0.0}, "above 0 seconds, got 0.0"),
        ({"min_run_time": float("nan")}, "got nan"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(nn.Identity(), torch.zeros(1), **options)


@pytest.mark.parametrize("works", [True, False], ids=["one batch", "any batch"])
def test_a_network_is_timed_in_onnxruntime_and_left_as_it_was(works, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the optional dependencies: pip install '.[export]'")
    if not works:
        export = torch.onnx.export

        def only_new(*arguments, dynamo, **options):
            if not dynamo:
                raise RuntimeError("There is no other exporter.")
            return export(*arguments, dynamo=True, **options)

        monkeypatch.setattr(torch.onnx, "export", only_new)
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()
    before = [parameter.clone() for parameter in network.parameters()]
    latency = measure_latency_exported(network, torch.rand(5, 4), min_run_time=0.01)
    assert 0.0 < latency.median_ms < 100.0
    assert latency.batch == 5
    assert latency.runtime.startswith("onnxruntime 1.")
    assert network.training
    assert all(map(torch.equal, before, network.parameters()))


def test_a_file_that_gives_other_outputs_is_not_timed(monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the optional dependencies: pip install '.[export]'")
    wrong, export, calls = nn.Linear(4, 3).eval(), torch.onnx.export, []

    def write_another(network, *arguments, dynamo, **options):
        calls.append(dynamo)
        return export(network if dynamo else wrong, *arguments, dynamo=dynamo, **options)

    monkeypatch.setattr(torch.onnx, "export", write_another)
    measure_latency_exported(nn.Linear(4, 3).eval(), torch.rand(5, 4), min_run_time=0.01)
    assert calls == [False, True]


def test_the_hardware_is_named_with_its_cores():
    assert hardware_name().endswith(f"{os.cpu_count()} cores")
    assert torch.backends.cpu.get_cpu_capability() in hardware_name()
