"""The files one run leaves, written so that a killed run never looks finished."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        path: the folder; Hydra has made it.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config; with it the run can be repeated and its data rebuilt."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """The best plan, replayable with `PruningPlan.from_json`."""
        return self.path / "plan.json"

    @property
    def graph(self) -> Path:
        """The traced network, readable with `NetworkGraph.from_json`."""
        return self.path / "graph.json"

    @property
    def agent(self) -> Path:
        """The trained agent, for agents that can be saved."""
        return self.path / "agent.zip"

    @property
    def pruned(self) -> Path:
        """The final pruned network."""
        return self.path / "pruned.safetensors"

    @property
    def splits(self) -> Path:
        """Image indices of the train, calibration, reward and test splits."""
        return self.path / "splits.json"

    @property
    def metrics(self) -> Path:
        """One line per episode."""
        return self.path / "metrics.csv"

    @property
    def journal(self) -> Path:
        """Every counted evaluation; with it an unfinished run goes on (pruning/journal.py)."""
        return self.path / "evaluations.jsonl"

    def fine_tuning(self, name: str) -> Path:
        """State of the fine-tuning of a network; there only while the run is unfinished."""
        return self.path / f"fine_tuning_{name}.safetensors"

    @property
    def summary(self) -> Path:
        """The result; written last, so its presence says that the run is finished."""
        return self.path / "summary.json"

    @property
    def figures(self) -> Path:
        """Folder of the PNG figures."""
        return self.path / "figures"

    @property
    def proposals(self) -> Path:
        """What a language model proposed and why, one line per proposal; of such agents alone."""
        return self.path / "llm_proposals.jsonl"

    @property
    def proposed_fine_tune(self) -> Path:
        """Settings of the fine-tuning that the agent changed, for every row; there only if some."""
        return self.path / "fine_tune.json"

    @property
    def report(self) -> Path:
        """One self-contained page about the run."""
        return self.path / "report.html"

    def forget_results(self, *, evaluations: bool) -> None:
        """Remove what a search writes anew, so that nothing of an earlier one stays.

        Args:
            evaluations: whether the journal and begun fine-tunings go as well.
        """
        self.summary.unlink(missing_ok=True)
        self.metrics.unlink(missing_ok=True)
        self.proposed_fine_tune.unlink(missing_ok=True)
        if evaluations:
            self.journal.unlink(missing_ok=True)
            self.forget_fine_tuning()

    def forget_fine_tuning(self) -> None:
        """Remove the states of fine-tunings, which a finished run needs no more."""
        for path in self.path.glob(self.fine_tuning("*").name):
            path.unlink()

    def read_config(self) -> dict[str, Any]:
        """The config of the run as plain data.

        Raises:
            ValueError: the folder holds no run.
        """
        from omegaconf import OmegaConf

        if not self.config.is_file():
            raise ValueError(
                f"{self.path} is not the folder of a run: it holds no {self.config.name}. "
                "Give the folder that train_agent.py printed at its end."
            )
        config = OmegaConf.to_container(OmegaConf.load(self.config))
        assert isinstance(config, dict)
        return {str(key): value for key, value in config.items()}

    def read_summary(self) -> dict[str, Any]:
        """The result of the run.

        Raises:
            ValueError: the run never finished.
        """
        if not self.summary.is_file():
            raise ValueError(
                f"The run in {self.path} is not finished: it holds no {self.summary.name}. "
                "Start the same command again with resume=auto."
            )
        return json.loads(self.summary.read_text(encoding="utf-8"))


def flatten(data: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Nested mappings as one mapping, with keys such as "pruned/test_accuracy".

    Args:
        data: a summary or a config; an empty mapping inside leaves nothing.
        separator: between the keys.
    """
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            inner = flatten(value, separator)
            flat |= {f"{key}{separator}{name}": leaf for name, leaf in inner.items()}
        else:
            flat[key] = value
    return flat


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing, also when the process is killed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write data as readable JSON, atomically; NaN is refused because it is not JSON."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")
