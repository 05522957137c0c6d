"""Measured latency of a network, with everything that must be named beside the number."""

from __future__ import annotations

import os
import platform
import tempfile
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from pruning.onnx_runtime import open_onnx, require_packages
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


def measure_latency_exported(
    network: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    *,
    threads: int = 1,
    min_run_time: float = 0.5,
) -> Latency:
    """Time forward passes of `network` in onnxruntime, through an ONNX file that is then deleted.

    The file is for this batch size alone: torch writes that in a tenth of a second where it takes
    seconds for one of any batch size. Where it gives other outputs or cannot be written, the latter
    is timed.

    Args:
        network: on the CPU; left unchanged.
        inputs: the input, or all inputs; the first axis of each is the batch.
        threads: CPU threads, 1 or more.
        min_run_time: seconds of repeats, above 0.

    Raises:
        ValueError: `threads` or `min_run_time` out of range, the optional dependencies are not
            installed, or the network cannot be exported.
    """
    _check(threads, min_run_time)
    require_packages("onnx", "onnxruntime")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network.onnx")
        if not _written_for_one_batch(network, arguments, path):
            # Imported here: it loads torch.export, which only those who need it shall wait for.
            from pruning.export import export_onnx

            export_onnx(network, inputs, path)
        return measure_latency_onnx(path, inputs, threads=threads, min_run_time=min_run_time)


def _written_for_one_batch(network: nn.Module, arguments: tuple[Tensor, ...], path: str) -> bool:
    """Write an ONNX file with torch's older exporter; whether it is there and right."""
    with evaluation_mode(network), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = network(*arguments)
        if not isinstance(expected, Tensor):
            return False
        try:
            torch.onnx.export(network, arguments, path, dynamo=False)
            (found,) = open_onnx(path)(*arguments)
        except (
            Exception
        ):  # of many classes, without a common base; the newer exporter is tried next
            return False
    tolerance = 1e-5 * float(expected.abs().max())
    return found.shape == expected.shape and float((found - expected).abs().max()) <= tolerance


def hardware_name() -> str:
    """The CPU of this machine, its vector instructions and its number of cores."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model n")]
        name = models[0] if models and models[0] else name
    except OSError:  # only Linux has this file
        pass
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores"


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
