"""The fair comparison: python -m experiments.compare_policies network=resnet20_cifar10.

Every policy prunes the same network with the same weights, splits, importance, recalibration,
fine-tuning, budget and number of evaluations, with several seeds. Every (policy, seed) is an
ordinary run in its own folder; the same command again does only what is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from experiments.command_line import EXIT_BUG, guard_job, run_hydra_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from experiments.comparison_results import Comparison
    from experiments.comparison_rows import Job, Row
    from experiments.comparison_runs import Failure


@hydra.main(version_base="1.3", config_path="../conf", config_name="compare_policies")
@guard_job
def main(config: DictConfig) -> float:
    """Run what is missing, then write table, data and figures."""
    # Imported here: --help, --cfg and tab completion stay instant.
    from omegaconf import OmegaConf

    from experiments.comparison_rows import read_rows

    compare: dict[str, Any] = OmegaConf.to_container(config.compare, resolve=True)  # type: ignore[assignment]
    return run_comparison(read_rows(compare["agents"], compare["policies"]), compare)


def run_comparison(
    rows: Sequence[Row], compare: Mapping[str, Any], config_name: str = "compare_policies"
) -> float:
    """Run what is missing of a comparison, in the folder of the Hydra job that is running.

    Args:
        rows: what is compared.
        compare: the section `compare` as plain data.
        config_name: the config that the rows override.

    Returns:
        The highest accuracy on the reward split.

    Raises:
        ValueError: a setting is wrong, or the rows cannot be compared.
        SystemExit: runs failed; the others are reported.
    """
    from hydra.core.hydra_config import HydraConfig

    from experiments.comparison_figures import draw_comparison
    from experiments.comparison_results import write_comparison
    from experiments.comparison_rows import make_jobs
    from experiments.comparison_runs import run_jobs
    from experiments.comparison_table import print_comparison
    from experiments.report import write_page
    from experiments.report_runs import find_runs

    folder = Path(HydraConfig.get().runtime.output_dir)
    processes = _processes(compare["jobs"])
    given = [text for text in HydraConfig.get().overrides.task if not _is_compare(text)]
    jobs = make_jobs(rows, compare, given, folder, config_name)
    failures = () if compare["report_only"] else run_jobs(jobs, processes=processes)
    comparison = collect(rows, jobs, failures, folder, given)
    prefixes = [folder / "comparison"]
    if compare["publish"] is not None:
        prefixes.append(Path(compare["publish"]))
    for prefix in prefixes:
        write_comparison(comparison, prefix)
        draw_comparison(comparison, prefix)
    write_page(find_runs(folder), folder / "report.html")
    print_comparison(comparison)
    _print_rest(jobs, comparison, failures, folder)
    if failures:
        raise SystemExit(EXIT_BUG)
    return max(run.reward_accuracy for run in comparison.runs)


def collect(
    rows: Sequence[Row],
    jobs: Sequence[Job],
    failures: Sequence[Failure],
    folder: Path,
    given: Sequence[str],
) -> Comparison:
    """Read the finished runs.

    Args:
        rows: the policies.
        jobs: all runs of the comparison.
        failures: those that failed.
        folder: folder of the comparison.
        given: overrides for all rows.

    Raises:
        ValueError: no run is finished.
    """
    from experiments.comparison_results import Comparison, read_run
    from experiments.comparison_runs import failures_as_data, is_finished
    from experiments.run_folder import RunFolder

    finished = [job for job in jobs if is_finished(job)]
    if not finished:
        reason = f" The first that failed said: {failures[0].message}" if failures else ""
        raise ValueError(f"No run of the comparison in {folder} is finished.{reason}")
    runs, curves = [], []
    for job in finished:
        run, points = read_run(job.folder, folder, job.row.label)
        runs.append(run)
        curves += points
    summary = RunFolder(finished[0].folder).read_summary()
    settings = jobs[0].open_config()
    about = {
        "network": summary["network"],
        "data": summary["data"],
        "evaluations": settings.search.evaluations,
        "kept_by": settings.search.keep,
        "fine_tune_epochs": settings.fine_tune.epochs,
        "base": {
            key: summary["base"][key]
            for key in ("reward_accuracy", "reward_loss", "test_accuracy", "macs", "params")
        },
        "overrides": [text for text in given if not _names_a_place(text)],
        "rows": {row.label: list(row.overrides) for row in rows},
    }
    return Comparison(about, tuple(runs), tuple(curves), tuple(failures_as_data(failures)))


def _print_rest(
    jobs: Sequence[Job], comparison: Comparison, failures: Sequence[Failure], folder: Path
) -> None:
    missing = len(jobs) - len(comparison.runs) - len(failures)
    if missing:
        print(f"{missing} of {len(jobs)} runs are missing; without compare.report_only they run.")
    for failure in failures:
        print(f"FAILED {failure.title}: {failure.message} ({failure.log})")
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print(f"\nComparison: {shown}/comparison.json, .csv, _curves.csv, _curves.png, _test.png")
    print(f"Page: {shown}/report.html")


def _processes(jobs: Any) -> int:
    if type(jobs) is not int or jobs < 1:
        raise ValueError(f"compare.jobs must be a whole number, 1 or more, got {jobs!r}.")
    return jobs


def _is_compare(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return key == "compare" or key.startswith("compare.")


def _names_a_place(override: str) -> bool:
    """Whether an override names a folder or file of this machine, which no result should."""
    key, _, value = override.partition("=")
    return value.startswith(("/", "~", "$")) or key in ("data.root", "network.checkpoint")


if __name__ == "__main__":
    run_hydra_command(main)
