"""The runs of a comparison: each once, in its own folder; one that fails takes no other with it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.command_line import explain
from experiments.comparison_rows import Job, differences
from experiments.run_folder import RunFolder
from experiments.study_overrides import write_overrides

log = logging.getLogger(__name__)

LOG_FILE = "run.log"
"""What a run printed; in its folder."""


@dataclass(frozen=True)
class Failure:
    """A run that failed.

    Attributes:
        title: which one.
        message: why, in one line.
        log: file with all that it printed.
    """

    title: str
    message: str
    log: Path


def is_finished(job: Job) -> bool:
    """Whether the folder of a job holds its result: of these settings, and not cut short.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    run = RunFolder(job.folder)
    if not run.config.is_file():
        return False
    from omegaconf import OmegaConf

    wanted: Any = OmegaConf.to_container(job.open_config(), resolve=True)
    others = differences(wanted, run.read_config())
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(
            f"{job.folder} holds a run with other settings ({', '.join(others[:3])}{more}). Give "
            "this comparison a name of its own, compare.name=NAME, or remove that folder."
        )
    return run.summary.is_file() and run.read_summary()["stop_reason"] != "interrupted"


def run_jobs(jobs: Sequence[Job], *, processes: int) -> tuple[Failure, ...]:
    """Do what is missing.

    Args:
        jobs: all runs of the comparison.
        processes: runs at a time; 1 runs them here, more in a process each.

    Returns:
        The runs that failed.

    Raises:
        ValueError: a folder holds a run with other settings.
        KeyboardInterrupt: Ctrl-C; the same command goes on later.
    """
    missing = [job for job in jobs if not is_finished(job)]
    if len(missing) < len(jobs):
        log.info("%d of %d runs are there already.", len(jobs) - len(missing), len(jobs))
    for job in missing:
        _make_room(job)
    if processes == 1:
        results = [
            _announced(_run_here, job, f"{number}/{len(missing)}")
            for number, job in enumerate(missing, 1)
        ]
    else:
        with ThreadPoolExecutor(processes) as pool:
            waiting = [
                pool.submit(_announced, _run_apart, job, f"{number}/{len(missing)}")
                for number, job in enumerate(missing, 1)
            ]
            try:
                results = [future.result() for future in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return tuple(failure for failure in results if failure is not None)


def _make_room(job: Job) -> None:
    """Clear what a killed run left, unless the run itself goes on from there."""
    resumes = job.open_config().get("resume") not in (None, False, "never")
    if job.folder.exists() and not resumes:
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)


def _announced(run: Any, job: Job, number: str) -> Failure | None:
    started = time.monotonic()
    log.info("[%s] %s", number, job.title)
    failure: Failure | None = run(job)
    seconds = time.monotonic() - started
    if failure is None:
        accuracy = RunFolder(job.folder).read_summary()["pruned"]["reward_accuracy"]
        log.info(
            "[%s] %s: %.2f %% on the reward split, %.0f s",
            number,
            job.title,
            100 * accuracy,
            seconds,
        )
    else:
        log.info("[%s] %s FAILED: %s", number, job.title, failure.message)
    return failure


def _run_here(job: Job) -> Failure | None:
    from experiments.pipeline import run_job

    file = job.folder / LOG_FILE
    if job.overrides:
        write_overrides(job.folder, job.overrides)
    with _printing_to(file):
        try:
            run_job(job.open_config(), job.folder, job.identity)
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            return Failure(job.title, _one_line(error), file)
    if RunFolder(job.folder).read_summary()["stop_reason"] == "interrupted":
        raise KeyboardInterrupt
    return None


def _run_apart(job: Job) -> Failure | None:
    """Run a job in a process of its own, so that not even a crash reaches the others."""
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(job,), daemon=True)
    process.start()
    process.join()
    if process.exitcode == 0:
        return None
    file = job.folder / LOG_FILE
    lines = file.read_text(encoding="utf-8").strip().splitlines() if file.is_file() else []
    message = lines[-1] if lines and process.exitcode == 1 else f"exit code {process.exitcode}"
    return Failure(job.title, message, file)


def _work(job: Job) -> None:
    """What a process of its own does; all of its writers append, so none overwrites another."""
    with (job.folder / LOG_FILE).open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    failure = _run_here(job)
    if failure is not None:
        raise SystemExit(1)


@contextlib.contextmanager
def _printing_to(file: Path) -> Iterator[None]:
    """Send what is printed and logged to a file; progress bars, on stderr, stay on the terminal."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    with file.open("a", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        own = logging.StreamHandler(stream)
        own.setFormatter(logging.Formatter("%(message)s"))
        root.handlers = [own]
        try:
            yield
        finally:
            root.handlers = handlers


def _one_line(error: Exception) -> str:
    message = explain(error) or f"{type(error).__name__}: {error}"
    return " ".join(message.split())


def failures_as_data(failures: Sequence[Failure]) -> list[Mapping[str, str]]:
    """Failures for a JSON file."""
    return [{"run": failure.title, "message": failure.message} for failure in failures]
