"""Layer, group and root-mean-square norms that leave removed channels out of their statistics.

A removed channel that is only zeroed still counts in a mean over channels, so the full-width
network with zeros would not be the reference for the slim one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NORM_ARGUMENTS = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
}


class MaskedNorms(TorchFunctionMode):
    """Norms whose statistics leave out masked channels.

    Args:
        masks: True for kept channels, by the id of the norm's weight and in a shape that expands
            to it.
    """

    def __init__(self, masks: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._masks = masks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in _NORM_ARGUMENTS:
            return func(*args, **kwargs)
        keys = _NORM_ARGUMENTS[name]
        values = {
            "bias": None,
            "weight": None,
            "eps": None if name == "rms_norm" else 1e-5,
            **dict(zip(keys, args, strict=False)),
            **kwargs,
        }
        mask = self._masks.get(id(values["weight"]))
        if mask is None or bool(mask.all()):
            return func(*args, **kwargs)
        x, weight = values["input"], values["weight"]
        mask = mask.to(x.device, x.dtype)
        if name == "group_norm":
            shape = [1, -1] + [1] * (x.dim() - 2)
            mask, weight = mask.reshape(shape), weight.reshape(shape)
            blocks = x.reshape(x.shape[0], values["num_groups"], -1)
            weights = mask.expand(x.shape).reshape(blocks.shape)
            axes: tuple[int, ...] = (2,)
        else:
            blocks, weights = x, mask.expand(x.shape)
            axes = tuple(range(x.dim() - weight.dim(), x.dim()))
            shape = list(weight.shape)
        count = weights.sum(axes, keepdim=True)
        mean = (blocks * weights).sum(axes, keepdim=True) / count
        if name == "rms_norm":
            mean = torch.zeros_like(mean)
        centred = (blocks - mean) * weights
        variance = centred.square().sum(axes, keepdim=True) / count
        eps = torch.finfo(x.dtype).eps if values["eps"] is None else values["eps"]
        normed = (centred / (variance + eps).sqrt()).reshape(x.shape) * weight
        return normed if values["bias"] is None else normed + values["bias"].reshape(shape)
