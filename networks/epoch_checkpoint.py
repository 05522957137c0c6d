"""The state of a training after a whole epoch, so that a killed one goes on exactly."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks.checkpoints import whole_file
from networks.fingerprints import hash_tensor

_FORMAT = "topiary-training-1"
_SHOWN_REASON = 200

MOST_SHARE = 0.05
"""Most of the time that goes into writing; epochs that are shorter are skipped, the last aside."""

log = logging.getLogger(__name__)


class EpochCheckpoint:
    """One .safetensors file: weights, buffers, momentum and random numbers after an epoch.

    The header holds the number of epochs, and a digest of the settings and of the weights that the
    training began with. A file of another training, or one that cannot be read, is ignored: the
    training then begins with its first epoch. Nothing in the file is ever executed.

    Args:
        path: the file; it need not exist.
        network: what is trained, with the weights that the training begins with.
        optimizer: its optimiser; of its state, tensors in the shape of their parameter are kept,
            which is all that SGD has.
        order: draws order and augmentation of the samples.
        targets: of the samples that are trained on.
        settings: whatever else the trained weights depend on, as plain data.
    """

    def __init__(
        self,
        path: Path,
        network: nn.Module,
        optimizer: torch.optim.SGD,
        order: torch.Generator,
        targets: Tensor,
        settings: Mapping[str, Any],
    ) -> None:
        self.path = path
        # not the state dict: it names tied weights twice, and leaves some buffers out
        self._weights: dict[str, Tensor] = {
            **{f"parameter/{name}": value.detach() for name, value in network.named_parameters()},
            **{f"buffer/{name}": value for name, value in network.named_buffers()},
        }
        self._optimizer = optimizer
        self._order = order
        hashed = hashlib.sha256(json.dumps(settings).encode())
        for name, value in {**self._weights, "targets": targets}.items():
            hash_tensor(hashed, name, value)
        self._digest = hashed.hexdigest()
        self._can_write = True
        self._written = -math.inf
        self._cost = 0.0

    def restore(self, epochs: int) -> int:
        """Bring back the state in the file, if it is one of this training.

        Args:
            epochs: of the whole training.

        Returns:
            The epochs that are done; 0 when nothing was changed.
        """
        found = self._read()
        if found is None:
            return 0
        done, tensors = found
        for name, value in self._weights.items():
            value.copy_(tensors[name])
        for index, parameter in enumerate(self._parameters()):
            momentum = tensors.get(f"momentum/{index}")
            if momentum is not None:
                kept = torch.empty_like(parameter, requires_grad=False).copy_(momentum)
                self._optimizer.state[parameter]["momentum_buffer"] = kept
        self._order.set_state(tensors["random/order"])
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"], self._parameters()[0].device)
        if done < epochs:
            log.info("Training goes on after epoch %d of %d (%s)", done, epochs, self.path.name)
        return done

    def save(self, done: int, epochs: int) -> None:
        """Keep the state after an epoch; one that cannot be written is one warning.

        Args:
            done: epochs that are done.
            epochs: of the whole training.
        """
        began = time.monotonic()
        is_soon = MOST_SHARE * (began - self._written) < self._cost
        if not self._can_write or (is_soon and done < epochs):
            return
        self._write(done)
        self._written = time.monotonic()
        self._cost = self._written - began

    def _write(self, done: int) -> None:
        tensors = dict(self._weights)
        for index, parameter in enumerate(self._parameters()):
            momentum = self._optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum/{index}"] = momentum
        tensors["random/order"] = self._order.get_state()
        tensors["random/cpu"] = torch.get_rng_state()
        device = self._parameters()[0].device
        if device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(device)
        from safetensors.torch import save

        header = {"format": _FORMAT, "training": self._digest, "epochs": done}
        # clones: the format refuses tensors that share memory
        copies = {name: value.cpu().clone().contiguous() for name, value in tensors.items()}
        try:
            with whole_file(self.path) as stream:
                stream.write(save(copies, metadata={"state": json.dumps(header)}))
        except OSError as error:
            self._can_write = False
            warnings.warn(
                f"The training goes on, but could not go on if it were interrupted: {error}",
                stacklevel=4,
            )

    def _parameters(self) -> list[Tensor]:
        return [value for group in self._optimizer.param_groups for value in group["params"]]

    def _read(self) -> tuple[int, dict[str, Tensor]] | None:
        """Epochs and tensors of the file, or None when there is none of this training."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["state"])
                if (header["format"], header["training"]) != (_FORMAT, self._digest):
                    log.info("%s is of another training and not used", self.path.name)
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                done = int(header["epochs"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            log.info(
                "%s cannot be read, so the training begins anew: %s",
                self.path.name,
                str(error)[:_SHOWN_REASON],
            )
            return None
        return done, tensors
