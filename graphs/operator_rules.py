"""Rules of convolutions and normalisations."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphs.labels import shrink, spread, varying_axes
from graphs.rule_registry import (
    UnsupportedOp,
    argument,
    function_name,
    patch_attribute,
    rule,
    tensor_arguments,
)
from graphs.trace_records import TracedOperator
from graphs.tracer import Tracer


@rule("conv1d", "conv2d", "conv3d")
def _conv(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    bias, groups = argument(args, kwargs, 2, "bias"), argument(args, kwargs, 6, "groups", 1)
    rank = weight.dim() - 2
    if x.dim() != rank + 2:
        raise UnsupportedOp(
            f"A convolution without batch axis {tracer.where()}; add the batch axis."
        )
    name = tracer.weight_name(weight, function_name(func))
    across = tracer.labels(x)
    varying = varying_axes(tracer.forest.roots(across))
    if varying and 1 not in varying and not tracer.is_input(x):
        tracer.freeze(shrink(across), f"{function_name(func)} mixes channels {tracer.where()}")
    stride = argument(args, kwargs, 3, "stride", 1)
    stride = (
        (stride,) * rank
        if isinstance(stride, int)
        else tuple(stride) * (rank // len(tuple(stride)))
    )
    in_labels = tracer.channels(x, 1)
    out_channels = weight.shape[0]
    depthwise = groups == len(in_labels) and groups > 1
    if groups == 1:
        out_labels = tracer.forest.fresh(out_channels)
        tracer.axis(weight, 1, in_labels)
    elif depthwise:
        out_labels = in_labels.repeat_interleave(out_channels // groups)
    else:
        blocks = in_labels.reshape(groups, -1)
        tracer.forest.union(blocks[:1].expand(blocks.shape), blocks)
        tracer.axis(weight, 1, blocks[0])
        out_labels = tracer.forest.fresh(out_channels // groups).repeat(groups)
    tracer.axis(weight, 0, out_labels)
    tracer.axis(bias, 0, out_labels)
    tracer.put(out, spread(out_labels, out.shape, 1))
    operator = TracedOperator(
        kind="conv",
        module=tracer.module_path,
        weight=name,
        in_labels=in_labels,
        out_labels=out_labels,
        groups=groups,
        depthwise=depthwise,
        kernel_size=tuple(weight.shape[2:]),
        stride=stride,
        input_size=tuple(x.shape[2:]),
        output_size=tuple(out.shape[2:]),
        positions=tracer.positions(out, 1),
    )
    tracer.new_operator(operator, [x], out, "depthwise" if depthwise else "conv")
    if tracer.name_of(weight) == f"{tracer.module_path}.weight".lstrip("."):
        patch_attribute(tracer, "in_channels", in_labels)
        patch_attribute(tracer, "out_channels", out_labels)
        if depthwise:
            patch_attribute(tracer, "groups", in_labels)
    elif depthwise:  # the number of groups stands in the network's code
        tracer.trace.replay_only = True


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    bias, stride = argument(args, kwargs, 2, "bias"), argument(args, kwargs, 3, "stride", 1)
    groups = argument(args, kwargs, 6, "groups", 1)
    rank = weight.dim() - 2
    in_labels = tracer.channels(x, 1)
    depthwise = groups == len(in_labels) and groups > 1
    if depthwise:
        if tracer.name_of(weight) != f"{tracer.module_path}.weight".lstrip("."):
            raise UnsupportedOp(
                f"A depthwise transposed convolution without a module {tracer.where()} has no "
                "channel rule; use nn.ConvTranspose2d."
            )
        out_labels = in_labels.repeat_interleave(weight.shape[1])
    else:
        blocks = in_labels.reshape(groups, -1)
        tracer.forest.union(blocks[:1].expand(blocks.shape), blocks)
        out_of_block = tracer.forest.fresh(weight.shape[1])
        tracer.axis(weight, 1, out_of_block)
        out_labels = out_of_block.repeat(groups)
    tracer.axis(weight, 0, in_labels)
    tracer.axis(bias, 0, out_labels)
    tracer.put(out, spread(out_labels, out.shape, 1))
    operator = TracedOperator(
        kind="conv",
        module=tracer.module_path,
        weight=tracer.weight_name(weight, function_name(func)),
        in_labels=in_labels,
        out_labels=out_labels,
        groups=groups,
        depthwise=depthwise,
        kernel_size=tuple(weight.shape[2:]),
        stride=(stride,) * rank if isinstance(stride, int) else tuple(stride),
        input_size=tuple(x.shape[2:]),
        output_size=tuple(out.shape[2:]),
        positions=tracer.positions(x, 1),  # the kernel is laid down at every input position
    )
    tracer.new_operator(operator, [x], out, "depthwise" if depthwise else "conv")
    patch_attribute(tracer, "in_channels", in_labels)
    patch_attribute(tracer, "out_channels", out_labels)
    if depthwise:
        patch_attribute(tracer, "groups", in_labels)


@rule("_weight_norm", "_weight_norm_interface")
def _weight_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    tracer.weight_name(out if isinstance(out, Tensor) else out[0], "weight_norm")


@rule("batch_norm", "instance_norm")
def _batch_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x = argument(args, kwargs, 0, "input")
    channel_labels = tracer.channels(x, 1)
    for tensor in tensor_arguments((args[1:], {k: v for k, v in kwargs.items() if k != "input"})):
        tracer.axis(tensor, 0, channel_labels)
    tracer.put(out, spread(channel_labels, out.shape, 1))
    tracer.same_node([out], x)
    patch_attribute(tracer, "num_features", channel_labels)
    if isinstance(tracer.module, nn.modules.batchnorm._BatchNorm):
        for operator in tracer.trace.operators:
            if operator.kind == "conv" and operator.output_id == id(x):
                tracer.trace.folds.append((id(x), operator.module, tracer.module_path))


@rule("layer_norm", "rms_norm")
def _layer_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, shape = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "normalized_shape")
    weight = argument(args, kwargs, 2, "weight")
    bias = argument(args, kwargs, 3, "bias") if function_name(func) == "layer_norm" else None
    roots = tracer.forest.roots(tracer.labels(x))
    normed = range(x.dim() - len(shape), x.dim())
    varying = [axis for axis in varying_axes(roots) if axis in normed]
    if tracer.name_of(weight) is None or len(varying) > 1:
        reason = f"{function_name(func)} without weight"
        if varying:
            tracer.freeze(shrink(roots), reason)
        tracer.put(out, roots)
        tracer.same_node([out], x)
        return
    axis = varying[0] if varying else x.dim() - 1
    if varying and _is_per_head(tracer, x, roots, axis):  # heads go as a whole, and the norm stays
        tracer.forest.union(roots, roots.narrow(axis, 0, 1).expand(roots.shape))
        tracer.put(out, roots)
        tracer.same_node([out], x)
        return
    channel_labels = tracer.channels(x, axis)
    for tensor in (weight, bias):
        tracer.axis(tensor, axis - normed[0], channel_labels)
    tracer.put(out, spread(channel_labels, out.shape, axis))
    tracer.same_node([out], x)
    if len(shape) > 1 or not patch_attribute(tracer, "normalized_shape", channel_labels, "tuple"):
        tracer.trace.replay_only = True


def _is_per_head(tracer: Tracer, x: Tensor, roots: Tensor, axis: int) -> bool:
    """Whether every line along `axis` has channels of its own, as those of attention heads have."""
    small = shrink(roots)
    is_box = tracer.is_activation(x) and len(varying_axes(roots)) == 2
    return tracer.attention == "heads" and is_box and len(small.unique()) == small.numel()


@rule("group_norm")
def _group_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, num_groups = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "num_groups")
    channel_labels = tracer.channels(x, 1)
    if num_groups == len(channel_labels) > 1:
        tracer.freeze(channel_labels, "group norm with one channel per group")
    # one channel of every norm group goes at a time, so the groups stay equally large
    blocks = channel_labels.reshape(num_groups, -1)
    tracer.forest.union(blocks[:1].expand(blocks.shape), blocks)
    weight, bias = argument(args, kwargs, 2, "weight"), argument(args, kwargs, 3, "bias")
    if tracer.name_of(weight) is None:
        tracer.freeze(channel_labels, "group norm without weight")
    tracer.axis(weight, 0, channel_labels)
    tracer.axis(bias, 0, channel_labels)
    tracer.put(out, spread(channel_labels, out.shape, 1))
    tracer.same_node([out], x)
    patch_attribute(tracer, "num_channels", channel_labels)
