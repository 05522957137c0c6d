"""Mirrors of a run in Weights & Biases and TensorBoard; the files of the run stay the truth."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from envs.recording import EpisodeRecord, EpisodeSink
from experiments.building import call_target
from experiments.group_table import GroupRow
from experiments.identity import RunIdentity
from experiments.run_folder import flatten


class RunMirror(Protocol):
    """Receives every episode while the search runs, and the result at its end."""

    def write(self, record: EpisodeRecord) -> None:
        """Log one finished episode."""

    def report(self, summary: Mapping[str, Any], groups: Sequence[GroupRow]) -> None:
        """Log the result of the run and what happened to each group."""

    def close(self) -> None:
        """Flush and let go; may be called twice."""


@contextmanager
def open_mirrors(
    plain: Mapping[str, Any], folder: Path, identity: RunIdentity
) -> Iterator[list[RunMirror]]:
    """Open the mirrors the config asks for; they are closed whatever happens.

    Args:
        plain: the config as plain data; the section `logger` names the mirrors.
        folder: the run folder.
        identity: how the run is called.

    Raises:
        ValueError: a mirror cannot start.
    """
    with ExitStack() as stack:
        mirrors = []
        for name, options in plain["logger"].items():
            mirror = call_target(
                f"logger.{name}",
                {**options, "folder": folder, "config": plain, "identity": identity},
            )
            stack.callback(mirror.close)
            mirrors.append(mirror)
        yield mirrors


@dataclass(frozen=True)
class KeptOpen:
    """A sink whose owner closes it later: closing the environment does not.

    Attributes:
        sink: the sink that receives the episodes.
    """

    sink: EpisodeSink

    def write(self, record: EpisodeRecord) -> None:
        """Hand the episode on."""
        self.sink.write(record)

    def close(self) -> None:
        """Leave the sink open."""


class WandbMirror:
    """Logs to Weights & Biases; offline unless asked otherwise, so no account is needed.

    Args:
        folder: run folder; W&B writes below its `wandb` folder.
        config: the whole resolved config of the run.
        identity: how the run is called; a sweep is a W&B group.
        project: W&B project.
        entity: W&B team or user; None for the default one.
        mode: "offline", "online" or "disabled".

    Raises:
        ValueError: W&B cannot start, for example online without a key.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        identity: RunIdentity,
        *,
        project: str = "topiary",
        entity: str | None = None,
        mode: str = "offline",
    ) -> None:
        # W&B takes our package `agents` for another library of that name and advertises weave.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        import wandb

        if mode not in ("offline", "online", "disabled"):
            raise ValueError(
                f"W&B knows the modes offline, online and disabled, got {mode!r}. "
                "Change logger.wandb.mode or the environment variable WANDB_MODE."
            )
        try:
            self._run: Any = wandb.init(
                project=project,
                entity=entity,
                group=identity.sweep,
                name=f"{identity.agent} {identity.network} seed {config['seed']}",
                notes=" ".join(identity.overrides),
                tags=[identity.agent, identity.env, identity.network],
                config=dict(config),
                dir=folder,
                mode=mode,  # type: ignore[arg-type]
                reinit="finish_previous",  # many jobs of a sweep share one process
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.errors.Error, ValueError) as error:  # ValueError: a WANDB_* variable
            raise ValueError(
                f"W&B could not start in mode {mode!r}: {' '.join(str(error).split())} "
                "Use logger.wandb.mode=offline, or logger=csv to do without."
            ) from error
        self._run.define_metric("evaluations")
        self._run.define_metric("prune/*", step_metric="evaluations")
        self._run.define_metric("reward/*", step_metric="evaluations")

    def write(self, record: EpisodeRecord) -> None:
        """Log one finished episode."""
        self._run.log({"evaluations": record.evaluations, **episode_scalars(record)})

    def report(self, summary: Mapping[str, Any], groups: Sequence[GroupRow]) -> None:
        """Put the summary beside the run and the decisions into a table."""
        import wandb

        rows = [asdict(row) for row in groups]
        if rows:
            columns: list[str | int] = list(rows[0])
            data = [[row[str(column)] for column in columns] for row in rows]
            self._run.log({"groups": wandb.Table(columns=columns, data=data)})
        self._run.summary.update(flatten(summary, "/"))

    def close(self) -> None:
        """Finish the W&B run."""
        if self._run is not None:
            self._run.finish()
            self._run = None


class TensorBoardMirror:
    """Writes TensorBoard event files into the run folder.

    Args:
        folder: run folder; the events lie in its `tensorboard` folder.
        config: the whole resolved config, shown as text.
        identity: how the run is called.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: RunIdentity) -> None:
        from omegaconf import OmegaConf
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
        self._writer.add_text("run", identity.title)
        self._writer.add_text("config", "    " + text.replace("\n", "\n    "))

    def write(self, record: EpisodeRecord) -> None:
        """Log one finished episode at the number of evaluations so far."""
        for name, value in episode_scalars(record).items():
            self._writer.add_scalar(name, value, record.evaluations)

    def report(self, summary: Mapping[str, Any], groups: Sequence[GroupRow]) -> None:
        """Log the numbers of the summary, and the pruning ratios as a text table."""
        for name, value in flatten(summary, "/").items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"summary/{name}", value)
        if groups:
            columns = list(asdict(groups[0]))
            lines = ["|".join(columns), "|".join("---" for _ in columns)]
            lines += ["|".join(str(value) for value in asdict(row).values()) for row in groups]
            self._writer.add_text("groups", "\n".join(lines))

    def close(self) -> None:
        """Write what is left and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def episode_scalars(record: EpisodeRecord) -> dict[str, float]:
    """The numbers of one episode under the names both mirrors use."""
    scalars = {
        "prune/reward": record.reward,
        "prune/score": record.score,
        "prune/accuracy": record.accuracy,
        "prune/loss": record.loss,
        "prune/relative_macs": record.relative_macs,
        "prune/macs": record.macs,
        "prune/nonzero_macs": record.nonzero_macs,
        "prune/params": record.params,
        "prune/budget_met": float(record.met),
        "prune/clamps": record.clamps,
        "prune/episode": record.episode,
    }
    scalars |= {f"reward/{name}": value for name, value in record.reward_terms.items()}
    scalars |= {f"reward_state/{name}": value for name, value in record.reward_state.items()}
    return {name: float(value) for name, value in scalars.items() if value is not None}
