"""The time of one operator alone, at any width: what a latency table is filled with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.benchmark import Timer

from graphs.network_graph import FROZEN, NetworkGraph, Operator

MAX_CALLS = 10_000
"""Most calls in one block of a measurement."""


@dataclass(frozen=True)
class OperatorShape:
    """All that the time of an operator depends on, but for the batch and the kept channels.

    Attributes:
        kind: "conv", "transposed", "linear" or "attention".
        in_width: input channels of the unpruned operator (attention: query channels).
        out_width: output channels of the unpruned operator (attention: value channels).
        in_varies: whether the kept counts change the input channels.
        out_varies: whether they change the output channels.
        input_size: spatial size of the input; (query tokens, key tokens) of attention; (rows,) of
            a linear layer that is applied to several positions.
        kernel_size: spatial kernel.
        stride: spatial stride.
        padding: spatial zero padding.
        output_padding: of a transposed convolution.
        dilation: spatial dilation.
        groups: groups of a convolution that is not depthwise; heads of attention.
        depthwise: whether every input channel is convolved alone.
        whole_heads: whether attention loses heads, and not channels of every head.
        bias: whether there is a bias.
        repeat: how often the operator is repeated along a further axis of the unpruned network.
    """

    kind: str
    in_width: int
    out_width: int
    in_varies: bool
    out_varies: bool
    input_size: tuple[int, ...] = ()
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    depthwise: bool = False
    whole_heads: bool = False
    bias: bool = False
    repeat: int = 1

    @property
    def is_tied(self) -> bool:
        """Whether the output channels follow from the input channels."""
        return self.depthwise or self.kind == "attention"

    @property
    def multiple(self) -> int:
        """Both widths are multiples of this."""
        if self.kind == "attention" and self.whole_heads:
            return max(self.in_width, self.out_width) // self.groups
        return 1 if self.depthwise else self.groups

    @property
    def main_width(self) -> int:
        """Channels along the first axis of its times: the input's, or the output's without any."""
        return self.in_width or self.out_width


@dataclass(frozen=True)
class OperatorTimes:
    """Times of one distinct operator on its grid of widths.

    Attributes:
        shape: the operator.
        names: the operators of the graph that are of this shape.
        in_widths: input channels of the grid, ascending.
        out_widths: output channels of the grid, ascending; one entry where they follow from the
            input's.
        rounds: seconds of one call, by round, input width and output width.
    """

    shape: OperatorShape
    names: tuple[str, ...]
    in_widths: tuple[int, ...]
    out_widths: tuple[int, ...]
    rounds: tuple[tuple[tuple[float, ...], ...], ...] = ()

    @functools.cached_property
    def medians(self) -> np.ndarray:
        """Median over the rounds in seconds, float64 (len(in_widths), len(out_widths))."""
        return np.median(np.asarray(self.rounds, dtype=np.float64), axis=0)


@dataclass(frozen=True)
class NetworkTimes:
    """Times of a whole network.

    Attributes:
        counts: its kept channels per group.
        rounds: seconds of one forward pass, by round.
    """

    counts: tuple[int, ...]
    rounds: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Median over the rounds, in seconds."""
        return float(np.median(self.rounds))


class Scratch:
    """Random tensors of any shape, cut from buffers that are filled once.

    Values play no part in the time, so that all operators and widths may share them.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, role: str, *shape: int) -> Tensor:
        """A contiguous float32 tensor of this shape; one role gives the same memory every time."""
        number = math.prod(shape)
        buffer = self._buffers.get(role)
        if buffer is None or buffer.numel() < number:
            buffer = torch.randn(number, generator=torch.Generator().manual_seed(0)) * 0.1
            self._buffers[role] = buffer
        return buffer[:number].view(shape)


Call = Callable[[], Tensor]
"""Runs an operator once."""


def operator_call(
    shape: OperatorShape, in_width: int, out_width: int, batch: int, scratch: Scratch
) -> Call:
    """What runs an operator with so many channels on one batch.

    Args:
        shape: the operator.
        in_width: input channels, a multiple of `shape.multiple`; of attention without queries (one
            of two written-out products) the output's.
        out_width: output channels, likewise; not read where `shape.is_tied`.
        batch: samples.
        scratch: gives the tensors.
    """
    return _CALLS[shape.kind](shape, in_width, out_width, batch * shape.repeat, scratch)


def _conv(shape: OperatorShape, n_in: int, n_out: int, batch: int, scratch: Scratch) -> Call:
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[len(shape.kernel_size) - 1]
    groups = shape.groups
    if shape.depthwise:
        groups, n_out = n_in, n_in * shape.out_width // shape.in_width
    inputs = scratch.take("inputs", batch, n_in, *shape.input_size)
    weight = scratch.take("weight", n_out, n_in // groups, *shape.kernel_size)
    bias = scratch.take("bias", n_out) if shape.bias else None
    arguments = (shape.stride, shape.padding, shape.dilation, groups)
    return lambda: convolve(inputs, weight, bias, *arguments)


def _transposed(shape: OperatorShape, n_in: int, n_out: int, batch: int, scratch: Scratch) -> Call:
    functions = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
    convolve: Any = functions[len(shape.kernel_size) - 1]
    inputs = scratch.take("inputs", batch, n_in, *shape.input_size)
    weight = scratch.take("weight", n_in, n_out // shape.groups, *shape.kernel_size)
    bias = scratch.take("bias", n_out) if shape.bias else None
    geometry = (shape.stride, shape.padding, shape.output_padding, shape.groups, shape.dilation)
    return lambda: convolve(inputs, weight, bias, *geometry)


def _linear(shape: OperatorShape, n_in: int, n_out: int, batch: int, scratch: Scratch) -> Call:
    inputs = scratch.take("inputs", batch, *shape.input_size, n_in)
    weight = scratch.take("weight", n_out, n_in)
    bias = scratch.take("bias", n_out) if shape.bias else None
    return lambda: F.linear(inputs, weight, bias)


def _attention(shape: OperatorShape, width: int, _: int, batch: int, scratch: Scratch) -> Call:
    queries, keys = shape.input_size
    heads = shape.groups
    if shape.whole_heads:
        heads = max(1, width * shape.groups // shape.main_width)
    # channels of one head, of the query and of the value
    inner = width * shape.in_width // shape.main_width // heads
    outer = width * shape.out_width // shape.main_width // heads
    query = scratch.take("inputs", batch, heads, queries, inner)
    key = scratch.take("key", batch, heads, keys, inner)
    value = scratch.take("value", batch, heads, keys, outer)
    if inner and outer:
        return lambda: F.scaled_dot_product_attention(query, key, value)
    if inner:  # one of the two products, of a network that writes its attention out
        return lambda: query @ key.transpose(-1, -2)
    weights = scratch.take("weight", batch, heads, queries, keys)
    return lambda: weights @ value


_CALLS = {"conv": _conv, "transposed": _transposed, "linear": _linear, "attention": _attention}


def time_call(
    call: Callable[[], object], *, threads: int, seconds: float, number: int | None = None
) -> tuple[float, int]:
    """Seconds of one call, from a block of calls after a short warm-up, in inference mode.

    Args:
        call: what is timed.
        threads: CPU threads; the number set before is restored.
        seconds: length of the block, when `number` is None.
        number: calls in the block; None finds it out.

    Returns:
        Seconds per call, and the calls in the block.
    """
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    with torch.inference_mode():
        if number is None:
            once = timer.timeit(1).median
            number = min(MAX_CALLS, max(1, math.ceil(seconds / max(once, 1e-9))))
        return timer.timeit(number).median, number


def operator_shape(operator: Operator, network: nn.Module, graph: NetworkGraph) -> OperatorShape:
    """What the time of an operator depends on.

    Padding, dilation and bias are those of the module that ran it; where a weight is used by a
    function of the user, they are inferred from the sizes: no dilation, no bias.

    Args:
        operator: an operator of the graph.
        network: the traced network.
        graph: its graph.
    """
    in_units, out_units = set(operator.in_units), set(operator.out_units)
    common: dict[str, Any] = {
        "in_width": len(operator.in_units),
        "out_width": len(operator.out_units),
        "in_varies": in_units - {FROZEN} != set(),
        "out_varies": out_units - {FROZEN} != set(),
        "repeat": max(1, len(operator.repeat_units)),
    }
    module = network.get_submodule(operator.module)
    if operator.kind == "attention":
        units = (in_units | out_units) - {FROZEN}
        kinds = {graph.groups[graph.unit_group[unit]].kind for unit in units}
        whole = kinds == {"heads"}
        heads = len(units) if whole else int(getattr(module, "num_heads", 1))
        return OperatorShape(
            kind="attention",
            input_size=_tokens(operator),
            groups=heads,
            whole_heads=whole,
            **common,
        )
    owns_weight = operator.weight == f"{operator.module}.weight".lstrip(".")
    bias = owns_weight and getattr(module, "bias", None) is not None
    if operator.kind == "linear":
        rows = (operator.positions,) if operator.positions > 1 else ()
        return OperatorShape(kind="linear", input_size=rows, bias=bias, **common)
    is_conv = owns_weight and isinstance(module, _ConvNd)
    transposed = is_conv and isinstance(module, _ConvTransposeNd)
    return OperatorShape(
        kind="transposed" if transposed else "conv",
        input_size=operator.input_size,
        kernel_size=operator.kernel_size,
        stride=operator.stride,
        padding=_padding(operator, module if is_conv else None),
        output_padding=tuple(module.output_padding) if transposed else (),  # type: ignore[arg-type]
        dilation=tuple(module.dilation) if is_conv else (1,) * len(operator.kernel_size),  # type: ignore[arg-type]
        groups=1 if operator.depthwise else operator.groups,
        depthwise=operator.depthwise,
        bias=bias,
        **common,
    )


def _tokens(operator: Operator) -> tuple[int, int]:
    """Query and key tokens of attention, whose product is its positions."""
    queries = operator.output_size[0]
    return queries, operator.positions // queries


def _padding(operator: Operator, module: nn.Module | None) -> tuple[int, ...]:
    """Zero padding on both sides of each spatial axis."""
    if module is not None and not isinstance(module.padding, str):
        return tuple(module.padding)  # type: ignore[arg-type]
    dilation = getattr(module, "dilation", (1,) * len(operator.kernel_size))
    axes = zip(
        operator.input_size,
        operator.output_size,
        operator.kernel_size,
        operator.stride,
        dilation,
        strict=True,
    )
    return tuple(
        max(0, math.ceil(((after - 1) * step + spread * (kernel - 1) + 1 - before) / 2))
        for before, after, kernel, step, spread in axes
    )
