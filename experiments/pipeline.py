"""The main job: a trained network goes in, an agent prunes it, a smaller network comes out."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from experiments.building import (
    build_data,
    build_network,
    check_outputs,
    importance_options,
    own_options,
    trace,
)
from experiments.evaluate_pruned import load_run_network
from experiments.export import export_run, first_batch, print_export
from experiments.final_report import FinalReport, ReportOptions
from experiments.identity import RunIdentity
from experiments.measurements import Measurements
from experiments.progress import TrainingProgress, shows_progress
from experiments.report import write_page
from experiments.report_runs import open_run
from experiments.report_stage import write_report
from experiments.report_table import print_report
from experiments.resume import FINISHED, NEW, choose_run, config_text, leave_folder, locked
from experiments.rewinding import rewound_network
from experiments.run_folder import RunFolder, write_json, write_text
from experiments.search_stage import build_parts, search
from experiments.settings import Settings
from experiments.sinks import KeptOpen, open_mirrors
from experiments.summary import Summary
from networks.data import DataSplits
from networks.pretrained import pretrain
from networks.sparse_training import train_sparsely
from pruning.fine_tuning import changed_recipe, check_fine_tuning, with_learning_rate
from pruning.onnx_runtime import require_packages
from pruning.task import PruningTask

log = logging.getLogger(__name__)


def run_job(
    config: DictConfig, folder: Path, identity: RunIdentity, *, search_root: Path | None = None
) -> float:
    """Run the whole job and leave its files in `folder`; `summary.json` comes last.

    With the key `resume` the run goes on in the folder of an earlier one, and `folder` is removed.
    Up to the search everything is done again; evaluations that the earlier run measured are not
    (pruning/journal.py), and fine-tuning goes on after a whole epoch, so that the result is
    that of a run in one go. An earlier run that is finished is reported once more, and nothing is
    done.

    Args:
        config: the composed config, without Hydra's own section.
        folder: the run folder; it exists.
        identity: how the run is called.
        search_root: where `resume=auto` looks for runs; the parent of `folder` by default.

    Returns:
        The reward of the plan that was kept: what a sweeper optimises.

    Raises:
        ValueError: the user asked for something that cannot be.
    """
    started = time.monotonic()
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    for section in ("network", "data"):
        plain[section] = own_options(section, plain[section], identity.overrides)
    settings = Settings.from_config(plain, show_progress=shows_progress(plain["progress_bar"]))
    torch.set_num_threads(settings.num_threads)
    if settings.latency_onnxruntime:  # asked for by name: better refused now than missed at the end
        require_packages("onnx", "onnxruntime")
    if "onnx" in settings.export:  # likewise
        require_packages("onnx", "onnxscript", "onnxruntime")
    start = choose_run(plain, folder, search_root)
    if start.state == FINISHED:
        summary = Summary.from_dict(start.run.read_summary())
        leave_folder(folder, start.run, search_root)
        print_report(summary, start.run.path, _targets(plain))
        _export(start.run, plain, settings)
        return summary.best_reward
    with locked(start.run):
        leave_folder(folder, start.run, search_root)
        if start.state == NEW:
            start.run.forget_results(evaluations=True)
        return _run(config, plain, settings, start.run, identity, started=started)


def _run(
    config: DictConfig,
    plain: dict[str, Any],
    settings: Settings,
    run: RunFolder,
    identity: RunIdentity,
    *,
    started: float,
) -> float:
    """The job in its folder; the reward of the plan that was kept."""
    seed_everything(settings.seed)
    write_text(run.config, config_text(plain))
    build_parts(config)  # refuses what is out of range before anything costs time
    instantiate(config.reconstruction)  # likewise
    instantiate(config.sparse_training, _convert_="all")  # likewise
    check_fine_tuning(report_options(config, plain, settings).fine_tune)  # likewise
    importance_options(plain["agent"].get("importances"))  # likewise
    data = build_data(plain["data"])
    splits = {name: list(indices) for name, indices in data.indices.items()}
    write_json(run.splits, {"data": data.name, "indices": splits})
    network = trained_network(config, plain, data, settings)
    recipe = instantiate(config.pretrain, _convert_="all")
    rewound = rewound_network(network, plain, recipe, data, settings)
    make_sparse(config, network, data, run, settings)
    task = build_task(config, plain, network, data, settings)
    log.info(
        "%s on %s: %s MACs, %s parameters, %d groups, accuracy %.4f on the reward split",
        identity.network, data.name, f"{task.cost.base_macs:,}", f"{task.cost.base_params:,}",
        len(task.sites), task.base.accuracy,
    )  # fmt: skip

    write_text(run.graph, task.graph.to_json())
    _log_what_stays(task.graph.frozen)
    with open_mirrors(plain, run.path, identity) as mirrors:
        seed_everything(settings.seed)  # whether the network was trained just now or before
        found = search(config, settings, task, run, [KeptOpen(mirror) for mirror in mirrors])
        options = report_options(config, plain, settings, rewound)
        if found.fine_tune:  # of the plan that is kept; the uniform row is trained by it as well
            log.info("Fine-tuning as proposed, for every row: %s", dict(found.fine_tune))
            write_json(run.proposed_fine_tune, found.fine_tune)
            recipe = changed_recipe(options.fine_tune, found.fine_tune)
            options = replace(options, fine_tune=recipe)
        shared = Measurements(task, data.test, settings.measurements_dir, plain["network"])
        report = FinalReport(task, data, options, shared)
        summary, rows = write_report(report, found, run, plain, identity, settings, started=started)
        for mirror in mirrors:
            mirror.report(summary.to_dict(), rows)
    write_page([open_run(run.path, summary.to_dict())], run.report)
    write_json(run.summary, summary.to_dict())
    run.forget_fine_tuning()
    print_report(summary, run.path, _targets(plain))
    _export(run, plain, settings, data)
    return summary.best_reward


def _export(
    run: RunFolder, plain: Mapping[str, Any], settings: Settings, data: DataSplits | None = None
) -> None:
    """Write the files that the key `export` asks for, from the network that the run has saved."""
    if not settings.export:
        return
    reward = (data or build_data(plain["data"])).search.reward
    network = load_run_network(run.pruned, plain["network"], plain["network"]["_target_"])
    inputs = first_batch(reward, plain["evaluation"]["batch_size"])
    for report in export_run(run, network, inputs, settings.export):
        print_export(report)


def _targets(plain: Mapping[str, Any]) -> dict[str, str]:
    """What builds network and data, as dotted paths."""
    return {name: str(plain[name]["_target_"]) for name in ("network", "data")}


def _log_what_stays(frozen: Mapping[str, str]) -> None:
    """Say which channels cannot be removed, and why; inputs and outputs go without saying."""
    places: dict[str, list[str]] = {}
    for place, reason in frozen.items():
        if reason not in ("network input", "network output"):
            places.setdefault(reason, []).append(place)
    for reason, those in places.items():
        more = f" and {len(those) - 3} more" if len(those) > 3 else ""
        log.info("These channels stay: %s%s (%s)", ", ".join(those[:3]), more, reason)


def seed_everything(seed: int) -> None:
    """Seed python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def trained_network(
    config: DictConfig,
    plain: dict[str, Any],
    data: DataSplits,
    settings: Settings,
) -> nn.Module:
    """The network with the weights of its checkpoint; without one it is trained, once.

    Raises:
        ValueError: there is neither a checkpoint nor a recipe, or network and data do not fit.
    """
    network = build_network(plain["network"])
    check_outputs(network, data)
    checkpoint = plain["network"].get("checkpoint")
    if checkpoint is not None:
        log.info("Weights: %s", checkpoint)
        return network
    progress = TrainingProgress("training the network", enabled=settings.show_progress)
    recipe = instantiate(config.pretrain, _convert_="all")
    pretrained = pretrain(network, data.search.train, recipe, settings.cache_dir, progress=progress)
    origin = "trained before" if pretrained.cached else "trained just now"
    log.info("Weights: %s, %s", origin, pretrained.path)
    return network


def make_sparse(
    config: DictConfig,
    network: nn.Module,
    data: DataSplits,
    run: RunFolder,
    settings: Settings,
) -> None:
    """Train the network on with a penalty on its batch-norm scales, where the config asks for it.

    What this gives is the base network of everything that follows, the report included;
    `sparse_training.json` says what it was before.

    Raises:
        ValueError: the network has no batch norm, or training diverges.
    """
    recipe = instantiate(config.sparse_training, _convert_="all")
    if not recipe:
        return
    progress = TrainingProgress("sparse training", enabled=settings.show_progress)
    result = train_sparsely(
        network, data.search.train, data.search.reward, recipe, progress=progress
    )
    write_json(run.path / "sparse_training.json", asdict(result))
    log.info(
        "Sparse training: accuracy on the reward split from %.4f to %.4f, batch-norm scales below "
        "a hundredth of the largest from %.1f %% to %.1f %%",
        result.accuracy_before, result.accuracy_after,
        100 * result.small_scales_before, 100 * result.small_scales_after,
    )  # fmt: skip


def build_task(
    config: DictConfig,
    plain: dict[str, Any],
    network: nn.Module,
    data: DataSplits,
    settings: Settings,
) -> PruningTask:
    """Trace the network and put together what is decided, executed and measured.

    Raises:
        UnsupportedOp: the network does something the tracer does not know.
        ValueError: there is nothing to prune, or a setting is wrong.
    """
    evaluation = instantiate(config.evaluation, _convert_="all")
    options = {
        key: value for key, value in evaluation.items() if key not in ("recalibrate", "latency")
    }
    return PruningTask(
        network,
        trace(network, data, settings),
        data.search,
        library=instantiate(config.patterns),
        recalibrate=bool(plain["evaluation"]["recalibrate"]),
        evaluator_options=options,
        seed=settings.seed,
        reconstruction=instantiate(config.reconstruction) or None,
        importances=importance_options(plain["agent"].get("importances")),
        **plain["importance"],
    )


def report_options(
    config: DictConfig,
    plain: dict[str, Any],
    settings: Settings,
    rewound: nn.Module | None = None,
) -> ReportOptions:
    """How base, pruned and uniform network are measured, and what fine-tuning starts from.

    Raises:
        ValueError: fine-tuning has no learning rate.
    """
    fine_tune = instantiate(config.fine_tune, _convert_="all")
    fine_tune.pop("rewind_to", None)
    return ReportOptions(
        fine_tune=with_learning_rate(fine_tune, plain["pretrain"].get("learning_rate")),
        recalibrate=bool(plain["evaluation"]["recalibrate"]),
        latency_batch=settings.latency_batch,
        latency_threads=settings.latency_threads,
        latency_seconds=settings.latency_seconds,
        latency_onnxruntime=settings.latency_onnxruntime,
        rewound=rewound,
    )
