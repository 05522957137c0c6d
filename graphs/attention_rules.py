"""Rules of attention: fused, as two matrix products, and torch's own module."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from graphs.labels import shrink
from graphs.rule_registry import UnsupportedOp, argument, patch_attribute, rule
from graphs.tracing import TracedOperator, Tracer


@rule("scaled_dot_product_attention")
def _attention(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    query, key, value = (
        argument(args, kwargs, i, n) for i, n in enumerate(("query", "key", "value"))
    )
    if query.dim() != 4 or not query.shape[1] == key.shape[1] == value.shape[1]:
        raise UnsupportedOp(
            f"Attention needs query, key and value of shape (batch, heads, tokens, channels) "
            f"with equally many heads "
            f"{tracer.where()}; got {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}."
        )
    heads = []
    for head in range(query.shape[1]):
        # a head is removed as a whole: its query, key and value channels are one unit
        parts = [
            tracer.forest.tie_across(tracer.labels(t)[:, head], 2) for t in (query, key, value)
        ]
        merged = torch.cat(parts)
        tracer.forest.union(merged[:1].expand(merged.shape), merged)
        heads.append(parts)
    head_labels = torch.stack([parts[0][0] for parts in heads])
    tracer.trace.head_labels.append(head_labels)
    tracer.put(out, head_labels.reshape(1, -1, 1, 1).expand(out.shape))
    operator = TracedOperator(
        kind="attention",
        module=tracer.module_path,
        weight="",
        in_labels=torch.cat([parts[0] for parts in heads]),
        out_labels=torch.cat([parts[2] for parts in heads]),
        input_size=(key.shape[2],),
        output_size=(query.shape[2],),
        positions=query.shape[2] * key.shape[2],
    )
    index = len(tracer.trace.operators)
    tracer.trace.operators.append(operator)
    operator.target = tracer.new_node(
        out, operator.out_labels, [query, key, value], "attention", index
    )
    for attribute in ("num_heads", "heads", "n_heads", "n_head"):
        patch_attribute(tracer, attribute, head_labels)


@rule("matmul", "bmm")
def _matmul(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Q k^T and a v: a product over channels ties each head, a product over tokens does not."""
    a, b = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "other")
    b = kwargs.get("mat2", b)
    if not (tracer.is_activation(a) and tracer.is_activation(b)) or a.dim() < 3 or b.dim() < 3:
        raise UnsupportedOp(
            f"A matrix product {tracer.where()} has a channel rule only between two activations of "
            "three or more axes; use torch.nn.functional.linear for weights."
        )
    if a.shape[:-2] != b.shape[:-2]:
        raise UnsupportedOp(f"A matrix product that broadcasts {tracer.where()} has no rule.")
    left = tracer.forest.roots(tracer.labels(a))
    right = tracer.forest.roots(tracer.labels(b))
    batch = a.shape[:-2]
    heads = math.prod(batch)
    left_heads = left.reshape(heads, *a.shape[-2:])
    right_heads = right.reshape(heads, *b.shape[-2:])
    over_channels = _varies(left_heads, 2) or _varies(right_heads, 1)
    for head in range(heads):
        tied = [left_heads[head].reshape(-1), right_heads[head].reshape(-1)]
        merged = torch.unique(torch.cat(tied))
        tracer.forest.union(merged[:1].expand(merged.shape), merged)
    head_labels = left_heads[:, 0, 0]
    tracer.put(out, head_labels.reshape(*batch, 1, 1).expand(out.shape))
    tracer.trace.head_labels.append(head_labels)
    # one sample: the first axis is the batch
    heads_per_sample = heads // a.shape[0]
    if over_channels:
        channels = left_heads[:heads_per_sample, 0, :].reshape(-1)
        empty = channels[:0]
        in_labels, out_labels = channels, empty
        positions = out.shape[-2] * out.shape[-1]
    else:
        channels = right_heads[:heads_per_sample, 0, :].reshape(-1)
        in_labels, out_labels = channels[:0], channels
        positions = a.shape[-2] * a.shape[-1]
    operator = TracedOperator(
        kind="attention",
        module=tracer.module_path,
        weight="",
        in_labels=in_labels,
        out_labels=out_labels,
        input_size=(b.shape[-2],),
        output_size=(out.shape[-2],),
        positions=positions,
    )
    index = len(tracer.trace.operators)
    tracer.trace.operators.append(operator)
    operator.target = tracer.new_node(out, channels, [a, b], "attention", index)


def _varies(heads: Tensor, axis: int) -> bool:
    """Whether the labels of a head (axis 0) change along `axis`."""
    return bool((heads != heads.narrow(axis, 0, 1)).any())


@rule("multi_head_attention_forward")
def _multi_head_attention(
    tracer: Tracer, func: Any, args: Any, kwargs: Any, out: tuple[Tensor, Tensor | None]
) -> None:
    """nn.MultiheadAttention asserts its own widths, so all its channels stay."""
    names = ("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight")
    query, key, value, width, _, in_proj = (
        argument(args, kwargs, position, name) for position, name in enumerate(names)
    )
    out_proj = argument(args, kwargs, 11, "out_proj_weight")
    if in_proj is None or query.dim() != 3:
        raise UnsupportedOp(
            f"Multi-head attention {tracer.where()} has a channel rule only with a batch axis and "
            "equal widths of query, key and value."
        )
    reason = "nn.MultiheadAttention holds its widths"
    for tensor in (query, key, value):
        tracer.freeze(shrink(tracer.labels(tensor)), reason)
    # the functional form has tokens first
    tokens = [tensor.shape[0] for tensor in (query, key, value)]
    labels = tracer.forest.fresh(width)
    tracer.freeze(labels, reason)
    result = out[0]
    tracer.put(result, labels.expand(result.shape))
    for weight, positions in [(in_proj, count) for count in tokens] + [(out_proj, tokens[0])]:
        _frozen_operator(
            tracer,
            "linear",
            tracer.weight_name(weight, "attention"),
            labels,
            positions,
            query,
            result,
        )
    _frozen_operator(tracer, "attention", "", labels, tokens[0] * tokens[1], query, result)
    if out[1] is not None:
        weights = tracer.forest.fresh(*out[1].shape)
        tracer.freeze(weights, reason)
        tracer.put(out[1], weights)
        tracer.same_node([out[1]], result)


def _frozen_operator(
    tracer: Tracer, kind: str, weight: str, labels: Tensor, positions: int, x: Tensor, out: Tensor
) -> None:
    index = len(tracer.trace.operators)
    operator = TracedOperator(
        kind=kind, module=tracer.module_path, weight=weight, in_labels=labels, out_labels=labels,
        input_size=(x.shape[0],), output_size=(x.shape[0],), positions=positions,
    )  # fmt: skip
    tracer.trace.operators.append(operator)
    operator.target = tracer.new_node(out, labels, [x], kind, index)
