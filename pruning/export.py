"""A pruned network as a file that other programs run: ONNX, or a program of torch.export."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pruning.onnx_runtime import open_onnx, require_packages
from pruning.recalibration import evaluation_mode

TOLERANCE = 1e-5
"""Largest difference of an exported network, relative to the largest output."""

Opener = Callable[[Path], Callable[..., Any]]
"""Loads an exported file as something to call like the network."""


@dataclass(frozen=True)
class ExportReport:
    """A file that was written, and how well it reproduces the network.

    Attributes:
        path: the file.
        size: in bytes.
        difference: largest absolute difference to the network in torch, relative to the largest
            absolute output; of all inputs that were compared.
        num_given: samples that were passed and compared.
        num_random: random samples that were compared, one more than those passed.
        opset: version of the ONNX operators; None for a program of torch.export.
    """

    path: Path
    size: int
    difference: float
    num_given: int
    num_random: int
    opset: int | None = None


class ExportMismatch(ValueError):  # noqa: N818 - reads as the claim it makes
    """An exported network gives other outputs than the network; its file is deleted."""


def export_onnx(
    network: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    tolerance: float = TOLERANCE,
    open_file: Opener = open_onnx,
) -> ExportReport:
    """Write a network as one ONNX file for any batch size, and compare it in onnxruntime.

    The file appears under its name only when its outputs are right, on `inputs` and on random
    inputs of another batch size. What lay there before is deleted in any case.

    Args:
        network: on the CPU; exported in eval mode, and left unchanged.
        inputs: the input, or all inputs; the first axis of each is the batch.
        path: file to write; missing folders are made.
        tolerance: largest difference allowed, relative to the largest output, above 0.
        open_file: loads the file for the comparison.

    Raises:
        ValueError: the optional dependencies are missing, or the network cannot be exported.
        ExportMismatch: the file gives other outputs; it is deleted.
        OSError: the file cannot be written.
    """
    require_packages("onnx", "onnxscript", "onnxruntime")
    arguments = _checked(network, inputs, tolerance)
    with _fresh_file(Path(path)) as file:
        program = _program(network, arguments)
        with _silence():
            try:
                onnx_program = torch.onnx.export(program, dynamo=True, verbose=False)
            except Exception as error:  # the exporter raises classes of its own, without a base
                raise _refusal("written as ONNX", network, error) from error
            assert onnx_program is not None
            onnx_program.save(file, external_data=False)
        difference = _compare(network, open_file(file), arguments, Path(path), tolerance)
        opset = onnx_program.model.opset_imports[""]
    return _report(Path(path), arguments, difference, opset)


def export_program(
    network: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    tolerance: float = TOLERANCE,
    open_file: Opener | None = None,
) -> ExportReport:
    """Write a network as a program of `torch.export` for any batch size, and compare it.

    `torch.export.load(path).module()` runs it without the code of the network. The file holds none
    of the inputs. Same promises as `export_onnx`; needs nothing but torch.

    Args:
        network: on the CPU; exported in eval mode, and left unchanged.
        inputs: the input, or all inputs; the first axis of each is the batch.
        path: file to write, best named *.pt2; missing folders are made.
        tolerance: largest difference allowed, relative to the largest output, above 0.
        open_file: loads the file for the comparison; None loads it with torch.

    Raises:
        ValueError: the network cannot be exported.
        ExportMismatch: the file gives other outputs; it is deleted.
        OSError: the file cannot be written.
    """
    arguments = _checked(network, inputs, tolerance)
    with _fresh_file(Path(path)) as file:
        program = _program(network, arguments)
        program.example_inputs = None  # they would be saved too
        with _silence():
            torch.export.save(program, file)
            reloaded = (open_file or _open_program)(file)
        difference = _compare(network, reloaded, arguments, Path(path), tolerance)
    return _report(Path(path), arguments, difference, None)


def _open_program(path: Path) -> Callable[..., Any]:
    """Only for files written a moment ago: torch may unpickle parts of a file made elsewhere."""
    return torch.export.load(path).module()


def _checked(
    network: nn.Module, inputs: Tensor | tuple[Tensor, ...], tolerance: float
) -> tuple[Tensor, ...]:
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}.")
    if not arguments or any(tensor.dim() == 0 or len(tensor) == 0 for tensor in arguments):
        raise ValueError("An export needs inputs with at least one sample along their first axis.")
    tensors = (*arguments, *network.parameters(), *network.buffers())
    devices = {str(tensor.device) for tensor in tensors} - {"cpu"}
    if devices:
        raise ValueError(
            f"Export a network from the CPU; parts of it or of its inputs are on "
            f"{', '.join(sorted(devices))}. Call network.cpu() and inputs.cpu() first."
        )
    return arguments


def _program(network: nn.Module, arguments: Sequence[Tensor]) -> ExportedProgram:
    # torch.export takes a batch of one for a constant.
    example = tuple(torch.cat([tensor, tensor])[: max(2, len(tensor))] for tensor in arguments)
    batch_axes = tuple({0: Dim.DYNAMIC} for _ in example)
    with evaluation_mode(network), torch.no_grad(), _silence():
        try:
            return torch.export.export(network, example, dynamic_shapes=batch_axes)
        except Exception as error:  # torch.export raises many classes without a common base
            raise _refusal("exported", network, error) from error


def _refusal(what: str, network: nn.Module, error: Exception) -> ValueError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(
        f"The {type(network).__name__} cannot be {what} for any batch size: {lines[0]} "
        "Its forward must not depend on values or on the batch size."
    )


def _compare(
    network: nn.Module,
    exported: Callable[..., Any],
    arguments: tuple[Tensor, ...],
    path: Path,
    tolerance: float,
) -> float:
    """Largest relative difference, on the given inputs and on random ones."""
    generator = torch.Generator().manual_seed(0)
    random = tuple(_random_like(tensor, generator) for tensor in arguments)
    difference = 0.0
    for kind, batch in (("given", arguments), ("random", random)):
        with evaluation_mode(network), torch.no_grad():
            expected = _tensors(network(*batch))
            found = _tensors(exported(*batch))
        relative = _relative_difference(expected, found)
        if not relative <= tolerance:  # a NaN is a difference too
            raise ExportMismatch(
                f"The network in {path} gives other outputs than the pruned network: on {kind} "
                f"inputs they differ by {relative:.1e} of the largest output, allowed is "
                f"{tolerance:.0e}. The file was deleted."
            )
        difference = max(difference, relative)
    return difference


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random inputs with one sample more: a batch size the export has not seen."""
    shape = (len(tensor) + 1, *tensor.shape[1:])
    if tensor.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=tensor.dtype)
    values = tensor.flatten()  # class or token numbers must stay within their range
    return values[torch.randint(len(values), shape, generator=generator)]


def _relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True) if a.numel()]
    if not all(bool(a.isfinite().all()) for a, _ in pairs):
        return float("nan")
    largest = max((float(a.abs().max()) for a, _ in pairs), default=0.0)
    differences = torch.stack([(a - b).abs().max() for a, b in pairs]) if pairs else torch.zeros(1)
    return float(differences.max()) / max(largest, torch.finfo(torch.float32).tiny)


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    """All tensors of nested outputs, in order; an ONNX file has no nesting."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return tuple(tensor for part in parts if part is not None for tensor in _tensors(part))


def _report(
    path: Path, arguments: tuple[Tensor, ...], difference: float, opset: int | None
) -> ExportReport:
    given = len(arguments[0])
    return ExportReport(path, path.stat().st_size, difference, given, given + 1, opset)


@contextmanager
def _fresh_file(path: Path) -> Iterator[Path]:
    """A file in a neighbour folder that moves to `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of another network, perhaps
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        file = Path(folder) / path.name
        yield file
        os.replace(file, path)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's warnings from the user: none of them is about the network."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
