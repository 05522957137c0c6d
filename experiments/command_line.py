"""What the shell sees of a command: one clear message and an exit code instead of a traceback."""

from __future__ import annotations

import difflib
import functools
import linecache
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

EXIT_USER_ERROR = 2
EXIT_BUG = 1
EXIT_INTERRUPTED = 130

TRACEBACK_VARIABLE = "TOPIARY_TRACEBACK"
"""Environment variable that hands the user's HYDRA_FULL_ERROR=1 on to worker processes."""

PROJECT_FOLDER = Path(__file__).resolve().parent.parent
CONFIG_FOLDER = PROJECT_FOLDER / "conf"
PACKAGES = ("agents", "envs", "experiments", "graphs", "networks", "patterns", "pruning")


class JobFailed(Exception):  # noqa: N818 - reads as the claim it makes in a sweep's summary
    """One job of a sweep failed and has already said why; the others go on.

    Args:
        exit_code: exit code of the whole command.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def guard_job(job: Callable[[DictConfig], float]) -> Callable[[DictConfig], float]:
    """Make a Hydra task report its own failure: a sweep then goes on, a single run ends at once."""

    @functools.wraps(job)
    def guarded(config: DictConfig) -> float:
        try:
            return job(config)
        except Exception as error:
            show_traceback = bool(OmegaConf.select(config, "debug.traceback", default=False))
            exit_code = report_error(error, show_traceback=show_traceback)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                print(
                    f"This was job {HydraConfig.get().job.num}; the others go on.", file=sys.stderr
                )
                raise JobFailed(exit_code) from None
            raise SystemExit(exit_code) from None

    return guarded


def run_hydra_command(main: Callable[[], Any]) -> None:
    """Run a function decorated with `hydra.main` and leave the process with the right exit code.

    Args:
        main: the decorated function; Hydra reads its arguments from `sys.argv`.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ[TRACEBACK_VARIABLE] = "1"
    # With this Hydra hands its errors to us instead of printing them and leaving with exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    warnings.showwarning = show_warning_briefly
    working_folder = os.getcwd()
    if working_folder not in sys.path:  # so that network._target_=my_package.build_network is found
        sys.path.insert(0, working_folder)
    for flag in ("-m", "--multirun"):
        if flag in sys.argv[2:]:  # Hydra takes no overrides on both sides of a flag
            sys.argv.remove(flag)
            sys.argv.insert(1, flag)
    try:
        main()
    except JobFailed as failure:
        raise SystemExit(failure.exit_code) from None
    except KeyboardInterrupt:
        print(
            "\nStopped by Ctrl-C: nothing was reported. The same command with resume=auto goes on.",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        raise SystemExit(report_error(error)) from None


def show_warning_briefly(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as its message alone; a replacement for `warnings.showwarning`."""
    print(f"warning: {_flatten(str(message))}", file=file or sys.stderr)


def run_command(main: Callable[[], int]) -> None:
    """Run a command that is not Hydra's and leave the process with the right exit code.

    Args:
        main: the command; returns its exit code.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ[TRACEBACK_VARIABLE] = "1"
    try:
        exit_code = main()
    except KeyboardInterrupt:
        exit_code = EXIT_INTERRUPTED
    except Exception as error:
        exit_code = report_error(error)
    raise SystemExit(exit_code)


def report_error(error: Exception, *, show_traceback: bool = False) -> int:
    """Print an error to stderr: a message when the user can mend it, a traceback for our bugs.

    Args:
        error: what was raised.
        show_traceback: print the traceback in any case.

    Returns:
        The exit code that belongs to the error.
    """
    message = explain(error)
    if message is None or show_traceback or os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exception(error)
    if message is None:
        print("error: this is a bug in Topiary or in your own code, see above.", file=sys.stderr)
        return EXIT_BUG
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USER_ERROR


def explain(error: BaseException) -> str | None:
    """What the user did wrong and how to mend it, in one paragraph; None when it is a bug.

    A `ValueError` counts as the user's when a `raise` outside the standard library and outside the
    installed packages made it; so do a full disk, a missing file, and what Hydra refuses.
    """
    if isinstance(error, MissingConfigException):
        return _explain_missing_config(error)
    if isinstance(error, OverrideParseException):
        first_line = str(error).splitlines()[0]
        return (
            f"Cannot read the override {error.override!r}: {first_line}. Overrides are key=value; "
            "quote a value with special characters, as in 'key=\"a,b\"'."
        )
    if isinstance(error, InstantiationException):
        return _explain_instantiation(error)
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error)
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key or "?")
        return f"{key} has no value. Give it on the command line: {key}=VALUE."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _flatten(str(error))
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{reason}: {error.filename}" if error.filename else _flatten(reason)
    if isinstance(error, ValueError) and _was_raised_on_purpose(error):
        return str(error)
    return None


def comes_from(error: BaseException, *packages: str) -> bool:
    """Whether an error was raised inside one of these installed packages."""
    frames = _frames(error)
    return bool(frames) and not set(packages).isdisjoint(Path(frames[-1].filename).parts)


def closest(name: str, choices: Sequence[str]) -> str:
    """A hint such as " Did you mean 'ppo'?", or "" when nothing is near."""
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _explain_missing_config(error: MissingConfigException) -> str:
    wanted = str(error.missing_cfg_file or "").lstrip("/")
    group, _, name = wanted.rpartition("/")
    if not group or error.options is None:
        return _flatten(str(error))
    if not error.options:
        return f"There is no {group} {name!r}: conf/{group} holds no choices."
    choices = ", ".join(error.options)
    return (
        f"There is no {group} {name!r}.{closest(name, error.options)} The choices are: {choices}."
    )


def _explain_composition(error: ConfigCompositionException) -> str:
    text = str(error)
    ambiguous = re.search(r"Ambiguous value for argument '([^=']+)=([^']*)'", text)
    if ambiguous is not None:
        key, values = ambiguous.groups()
        return (
            f"{key}={values} names several values. Add -m to run a job for each, or write "
            f"'{key}=[{values}]' for a list."
        )
    refused = re.search(r"Could not override '([^']+)'", text)
    if refused is None:
        return _flatten(text)
    key = refused.group(1)
    parent, _, name = key.rpartition(".")
    choices = _config_keys(parent)
    if name in choices:  # the key is there: something else is wrong with its value
        return _flatten(f"{text} {error.__cause__ or ''}")
    if not choices:
        return f"There is no key {key!r}. Write +{key}=VALUE to add a new key."
    where = f"The keys of {parent} are" if parent else "The keys are"
    return (
        f"There is no key {key!r}.{closest(name, choices)} {where}: {', '.join(choices)}. "
        f"Write +{key}=VALUE to add a new key."
    )


def _explain_instantiation(error: InstantiationException) -> str | None:
    """Hydra wraps what a constructor raised; the innermost cause is what matters."""
    where = re.search(r"full_key: (\S+)", str(error))
    key = f"{where.group(1)}: " if where else ""
    cause = error.__cause__
    if cause is None or isinstance(cause, ImportError | AttributeError):
        first_line = (
            str(error)
            .splitlines()[0]
            .replace(", set env var HYDRA_FULL_ERROR=1 to see chained exception.", "")
        )
        return f"{key}{first_line}." + (f" {_flatten(str(cause))}" if cause else "")
    if isinstance(cause, TypeError):
        innermost = _frames(cause)[-1] if _frames(cause) else None
        if innermost is None or "hydra" in Path(innermost.filename).parts:  # the call itself failed
            return f"{key}{cause}."
        return None
    message = explain(cause)
    return None if message is None else f"{key}{message}"


def _config_keys(parent: str) -> list[str]:
    """Keys of one section of the config, composed with the groups of this command line."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    choices = [
        argument.split(",")[0]
        for argument in sys.argv[1:]
        if re.fullmatch(r"[a-z_]+=[\w,]+", argument)
        and (CONFIG_FOLDER / argument.split("=")[0]).is_dir()
    ]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            section = compose("train_agent", overrides=choices)
            if parent:
                section = OmegaConf.select(section, parent)
    except (
        HydraException,
        OmegaConfBaseException,
    ):  # the hint is a courtesy, not worth a second error
        return []
    return [str(key) for key in section] if isinstance(section, DictConfig) else []


def _was_raised_on_purpose(error: BaseException) -> bool:
    """Whether a `raise` statement of this project or of the user's own code made the error."""
    frames = _frames(error)
    if not frames:
        return True
    innermost = frames[-1]
    file = Path(innermost.filename)
    ours = file.is_relative_to(PROJECT_FOLDER) and (
        file.relative_to(PROJECT_FOLDER).parts[0] in PACKAGES or file.name == "train_agent.py"
    )
    foreign = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if not ours and any(file.is_relative_to(folder) for folder in foreign):
        return False
    line = linecache.getline(innermost.filename, innermost.lineno or 0).strip()
    return not line or line.startswith("raise")


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


def _flatten(text: str) -> str:
    """Several lines as one."""
    return " ".join(text.split())
