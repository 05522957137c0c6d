"""Rules of what moves elements: the same function runs on the labels, exact by construction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphs.labels import shrink, spread
from graphs.rule_registry import (
    UnsupportedOp,
    argument,
    patch_attribute,
    rule,
    tensor_arguments,
)
from graphs.tracing import Tracer


@rule(
    *"""
    property_data contiguous clone detach to float type half double bfloat16 dropout
    dropout1d dropout2d dropout3d alpha_dropout feature_dropout identity requires_grad cpu
    """.split()
)
def _identity(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x = tensor_arguments((args, kwargs))[0]
    tracer.put(out, tracer.labels(x))
    tracer.same_node([out], x)


@rule(
    *"""
    view reshape permute transpose t swapaxes swapdims movedim moveaxis flatten unflatten
    unsqueeze squeeze expand expand_as repeat repeat_interleave tile flip roll narrow select
    index_select chunk split tensor_split unbind getitem broadcast_to channel_shuffle
    pixel_shuffle pixel_unshuffle property_T property_mT view_as reshape_as
    split_with_sizes
    """.split()
)
def _move(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    label_args, label_kwargs = _with_labels(tracer, args), _with_labels(tracer, kwargs)
    if func.__name__ in ("view", "view_as"):  # labels stored once per axis cannot always be viewed
        label_args = (label_args[0].contiguous(), *label_args[1:])
    moved = func(*label_args, **label_kwargs)
    outputs = list(out) if isinstance(out, (tuple, list)) else [out]
    labels = list(moved) if isinstance(moved, (tuple, list)) else [moved]
    source = next((t for t in tensor_arguments((args, kwargs)) if tracer.is_activation(t)), None)
    for tensor, label in zip(outputs, labels, strict=True):
        tracer.put(tensor, label)
    if source is not None:
        tracer.same_node(outputs, source)


@rule("cat", "concat", "concatenate", "stack", "hstack", "vstack")
def _concatenate(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    tensors = tensor_arguments((args, kwargs))
    for tensor in tensors:  # a constant joins as frozen positions
        tracer.labels(tensor)
    labels = func(*_with_labels(tracer, args), **_with_labels(tracer, kwargs))
    tracer.put(out, labels)
    activations = [tensor for tensor in tensors if tracer.is_activation(tensor)]
    origins = {tracer.node_of(tensor) for tensor in activations}
    if len(origins) > 1:
        axis = 1 if out.dim() == 4 else out.dim() - 1
        tracer.new_node(
            out,
            shrink(labels).movedim(axis, 0).reshape(out.shape[axis], -1)[:, 0],
            activations,
            "concat",
        )
    elif activations:
        tracer.same_node([out], activations[0])


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
        patch_attribute(tracer, "pad_before", channel_labels[:before])
        patch_attribute(tracer, "pad_after", channel_labels[end - after : end])
    tracer.put(out, labels)
    tracer.same_node([out], x)


def _with_labels(tracer: Tracer, value: Any) -> Any:
    """The arguments with traced tensors replaced by their labels; index tensors stay."""
    if isinstance(value, Tensor):
        return tracer.labels(value) if tracer.is_traced(value) else value
    if isinstance(value, dict):
        return {key: _with_labels(tracer, item) for key, item in value.items()}
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value)(_with_labels(tracer, item) for item in value)
    return value
