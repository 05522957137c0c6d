"""Multi-head attention with fewer heads than its width says."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


def slim_multi_head_attention(*args: Any, head_dim: int, **kwargs: Any) -> Any:
    """Same as `multi_head_attention`, as one call to a torch function mode.

    So a network that was pruned before can be traced again.
    """
    tensors = tuple(value for value in args if isinstance(value, Tensor))
    if has_torch_function(tensors):
        return handle_torch_function(
            slim_multi_head_attention, tensors, *args, head_dim=head_dim, **kwargs
        )
    return multi_head_attention(*args, head_dim=head_dim, **kwargs)


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    head_dim: int,
) -> tuple[Tensor, Tensor | None]:
    """What torch.nn.functional.multi_head_attention_forward computes, heads counted by the weights.

    The arguments are those of torch's function, which refuses weights whose shape is not that of
    the full width. Cases that tracing refuses (bias_k, add_zero_attn) are not computed here.

    Args:
        query: (target tokens, B, channels).
        key: (source tokens, B, channels).
        value: (source tokens, B, channels).
        embed_dim_to_check: ignored.
        num_heads: ignored; counted from the weights.
        in_proj_weight: (3 * heads * head_dim, channels), queries first, or None.
        in_proj_bias: (3 * heads * head_dim,) or None.
        bias_k: None.
        bias_v: None.
        add_zero_attn: False.
        dropout_p: dropout of the attention weights, while training.
        out_proj_weight: (channels out, heads * head_dim).
        out_proj_bias: (channels out,) or None.
        training: whether dropout is on.
        key_padding_mask: (B, source tokens); True, or minus infinity, is left out.
        need_weights: whether the attention weights are returned.
        attn_mask: (target tokens, source tokens); True, or minus infinity, is left out.
        use_separate_proj_weight: ignored; told by `in_proj_weight`.
        q_proj_weight: (heads * head_dim, channels of queries), without `in_proj_weight`.
        k_proj_weight: (heads * head_dim, channels of keys), without `in_proj_weight`.
        v_proj_weight: (heads * head_dim, channels of values), without `in_proj_weight`.
        static_k: None.
        static_v: None.
        average_attn_weights: whether the returned weights are the mean over heads.
        is_causal: a hint about `attn_mask`, which is given as well; ignored.
        head_dim: channels of one head.

    Returns:
        The output (target tokens, B, channels out) and the weights, or None.
    """
    rows = out_proj_weight.shape[1]
    weights: tuple[Any, ...] = (q_proj_weight, k_proj_weight, v_proj_weight)
    if in_proj_weight is not None:
        weights = in_proj_weight.split(rows)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.split(rows)
    # each (B, heads, tokens, head_dim)
    q, k, v = (
        F.linear(x, weight, bias).unflatten(2, (-1, head_dim)).permute(1, 2, 0, 3)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    mask = None
    if attn_mask is not None:
        mask = _additive(attn_mask, q.dtype)
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, q.dtype)[:, None, None, :]
        mask = padding if mask is None else mask + padding
    dropout = dropout_p if training else 0.0
    if not need_weights:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        attention = None
    else:
        scores = q @ k.transpose(-2, -1) * head_dim**-0.5
        scores = scores if mask is None else scores + mask
        attention = F.dropout(scores.softmax(-1), dropout, training)
        mixed = attention @ v
    # batch first, so that whoever watches the last layer can tell samples apart
    output = F.linear(mixed.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias)
    if attention is not None and average_attn_weights:
        attention = attention.mean(1)
    return output.transpose(0, 1), attention


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to be added to scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
