"""Rules of what computes values: element-wise functions, pools, reductions and mixers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from graphs.labels import channel_axis, line_along, shrink, spread, tie_along, varying_axes
from graphs.rule_registry import argument, function_name, rule, tensor_arguments
from graphs.trace_records import Broadcast
from graphs.tracer import Tracer


@rule(
    *"""
    relu relu6 hardtanh gelu sigmoid silu tanh hardswish hardsigmoid leaky_relu elu selu
    celu softplus softsign mish logsigmoid abs neg exp log log1p sqrt rsqrt square sin cos
    erf reciprocal clamp clip clamp_min clamp_max pow round floor ceil sign isnan isfinite
    nan_to_num prelu add sub mul div truediv true_divide rsub multiply divide subtract
    maximum minimum lerp addcmul addcdiv where masked_fill eq ne lt le gt ge and or xor
    logical_not logical_and logical_or invert fmod remainder floor_divide floordiv threshold
    _threshold rrelu hardshrink softshrink tanhshrink log_sigmoid exp2 expm1 log2 log10 tan asin
    acos atan arctan sinh cosh asinh acosh atanh erfc erfinv logit trunc frac sgn positive sinc
    lgamma digamma hypot atan2 arctan2 logaddexp xlogy heaviside copysign fmax fmin isinf tril triu
    """.split()
)
def _elementwise(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    tensors = tensor_arguments((args, kwargs))
    if function_name(func) == "prelu":
        _prelu(tracer, tensors, out)
        return
    operands = [tensor for tensor in tensors if tracer.is_traced(tensor)]
    constants = [tensor for tensor in tensors if not tracer.is_traced(tensor)]
    if len(operands) == 1 and operands[0].shape == out.shape:
        result = tracer.channel_labels(operands[0])
        tokens = tracer.token_labels(operands[0])
    else:
        tokens = None
        # an activation first: tensors that lie across its channels tie none of them
        operands.sort(key=lambda tensor: not tracer.is_activation(tensor))
        result = _broadcast(tracer.labels(operands[0]), out.shape)
        for operand in operands[1:]:
            other = _broadcast(tracer.labels(operand), out.shape)
            result = _merge(tracer, result, other, tracer.is_activation(operand))
    for constant in constants:
        _refuse_to_slice(tracer, result, constant, function_name(func))
    tracer.put(out, result, tokens)
    activations = [tensor for tensor in tensors if tracer.is_activation(tensor)]
    origins = {tracer.node_of(tensor) for tensor in activations}
    if len(origins) > 1:
        channel_labels = line_along(result, channel_axis(result))
        kind = "mul" if "mul" in function_name(func) else "add"
        tracer.new_node(out, channel_labels, activations, kind)
    elif activations:
        tracer.same_node([out], activations[0])


def _refuse_to_slice(tracer: Tracer, labels: Tensor, constant: Tensor, function: str) -> None:
    """Freeze channels that turn out to meet a constant with a value for each of them."""
    shape = [1] * (labels.dim() - constant.dim()) + list(constant.shape)
    axes = [axis for axis, size in enumerate(shape) if size > 1 and labels.stride(axis) != 0]
    if axes:
        reason = f"{function} with a constant made in the forward pass"
        tracer.trace.broadcasts.append(Broadcast(labels, axes, None, reason, tracer.module_path))


def _prelu(tracer: Tracer, tensors: list[Tensor], out: Tensor) -> None:
    x, weight = tensors[0], tensors[1]
    if weight.numel() > 1:
        tracer.axis(weight, 0, tracer.channels(x, 1))
    tracer.put(out, tracer.labels(x))
    tracer.same_node([out], x)


def _broadcast(labels: Tensor, shape: torch.Size) -> Tensor:
    return labels.reshape([1] * (len(shape) - labels.dim()) + list(labels.shape)).expand(shape)


def _merge(tracer: Tracer, first: Tensor, second: Tensor, is_activation: bool) -> Tensor:
    """Merge two broadcast operands; `is_activation` says so of the second.

    An operand that is stored once where the other changes is not tied to it:
    x + map, with a map of one channel, ties no channel of x to another; each can go alone.
    """
    changes = [
        [labels.stride(axis) != 0 and size > 1 for axis, size in enumerate(labels.shape)]
        for labels in (first, second)
    ]
    only_first = any(a and not b for a, b in zip(*changes, strict=True))
    only_second = any(b and not a for a, b in zip(*changes, strict=True))
    if only_first and not is_activation:
        both = [axis for axis, (a, b) in enumerate(zip(*changes, strict=True)) if a and b]
        if both:
            tracer.trace.broadcasts.append(Broadcast(first, both, second, "", tracer.module_path))
        return first
    if only_first and only_second:
        both = [axis for axis, (a, b) in enumerate(zip(*changes, strict=True)) if a and b]
        if both:
            tie_along(tracer.forest, first, second, both)
        elif tracer.stays(second):  # a mask of tokens that is an input, say
            return first
        elif tracer.stays(first):
            return second
        elif shrink(first).numel() > 1 and shrink(second).numel() > 1:
            tracer.freeze(shrink(first), "outer combination of two activations")
            tracer.freeze(shrink(second), "outer combination of two activations")
        return first
    if only_first or only_second:
        fuller, other = (first, second) if only_first else (second, first)
        axes = [axis for axis, change in enumerate(changes[1 if only_first else 0]) if change]
        if axes:  # `other` changes along some of the axes (a gate per channel, say): tie it there
            tie_along(tracer.forest, fuller, other, axes)
        return fuller
    tracer.forest.union(first, second)
    return first


@rule(
    *"""
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    lp_pool2d boolean_dispatch fn interpolate upsample _max_pool2d _max_pool1d _max_pool3d
    _adaptive_max_pool2d _adaptive_max_pool1d max_pool2d_with_indices adaptive_max_pool3d lp_pool1d
    lp_pool3d fractional_max_pool2d fractional_max_pool3d
    """.split()
)
def _pool(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    x = argument(args, kwargs, 0, "input")
    channel_labels = tracer.channels(x, 1)
    outputs = tensor_arguments(out)  # with indices, perhaps
    for output in outputs:
        tracer.put(output, spread(channel_labels, output.shape, 1))
    tracer.new_node(outputs[0], channel_labels, [x], "pool")
    tracer.same_node(outputs[1:], outputs[0])


@rule("max_unpool1d", "max_unpool2d", "max_unpool3d")
def _unpool(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, indices = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "indices")
    channel_labels = tracer.channels(x, 1)
    tracer.forest.union(channel_labels, tracer.channels(indices, 1))
    tracer.put(out, spread(channel_labels, out.shape, 1))
    tracer.new_node(out, channel_labels, [x], "pool")


@rule("grid_sample")
def _grid_sample(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Every channel is read at the same places; the numbers that say where stay."""
    x, grid = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "grid")
    tracer.freeze(shrink(tracer.labels(grid)), "coordinates of grid_sample")
    channel_labels = tracer.channels(x, 1)
    tracer.put(out, spread(channel_labels, out.shape, 1))
    tracer.new_node(out, channel_labels, [x], "pool")


@rule("affine_grid")
def _affine_grid(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    theta = argument(args, kwargs, 0, "theta")
    tracer.freeze(shrink(tracer.labels(theta)), "coefficients of affine_grid")
    coordinates = tracer.forest.fresh(1).expand(out.shape)
    tracer.freeze(coordinates, "coordinates of affine_grid")
    tracer.put(out, coordinates)
    tracer.same_node([out], theta)


@rule(
    *"""
    mean sum amax amin max min prod norm var std logsumexp argmax argmin all any var_mean std_mean
    linalg_norm linalg_vector_norm
    """.split()
)
def _reduce(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    tensors = tensor_arguments((args, kwargs))
    if len(tensors) > 1:  # torch.max(a, b)
        _elementwise(tracer, func, args, kwargs, out)
        return
    x = tensors[0]
    dims = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    if function_name(func).endswith("norm"):
        dims = kwargs.get("dim", args[2] if len(args) > 2 else None)
    dims = list(range(x.dim())) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    reduced = {axis % x.dim() for axis in dims}
    kept = [axis for axis in range(x.dim()) if axis not in reduced]
    roots = tracer.forest.roots(tracer.labels(x))
    varying = set(varying_axes(roots))
    if varying & reduced and not varying & set(kept):
        reason = f"{function_name(func)} over channels {tracer.where()}"
        tracer.freeze(shrink(roots), reason)
        for output in tensor_arguments(out):
            fresh = tracer.forest.fresh(*[1] * output.dim()).expand(output.shape)
            tracer.freeze(fresh, reason)
            tracer.put(output, fresh)
            tracer.same_node([output], x)
        return
    # what is reduced together can only go together
    labels = tracer.labels(x).permute([*kept, *sorted(reduced)])
    shape = [x.shape[axis] for axis in kept]
    small = shrink(labels)
    lead = [small.shape[axis] for axis in range(len(kept))]
    rows = small.reshape(math.prod(lead), -1)
    tracer.forest.union(rows[:, :1].expand(rows.shape), rows)
    lines = rows[:, 0].reshape(lead).expand(shape)
    for output in tensor_arguments(out):
        full = lines
        if output.dim() != len(shape):  # keepdim
            for axis in sorted(reduced):
                full = full.unsqueeze(axis)
        tracer.put(output, full.expand(output.shape))
    output = tensor_arguments(out)[0]
    if tracer.is_activation(x):
        channel_labels = tracer.labels(output).reshape(-1)
        if output.dim() > 0:
            made = tracer.labels(output)
            channel_labels = line_along(made, channel_axis(made))
        tracer.new_node(output, channel_labels, [x], "pool")
        tracer.same_node(tensor_arguments(out)[1:], output)


@rule(
    *"""
    softmax log_softmax softmin cumsum cumprod sort argsort topk normalize local_response_norm
    """.split()
)
def _mix(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    x = argument(args, kwargs, 0, "input")
    labels = tracer.forest.roots(tracer.labels(x))
    position, default = _DIM_OF_MIXERS.get(function_name(func), (1, None))
    axis = argument(args, kwargs, position, "dim", default)
    outputs = tensor_arguments(out)
    if (
        isinstance(axis, int)
        and bool((labels == labels.narrow(axis, 0, 1)).all())
        and all(output.shape == x.shape for output in outputs)
    ):
        for output in outputs:  # over tokens or space: every channel by itself
            tracer.put(output, labels)
            tracer.same_node([output], x)
        return
    tracer.freeze(shrink(labels), f"{function_name(func)} mixes channels {tracer.where()}")
    for output in tensor_arguments(out):
        fresh = tracer.forest.fresh(*output.shape)
        tracer.freeze(fresh, f"{function_name(func)} mixes channels {tracer.where()}")
        tracer.put(output, fresh)
        tracer.same_node([output], x)


_DIM_OF_MIXERS = {"topk": (2, None), "normalize": (2, 1), "local_response_norm": (99, 1)}
"""Position and default of `dim`, where it is not the second argument without a default."""
