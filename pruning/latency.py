"""Measured latency of a network, with everything that must be named beside the number."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from pruning.onnx_runtime import open_onnx
from pruning.recalibration import evaluation_mode


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass; comparable only where all other fields are equal.

    Attributes:
        median_ms: median time of one forward pass of the whole batch, in milliseconds.
        iqr_ms: interquartile range of the repeats, in milliseconds; large on a busy machine.
        batch: samples per forward pass.
        threads: CPU threads.
        runtime: what ran the network.
        torch_version: version of torch.
        processor: CPU or GPU it ran on.
    """

    median_ms: float
    iqr_ms: float
    batch: int
    threads: int
    runtime: str = "torch eager"
    torch_version: str = str(torch.__version__)
    processor: str = ""


def measure_latency(
    network: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    threads: int = 1,
    min_run_time: float = 0.5,
) -> Latency:
    """Time forward passes of `network` as it is, in eval and inference mode, on its own device.

    Latency does not follow MACs and depends on the runtime, the batch and the load of the
    machine: quote the spread, and compare only numbers taken side by side.

    Args:
        network: left unchanged, mode flags included.
        inputs: the input, or all inputs; the first axis of the first one is the batch.
        threads: CPU threads, 1 or more; the number set before is restored.
        min_run_time: seconds of repeats, above 0.

    Raises:
        ValueError: `threads` or `min_run_time` out of range.
    """
    _check(threads, min_run_time)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    timer = Timer(
        "network(*arguments)",
        globals={"network": network, "arguments": arguments},
        num_threads=threads,
    )
    with evaluation_mode(network), torch.inference_mode():
        measurement = timer.blocked_autorange(min_run_time=min_run_time)
    return Latency(
        median_ms=measurement.median * 1e3,
        iqr_ms=measurement.iqr * 1e3,
        batch=len(arguments[0]),
        threads=threads,
        torch_version=str(torch.__version__),
        processor=_processor(arguments[0].device),
    )


def measure_latency_onnx(
    path: str | os.PathLike[str],
    inputs: Tensor | tuple[Tensor, ...],
    *,
    threads: int = 1,
    min_run_time: float = 0.5,
) -> Latency:
    """Time forward passes of an ONNX file in onnxruntime, on the CPU.

    Args:
        path: the file, such as one of `pruning.export.export_onnx`.
        inputs: the input, or all inputs; the first axis of the first one is the batch.
        threads: CPU threads, 1 or more.
        min_run_time: seconds of repeats, above 0.

    Raises:
        ValueError: `threads` or `min_run_time` out of range, onnxruntime is not installed or
            cannot run the file, or the file has another number of inputs.
        FileNotFoundError: there is no such file.
    """
    _check(threads, min_run_time)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    network = open_onnx(path, threads=threads)
    timer = Timer(
        "network.run(feeds)",
        globals={"network": network, "feeds": network.feeds(arguments)},
        num_threads=threads,
    )
    measurement = timer.blocked_autorange(min_run_time=min_run_time)
    return Latency(
        median_ms=measurement.median * 1e3,
        iqr_ms=measurement.iqr * 1e3,
        batch=len(arguments[0]),
        threads=threads,
        runtime=network.runtime,
        torch_version=str(torch.__version__),
        processor=_processor(torch.device("cpu")),
    )


def _check(threads: int, min_run_time: float) -> None:
    if threads < 1:
        raise ValueError(f"Latency needs at least 1 thread, got threads={threads}.")
    if not min_run_time > 0:
        raise ValueError(f"min_run_time must be above 0 seconds, got {min_run_time}.")


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # platform.processor() is empty on many Linux systems.
    name = platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
