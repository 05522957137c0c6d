"""How a run is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class RunIdentity:
    """How a run is called, in its files and in the mirrors.

    Attributes:
        network: chosen network; the dotted path of the user's own.
        data: chosen data; the dotted path of the user's own.
        agent: chosen agent.
        env: chosen environment.
        overrides: what was given on the command line.
        sweep: name of the sweep the run belongs to, or None.
    """

    network: str
    data: str
    agent: str
    env: str
    overrides: tuple[str, ...] = ()
    sweep: str | None = None

    @classmethod
    def from_hydra(cls, config: DictConfig) -> RunIdentity:
        """Read the names from the Hydra job that is running.

        Args:
            config: the config of the job.
        """
        hydra = HydraConfig.get()
        overrides = tuple(hydra.overrides.task)
        names = {}
        for section in ("network", "data", "agent", "env"):
            own = any(
                override.lstrip("+").startswith(f"{section}._target_=") for override in overrides
            )
            chosen = hydra.runtime.choices.get(section)
            names[section] = str(
                OmegaConf.select(config, f"{section}._target_") if own or chosen is None else chosen
            )
        sweep = None
        if hydra.mode == RunMode.MULTIRUN:
            sweep = "_".join(Path(hydra.sweep.dir).parts[-2:])
        return cls(**names, overrides=overrides, sweep=sweep)

    @property
    def title(self) -> str:
        """One line for figures."""
        return f"{self.agent} prunes {self.network} ({self.env})"
