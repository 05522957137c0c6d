"""Rules of attention that is one function: fused, and torch's own module."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from graphs.labels import spread
from graphs.rule_registry import UnsupportedOp, argument, function_name, patch_attribute, rule
from graphs.trace_records import TracedOperator
from graphs.tracer import Tracer

HEAD_COUNTS = ("num_heads", "heads", "n_heads", "n_head", "num_attention_heads", "nhead")
KEY_HEAD_COUNTS = ("num_kv_heads", "kv_heads", "n_kv_heads", "num_key_value_heads")


@rule("scaled_dot_product_attention")
def _attention(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    query, key, value = (
        argument(args, kwargs, i, n) for i, n in enumerate(("query", "key", "value"))
    )
    shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
    if query.dim() == 3:  # one head
        axis, heads, key_heads = -1, 1, 1
    else:
        axis, heads, key_heads = query.dim() - 3, query.shape[-3], key.shape[-3]
    if query.dim() < 3 or heads % key_heads or value.shape[-3] != key.shape[-3]:
        raise UnsupportedOp(
            f"Attention needs query, key and value of shape (batch, heads, tokens, channels) with "
            f"as many query heads as key heads, or a multiple {tracer.where()}; got {shapes}."
        )
    # (heads, channels) of each; key heads that serve several query heads are named by each
    rows = [_rows(tracer, tensor, axis) for tensor in (query, key, value)]
    rows[1:] = [row.repeat_interleave(heads // key_heads, 0) for row in rows[1:]]
    queries, keys, values = rows
    if tracer.attention == "heads":
        tied = torch.cat(rows, 1)
        tracer.forest.union(tied[:, :1].expand(tied.shape), tied)
        head_labels = queries[:, 0]
        tracer.trace.head_labels.append(head_labels)
        patch_head_counts(tracer, head_labels)
    else:
        tracer.forest.union(queries, keys)
        tracer.forest.tie_across(queries, 1)  # the same channels of every head
        tracer.forest.tie_across(values, 1)
        if tracer.attention == "none":
            tracer.freeze(torch.cat([queries.flatten(), values.flatten()]), "attention=none")
        else:
            _remember_scale(tracer, args, kwargs, query.shape[-1])
    shape = [1] * out.dim()
    shape[-1] = out.shape[-1]
    if axis >= 0:
        shape[axis] = heads
    labels = values.reshape(shape) if axis >= 0 else values[0].reshape(shape)
    tracer.put(out, labels.expand(out.shape))
    per_sample = math.prod(query.shape[:-2]) // heads // tracer.batch
    operator = TracedOperator(
        kind="attention",
        module=tracer.module_path,
        weight="",
        in_labels=queries.flatten().repeat(per_sample),
        out_labels=values.flatten().repeat(per_sample),
        input_size=(key.shape[-2],),
        output_size=(query.shape[-2],),
        positions=query.shape[-2] * key.shape[-2],
    )
    tracer.new_operator(operator, [query, key, value], out, "attention")


def patch_head_counts(tracer: Tracer, head_labels: Tensor) -> None:
    """Record attributes of the running module that count heads, or key heads that serve several."""
    for attribute in HEAD_COUNTS:
        patch_attribute(tracer, attribute, head_labels)
    for attribute in KEY_HEAD_COUNTS:
        count = getattr(tracer.module, attribute, None)
        if isinstance(count, int) and count > 0 and len(head_labels) % count == 0:
            patch_attribute(tracer, attribute, head_labels[:: len(head_labels) // count])


def _rows(tracer: Tracer, tensor: Tensor, axis: int) -> Tensor:
    """Labels of one head per row, (heads, channels); all samples and tokens are tied."""
    labels = tracer.labels(tensor)
    if axis < 0:
        return tracer.forest.tie_across(labels, labels.dim() - 1)[None]
    heads = [labels.select(axis, head) for head in range(labels.shape[axis])]
    return torch.stack([tracer.forest.tie_across(head, head.dim() - 1) for head in heads])


def _remember_scale(tracer: Tracer, args: Any, kwargs: Any, channels: int) -> None:
    """With fewer channels per head, torch's default scale would be another one."""
    if kwargs.get("scale") is None:
        tracer.record_call("scaled_dot_product_attention", value=channels**-0.5)
        tracer.trace.replay_only = True


_MHA = """
    query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v
    add_zero_attn dropout_p out_proj_weight out_proj_bias training key_padding_mask need_weights
    attn_mask use_separate_proj_weight q_proj_weight k_proj_weight v_proj_weight
""".split()


@rule("multi_head_attention_forward", "slim_multi_head_attention")
def _multi_head_attention(
    tracer: Tracer, func: Any, args: Any, kwargs: Any, out: tuple[Tensor, Tensor | None]
) -> None:
    """nn.MultiheadAttention; tokens come first in its functional form."""
    given = {**dict(zip(_MHA, args, strict=False)), **kwargs}
    query, key, value = given["query"], given["key"], given["value"]
    in_proj = given["in_proj_weight"]
    projections = [in_proj] * 3
    if in_proj is None:
        projections = [given[f"{letter}_proj_weight"] for letter in "qkv"]
    mask = given.get("attn_mask")
    if (
        query.dim() != 3
        or given.get("bias_k") is not None
        or given.get("add_zero_attn")
        or (mask is not None and mask.dim() != 2)
    ):
        raise UnsupportedOp(
            f"Multi-head attention {tracer.where()} has a channel rule only with a batch axis, "
            "no bias_k, bias_v or add_zero_attn, and a mask of two axes at most."
        )
    width = given["out_proj_weight"].shape[1]
    # its own width counts, which after pruning is not the module's number of heads times a head's
    head_dim = kwargs.get("head_dim", width // given["num_heads"])
    heads = width // head_dim
    streams = [tracer.channels(tensor, 2) for tensor in (query, key, value)]
    rows = tracer.forest.fresh(3, heads, head_dim)
    if tracer.attention == "none":
        tracer.freeze(rows, "attention=none")
    tied = rows.permute(1, 0, 2).flatten(1)
    tracer.forest.union(tied[:, :1].expand(tied.shape), tied)
    tracer.trace.head_labels.append(rows[0, :, 0])
    mixed = rows[2].flatten()
    out_labels = tracer.forest.fresh(given["out_proj_weight"].shape[0])
    for weight, stream, part in zip(projections, streams, rows, strict=True):
        tracer.axis(weight, 1, stream)  # where one matrix reads all three, it ties them
        if in_proj is None:
            tracer.axis(weight, 0, part.flatten())
    if in_proj is not None:
        tracer.axis(in_proj, 0, rows.flatten())
    tracer.axis(given["in_proj_bias"], 0, rows.flatten())
    tracer.axis(given["out_proj_weight"], 1, mixed)
    tracer.axis(given["out_proj_weight"], 0, out_labels)
    tracer.axis(given["out_proj_bias"], 0, out_labels)
    result = out[0]
    per_sample = [t.shape[0] * t.shape[1] // tracer.batch for t in (query, key, value)]
    sources = (query, key, value)
    for number, source in enumerate(sources):
        operator = _part(
            tracer,
            projections[number],
            streams[number],
            rows[number].flatten(),
            per_sample[number],
        )
        tracer.new_operator(operator, [source], result, "linear")
    attention = _part(tracer, None, rows[0].flatten(), mixed, per_sample[0] * key.shape[0])
    attention.input_size, attention.output_size = (key.shape[0],), (query.shape[0],)
    tracer.new_operator(attention, [query, key, value], result, "attention")
    projection = _part(tracer, given["out_proj_weight"], mixed, out_labels, per_sample[0])
    tracer.put(result, spread(out_labels, result.shape, 2))
    tracer.new_operator(projection, [result], result, "linear")
    tracer.record_call(function_name(func), value=float(head_dim))
    tracer.trace.replay_only = True
    if out[1] is not None:
        weights = tracer.forest.fresh(1).expand(out[1].shape)
        tracer.freeze(weights, "attention weights")
        tracer.put(out[1], weights)
        tracer.same_node([out[1]], result)


def _part(
    tracer: Tracer, weight: Tensor | None, in_labels: Tensor, out_labels: Tensor, positions: int
) -> TracedOperator:
    return TracedOperator(
        kind="attention" if weight is None else "linear",
        module=tracer.module_path,
        weight="" if weight is None else tracer.weight_name(weight, "attention"),
        in_labels=in_labels,
        out_labels=out_labels,
        input_size=(positions,),
        output_size=(positions,),
        positions=positions,
    )
