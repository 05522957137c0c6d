"""Reload a pruned network and test it: python -m experiments.evaluate_pruned RUN_DIR.

Nothing a run folder names is executed unless it is part of Topiary's own `networks` package: name a
network, data or metric of your own on the command line.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command_line import EXIT_BUG, run_command

if TYPE_CHECKING:
    from torch import nn

    from networks.data import DataSplits, SampleSet


def main(arguments: Sequence[str] | None = None) -> int:
    """Test the pruned network of a run on the test split.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        0 when the accuracy equals that of `summary.json` to the last image, 1 otherwise.

    Raises:
        ValueError: the run is not finished, or it needs a function that is not named.
    """
    options = _parser().parse_args(arguments)
    # Imported here: --help is instant without torch.
    import torch

    from experiments.run_folder import RunFolder

    run = RunFolder(options.run)
    config, expected = run.read_config(), run.read_summary()["pruned_file"]
    torch.set_num_threads(int(config["num_threads"]))
    if expected["test_correct"] is None and options.metric is None:
        raise ValueError(
            "The run was measured with a metric of its own; name it: --metric my_package.my_metric."
        )
    data = build_run_data(config["data"], options.data)
    network = load_run_network(run.pruned, config["network"], options.network)
    accuracy = _test(network, data.test, config["evaluation"], options.metric)
    is_equal = accuracy == expected["test_accuracy"] and len(data.test) == expected["test_images"]
    print(f"{run.pruned}: {_counted(accuracy, len(data.test))}")
    recorded = _counted(expected["test_accuracy"], expected["test_images"])
    print(f"{run.summary}: {recorded}, {expected['reproduces']}")
    print("Equal to the last image." if is_equal else "DIFFERENT.")
    return 0 if is_equal else EXIT_BUG


def build_run_data(options: Mapping[str, Any], own: str | None) -> DataSplits:
    """The splits of a finished run.

    Args:
        options: section `data` of its config.
        own: dotted path of the function that builds them, named by the user and not by a file.

    Raises:
        ValueError: the run needs a function that is not part of Topiary and was not named.
    """
    from experiments.building import build_data

    target = options["_target_"]
    if own is None and not target.startswith("networks."):
        raise ValueError(
            f"The data of the run is built by {target}, which is not part of Topiary and is not "
            f"run from a file. If you trust it, name it: --data {target}."
        )
    return build_data({**options, "_target_": own or target})


def load_run_network(file: Path, options: Mapping[str, Any], own: str | None) -> nn.Module:
    """The pruned network of a finished run, in eval mode.

    Args:
        file: its safetensors file.
        options: section `network` of its config.
        own: dotted path of the function that builds the unpruned network, named by the user; None
            for a network of Topiary's.

    Raises:
        ValueError: the file is damaged, or needs a function that was not named.
        FileNotFoundError: there is no such file.
    """
    from experiments.building import build_network
    from pruning.artefact import load_pruned

    target = options["_target_"]
    if own is None and not target.startswith("networks."):
        raise ValueError(
            f"The network of the run is built by {target}, which is not part of Topiary and is not "
            f"run from a file. If you trust it, name it: --network {target}."
        )
    if own is None:
        return load_pruned(file)
    unpruned = build_network({**options, "_target_": own, "checkpoint": None})
    return load_pruned(file, unpruned)


def _test(
    network: nn.Module, test: SampleSet, evaluation: Mapping[str, Any], metric: str | None
) -> float:
    """Accuracy on the test split, computed as the final report does."""
    from experiments.building import locate
    from pruning.evaluation import top1_accuracy
    from pruning.outputs import outputs_and_targets

    outputs, targets = outputs_and_targets(
        network, test, evaluation["batch_size"], channels_last=evaluation["channels_last"]
    )
    compute = top1_accuracy if metric is None else locate("--metric", metric)
    return float(compute(outputs, targets))


def _counted(accuracy: float, images: int) -> str:
    return f"{accuracy:.6f} ({round(accuracy * images)} of {images} images)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate_pruned",
        description="Test the pruned network of a run in a new process.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a finished run")
    add_own_functions(parser)
    parser.add_argument(
        "--metric",
        metavar="MODULE.FUNCTION",
        help="function of (outputs, targets), when the run had its own",
    )
    return parser


def add_own_functions(parser: argparse.ArgumentParser) -> None:
    """Let the user name what builds network and data of a run; no file may."""
    for name, what in (
        ("network", "builds the unpruned network, when it is not one of Topiary's"),
        ("data", "builds the splits, when they are not Topiary's"),
    ):
        parser.add_argument(f"--{name}", metavar="MODULE.FUNCTION", help=what)


if __name__ == "__main__":
    run_command(main)
