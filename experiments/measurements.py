"""Measurements on the test split, kept in a folder so that several runs share them."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.run_folder import write_json
from networks.data import SampleSet
from networks.fingerprints import describe_setting, hash_code, hash_tensor
from pruning.evaluation import Evaluation
from pruning.journal import digest
from pruning.outputs import device_of
from pruning.plan import Candidate
from pruning.task import PruningTask

FORMAT = 1

log = logging.getLogger(__name__)


class Measurements:
    """Measures networks on one sample set, each network once.

    What was measured is found by all that it depends on: the weights, the code of the network and
    how it is built, what of it is kept, images and labels, batch size and layout, metric and loss,
    and torch's version and threads. So a network that was trained further is another one, and
    runs of other networks or settings may share the folder. Several processes may, too: every entry
    is one file, written whole.

    Args:
        task: the task of the run; its evaluator measures.
        samples: the test split.
        folder: where measurements are kept and looked up; None keeps none.
        network: section `network` of the config; what a checkpoint holds is seen in the weights.
    """

    def __init__(
        self,
        task: PruningTask,
        samples: SampleSet,
        folder: Path | None = None,
        network: Mapping[str, Any] | None = None,
    ) -> None:
        self._task = task
        self._samples = samples
        self._folder = folder
        options = network or {}
        self._network = {key: value for key, value in options.items() if key != "checkpoint"}

    def measure(self, network: nn.Module, candidate: Candidate) -> Evaluation:
        """Accuracy and loss of a network, from the folder or measured now.

        Args:
            network: the slim network; left unchanged.
            candidate: what it keeps.

        Raises:
            NonFiniteAccuracy: accuracy or loss is NaN or infinite.
        """
        if self._folder is None:
            return self._measured(network)
        file = self._folder / f"{self._key(network, candidate)}.json"
        known = self._read(file)
        if known is not None:
            return known
        measured = self._measured(network)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(file, asdict(measured))
        except OSError as error:
            log.warning("A measurement was not kept in %s: %s", self._folder, error)
        return measured

    def _measured(self, network: nn.Module) -> Evaluation:
        evaluator = self._task.evaluator
        return evaluator.measure(
            network, self._samples, channels_last=evaluator.wants_channels_last
        )

    def _read(self, file: Path) -> Evaluation | None:
        """What a file holds; None where there is none, or one that no run has written."""
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            text, reason = "", str(error)
        else:
            reason = "it holds no measurement of these images"
        try:
            found = json.loads(text)
            evaluation = Evaluation(
                float(found["accuracy"]), float(found["loss"]), int(found["num_samples"])
            )
        except (ValueError, TypeError, KeyError):
            evaluation = None
        if evaluation is None or not self._is_plausible(evaluation):
            log.warning("%s is ignored, and the network measured again: %s", file, reason)
            return None
        return evaluation

    def _is_plausible(self, evaluation: Evaluation) -> bool:
        is_finite = math.isfinite(evaluation.accuracy) and math.isfinite(evaluation.loss)
        return is_finite and evaluation.num_samples == len(self._samples)

    def _key(self, network: nn.Module, candidate: Candidate) -> str:
        hashed = self._common.copy()
        hashed.update(f"{network!r} {digest(candidate)} {device_of(network).type}".encode())
        hash_code(hashed, network)
        tensors = {**dict(network.named_buffers()), **network.state_dict()}
        for name, value in tensors.items():  # buffers that are not saved count too
            hash_tensor(hashed, name, value)
        return hashed.hexdigest()[:32]

    @functools.cached_property
    def _common(self) -> Any:
        """A hash of what is the same for all networks of a run."""
        evaluator, samples = self._task.evaluator, self._samples
        header = (
            FORMAT, torch.__version__, torch.get_num_threads(), self._network,
            self._task.graph.fingerprint, evaluator.batch_size, evaluator.wants_channels_last,
            describe_setting(evaluator.metric), describe_setting(evaluator.loss),
            samples.mean, samples.std,
        )  # fmt: skip
        hashed = hashlib.sha256(repr(header).encode())
        hash_tensor(hashed, "inputs", samples.inputs)
        hash_tensor(hashed, "targets", samples.targets)
        return hashed
