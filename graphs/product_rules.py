"""Rules of matrix products: linear layers in all their spellings, and products of activations."""

from __future__ import annotations

import math
import string
from typing import Any

import torch
from torch import Tensor

from graphs.attention_rules import patch_head_counts
from graphs.labels import spread, varying_axes
from graphs.rule_registry import UnsupportedOp, argument, patch_attribute, rule
from graphs.trace_records import TracedOperator
from graphs.tracer import Tracer


@rule("linear")
def _linear(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    bias = argument(args, kwargs, 2, "bias")
    name = tracer.weight_name(weight, "linear")
    operator = linear_map(tracer, x, weight, bias, out, x.dim() - 1, (1, 0))
    if name == f"{tracer.module_path}.weight".lstrip("."):
        patch_attribute(tracer, "in_features", operator.in_labels)
        patch_attribute(tracer, "out_features", operator.out_labels)


def linear_map(
    tracer: Tracer,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    axis: int,
    weight_axes: tuple[int, int],
) -> TracedOperator:
    """Labels and operator of a linear map along one axis of an activation.

    Where `x` has no channels along that axis but along another, the map mixes tokens: channels pass
    through, and the tokens it makes can be removed by a labelling of their own.

    Args:
        tracer: the tracer.
        x: the activation.
        weight: matrix of the map.
        bias: one number per output, or None.
        out: result, shaped as `x` but along `axis`.
        axis: axis of `x` and `out` that is mapped.
        weight_axes: axes of `weight` that hold inputs and outputs.
    """
    into, outof = weight_axes
    labels, tokens = tracer.channel_labels(x), tracer.token_labels(x)
    varying = varying_axes(tracer.forest.roots(labels))
    out_labels = tracer.forest.fresh(weight.shape[outof])
    spread_labels = spread(out_labels, out.shape, axis)
    repeat_labels = None
    positions = tracer.positions(out, axis)
    if len(varying) == 1 and varying[0] != axis:
        repeat_labels = tracer.forest.tie_across(labels, varying[0])
        positions //= out.shape[varying[0]]
        if tokens is None:
            in_labels = tracer.forest.fresh(weight.shape[into])
            tracer.freeze(in_labels, "tokens")
        else:
            in_labels = tracer.forest.tie_across(tokens, axis)
        tracer.put(out, spread(repeat_labels, out.shape, varying[0]), spread_labels)
    else:
        in_labels = tracer.channels(x, axis)
        tracer.put(out, spread_labels)
    tracer.axis(weight, into, in_labels)
    tracer.axis(weight, outof, out_labels)
    tracer.axis(bias, 0, out_labels)
    operator = TracedOperator(
        kind="linear",
        module=tracer.module_path,
        weight=tracer.weight_name(weight, "linear"),
        in_labels=in_labels,
        out_labels=out_labels,
        input_size=tuple(n for d, n in enumerate(x.shape) if d not in (0, axis)),
        output_size=tuple(n for d, n in enumerate(out.shape) if d not in (0, axis)),
        positions=positions,
        repeat_labels=repeat_labels,
    )
    tracer.new_operator(operator, [x], out, "linear")
    return operator


@rule("matmul", "bmm", "mm")
def _matmul(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    a = argument(args, kwargs, 0, "input")
    b = kwargs.get("mat2", argument(args, kwargs, 1, "other"))
    if tracer.is_activation(a) and not tracer.is_activation(b) and b.dim() == 2:
        linear_map(tracer, a, b, None, out, a.dim() - 1, (0, 1))
    elif tracer.is_activation(b) and not tracer.is_activation(a) and a.dim() == 2 and b.dim() > 2:
        linear_map(tracer, b, a, None, out, b.dim() - 2, (1, 0))
    elif tracer.is_activation(a) and tracer.is_activation(b) and min(a.dim(), b.dim()) > 2:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left = tracer.labels(a).expand(*batch, *a.shape[-2:])
        right = tracer.labels(b).expand(*batch, *b.shape[-2:])
        tracer.put(out, _contract(tracer, left, right, len(batch), [a, b], out))
    else:
        raise UnsupportedOp(
            f"A matrix product of {tuple(a.shape)} and {tuple(b.shape)} {tracer.where()} has no "
            "channel rule; it needs an activation with a batch axis and a parameter of two axes, "
            "or two activations of three or more axes."
        )


@rule("addmm")
def _addmm(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    bias, x = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "mat1")
    weight = argument(args, kwargs, 2, "mat2")
    linear_map(tracer, x, weight, bias, out, 1, (0, 1))


@rule("einsum")
def _einsum(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    written, operands = args[0], args[1:]
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    equation = _without_ellipsis(written.replace(" ", ""), operands)
    inputs, _, result = equation.partition("->")
    terms = inputs.split(",")
    refusal = UnsupportedOp(
        f"einsum({written!r}) {tracer.where()} has no channel rule; it needs '->' and "
        "two operands of which every axis is in the result or in both."
    )
    letters = set(inputs) - {","}
    if (
        len(terms) != 2
        or not result
        or "." in equation
        or any(len(set(term)) != len(term) for term in (*terms, result))
    ):
        raise refusal
    (first, second), (a, b) = terms, operands
    if any((letter in first) + (letter in second) + (letter in result) < 2 for letter in letters):
        raise refusal
    for x, weight, term, other in ((a, b, first, second), (b, a, second, first)):
        if tracer.is_activation(x) and not tracer.is_activation(weight):
            into, outof = set(term) & set(other), set(other) - set(term)
            axis = term.index(next(iter(into))) if into else -1
            if len(other) != 2 or len(into) != 1 or len(outof) != 1:
                raise refusal
            if result != term.replace(next(iter(into)), next(iter(outof))):
                raise refusal
            axes = (other.index(next(iter(into))), other.index(next(iter(outof))))
            linear_map(tracer, x, weight, None, out, axis, axes)
            return
    batch = [letter for letter in result if letter in first and letter in second]
    mixed = [letter for letter in first if letter in second and letter not in result]
    left = [letter for letter in result if letter in first and letter not in second]
    right = [letter for letter in result if letter in second and letter not in first]
    size = {**dict(zip(first, a.shape, strict=True)), **dict(zip(second, b.shape, strict=True))}

    def lay_out(tensor: Tensor, term: str, order: list[list[str]]) -> Tensor:
        moved = tracer.labels(tensor).permute([term.index(c) for group in order for c in group])
        lead = [size[letter] for letter in order[0]]
        return moved.reshape(*lead, *(math.prod(size[c] for c in group) for group in order[1:]))

    labels = _contract(
        tracer,
        lay_out(a, first, [batch, left, mixed]),
        lay_out(b, second, [batch, mixed, right]),
        len(batch),
        [a, b],
        out,
    )
    labels = labels.reshape([size[letter] for letter in (*batch, *left, *right)])
    tracer.put(out, labels.permute([(*batch, *left, *right).index(letter) for letter in result]))


def _without_ellipsis(equation: str, operands: Any) -> str:
    """The equation with letters for '...', where that stands for as many axes in every operand."""
    inputs, arrow, _ = equation.partition("->")
    terms = inputs.split(",")
    hidden = {
        operand.dim() - len(term.replace("...", ""))
        for term, operand in zip(terms, operands, strict=False)
        if "..." in term
    }
    if len(hidden) != 1 or not arrow:
        return equation
    free = [letter for letter in string.ascii_letters if letter not in equation]
    return equation.replace("...", "".join(free[: hidden.pop()]))


def _contract(
    tracer: Tracer,
    left: Tensor,
    right: Tensor,
    num_batch: int,
    operands: list[Tensor],
    out: Tensor,
) -> Tensor:
    """Labels of (..., l, k) times (..., k, r), two activations, such as q k^T and a v.

    The leading axes are heads, each of which goes as a whole, or loses the same channels as all
    others. A network without heads has one.
    """
    batch = left.shape[:num_batch]
    heads = math.prod(batch)
    left = tracer.forest.roots(left).reshape(heads, *left.shape[-2:])
    right = tracer.forest.roots(right).reshape(heads, *right.shape[-2:])
    over_channels = 2 in varying_axes(left) or 1 in varying_axes(right)
    if 1 in varying_axes(left) or (over_channels and 2 in varying_axes(right)):
        reason = f"a product of channels with channels {tracer.where()}"
        tracer.freeze(left, reason)
        tracer.freeze(right, reason)
    per_sample = heads // tracer.batch
    # one row of labels per head: (heads, k) of what is multiplied, or (heads, r) of the values
    rows = left[:, 0, :] if over_channels else right[:, 0, :]
    if tracer.attention == "heads":
        for head in range(heads):
            tied = torch.cat([left[head].reshape(-1), right[head].reshape(-1)])
            tracer.forest.union(tied[:1].expand(tied.shape), tied)
        tracer.trace.head_labels.append(rows[:, 0])
        patch_head_counts(tracer, rows[:per_sample, 0])
        result = rows[:, :1].reshape(*batch, 1, 1)
    else:
        if tracer.attention == "none":
            tracer.freeze(rows, "attention=none")
        tracer.forest.tie_across(rows, 1)  # the same channels of every head
        if over_channels:
            tracer.forest.union(left, left[:, :1, :].expand(left.shape))
            tracer.forest.union(right, right[:, :, :1].expand(right.shape))
            tracer.forest.union(left[:, 0, :], right[:, :, 0])
            result = tracer.forest.fresh(1).reshape([1] * (num_batch + 2))
        else:
            tracer.forest.union(right, right[:, :1, :].expand(right.shape))
            result = rows[0].reshape([1] * (num_batch + 1) + [-1])
    channels = rows[:per_sample].reshape(-1)
    operator = TracedOperator(
        kind="attention",
        module=tracer.module_path,
        weight="",
        in_labels=channels if over_channels else channels[:0],
        out_labels=channels[:0] if over_channels else channels,
        input_size=(right.shape[1],),
        output_size=(left.shape[1],),
        positions=left.shape[1] * (right.shape[2] if over_channels else left.shape[2]),
    )
    tracer.new_operator(operator, operands, out, "attention")
    return result.expand(*batch, left.shape[1], right.shape[2])
