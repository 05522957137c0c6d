"""What does an encoder know of a site: python -m experiments.probe [KEY=VALUE].

An agent with a graph encoder searches on the network of the config. Then linear probes try to read
the kind of the layer, its position and the pattern now assigned out of the encoder's embeddings of
the sites: after the search, before it (the same initial weights), with shuffled labels, and out of
the node features that the encoder is given. Probes are tested on sites, assignments or networks
that they were not fitted to. Overrides are those of train_agent.py; the agent has the settings of
its own file and not those of conf/pairing, as offsets of the sites fit one network only, and plans
may miss the band, so that the next step shows what they were.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.command_line import run_command

if TYPE_CHECKING:
    from torch import nn

    from envs.pruning_env import PruningEnv
    from experiments.composed_task import ComposedTask
    from experiments.probe_sites import ProbedSites

TRAINED, UNTRAINED, SHUFFLED = "trained", "untrained", "shuffled labels"
FIXED_ROWS = 6
"""Assignments per network for what no assignment changes: more would repeat the same sites."""


@dataclass(frozen=True)
class Probe:
    """What is read, and what a probe is tested on.

    Attributes:
        name: as it is printed.
        label: column of `ProbedSites`.
        held_out: column whose values are never on both sides of a split: "site", "assignment" or
            "network".
        all_networks: whether sites of all networks take part, or of the searched one only.
        few: whether the probe is fitted to a few rows of each class only.
        directions: the probe sees so many leading principal components; None for all of it.
        is_number: whether the label is a number, read by ridge regression and scored by R2.
    """

    name: str
    label: str
    held_out: str
    all_networks: bool = False
    few: bool = False
    directions: int | None = None
    is_number: bool = False


PROBES = (
    Probe("layer kind", "kind", "site", all_networks=True),
    Probe("stage", "stage", "site", all_networks=True),
    Probe("depth", "depth", "site", all_networks=True, is_number=True),
    Probe("assigned pattern", "pattern", "assignment"),
    Probe("assigned pattern, few labels", "pattern", "assignment", few=True),
    Probe("assigned pattern, other network", "pattern", "network", all_networks=True),
    Probe("assigned pattern, 2 directions", "pattern", "assignment", directions=2),
    Probe("pattern of the next site", "neighbour", "assignment"),
    Probe("which site, 2 directions", "site", "assignment", directions=2),
    Probe("stage, 2 directions", "stage", "assignment", directions=2),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, probe, print a table and write it.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        0.

    Raises:
        ValueError: an option or override is wrong, or the agent has no graph encoder.
    """
    options = _parser().parse_intermixed_args(arguments)
    for name, lowest in (("seeds", 1), ("assignments", 2), ("few", 1), ("folds", 2)):
        if getattr(options, name) < lowest:
            raise ValueError(f"--{name} must be {lowest} or more, got {getattr(options, name)}.")
    # Imported here: --help is instant without torch.
    from rich.console import Console

    from experiments.composed_task import ComposedTask, unscaled
    from experiments.probe_sites import RAW, collect
    from experiments.run_folder import write_json, write_text

    composed = ComposedTask.from_overrides(["~pairing", *unscaled(options.overrides)])
    others = [] if options.one_network else list(OTHER_NETWORKS.values())
    scores: dict[tuple[str, str], list[float]] = {}
    chances: dict[str, float] = {}
    searches = []
    for seed in range(options.seeds):
        envs = [composed.new_env(composed.new_task())]
        envs += [_env_of(composed, build) for build in others]
        policies, searched = trained_and_untrained(composed, envs, seed)
        searches.append(searched)
        print(f"seed {seed}: best reward {searched:.4f}")
        sites = collect(envs, policies, assignments=options.assignments, seed=seed)
        for probe in PROBES:
            if probe.held_out == "network" and len(envs) < 2:
                continue
            of_seed = probe_all(probe, sites, options, seed)
            chances[probe.name] = of_seed.pop("chance")
            for source, score in of_seed.items():
                scores.setdefault((probe.name, source), []).append(score)
    sources = (TRAINED, UNTRAINED, RAW, SHUFFLED)
    Console(width=150).print(_table(scores, chances, sources))
    print(
        f"Means over {options.seeds} seeds, smallest and largest in brackets; balanced accuracy on "
        "what the probe was not fitted to (depth: R2). untrained: the same agent before its "
        "search. learned: trained minus untrained, seed by seed. shuffled labels: the trained "
        "encoder, its labels permuted. 2 directions: the probe sees the two in which the "
        "embeddings differ most. Where trained does not exceed untrained, what is read came with "
        "the graph and the architecture, and was not learned."
    )
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "evaluations": composed.settings.evaluations,
        "best_rewards": searches,
        "chance": chances,
        "scores": [
            {"probe": probe, "source": source, "of_seeds": values}
            for (probe, source), values in scores.items()
        ],
    }
    write_json(folder / "probe.json", result)
    write_text(folder / "probe.csv", _csv(scores, chances))
    print(f"Written to {folder / 'probe.json'} and {folder / 'probe.csv'}.")
    return 0


def trained_and_untrained(
    composed: ComposedTask, envs: Sequence[PruningEnv], seed: int
) -> tuple[dict[str, list[Any]], float]:
    """Policies before and after a search in the first environment, fitted to every environment.

    Args:
        composed: config with the agent and the bounds of the search.
        envs: one environment per network; the agent searches in the first.
        seed: of the agent.

    Returns:
        Policies by source, one per network, and the highest reward of the search.

    Raises:
        ValueError: the agent has no graph encoder.
    """
    import copy

    from agents.search import run_search
    from experiments.composed_task import new_agent
    from experiments.patience import Patience
    from experiments.pipeline import seed_everything

    settings = composed.settings
    seed_everything(seed)
    agent = new_agent(composed.config, envs[0], seed=seed)
    policy: Any = getattr(agent, "policy", None)
    if not hasattr(getattr(policy, "pi_features_extractor", None), "encoder"):
        raise ValueError(
            "Only an agent with a graph encoder has embeddings to read. Set agent=ppo or a2c, and "
            "encoder=gatv2, gcn, sage, gin or none."
        )
    if getattr(policy, "offset_scale", 0.0):
        raise ValueError(
            "Offsets belong to the sites of one network, and embeddings are compared across "
            "networks. Set agent.policy_kwargs.offset_scale=0."
        )
    before = copy.deepcopy(policy.state_dict())
    run_search(
        agent,
        envs[0],
        evaluations=settings.evaluations,
        max_timesteps=settings.max_timesteps,
        minutes=settings.minutes,
        callbacks=[Patience(envs[0], settings.patience)],
    )
    best = envs[0].best
    after = policy.state_dict()
    policies: dict[str, list[Any]] = {TRAINED: [], UNTRAINED: []}
    for source, weights in ((TRAINED, after), (UNTRAINED, before)):
        for env in envs:
            fitted = new_agent(composed.config, env, seed=seed).policy
            # no weight depends on the graph, so they fit that of any other network
            fitted.load_state_dict(weights)
            policies[source].append(fitted.eval())
    return policies, float("nan") if best is None else best.score


def probe_all(
    probe: Probe, sites: ProbedSites, options: argparse.Namespace, seed: int
) -> dict[str, float]:
    """Scores of one probe by source, and that of guessing as "chance".

    Args:
        probe: what is read.
        sites: what each source says.
        options: `folds`, `few` and `assignments`.
        seed: of splits and draws.
    """
    from experiments.probe_scores import chance, classify, regress, repeated

    rows = np.ones(len(sites.site), dtype=bool) if probe.all_networks else sites.network == 0
    if probe.held_out == "site":  # what is read of a site does not change with the assignment
        rows &= sites.assignment % options.assignments < FIXED_ROWS
    columns = getattr(sites, probe.label), getattr(sites, probe.held_out)
    if not probe.is_number:
        rows[rows] = repeated(*(column[rows] for column in columns))
    labels, groups = (column[rows] for column in columns)
    sources = [(name, name) for name in sites.inputs] + [(SHUFFLED, TRAINED)]
    scores = {}
    for source, name in sources:
        shared: dict[str, Any] = {
            "folds": options.folds,
            "seed": seed,
            "shuffled": source == SHUFFLED,
        }
        inputs = sites.inputs[name][rows]
        score: float | None
        if probe.is_number:
            score = regress(inputs, labels, groups, **shared)
        else:
            few = options.few if probe.few else None
            score = classify(
                inputs, labels, groups, per_class=few, directions=probe.directions, **shared
            )
        if score is not None:
            scores[source] = score
    return {**scores, "chance": 0.0 if probe.is_number else chance(labels)}


def _env_of(composed: ComposedTask, build: Callable[[int], nn.Module]) -> PruningEnv:
    """The environment of the config on another network, which reads the images of the config."""
    import torch
    from hydra.utils import instantiate

    from experiments.building import check_outputs, example_inputs
    from graphs.tracing import trace_network
    from pruning.task import PruningTask

    torch.manual_seed(0)
    network = build(example_inputs(composed.data).shape[1]).eval()
    check_outputs(network, composed.data)
    task = PruningTask(
        network,
        trace_network(network, example_inputs(composed.data)),
        composed.data.search,
        library=instantiate(composed.config.patterns),
        **composed.plain["importance"],
    )
    return composed.new_env(task)


def _mobilenet(in_channels: int) -> nn.Module:
    from networks.mobilenet import mobilenet_v2

    return mobilenet_v2(width=0.5, in_channels=in_channels)


def _vit(in_channels: int) -> nn.Module:
    from networks.vit import vit

    return vit(image_size=8, patch=2, dim=48, depth=4, heads=3, in_channels=in_channels)


def _resnet_b(in_channels: int) -> nn.Module:
    from networks.digits import digits_resnet

    return digits_resnet(shortcut="B", blocks=(2, 2, 2), in_channels=in_channels)


OTHER_NETWORKS: dict[str, Callable[[int], Any]] = {
    "mobilenet_v2": _mobilenet,
    "vit": _vit,
    "resnet with projections": _resnet_b,
}
"""Networks with further kinds of layers, for 8x8 images; drawn at random, no agent saw them."""


def _table(
    scores: dict[tuple[str, str], list[float]], chances: dict[str, float], sources: Sequence[str]
) -> Any:
    from rich.table import Table

    table = Table(title="What linear probes read of a site", title_justify="left")
    table.add_column("probe")
    for column in (*sources, "learned", "guessing"):
        table.add_column(column, justify="right")
    for name, guessing in chances.items():
        of_sources = [scores.get((name, source), []) for source in sources]
        pairs = zip(of_sources[0], of_sources[1], strict=True)
        learned = [trained - untrained for trained, untrained in pairs]
        cells = [_cell(values) for values in of_sources]
        table.add_row(name, *cells, _cell(learned, sign="+"), f"{guessing:.2f}")
    return table


def _cell(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return "-"
    mean, low, high = (
        f"{value:{sign}.2f}" for value in (np.mean(values), min(values), max(values))
    )
    return f"{mean} [{low}, {high}]"


def _csv(scores: dict[tuple[str, str], list[float]], chances: dict[str, float]) -> str:
    """A line per probe, source and seed."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["probe", "guessing", "source", "seed", "score"])
    for (probe, source), values in scores.items():
        writer.writerows(
            [probe, f"{chances[probe]:.4f}", source, seed, f"{score:.4f}"]
            for seed, score in enumerate(values)
        )
    return file.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config")
    parser.add_argument("--seeds", type=int, default=3, help="agents that are trained and probed")
    parser.add_argument(
        "--assignments", type=int, default=40, help="random assignments of each network"
    )
    parser.add_argument(
        "--few", type=int, default=5, help="rows of a class for the few-label probe"
    )
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation")
    parser.add_argument(
        "--one-network",
        action="store_true",
        help="leave out the further networks, which are for 8x8 images",
    )
    parser.add_argument("--output", type=Path, default=Path("probe"), help="folder of probe.json")
    return parser


if __name__ == "__main__":
    run_command(main)
