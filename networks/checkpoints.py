"""Weights of a network on disk; loading never executes what a file contains."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "network", "model", "net")
"""Keys under which training scripts keep the state dict."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put in front of every name."""

_SHOWN = 3


def load_checkpoint(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load weights into a network, in place and completely.

    The file is a state dict saved by torch (.pt, .pth, .th, ...), alone or under one of the usual
    keys such as "state_dict", or a .safetensors file. Prefixes of DataParallel and torch.compile
    are removed. Missing `num_batches_tracked` counters (old files) are left as they are.

    Args:
        network: receives the weights; unchanged when the file is refused.
        path: the file.

    Raises:
        ValueError: when the file is missing, damaged, holds pickled code, or does not fit.
    """
    file = Path(path).expanduser()
    state = _strip_prefixes(_read_state(file), network)
    expected = network.state_dict()
    missing = [
        name for name in expected if name not in state and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in expected]
    mismatched = [
        f"{name} (expected {tuple(expected[name].shape)}, found {tuple(value.shape)})"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"Checkpoint {file} does not fit this {type(network).__name__}. Tensors "
            f"{'; '.join(problems)}. Choose the file with network.checkpoint "
            "and the architecture with network."
        )
    network.load_state_dict({**expected, **state})


def save_checkpoint(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save the state dict of a network; a reader never sees a half-written file.

    Args:
        network: the network whose weights are saved.
        path: target file; .safetensors for that format, any other suffix for torch's.

    Raises:
        ValueError: when the suffix is .safetensors and the network cannot be written that way.
    """
    file = Path(path).expanduser()
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    with whole_file(file) as stream:
        if file.suffix == ".safetensors":
            from safetensors.torch import save

            # The format refuses tensors that share memory, such as tied weights.
            stream.write(save({name: value.clone().contiguous() for name, value in state.items()}))
        else:
            torch.save(state, stream)


@contextmanager
def whole_file(file: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears, or replaces another, only when it is whole and on the disk.

    Args:
        file: the target; its folder is made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _read_state(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(
            f"No checkpoint file {file.absolute()}. Set network.checkpoint to an existing file."
        )
    try:
        payload = _read_payload(file)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name is None:
            raise ValueError(_damaged(file, error)) from error
        raise ValueError(
            f"Checkpoint {file} holds pickled code ({name[1]}), which Topiary never runs. "
            "Save the weights alone, torch.save(network.state_dict(), file), "
            "and set network.checkpoint to that file."
        ) from error
    except Exception as error:  # a damaged file may fail with almost any exception
        raise ValueError(_damaged(file, error)) from error
    return _find_state(payload, file)


def _read_payload(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _find_state(payload: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(payload, Mapping):
        for key in _WRAPPERS:
            if isinstance(payload.get(key), Mapping):
                payload = payload[key]
                break
    if not isinstance(payload, Mapping) or not payload:
        raise ValueError(
            f"Checkpoint {file} holds a {type(payload).__name__}, not a state dict. "
            "Set network.checkpoint to a file written by torch.save(network.state_dict(), file)."
        )
    foreign = [str(key) for key, value in payload.items() if not isinstance(value, Tensor)]
    if foreign:
        raise ValueError(
            f"Checkpoint {file} is not a state dict: {', '.join(foreign[:_SHOWN])} hold no "
            f"tensors. Weights may be at the top, or under one of the keys {', '.join(_WRAPPERS)}."
        )
    return {str(name): value for name, value in payload.items()}


def _strip_prefixes(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    own = network.state_dict()
    found = True
    while found and not any(name in own for name in state):
        found = False
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
                found = True
    return state


def _damaged(file: Path, error: Exception) -> str:
    # torch goes on with advice to load without protection; one sentence is enough.
    reason = str(error).strip().partition("\n")[0].partition(". ")[0]
    return (
        f"Checkpoint {file} cannot be read ({type(error).__name__}: {reason}). "
        "It is damaged or no file of weights; set network.checkpoint to another one."
    )
