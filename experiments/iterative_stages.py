"""The stages of iterative pruning: one run each, then one plan and one file for all of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from experiments.building import build_data, build_network, example_inputs, own_options, trace
from experiments.comparison_rows import Job, Row
from experiments.comparison_runs import is_finished, run_jobs
from experiments.identity import RunIdentity
from experiments.progress import shows_progress
from experiments.report_stages import RESULT, write_stages_page
from experiments.rewinding import rewound_network
from experiments.run_folder import RunFolder, write_json, write_text
from experiments.settings import Settings
from graphs.network_graph import NetworkGraph
from networks.checkpoints import save_checkpoint
from networks.data import DataSplits
from pruning.artefact import load_pruned, save_pruned
from pruning.composition import compose_keep, plan_of
from pruning.cost import CostModel
from pruning.keep_set import KeepSet
from pruning.plan import PruningPlan
from pruning.slimming import Slimmer

STAGE_BUILDER = f"{__name__}.build_stage"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How many MACs every stage leaves.

    Attributes:
        relative_macs: fractions of the unpruned network's MACs, in (0, 1), falling.
    """

    relative_macs: tuple[float, ...]

    @classmethod
    def from_config(cls, section: Any) -> Schedule:
        """Read the section `iterative`.

        Raises:
            ValueError: it is no falling list of fractions.
        """
        values = section["relative_macs"]
        is_list = isinstance(values, list) and len(values) > 0
        if (
            not is_list
            or not all(type(value) in (int, float) and 0 < value < 1 for value in values)
            or any(later >= earlier for earlier, later in itertools.pairwise(values))
        ):
            raise ValueError(
                "iterative.relative_macs must be falling fractions in (0, 1), such as "
                f"[0.7,0.5,0.3], got {values!r}."
            )
        return cls(tuple(float(value) for value in values))


def build_stage(stages: Sequence[str], base: Mapping[str, Any]) -> nn.Module:
    """The network that earlier stages left; what `network._target_` of a later stage names.

    Args:
        stages: their pruned networks, files of `save_pruned`, in order.
        base: section `network` of the first stage.

    Raises:
        ValueError: a file is damaged or does not fit.
    """
    network = build_network({**base, "checkpoint": None})
    for file in stages:
        network = load_pruned(file, network)
    return network


def run_stages(
    config: DictConfig, schedule: Schedule, folder: Path, identity: RunIdentity
) -> dict[str, Any]:
    """Run the stages that are missing and compose all of them.

    Leaves a folder per stage, and `plan.json`, `pruned.safetensors`, `iterative.json` and
    `report.html`.

    Args:
        config: config of the main job; every stage has it, but for network and budget.
        schedule: what every stage leaves.
        folder: where everything goes; it exists.
        identity: how the runs are called.

    Returns:
        What `iterative.json` holds.

    Raises:
        ValueError: a stage fails, or its network or settings cannot be pruned in stages.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    for section in ("network", "data"):
        plain[section] = own_options(section, plain[section], identity.overrides)
        OmegaConf.update(config, section, plain[section], merge=False, force_add=True)
    given = identity.overrides
    identity = replace(identity, overrides=_without_targets(given))
    _check_channels_only(config, plain)
    settings = Settings.from_config(plain, show_progress=shows_progress(plain["progress_bar"]))
    torch.set_num_threads(settings.num_threads)
    data = build_data(plain["data"])
    base = build_network(plain["network"])
    graph = trace(base, data, settings)
    if Slimmer(base, graph).executor == "replay":
        raise ValueError(
            f"The code of the {type(base).__name__} holds channel numbers (views, slices, "
            "attention), so what a stage leaves cannot be pruned again. Prune it at once with "
            "train_agent.py, or choose a network of convolutions such as network=resnet20_cifar10."
        )
    base_macs = CostModel(graph).base_macs
    keep, rewound = KeepSet.full(graph), None
    files: list[str] = []
    rows: list[dict[str, Any]] = []
    for number, target in enumerate(schedule.relative_macs, 1):
        run = RunFolder(folder / f"stage_{number}")
        macs = rows[-1]["macs"] if rows else base_macs
        _run_stage(_stage_config(config, plain, files, rewound, target * base_macs / macs), run,
                   number, target, identity)  # fmt: skip
        summary = run.read_summary()
        stage_graph = NetworkGraph.from_json(run.graph.read_text(encoding="utf-8"))
        plan = PruningPlan.from_json(run.plan.read_text(encoding="utf-8"))
        kept = plan.keep_set(stage_graph)
        keep = kept if number == 1 else compose_keep(graph, keep, stage_graph, kept)
        files.append(str(run.pruned))
        rewound = _rewind(config, plain, base, graph, keep, data, settings, run)
        rows.append(_row(number, target, base_macs, run, summary))
    plan = plan_of(graph, keep)
    network = build_stage(files, plain["network"])
    _save(folder / "pruned.safetensors", network, plan, graph, plain["network"], data)
    write_text(folder / "plan.json", plan.to_json())
    first = RunFolder(folder / "stage_1").read_summary()
    result = {
        "network": identity.network,
        "data": data.name,
        "agent": identity.agent,
        "env": identity.env,
        "fine_tune_epochs": plain["fine_tune"]["epochs"],
        "overrides": list(given),
        "base": {key: first["base"][key] for key in ("test_accuracy", "macs", "params")},
        "stages": rows,
    }
    write_json(folder / RESULT, result)
    write_stages_page(folder, folder / "report.html")
    return result


def print_stages(result: Mapping[str, Any], folder: Path) -> None:
    """Print the table of stages and where the composed network lies."""
    from rich.console import Console
    from rich.table import Table

    epochs = result["fine_tune_epochs"]
    table = Table(
        title=f"{result['agent']} prunes {result['network']} in {len(result['stages'])} stages",
        title_justify="left",
        caption=(
            f"Test accuracy; {epochs} epochs of fine-tuning after every stage.\n"
            "MACs: of the unpruned network's. uniform: the stage pruned\n"
            "uniformly at equal MACs, and fine-tuned alike."
        ),
        caption_justify="left",
    )
    for column in ("stage", "MACs", "pruned", "fine-tuned", "uniform", "evaluations", "seconds"):
        table.add_column(column, justify="right")
    table.add_row("unpruned", "100.0 %", _percent(result["base"]["test_accuracy"]))
    for row in result["stages"]:
        table.add_row(
            str(row["stage"]),
            _percent(row["relative_macs"], 1),
            _percent(row["test_accuracy"]),
            _percent(row["test_accuracy_finetuned"]),
            _percent(row["uniform_test_accuracy_finetuned"]),
            str(row["evaluations"]),
            f"{row['wall_seconds']:.0f}",
        )
    console = Console(soft_wrap=False)
    console.print()
    console.print(table)
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    console.print(
        f"All stages as one: {shown}/pruned.safetensors and plan.json; each stage: "
        f"{shown}/stage_N/report.html; page: {shown}/report.html",
        soft_wrap=True,
        highlight=False,
    )


def _stage_config(
    config: DictConfig,
    plain: Mapping[str, Any],
    files: Sequence[str],
    rewound: str | None,
    relative_macs: float,
) -> DictConfig:
    """The config of one stage: the common one, but for the network it prunes and the budget."""
    stage = config.copy()
    if relative_macs >= 1:
        raise ValueError(
            "The stage before has left no more MACs than the next may: set values in "
            "iterative.relative_macs that are further apart, or a narrower budget."
        )
    changes: dict[str, Any] = {"budget.relative_macs": relative_macs}
    if files:
        changes["network"] = {
            "_target_": STAGE_BUILDER,
            "stages": list(files),
            "base": dict(plain["network"]),
            "checkpoint": files[-1],  # its weights are there; none are trained
        }
    if rewound is not None:
        changes["fine_tune.rewind_to"] = rewound
    for key, value in changes.items():
        OmegaConf.update(stage, key, value, merge=False, force_add=True)
    return stage


def _run_stage(
    config: DictConfig, run: RunFolder, number: int, target: float, identity: RunIdentity
) -> None:
    job = Job(
        row=Row(f"stage {number}", ()),
        budget=target,
        seed=int(config.seed),
        folder=run.path,
        config=OmegaConf.to_yaml(config),
        identity=identity,
    )
    if is_finished(job):
        log.info("Stage %d is there already.", number)
        return
    for failure in run_jobs([job], processes=1):
        raise ValueError(f"{failure.title} failed: {failure.message} ({failure.log})")


def _rewind(
    config: DictConfig,
    plain: Mapping[str, Any],
    base: nn.Module,
    graph: NetworkGraph,
    keep: KeepSet,
    data: DataSplits,
    settings: Settings,
    run: RunFolder,
) -> str | None:
    """The early weights of what is left, as a file for the next stage; None without rewinding."""
    recipe = instantiate(config.pretrain, _convert_="all")
    early = rewound_network(base, plain, recipe, data, settings)
    if early is None:
        return None
    file = run.path / "rewound.safetensors"
    save_checkpoint(Slimmer(early, graph, verify=False).materialize(keep), file)
    return str(file)


def _save(
    path: Path,
    network: nn.Module,
    plan: PruningPlan,
    graph: NetworkGraph,
    options: Mapping[str, Any],
    data: DataSplits,
) -> None:
    """Write the composed network, and prove that reloading it gives the last stage's outputs."""
    builder = {key: value for key, value in options.items() if key != "checkpoint"}
    save_pruned(
        path, network, target=builder.pop("_target_"), kwargs=builder, graph=graph, plan=plan
    )
    reloaded = load_pruned(path, build_network({**options, "checkpoint": None}))
    inputs = example_inputs(data)
    with torch.inference_mode():
        same = torch.equal(_tensor(network(inputs)), _tensor(reloaded(inputs)))
    assert same, "The composed plan gives another network than the stages: composition is wrong."


def _tensor(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def _row(
    number: int, target: float, base_macs: int, run: RunFolder, summary: Mapping[str, Any]
) -> dict[str, Any]:
    pruned, uniform = summary["pruned"], summary["uniform"]
    return {
        "stage": number,
        "folder": run.path.name,
        "budget_relative_macs": target,
        "relative_macs": pruned["macs"] / base_macs,
        "macs": pruned["macs"],
        "params": pruned["params"],
        "reward_accuracy": pruned["reward_accuracy"],
        "test_accuracy": pruned["test_accuracy"],
        "test_accuracy_finetuned": pruned["test_accuracy_finetuned"],
        "uniform_test_accuracy_finetuned": uniform["test_accuracy_finetuned"],
        "evaluations": summary["evaluations"],
        "wall_seconds": summary["wall_seconds"],
    }


def _check_channels_only(config: DictConfig, plain: Mapping[str, Any]) -> None:
    """Refuse masks, a missing budget and proposed recipes before anything costs time."""
    if plain["agent"].get("proposes_fine_tune"):
        raise ValueError(
            "All stages are fine-tuned by one recipe, so the agent cannot propose its own. Set "
            "agent.proposes_fine_tune=false."
        )
    if "relative_macs" not in plain["budget"]:
        raise ValueError(
            "Stages need a budget of MACs, and this one has none: choose budget=project, wall or "
            "band."
        )
    masks = [pattern.name for pattern in list(instantiate(config.patterns))[1:]
             if pattern.channel_ratio == 0.0]  # fmt: skip
    if masks:
        raise ValueError(
            f"Stages can only remove whole channels, and the pattern library masks weights "
            f"({', '.join(masks[:3])}). Set patterns=channel."
        )


def _without_targets(overrides: Sequence[str]) -> tuple[str, ...]:
    """Overrides without those of network and data, which the stages' configs hold resolved."""
    return tuple(
        text
        for text in overrides
        if not text.lstrip("+~").startswith(("network.", "data.", "iterative."))
    )


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"
