"""What a policy is worth on a network it never saw: python -m experiments.transfer network=NAME.

The agent searches on every source, a policy whose weights fit any network is trained on what was
measured there, and it decides for the target: zero-shot, and as the beginning of a search of few
evaluations, beside the same search from the uniform plan. Evaluations of sources and target are
counted apart. The same command again does only what is missing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from experiments.command_line import guard_job, run_hydra_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from experiments.composed_task import ComposedTask
    from experiments.transfer_results import SeedRuns

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="../conf", config_name="transfer")
@guard_job
def main(config: DictConfig) -> float:
    """Do what is missing, then write table, data and figure."""
    # Imported here: --help, --cfg and tab completion stay instant.
    from hydra.core.hydra_config import HydraConfig

    hydra_config: Any = HydraConfig.get()
    return run_study(
        config,
        Path(hydra_config.runtime.output_dir),
        list(hydra_config.overrides.task),
        network=str(hydra_config.runtime.choices.network),
    )


def run_study(config: DictConfig, folder: Path, overrides: Sequence[str], *, network: str) -> float:
    """Do what is missing of a study, then write table, data and figure.

    Needs an initialised Hydra, as there is inside a Hydra job.

    Args:
        config: the config `transfer`, composed.
        folder: of the study.
        overrides: those it was composed with.
        network: name of the target.

    Returns:
        Mean reward-split accuracy of the transferred search.

    Raises:
        ValueError: a value of the config is wrong, a source is the target, or the folder holds
            parts with other settings.
    """
    from rich.console import Console

    from experiments.transfer_networks import (
        check_unseen,
        compose_source,
        open_task,
        read_sources,
    )
    from experiments.transfer_results import (
        TRANSFERRED,
        UNIFORM,
        Outcome,
        draw_curves,
        make_table,
        values,
        write_results,
    )
    from experiments.transfer_runs import (
        check_study,
        given_policy,
        measure_uniform,
    )

    options = config.transfer
    seeds = _seeds(options.seeds)
    target = open_task(config, overrides)
    check_study(target, options)
    _whole("transfer.source_evaluations", options.source_evaluations, 2)
    evaluations = target.settings.evaluations
    sources: Mapping[str, ComposedTask] = {}
    if options.policy is None:
        entries: Any = _plain(options.sources)
        rows = read_sources(entries, _plain(options.networks))
        sources = {row.folder: compose_source(row, overrides) for row in rows}
        check_unseen(target, sources)
    else:
        for seed in seeds:
            given_policy(str(options.policy), seed)
    uniform = measure_uniform(target, folder / "uniform")
    done = [_run_seed(seed, target, sources, options, folder) for seed in seeds]
    only = uniform.measurements[0]
    outcomes = [Outcome(UNIFORM, seed, only.accuracy, only.loss, 1, 0) for seed in seeds]
    for runs in done:
        outcomes += runs.outcomes(evaluations, long_scratch=bool(options.long_scratch))
    about: dict[str, Any] = {
        "target": network,
        "sources": list(sources) or [Path(str(options.policy)).name],
        "relative_macs": float(config.budget.relative_macs),
        "evaluations": evaluations,
        "agent": str(config.agent._target_),
        "overrides": [text for text in overrides if "/" not in text],
    }
    write_results(folder / "transfer.json", about, outcomes, done, evaluations)
    title = f"{', '.join(about['sources'])} → {network}"
    draw_curves(folder / "transfer.png", title, done, uniform, evaluations)
    Console(width=120).print(make_table(about, outcomes))
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print(f"Written to {shown}/transfer.json and transfer.png.")
    return float(values(outcomes, TRANSFERRED, "accuracy").mean())


def _run_seed(
    seed: int,
    target: ComposedTask,
    sources: Mapping[str, ComposedTask],
    options: DictConfig,
    folder: Path,
) -> SeedRuns:
    """All searches of one seed, and the policy between them."""
    from experiments.transfer_results import SeedRuns
    from experiments.transfer_runs import given_policy, search_once, train_policy, transferred

    place = folder / f"seed_{seed}"
    evaluations = target.settings.evaluations
    found = {}
    for label, source in sources.items():
        log.info("seed %d: source %s", seed, label)
        found[label] = search_once(
            source,
            place / f"source_{label}",
            seed=seed,
            evaluations=options.source_evaluations,
        )
    if options.policy is None:
        policy = place / "policy.safetensors"
        log.info("seed %d: training the policy", seed)
        learned = {label: (source, found[label]) for label, source in sources.items()}
        train_policy(learned, options, policy, seed=seed)
    else:
        policy = given_policy(str(options.policy), seed)
    log.info("seed %d: target", seed)
    ours = transferred(target, policy, options.policy_kwargs, place / "transferred", seed=seed)
    spent = sum(run.evaluations for run in found.values()) if options.long_scratch else 0
    scratch = search_once(target, place / "scratch", seed=seed, evaluations=evaluations + spent)
    return SeedRuns(seed, found, ours, scratch)


def _seeds(seeds: Any) -> list[int]:
    given = _plain(seeds)
    if (
        not isinstance(given, list)
        or not given
        or not all(type(seed) is int and seed >= 0 for seed in given)
        or len(set(given)) < len(given)
    ):
        raise ValueError(
            f"transfer.seeds must be different whole numbers, such as [0,1,2], got {given!r}."
        )
    return given


def _whole(key: str, value: Any, lowest: int) -> None:
    if type(value) is not int or value < lowest:
        raise ValueError(f"{key} must be a whole number, {lowest} or more, got {value!r}.")


def _plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


if __name__ == "__main__":
    run_hydra_command(main)
