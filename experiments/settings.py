"""The root keys of the config, checked before anything costs time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.export import ENDINGS
from graphs.tracer import ATTENTION

KEEP = ("reward", "accuracy", "loss")
"""What the plan that a search keeps can be best in; accuracy and loss are of the reward split."""


@dataclass(frozen=True)
class Settings:
    """What belongs to a run and to no group of the config.

    Attributes:
        seed: seed of python, NumPy, torch, the agent and the fine-tuning.
        frozen: operators whose output channels stay, by name or shell pattern.
        attention: what attention can lose, one of graphs.tracer.ATTENTION.
        round_to: kept channels of every group are a multiple of this, or all of them.
        num_threads: CPU threads of torch.
        show_progress: whether progress bars are drawn.
        cache_dir: folder of the networks that were trained here once.
        measurements_dir: folder of what was measured on the test split; None keeps none.
        fine_tune_uniform: whether the uniform network of the report is fine-tuned as well.
        export: endings of the files that the pruned network is also written as, of ENDINGS.
        evaluations: measured candidates after which the search ends.
        minutes: wall time after which it ends, or None.
        max_timesteps: environment steps after which it ends, or None.
        keep: what the kept plan is best in, one of KEEP.
        patience: episodes in a row without a new plan after which it ends, or None.
        num_envs: plans that an agent decides on before it sees what they are worth.
        workers: processes that measure them; 0 for the main process.
        latency_batch: samples per batch when latency is measured.
        latency_threads: CPU threads when latency is measured.
        latency_seconds: seconds of repeats per network and runtime.
        latency_onnxruntime: whether latency is measured in onnxruntime too; None for when the
            packages are installed.
    """

    seed: int
    frozen: tuple[str, ...]
    attention: str
    round_to: int
    num_threads: int
    show_progress: bool
    cache_dir: Path
    measurements_dir: Path | None
    fine_tune_uniform: bool
    export: tuple[str, ...]
    evaluations: int
    minutes: float | None
    max_timesteps: int | None
    patience: int | None
    keep: str
    num_envs: int
    workers: int
    latency_batch: int
    latency_threads: int
    latency_seconds: float
    latency_onnxruntime: bool | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, show_progress: bool) -> Settings:
        """Read and check the root keys.

        Args:
            config: the whole config as plain data.
            show_progress: whether progress bars are drawn.

        Raises:
            ValueError: a value is of the wrong kind or out of range.
        """
        search, latency = config["search"], config["evaluation"]["latency"]
        cache_dir, vec_env = config["cache_dir"], config["vec_env"]
        num_envs = _whole("vec_env.num_envs", vec_env["num_envs"], lowest=1)
        if not isinstance(cache_dir, str) or not cache_dir:
            raise ValueError(f"cache_dir must be a folder, got {cache_dir!r}.")
        return cls(
            seed=_whole("seed", config["seed"], lowest=0, highest=2**32 - 1),
            frozen=_names("frozen", config["frozen"]),
            attention=_one_of("attention", config["attention"], ATTENTION),
            round_to=_whole("round_to", config["round_to"], lowest=1),
            num_threads=_whole("num_threads", config["num_threads"], lowest=1),
            show_progress=show_progress,
            cache_dir=Path(cache_dir).expanduser(),
            measurements_dir=_folder_or_none("measurements_dir", config["measurements_dir"]),
            fine_tune_uniform=_flag("fine_tune_uniform", config["fine_tune_uniform"]),
            export=_formats("export", config["export"]),
            evaluations=_whole("search.evaluations", search["evaluations"], lowest=1),
            minutes=_positive("search.minutes", search["minutes"]),
            max_timesteps=_whole_or_none("search.max_timesteps", search["max_timesteps"]),
            patience=_whole_or_none("search.patience", search["patience"]),
            keep=_one_of("search.keep", search["keep"], KEEP),
            num_envs=num_envs,
            workers=_whole("vec_env.workers", vec_env["workers"], lowest=0, highest=num_envs),
            latency_batch=_whole("evaluation.latency.batch", latency["batch"], lowest=1),
            latency_threads=_whole("evaluation.latency.threads", latency["threads"], lowest=1),
            latency_seconds=_positive("evaluation.latency.min_run_time", latency["min_run_time"])
            or 0.5,
            latency_onnxruntime=_switch("evaluation.latency.onnxruntime", latency["onnxruntime"]),
        )


def _whole(key: str, value: Any, *, lowest: int, highest: int | None = None) -> int:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < lowest or (highest is not None and value > highest):
        bound = f"{lowest} or more" if highest is None else f"in [{lowest}, {highest}]"
        raise ValueError(f"{key} must be a whole number, {bound}, got {value!r}.")
    return int(value)


def _names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(
            f"{key} must be a list of names or shell patterns such as [conv1,'layer1.*'], "
            f"got {value!r}."
        )
    return tuple(value)


def _formats(key: str, value: Any) -> tuple[str, ...]:
    wanted = [value] if isinstance(value, str) else value or []
    if not isinstance(wanted, list) or not set(wanted) <= set(ENDINGS):
        raise ValueError(
            f"{key} must be null, one of {', '.join(ENDINGS)}, or a list of them, got {value!r}."
        )
    return tuple(ending for ending in ENDINGS if ending in wanted)


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {value!r}.")
    return str(value)


def _folder_or_none(key: str, value: Any) -> Path | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{key} must be null or a folder, got {value!r}.")
    return None if value is None else Path(value).expanduser()


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r}.")
    return value


def _switch(key: str, value: Any) -> bool | None:
    """True, False, or None for "auto"."""
    if value == "auto":
        return None
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be auto, true or false, got {value!r}.")
    return value


def _whole_or_none(key: str, value: Any) -> int | None:
    return None if value is None else _whole(key, value, lowest=1)


def _positive(key: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"{key} must be a number above 0 or null, got {value!r}.")
    return float(value)
