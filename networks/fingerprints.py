"""What a stored result depends on, as text and bytes for a hash."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import Tensor, nn


def hash_tensor(hashed: Any, name: str, value: Tensor) -> None:
    """Let a hash depend on a tensor: its name, type, shape and content.

    Args:
        hashed: an object of `hashlib`.
        name: of the tensor.
        value: the tensor, on any device.
    """
    content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    hashed.update(content)


def hash_code(hashed: Any, network: nn.Module) -> None:
    """Let a hash depend on the classes of a network and its modules: other code is another network.

    torch's own classes do not count.

    Args:
        hashed: an object of `hashlib`.
        network: the network.
    """
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    for kind in sorted(kinds, key=lambda kind: kind.__qualname__):
        if kind is not object and not kind.__module__.startswith("torch."):
            hashed.update(_source(kind).encode())


def describe_setting(value: Any) -> str:
    """Name a setting without memory addresses, which change from run to run.

    A function or class is described by its name and its source.
    """
    if not callable(value):
        return repr(value)
    text = f"{value!r} {getattr(value, '__dict__', '')}"
    kind = value if hasattr(value, "__qualname__") else type(value)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text) + _source(kind)


def _source(item: Any) -> str:
    try:
        return inspect.getsource(item)
    except (OSError, TypeError):  # typed into a session: there is no file
        return f"{item.__module__}.{item.__qualname__}"
