"""Measures Topiary itself: python -m experiments.benchmark engine (or evaluation, importance).

Every figure stands beside its yardstick of the same run, because machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments import benchmark_evaluation, benchmark_importance
from experiments.command_line import run_command
from graphs.tracing import trace_network
from networks.digits import digits_resnet
from networks.mobilenet import mobilenet_v2
from networks.resnet import cifar_resnet
from networks.vgg import vgg16_bn
from networks.vit import vit
from pruning.cost import CostModel
from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits_resnet": (digits_resnet, (1, 1, 8, 8)),
    "resnet20": (lambda: cifar_resnet(20), (1, 3, 32, 32)),
    "resnet56": (lambda: cifar_resnet(56), (1, 3, 32, 32)),
    "resnet56_B": (lambda: cifar_resnet(56, shortcut="B"), (1, 3, 32, 32)),
    "mobilenet_v2": (mobilenet_v2, (1, 3, 32, 32)),
    "vgg16_bn": (vgg16_bn, (1, 3, 32, 32)),
    "vit": (vit, (1, 3, 32, 32)),
}
"""Networks by name, with the shape they are traced at."""

OTHERS: dict[str, Callable[[Sequence[str]], int]] = {
    "evaluation": benchmark_evaluation.main,
    "importance": benchmark_importance.main,
}
"""Benchmarks with options of their own."""

FORWARD_BATCH = 32
"""Images of the bare forward pass that structural work is compared with."""


@dataclass(frozen=True)
class EngineFigures:
    """What the engine costs on one network; times are medians.

    Attributes:
        groups: dependency groups.
        analysis_s: seconds of one trace.
        structural_ms: milliseconds to slice, swap in and restore one random keep-set.
        forward_ms: milliseconds of the bare unpruned forward of FORWARD_BATCH images.
        cost_us: microseconds of one analytic MAC count.
        worst_difference: largest |slim - masked| over random keep-sets, relative.
        macs_equal: configurations whose analytic MACs equal torch's count, and how many were tried.
        tensors_grown: live tensors after the episodes minus before.
        episodes: number of those episodes.
    """

    groups: int
    analysis_s: float
    structural_ms: float
    forward_ms: float
    cost_us: float
    worst_difference: float
    macs_equal: tuple[int, int]
    tensors_grown: int
    episodes: int


def measure_engine(
    network: nn.Module, shape: tuple[int, ...], *, episodes: int = 500, configurations: int = 5
) -> EngineFigures:
    """Measure the engine on one network.

    Args:
        network: any traceable network; left as it is.
        shape: shape of its input, batch axis included.
        episodes: random keep-sets that are applied and undone.
        configurations: random keep-sets that are counted and compared.
    """
    network.eval()
    example = torch.randn(shape)
    analysis = [_seconds(lambda: trace_network(network, example)) for _ in range(3)]
    graph = trace_network(network, example)
    slimmer, cost = Slimmer(network, graph, verify=False), CostModel(graph)
    rng = np.random.default_rng(0)
    keeps = [KeepSet.random(graph, rng) for _ in range(20)]

    def episode(keep: KeepSet) -> None:
        with slimmer.applied(keep):
            pass

    structural = [_seconds(lambda keep=keep: episode(keep)) for keep in keeps]  # type: ignore[misc]
    counts = keeps[0].counts
    cost_seconds = [_seconds(lambda: cost.macs_of_counts(counts)) for _ in range(1000)]
    batch = torch.randn((FORWARD_BATCH, *shape[1:]))
    with torch.inference_mode():
        forward = [_seconds(lambda: network(batch)) for _ in range(5)]
    before = _live_tensors()
    for number in range(episodes):
        episode(keeps[number % len(keeps)])
    return EngineFigures(
        groups=len(graph.groups),
        analysis_s=statistics.median(analysis),
        structural_ms=1e3 * statistics.median(structural),
        forward_ms=1e3 * statistics.median(forward),
        cost_us=1e6 * statistics.median(cost_seconds),
        worst_difference=slimmer.verify(configurations),
        macs_equal=(
            sum(_is_counted(slimmer, cost, keep, shape) for keep in keeps[:configurations]),
            configurations,
        ),
        tensors_grown=_live_tensors() - before,
        episodes=episodes,
    )


def with_random_norms(network: nn.Module) -> nn.Module:
    """The network with random norm parameters and statistics; fresh ones hide mistakes."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return network


def _is_counted(slimmer: Slimmer, cost: CostModel, keep: KeepSet, shape: tuple[int, ...]) -> bool:
    """Whether torch counts the analytic MACs on the slim network."""
    on_meta = copy.deepcopy(slimmer.materialize(keep)).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(torch.empty((1, *shape[1:]), device="meta"))
    return counter.get_total_flops() == 2 * cost.macs(keep)


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


def _print(figures: dict[str, EngineFigures], console: Console) -> None:
    table = Table(title=f"The engine, {torch.get_num_threads()} thread(s), medians")
    columns = (
        "network", "groups", "analysis s", "structural ms", f"forward of {FORWARD_BATCH} ms",
        "ratio",
        "cost µs", "worst |slim − masked|", "MACs = counted", "tensors grown",
    )  # fmt: skip
    for name in columns:
        table.add_column(name, justify="left" if name == "network" else "right")
    for name, row in figures.items():
        table.add_row(
            name,
            str(row.groups),
            f"{row.analysis_s:.2f}",
            f"{row.structural_ms:.2f}",
            f"{row.forward_ms:.1f}",
            f"{row.structural_ms / row.forward_ms:.3f}",
            f"{row.cost_us:.0f}",
            f"{row.worst_difference:.1e}",
            f"{row.macs_equal[0]} of {row.macs_equal[1]}",
            f"{row.tensors_grown} in {row.episodes}",
        )
    console.print(table)
    console.print("structural: slice, swap in and restore one random keep-set, per episode.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark and print its table.

    Returns:
        0, or 1 when a count or a comparison is wrong.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in OTHERS:
        return OTHERS[arguments[0]](arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark",
        description=__doc__,
        epilog=f"The options are those of engine. {' and '.join(OTHERS)} have their own: --help.",
    )
    parser.add_argument("benchmark", choices=["engine", *OTHERS], help="what is measured")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--episodes", type=int, default=500, help="apply and undo so often")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    options = parser.parse_args(arguments)
    for name in ("episodes", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, got {getattr(options, name)}.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    figures = {}
    for name in options.networks:
        build, shape = NETWORKS[name]
        network = with_random_norms(build())
        figures[name] = measure_engine(network, shape, episodes=options.episodes)
    _print(figures, Console(width=150))
    right = all(
        row.macs_equal[0] == row.macs_equal[1] and row.worst_difference < 1e-4
        for row in figures.values()
    )
    return 0 if right else 1


if __name__ == "__main__":
    run_command(main)
