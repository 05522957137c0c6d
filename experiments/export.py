"""Write the pruned network of a run as ONNX and .pt2: python -m experiments.export RUN_DIR.

The key `export` of train_agent.py does the same at the end of a run, the latency aside.
As in `experiments.evaluate_pruned`, nothing a run folder names is executed unless it is part of
Topiary's own `networks` package: name a network or data of your own on the command line.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command_line import run_command
from experiments.evaluate_pruned import add_own_functions, build_run_data, load_run_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from experiments.run_folder import RunFolder
    from networks.data import SampleSet
    from pruning.export import ExportReport
    from pruning.latency import Latency

ENDINGS = ("onnx", "pt2")
"""Endings of the files that can be written; what the key `export` of a run may name."""

FORMATS = {**{ending: (ending,) for ending in ENDINGS}, "all": ENDINGS}
"""Endings of the files each choice of --format writes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the pruned network of a run, compare the files with it, and time it.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        0; a file that gives other outputs is an error.

    Raises:
        ValueError: the run is not finished, it needs a function that is not named, the network
            cannot be exported, or an exported file gives other outputs (it is deleted).
    """
    options = _parser().parse_args(arguments)
    # Imported here: --help is instant without torch.
    import torch

    from experiments.run_folder import RunFolder

    run = RunFolder(options.run)
    config = run.read_config()
    run.read_summary()  # refuses a run that never finished
    torch.set_num_threads(int(config["num_threads"]))
    reward = build_run_data(config["data"], options.data).search.reward
    network = load_run_network(run.pruned, config["network"], options.network)
    inputs = first_batch(reward, config["evaluation"]["batch_size"])
    for report in export_run(run, network, inputs, FORMATS[options.format]):
        print_export(report)
    onnx_file = run.pruned.with_suffix(".onnx") if "onnx" in FORMATS[options.format] else None
    _print_latency(network, onnx_file, reward, config["evaluation"]["latency"])
    return 0


def export_run(
    run: RunFolder, network: nn.Module, inputs: Tensor, endings: Sequence[str]
) -> Iterator[ExportReport]:
    """Write the pruned network of a run beside it, one file after the other.

    Args:
        run: its folder.
        network: its pruned network, on the CPU.
        inputs: normalised samples, at least one, that the files are compared on.
        endings: of the files, each of ENDINGS.

    Yields:
        What was written, when it is there and its outputs are those of the network.

    Raises:
        ValueError: packages are missing, the network cannot be exported, or a file gives other
            outputs (it is deleted).
    """
    from pruning.export import export_onnx, export_program

    exporters = {"onnx": export_onnx, "pt2": export_program}
    for ending in endings:
        yield exporters[ending](network, inputs, run.pruned.with_suffix(f".{ending}"))


def print_export(report: ExportReport) -> None:
    """Say in one line what was written, and how well it reproduces the network."""
    opset = "" if report.opset is None else f", opset {report.opset}"
    print(
        f"{report.path}: {report.size:,} bytes{opset}; differs from the pruned network by "
        f"{report.difference:.1e} of the largest output at most, on {report.num_given} images of "
        f"the reward split and {report.num_random} random inputs"
    )


def _print_latency(
    network: nn.Module, onnx_file: Path | None, reward: SampleSet, options: dict[str, Any]
) -> None:
    from pruning.latency import measure_latency, measure_latency_onnx

    inputs = first_batch(reward, options["batch"])
    conditions = {"threads": options["threads"], "min_run_time": options["min_run_time"]}
    latencies = [measure_latency(network, inputs, **conditions)]
    if onnx_file is not None:
        latencies.append(measure_latency_onnx(onnx_file, inputs, **conditions))
    first = latencies[0]
    threads = "thread" if first.threads == 1 else "threads"
    print(
        f"latency of the pruned network, batch {first.batch}, {first.threads} {threads}, "
        f"{first.processor}:"
    )
    for latency in latencies:
        print(f"  {_runtime(latency)}: {latency.median_ms:.3f} ms (IQR {latency.iqr_ms:.3f} ms)")


def _runtime(latency: Latency) -> str:
    is_torch = latency.runtime.startswith("torch")
    return f"{latency.runtime} {latency.torch_version}" if is_torch else latency.runtime


def first_batch(samples: SampleSet, size: int) -> Tensor:
    """The first samples, normalised as for the network."""
    inputs, _ = next(iter(samples.batches(size)))
    return inputs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.export",
        description="Write the pruned network of a run as files that other programs can run.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a finished run")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="all",
        help="onnx: for onnxruntime and others; pt2: for torch.export.load; default: all",
    )
    add_own_functions(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
