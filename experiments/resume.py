"""Which folder a run belongs into: a new one, or that of an earlier run which it goes on with."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from experiments.run_folder import RunFolder

AUTO = "auto"
HARMLESS = (
    "resume", "progress_bar", "logger", "debug", "cache_dir", "measurements_dir", "export",
)  # fmt: skip
"""Root keys that cannot change a result: runs that differ only in them are the same run."""

NEW, UNFINISHED, FINISHED = "new", "unfinished", "finished"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        run: its folder.
        state: "new", "unfinished" (an earlier run to go on with), or "finished" (nothing to do).
    """

    run: RunFolder
    state: str


def choose_run(plain: Mapping[str, Any], folder: Path, search_root: Path | None = None) -> Start:
    """Find the run that the key `resume` asks for.

    `resume=auto` takes the newest run below `search_root` with an equal config, keys that cannot
    change a result aside, and a new folder when there is none; `resume=RUN_DIR` takes that one. A
    run that was ended by Ctrl-C counts as unfinished.

    Args:
        plain: the config as plain data.
        folder: folder of a new run.
        search_root: where `auto` looks; the parent of `folder` by default.

    Raises:
        ValueError: `resume` is none of null, auto and a folder, the folder holds no run, or its
            config differs.
    """
    wanted = plain.get("resume")
    if wanted is None:
        return Start(RunFolder(folder), NEW)
    if not isinstance(wanted, str) or not wanted:
        raise ValueError(f"resume must be null, auto or the folder of a run, got {wanted!r}.")
    if wanted == AUTO:
        root = folder.parent if search_root is None else search_root
        found = _newest_equal(plain, root)
        if found is None:
            log.info(
                "resume=auto: no run with this config in %s, so a new one begins", _shown(root)
            )
            return Start(RunFolder(folder), NEW)
    else:
        found = RunFolder(Path(wanted).absolute())
        there, here = (
            found.read_config(),
            OmegaConf.to_container(OmegaConf.create(config_text(plain))),
        )
        assert isinstance(here, dict)
        differences = _differences(there, {str(key): value for key, value in here.items()})
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise ValueError(
                f"The run in {wanted} has another config: {'; '.join(differences[:3])}{more}. "
                "Give the same overrides as then, or start afresh with resume=null."
            )
    state = FINISHED if _is_finished(found) else UNFINISHED
    what = "is finished, nothing is left to do" if state == FINISHED else "goes on"
    log.info("resume=%s: the run in %s %s", wanted, _shown(found.path), what)
    return Start(found, state)


def config_text(plain: Mapping[str, Any]) -> str:
    """The config as it is written to the run folder."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(plain)))


def hydra_search_root() -> Path:
    """Where runs of the Hydra job that is running lie.

    The part of `hydra.run.dir` (or `hydra.sweep.dir` in a sweep) before the first value that is
    filled in: `runs` by default, and the folder itself when it is fixed.
    """
    hydra = HydraConfig.get()
    section = "sweep" if hydra.mode == RunMode.MULTIRUN else "run"
    raw = OmegaConf.to_container(HydraConfig.instance().cfg.hydra[section], resolve=False)  # type: ignore[union-attr]
    assert isinstance(raw, dict)
    fixed, filled_in, _ = str(raw["dir"]).partition("${")
    parent = fixed.rpartition("/")[0] if filled_in else fixed
    if not parent:  # nothing is fixed
        return Path(hydra.runtime.output_dir).parent
    return Path(hydra.runtime.cwd) / parent


def leave_folder(fresh: Path, run: RunFolder, search_root: Path | None = None) -> None:
    """Go on in the folder of an earlier run: Hydra's log too, and the fresh folder is removed.

    Args:
        fresh: the folder Hydra has made for this run; removed unless it holds files of others.
        run: the folder to go on in.
        search_root: folders between it and `fresh` that are empty now are removed as well.
    """
    if fresh.resolve() == run.path.resolve():
        return
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            old = Path(handler.baseFilename)
            if old.parent.resolve() == fresh.resolve():
                _move_log(handler, old, run.path / old.name)
    if not fresh.is_dir() or Path.cwd().is_relative_to(fresh):
        return
    if all(path.name == ".hydra" for path in fresh.iterdir()):
        shutil.rmtree(fresh)
        for parent in fresh.parents:
            if search_root is None or not parent.is_relative_to(search_root):
                break
            with suppress(OSError):  # another run lies in it
                parent.rmdir()


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold a run folder for this process; the system lets go of it however the process ends.

    Where the system or the file system knows no locks, nothing is held.

    Raises:
        ValueError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(run.path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"The run in {_shown(run.path)} is still running in another process. Wait for it, "
                "or start another run with resume=null."
            ) from error
        except OSError as error:
            log.info("%s cannot be locked (%s)", _shown(run.path), error.strerror)
        yield
    finally:
        os.close(descriptor)


def _newest_equal(plain: Mapping[str, Any], root: Path) -> RunFolder | None:
    wanted = _without_harmless(config_text(plain))
    for run in sorted(_runs_below(root), key=_age):
        # as text: reading the YAML of a thousand runs would take a minute
        text = run.config.read_text(encoding="utf-8", errors="replace")
        if _without_harmless(text) == wanted:
            return run
    return None


def _without_harmless(text: str) -> str:
    """The text of a config without the root keys that cannot change a result."""
    return re.sub(rf"^(?:{'|'.join(HARMLESS)}):.*\n(?:[ -].*\n|\n)*", "", text, flags=re.MULTILINE)


def _runs_below(root: Path) -> Iterator[RunFolder]:
    """All run folders; one inside another is not looked for (W&B has `config.yaml` there)."""
    for path, folders, files in os.walk(root):
        run = RunFolder(Path(path))
        if run.config.name in files:
            folders.clear()
            yield run
        else:
            folders[:] = [name for name in folders if not name.startswith(".")]


def _age(run: RunFolder) -> tuple[float, str]:
    """Sorts the newest run first; of two that began together the first by name."""
    return -run.config.stat().st_mtime, str(run.path)


def _is_finished(run: RunFolder) -> bool:
    return run.summary.is_file() and run.read_summary().get("stop_reason") != "interrupted"


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every key that differs, with both values."""
    differences: list[str] = []
    for key in [*there, *(key for key in here if key not in there)]:
        name = f"{prefix}{key}"
        if name in HARMLESS:
            continue
        if key not in here or key not in there:
            where = "there" if key in there else "here"
            differences.append(f"{name} is only {where}")
        elif isinstance(there[key], Mapping) and isinstance(here[key], Mapping):
            differences += _differences(there[key], here[key], f"{name}.")
        elif there[key] != here[key]:
            differences.append(f"{name} is {there[key]!r} there and {here[key]!r} here")
    return differences


def _move_log(handler: logging.FileHandler, old: Path, new: Path) -> None:
    """Let a log go on at the end of another file."""
    root = logging.getLogger()
    moved = logging.FileHandler(new, encoding=handler.encoding)
    moved.setFormatter(handler.formatter)
    moved.setLevel(handler.level)
    root.removeHandler(handler)
    handler.close()
    if old.is_file():
        with new.open("a", encoding="utf-8") as file:
            file.write(old.read_text(encoding="utf-8"))
        old.unlink()
    root.addHandler(moved)


def _shown(path: Path) -> Path:
    """As short as it can be named from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
