"""ONNX files in onnxruntime; all of it comes with the optional dependencies `export`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

INSTALL_HINT = 'pip install -e ".[export]"'


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """An ONNX file, loaded and ready to be called like the network it was exported from.

    Attributes:
        session: the `onnxruntime.InferenceSession`.
        runtime: onnxruntime and its version.
    """

    session: Any
    runtime: str

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs for these inputs, in the order of the file."""
        return tuple(torch.from_numpy(output) for output in self.run(self.feeds(inputs)))

    def feeds(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """The inputs as arrays, under the names they have in the file.

        Raises:
            ValueError: another number of inputs than the file has.
        """
        names = [node.name for node in self.session.get_inputs()]
        if len(names) != len(inputs):
            raise ValueError(
                f"The ONNX file has {len(names)} inputs ({', '.join(names)}), got {len(inputs)}."
            )
        arrays = (tensor.detach().cpu().numpy() for tensor in inputs)
        return dict(zip(names, arrays, strict=True))

    def run(self, feeds: dict[str, Any]) -> Sequence[Any]:
        """All outputs as arrays."""
        return self.session.run(None, feeds)


def open_onnx(path: str | os.PathLike[str], *, threads: int = 1) -> OnnxNetwork:
    """Load an ONNX file for the CPU.

    Args:
        path: the file.
        threads: CPU threads inside one operator, 1 or more; operators run one after another.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: onnxruntime is not installed, or cannot run the file.
    """
    require_packages("onnxruntime")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no ONNX file at {path}.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own classes share no other base
        reason = " ".join(str(error).split())
        raise ValueError(f"onnxruntime cannot run {path}: {reason}") from error
    return OnnxNetwork(session, f"onnxruntime {onnxruntime.__version__}")


def require_packages(*names: str) -> None:
    """Refuse to go on without packages of the optional dependencies `export`.

    Raises:
        ValueError: one of them is not installed.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"ONNX export needs the package {name!r}, which cannot be imported ({error}). "
                f"Install the optional dependencies: {INSTALL_HINT}"
            ) from error
