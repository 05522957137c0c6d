"""Measure a latency table: python -m experiments.latency_table network=resnet56_cifar10 OUT.json.

Overrides are those of train_agent.py; the network, data, evaluation.latency.batch and .threads,
round_to, num_threads and progress_bar count. Weights play no part, so nothing is trained or loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command_line import CONFIG_FOLDER, run_command

if TYPE_CHECKING:
    import numpy as np

    from pruning.latency_table import LatencyTable
    from pruning.table_measurement import TableMeasurement


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing in a table, and compare look-ups with slim networks.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        0.

    Raises:
        ValueError: an option or override is wrong, or the file holds the table of another setting.
    """
    options = _parser().parse_intermixed_args(arguments)
    file, overrides = _split(options.arguments)
    if options.check < 0:
        raise ValueError(f"--check must be 0 or more, got {options.check}.")
    # Imported here: --help is instant without torch.
    import numpy as np
    import torch

    from experiments.settings import Settings
    from pruning.keep_set import KeepSet
    from pruning.table_measurement import measure_networks

    plain = _config(overrides)
    settings = Settings.from_config(plain, show_progress=_shows_progress(plain))
    torch.set_num_threads(settings.num_threads)
    measurement = _measurement(plain, settings, overrides, file, options)
    setting = measurement.setting
    threads = "thread" if setting.threads == 1 else "threads"
    print(
        f"{len(measurement.graph.operators)} operators of {len(measurement.table.operators)} "
        f"shapes, batch {setting.batch}, {setting.threads} {threads}, {setting.runtime} "
        f"{setting.torch_version}, {setting.hardware}; "
        f"{measurement.num_measurements:,} measurements to make"
    )
    total = measurement.num_measurements
    with _bar("latency table", total, enabled=settings.show_progress) as bar:
        table = measurement.run(on_measurement=bar.update, on_round=lambda t: t.save(file))
    table.save(file)
    print(f"{file}: {table.num_rounds} {'round' if table.num_rounds == 1 else 'rounds'}")
    if options.check == 0:
        return 0
    rng = np.random.default_rng(settings.seed)
    counts = np.stack([KeepSet.random(table.graph, rng).counts for _ in range(options.check)])
    rounds = options.rounds
    with _bar("slim networks", rounds * len(counts), enabled=settings.show_progress) as bar:
        measured = measure_networks(
            measurement.network,
            table.graph,
            measurement.inputs,
            counts.tolist(),
            threads=setting.threads,
            num_rounds=rounds,
            on_measurement=bar.update,
        )
    _print_check(table, counts, measured)
    return 0


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation; equal values share their mean rank.

    Args:
        first: values, shape (n,) with n of 2 or more.
        second: values, shape (n,).

    Returns:
        A number in [-1, 1]; nan when all values of one side are equal.
    """
    import numpy as np

    def ranks(values: np.ndarray) -> np.ndarray:
        below = (values[None, :] < values[:, None]).sum(axis=1)
        return below + (values[None, :] == values[:, None]).sum(axis=1) / 2

    centred = [ranks(values) - ranks(values).mean() for values in map(np.asarray, (first, second))]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / norm if norm else float("nan")


def _measurement(
    plain: dict[str, Any],
    settings: Any,
    overrides: Sequence[str],
    file: Path,
    options: argparse.Namespace,
) -> TableMeasurement:
    """The measurement that fills the file, with what is in it already."""
    from experiments.building import (
        build_data,
        build_network,
        check_outputs,
        example_inputs,
        own_options,
        trace,
    )
    from pruning.latency_table import LatencyTable, TableSetting
    from pruning.table_measurement import TableMeasurement

    if not file.parent.is_dir():
        raise ValueError(f"There is no folder {file.parent} to write {file.name} to.")
    data = build_data(own_options("data", plain["data"], overrides))
    builder = own_options("network", plain["network"], overrides)
    network = build_network({key: value for key, value in builder.items() if key != "checkpoint"})
    check_outputs(network, data)
    graph = trace(network, data, settings)
    batch, threads = settings.latency_batch, settings.latency_threads
    setting = TableSetting.here(graph, batch=batch, threads=threads)
    sample = example_inputs(data)
    return TableMeasurement(
        network=network,
        graph=graph,
        inputs=sample.repeat(batch, *(1,) * (sample.dim() - 1)),
        setting=setting,
        fractions=options.fractions,
        num_rounds=options.rounds,
        seconds=options.seconds,
        previous=LatencyTable.read(file, graph) if file.exists() else None,
    )


def _config(overrides: Sequence[str]) -> dict[str, Any]:
    """The config of the main job with these overrides, as plain data."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train_agent", overrides=list(overrides))
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _shows_progress(plain: dict[str, Any]) -> bool:
    from experiments.progress import shows_progress

    return shows_progress(plain["progress_bar"])


def _split(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """The file and the overrides, in whatever order they are given."""
    files = [argument for argument in arguments if "=" not in argument and argument[0] != "~"]
    if len(files) != 1 or not files[0].endswith(".json"):
        raise ValueError(
            f"Give overrides as key=value and one file to write that ends in .json, got "
            f"{' '.join(files) or 'no file'}."
        )
    return Path(files[0]), [argument for argument in arguments if argument != files[0]]


def _print_check(table: LatencyTable, counts: np.ndarray, measured: np.ndarray) -> None:
    import numpy as np

    looked_up = np.asarray(table.latency_of_counts(counts))
    print("random keep-sets   looked up    measured   ratio")
    for number, (told, true) in enumerate(zip(looked_up, measured, strict=True), start=1):
        print(f"{number:16d} {1e3 * told:9.3f} ms {1e3 * true:8.3f} ms {told / true:7.3f}")
    if len(counts) > 1:
        print(f"rank correlation {rank_correlation(looked_up, measured):.2f}")


def _bar(title: str, total: int, *, enabled: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total, desc=title, unit=" measurement", dynamic_ncols=True, disable=not enabled
    )


def _fractions(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.latency_table",
        description="Measure the operators of a network once, so that the latency of any pruned "
        "network can be looked up. Goes on where it stopped when OUT.json is there.",
    )
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="KEY=VALUE ... OUT.json",
        help="overrides as for train_agent.py, such as network=vit, and the file to write",
    )
    parser.add_argument(
        "--fractions",
        type=_fractions,
        default=(0.25, 0.5, 0.75, 1.0),
        metavar="F,F,...",
        help="measured widths, as fractions of the full width; the next wider is added to each; "
        "default: 0.25,0.5,0.75,1",
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often everything is measured")
    parser.add_argument(
        "--seconds", type=float, default=0.005, help="length of one measurement, about"
    )
    parser.add_argument(
        "--check", type=int, default=5, metavar="N", help="slim networks to compare with at the end"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
