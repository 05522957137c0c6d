"""Rules of what moves elements: the same function runs on the labels, exact by construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graphs.labels import channel_axis, compact, line_along, shrink, spread, varying_axes
from graphs.rule_registry import (
    UnsupportedOp,
    argument,
    function_name,
    patch_attribute,
    rule,
    tensor_arguments,
)
from graphs.trace_records import PICKED
from graphs.tracer import CORRECTED, Tracer


@rule(
    *"""
    property_data contiguous clone detach to float type half double bfloat16 dropout
    dropout1d dropout2d dropout3d alpha_dropout feature_dropout identity requires_grad cpu
    type_as zeros_like ones_like full_like empty_like rand_like randn_like
    """.split()
)
def _identity(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x = tensor_arguments((args, kwargs))[0]
    tracer.put(out, tracer.channel_labels(x), tracer.token_labels(x))
    tracer.same_node([out], x)


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
def _constant(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Takes no values from its operand, so it stays without labels: a constant."""


@rule(*"permute transpose t swapaxes swapdims movedim moveaxis property_T property_mT".split())
def _transpose(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x = tensor_arguments((args, kwargs))[0]
    if not tracer.is_activation(x) and tracer.name_of(x) is not None:
        tracer.name_transposed(out, x, _order_of_axes(func, args, kwargs, x))
        return
    _move(tracer, func, args, kwargs, out)


def _order_of_axes(func: Callable[..., Any], args: Any, kwargs: Any, x: Tensor) -> list[int]:
    """Where each axis of the result comes from; found by transposing axes of distinct sizes."""
    probe = torch.empty([*range(2, 2 + x.dim())], device="meta")
    moved = func(*_replaced(args, x, probe), **_replaced(kwargs, x, probe))
    return [size - 2 for size in moved.shape]


@rule(
    *"""
    view reshape flatten unflatten unsqueeze squeeze expand expand_as repeat repeat_interleave
    tile flip roll narrow select index_select chunk split tensor_split unbind getitem
    broadcast_to channel_shuffle pixel_shuffle pixel_unshuffle native_channel_shuffle view_as
    reshape_as split_with_sizes ravel
    """.split()
)
def _move(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    x = tensor_arguments((args, kwargs))[0]
    name = function_name(func)
    outputs = list(out) if isinstance(out, (tuple, list)) else [out]
    before = tracer.channel_labels(x)
    after = _moved(name, func, args, kwargs, x, before)
    if name in ("expand", "broadcast_to") and tracer.is_activation(x):
        after = [_channels_of_one(tracer, x, after[0])]
    tokens = tracer.token_labels(x)
    moved_tokens: Sequence[Tensor | None] = [None] * len(outputs)
    if tokens is not None:
        moved_tokens = _moved(name, func, args, kwargs, x, tokens)
    for tensor, labels, token_labels in zip(outputs, after, moved_tokens, strict=True):
        tracer.put(tensor, labels, token_labels)
    if tracer.is_activation(x):
        tracer.same_node(outputs, x)
    if "shuffle" in name:
        groups = argument(args, kwargs, 1, "groups", 1)
        axis = x.dim() - 3 if name.startswith("pixel") else 1
        if not name.startswith("pixel"):  # as many of each block are left
            tracer.trace.boxes.append(tracer.channels(x, axis).reshape(groups, -1))
    if name in _RESHAPES:
        tracer.trace.boxes += after
    if name in ("getitem", "select", "unbind", "index_select", "narrow"):
        tracer.trace.moves += [(before, labels, tracer.where()) for labels in after]
    if name in CORRECTED:
        tracer.record_call(
            name,
            outputs=after,
            before=before,
            open_axes=_open_axes(name, args, kwargs, after[0]),
            sources=_sources(name, func, args, kwargs, x, before) if name in PICKED else {},
        )


def _channels_of_one(tracer: Tracer, x: Tensor, labels: Tensor) -> Tensor:
    """A map of one channel that is expanded to many gets a label for each of them.

    Each copy can then go with the channel that it is added to or multiplied with.
    """
    axis = 1 if labels.dim() > 3 else labels.dim() - 1
    is_one = x.dim() == labels.dim() and x.shape[axis] == 1 and labels.shape[axis] > 1
    if not is_one or shrink(labels).numel() > 1:
        return labels
    return spread(tracer.forest.fresh(labels.shape[axis]), labels.shape, axis)


def _open_axes(name: str, args: Any, kwargs: Any, labels: Tensor) -> tuple[int, ...]:
    """Axes whose size the call leaves to torch, by -1 or by taking it from another tensor."""
    if name in ("view_as", "reshape_as", "expand_as", "flip"):
        return tuple(range(labels.dim()))
    sizes = argument(args, kwargs, 2, "sizes") if name == "unflatten" else args[1:]
    if name not in ("view", "reshape", "expand", "broadcast_to", "unflatten") or not sizes:
        return ()
    sizes = sizes[0] if isinstance(sizes[0], (tuple, list)) else sizes
    start = argument(args, kwargs, 1, "dim") if name == "unflatten" else 0
    start = start if start >= 0 else start + labels.dim() - len(sizes) + 1
    return tuple(start + axis for axis, size in enumerate(sizes) if size == -1)


_RESHAPES = frozenset(
    "view reshape unflatten view_as reshape_as pixel_shuffle pixel_unshuffle".split()
)
_ALONG_ONE_AXIS = frozenset("narrow select index_select".split())


def _moved(
    name: str, func: Callable[..., Any], args: Any, kwargs: Any, x: Tensor, labels: Tensor
) -> list[Tensor]:
    """What the function makes of labels in place of `x`."""
    if name in ("view", "view_as"):  # labels stored once per axis cannot always be viewed
        labels = labels.contiguous()
    moved = func(*_replaced(args, x, labels), **_replaced(kwargs, x, labels))
    return [compact(part) for part in (moved if isinstance(moved, (tuple, list)) else [moved])]


def _sources(
    name: str, func: Callable[..., Any], args: Any, kwargs: Any, x: Tensor, labels: Tensor
) -> dict[int, tuple[int, ...]]:
    """For each axis along which labels may change: where each position that is left came from.

    Axes of which everything is taken in order, whatever their size, are left out.
    """
    sources = {}
    one_axis = argument(args, kwargs, 1, "dim") if name in _ALONG_ONE_AXIS else None
    index = args[1] if name == "getitem" else ()
    by_number = one_axis is not None or any(
        isinstance(entry, (Tensor, list))
        for entry in (index if isinstance(index, tuple) else (index,))
    )
    for axis, size in enumerate(labels.shape):
        if labels.stride(axis) == 0 or size == 1:
            continue
        if one_axis is not None and axis != one_axis % x.dim():
            continue
        positions = spread(torch.arange(size), x.shape, axis)
        (moved,) = _moved(name, func, args, kwargs, x, positions)
        changing = varying_axes(moved)
        if len(changing) > 1:  # an index of several axes at once
            continue
        line = moved.movedim(changing[0] if changing else 0, 0)
        line = line.reshape(line.shape[0], -1)[:, 0] if changing else moved.reshape(-1)[:1]
        if by_number or len(line) != size or not torch.equal(line, torch.arange(size)):
            sources[axis] = tuple(line.tolist())
    return sources


@rule("cat", "concat", "concatenate", "stack", "hstack", "vstack")
def _concatenate(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    tensors = tensor_arguments((args, kwargs))
    for tensor in tensors:  # a constant joins as frozen positions
        tracer.labels(tensor)
    labels = compact(func(*_with_labels(tracer, args), **_with_labels(tracer, kwargs)))
    tracer.put(out, labels)
    tracer.trace.boxes.append(labels)
    activations = [tensor for tensor in tensors if tracer.is_activation(tensor)]
    origins = {tracer.node_of(tensor) for tensor in activations}
    if len(origins) > 1:
        tracer.new_node(out, line_along(labels, channel_axis(labels)), activations, "concat")
    elif activations:
        tracer.same_node([out], activations[0])


@rule("glu")
def _glu(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """The first half times a gate of the second: channel i of both goes together."""
    x, axis = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "dim", -1)
    values, gate = tracer.labels(x).chunk(2, axis)
    tracer.forest.union(values, gate)
    tracer.put(out, values)
    tracer.same_node([out], x)


@rule("embedding")
def _embedding(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    ids, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    channel_labels = tracer.forest.fresh(weight.shape[1])
    tracer.axis(weight, 1, channel_labels)
    tracer.put(out, spread(channel_labels, out.shape, out.dim() - 1))
    sources = [ids] if tracer.is_activation(ids) else []
    tracer.new_node(out, channel_labels, sources, "move")
    patch_attribute(tracer, "embedding_dim", channel_labels)


@rule("pad")
def _pad(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, pad = argument(args, kwargs, 0, "input"), list(argument(args, kwargs, 1, "pad"))
    labels = tracer.labels(x)
    for number in range(len(pad) // 2):
        axis = x.dim() - 1 - number
        before, after = pad[2 * number], pad[2 * number + 1]
        if before < 0 or after < 0:
            raise UnsupportedOp(
                f"Negative padding {tracer.where()} has no channel rule; slice instead."
            )
        if before == after == 0:
            continue
        small = shrink(labels)
        if small.shape[axis] == 1:  # labels do not change along this axis: a spatial axis
            grown = list(labels.shape)
            grown[axis] += before + after
            labels = small.expand(grown)
            continue
        if argument(args, kwargs, 2, "mode", "constant") != "constant":
            raise UnsupportedOp(
                f"Padding of channels by reflection {tracer.where()} has no channel rule."
            )
        channel_labels = torch.cat(
            [
                tracer.forest.fresh(before),
                tracer.forest.tie_across(labels, axis),
                tracer.forest.fresh(after),
            ]
        )
        grown = list(labels.shape)
        grown[axis] += before + after
        labels = spread(channel_labels, tuple(grown), axis)
        # modules that name their padding can be told the new numbers (networks.resnet.PadShortcut)
        end = len(channel_labels)
        is_named = [
            patch_attribute(tracer, "pad_before", channel_labels[:before]),
            patch_attribute(tracer, "pad_after", channel_labels[end - after : end]),
        ]
        source = [-1] * before + list(range(end - before - after)) + [-1] * after
        tracer.record_call(
            "pad",
            outputs=[labels],
            before=tracer.labels(x),
            sources={axis: tuple(source)},
            open_axes=(axis,) if all(is_named) else (),
        )
    tracer.put(out, labels)
    tracer.same_node([out], x)


def _replaced(value: Any, x: Tensor, labels: Tensor) -> Any:
    """The arguments with `x` replaced by its labels; index tensors stay."""
    if value is x:
        return labels
    if isinstance(value, dict):
        return {key: _replaced(item, x, labels) for key, item in value.items()}
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_replaced(item, x, labels) for item in value)
    return value


def _with_labels(tracer: Tracer, value: Any) -> Any:
    """The arguments with every tensor replaced by its labels."""
    if isinstance(value, Tensor):
        return tracer.labels(value)
    if isinstance(value, dict):
        return {key: _with_labels(tracer, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value)(_with_labels(tracer, item) for item in value)
    return value
