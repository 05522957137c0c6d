"""Draw a network with its patterns: python -m experiments.draw_graph network=NAME OUT.png.

plan=RUN_DIR/plan.json draws the plan of a run, on its network; plan=random (the default) a pattern
of `patterns` for every group, drawn by `seed`; plan=none the unpruned network. The file
ends in .png, .svg or .pdf. Other overrides are those of train_agent.py: network, data, frozen,
patterns, round_to and seed count. Weights play no part, so nothing is trained or loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command_line import run_command

if TYPE_CHECKING:
    from graphs.network_graph import NetworkGraph
    from pruning.plan import PruningPlan

SUFFIXES = (".png", ".svg", ".pdf")
RANDOM, NONE = "random", "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trace a network, or read the graph of a run, and draw it.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        0.

    Raises:
        ValueError: an option or override is wrong, or the plan is of another network.
        FileNotFoundError: there is no such plan.
    """
    options = _parser().parse_intermixed_args(arguments)
    if options.columns < 2:
        raise ValueError(f"--columns must be 2 or more, got {options.columns}.")
    file, plan, overrides = _split(options.arguments)
    if not file.parent.is_dir():
        raise ValueError(f"There is no folder {file.parent} to write {file.name} to.")
    # Imported here: --help is instant without torch.
    from experiments.draw_graph_layout import lay_out
    from experiments.draw_graph_picture import draw_graph
    from experiments.draw_graph_plan import picture_of

    name, graph, pruning_plan = _read(plan, overrides)
    picture = picture_of(graph, pruning_plan)
    how = {RANDOM: "random patterns", NONE: "unpruned"}.get(plan, plan)
    title = f"{name}: {len(graph.operators)} operators in {len(graph.groups)} groups, {how}"
    if picture.relative_macs < 1.0:
        title += f", {picture.relative_macs:.1%} of the MACs left"
    draw_graph(graph, picture, lay_out(graph, options.columns), file, title=title)
    print(
        f"{file}: {len(graph.feature_maps)} feature maps, {len(graph.edges)} edges, "
        f"{len(picture.labels)} patterns"
    )
    return 0


def _read(plan: str, overrides: Sequence[str]) -> tuple[str, NetworkGraph, PruningPlan]:
    """Name of the network, its graph and its plan.

    The graph of a run lies beside its plan, so neither network nor data are needed, unless the
    network is given as well.
    """
    from graphs.network_graph import NetworkGraph
    from pruning.plan import PruningPlan

    if plan in (RANDOM, NONE):
        return _trace(plan, overrides)
    text = Path(plan).read_text(encoding="utf-8")
    beside = Path(plan).with_name("graph.json")
    if not overrides and beside.is_file():
        graph = NetworkGraph.from_json(beside.read_text(encoding="utf-8"))
        return _network_of_run(beside.parent), graph, PruningPlan.from_json(text)
    name, graph, _ = _trace(NONE, overrides)
    return name, graph, PruningPlan.from_json(text)


def _network_of_run(folder: Path) -> str:
    """What a run calls its network, or the name of its folder."""
    from experiments.run_folder import RunFolder

    run = RunFolder(folder)
    return str(run.read_summary()["network"]) if run.summary.is_file() else folder.name


def _trace(plan: str, overrides: Sequence[str]) -> tuple[str, NetworkGraph, PruningPlan]:
    """Build and trace the network of the config; with a random plan or none."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from experiments.building import build_data, build_network, check_outputs, own_options, trace
    from experiments.command_line import CONFIG_FOLDER
    from experiments.draw_graph_plan import random_plan, unpruned_plan
    from experiments.settings import Settings

    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        composed = compose("train_agent", list(overrides), return_hydra_config=True)
    name = str(composed.hydra.runtime.choices.network)
    config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    settings = Settings.from_config(plain, show_progress=False)
    data = build_data(own_options("data", plain["data"], overrides))
    builder = own_options("network", plain["network"], overrides)
    network = build_network({key: value for key, value in builder.items() if key != "checkpoint"})
    check_outputs(network, data)
    graph = trace(network, data, settings)
    if plan == NONE:
        return name, graph, unpruned_plan(graph)
    library = instantiate(config.patterns)
    return name, graph, random_plan(network, graph, library, settings.seed)


def _split(arguments: Sequence[str]) -> tuple[Path, str, list[str]]:
    """The file to write, the plan and the overrides, in whatever order they are given."""
    files = [argument for argument in arguments if "=" not in argument and argument[0] != "~"]
    plans = [argument for argument in arguments if argument.startswith("plan=")]
    if len(files) != 1 or not files[0].endswith(SUFFIXES):
        raise ValueError(
            f"Give overrides as key=value and one file to write that ends in "
            f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got {' '.join(files) or 'no file'}."
        )
    if len(plans) > 1 or plans == ["plan="]:
        raise ValueError(f"Give one plan=FILE, plan=random or plan=none, got {' '.join(plans)}.")
    plan = plans[0].partition("=")[2] if plans else RANDOM
    return Path(files[0]), plan, [a for a in arguments if a not in (*files, *plans)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.draw_graph",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "arguments", nargs="*", metavar="KEY=VALUE | FILE", help="overrides, and the file to write"
    )
    parser.add_argument("--columns", type=int, default=18, help="most feature maps in a row")
    return parser


if __name__ == "__main__":
    run_command(main)
