"""Faster evaluation without touching base weights: folded batch norms, channels-last kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from graphs.network_graph import Fold


@contextmanager
def folded(network: nn.Module, folds: Iterable[Fold]) -> Iterator[nn.Module]:
    """Run `network` with each batch norm folded into the convolution in front of it.

    w' = w · γ / √(σ² + ε) and b' = (b − μ) · γ / √(σ² + ε) + β; the norm becomes an identity.
    Weights are swapped, never written, so on leaving, also through an exception, the network
    holds the very same tensors and modules as before.

    Args:
        network: a network in eval mode.
        folds: module paths of convolutions and of the batch norms that read them.

    Raises:
        ValueError: a path is not a convolution (linear) or not a batch norm, a convolution is
            named twice, or a norm has no running statistics or is in training mode.
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    swaps = _Swaps()
    try:
        convs: set[nn.Module] = set()
        norms: set[nn.Module] = set()
        with torch.no_grad():
            for fold in folds:
                conv, norm = _checked_pair(fold, modules)
                if conv in convs:
                    raise ValueError(f"{fold.conv!r} cannot hold more than one batch norm.")
                weight, bias = _folded_tensors(conv, norm)
                convs.add(conv)
                norms.add(norm)
                swaps.set(conv._parameters, "weight", _frozen(weight))
                swaps.set(conv._parameters, "bias", _frozen(bias))
        # Under every name it has: a module may be registered twice.
        for path, module in modules.items():
            if module in norms:
                holder, _, name = path.rpartition(".")
                swaps.set(modules[holder]._modules, name, _IDENTITY)
        yield network
    finally:
        swaps.undo()


@contextmanager
def channels_last_weights(network: nn.Module) -> Iterator[nn.Module]:
    """Run `network` with the kernels of its 2-d convolutions in channels-last memory format.

    Without it, a channels-last input makes every call convert the kernel again. The kernels are
    swapped, never written.
    """
    swaps = _Swaps()
    try:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                weight = module._parameters.get("weight")
                if weight is None or weight.is_contiguous(memory_format=torch.channels_last):
                    continue
                kernel = weight.detach().contiguous(memory_format=torch.channels_last)
                swaps.set(module._parameters, "weight", _frozen(kernel))
        yield network
    finally:
        swaps.undo()


class _Swaps:
    """Dictionary entries that were replaced, and what they held before."""

    def __init__(self) -> None:
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def set(self, entries: dict[str, Any], name: str, value: Any) -> None:
        self._before.append((entries, name, entries[name]))
        entries[name] = value

    def undo(self) -> None:
        while self._before:
            entries, name, value = self._before.pop()
            entries[name] = value


_IDENTITY = nn.Identity().eval()


def _checked_pair(
    fold: Fold, modules: Mapping[str, nn.Module]
) -> tuple[_ConvNd | nn.Linear, _BatchNorm]:
    """The two modules that a fold names."""
    conv, norm = modules.get(fold.conv), modules.get(fold.norm)
    if not isinstance(conv, _ConvNd | nn.Linear) or conv._parameters.get("weight") is None:
        raise ValueError(
            f"Cannot fold into {fold.conv!r}: expected a convolution or a linear layer with a "
            f"plain weight, got {type(conv).__name__}."
        )
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        raise ValueError(
            f"Cannot fold {fold.norm!r}: expected a batch norm with running statistics, got "
            f"{type(norm).__name__}."
        )
    if norm.training:
        raise ValueError(
            f"Cannot fold {fold.norm!r} in training mode, where it uses the statistics of the "
            "batch. Call network.eval() first."
        )
    return conv, norm


def _folded_tensors(conv: _ConvNd | nn.Linear, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one module that does the work of both."""
    mean, variance = norm.running_mean, norm.running_var
    weight, bias = conv.weight, conv.bias
    assert mean is not None, "checked before"
    assert variance is not None, "comes with the mean"
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = (-mean if bias is None else bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    folded_weight = weight * _along_outputs(conv, weight, scale)
    return folded_weight.to(weight.dtype), shift.to(weight.dtype)


def _along_outputs(conv: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """`scale`, one value per output channel, in a shape that multiplies `weight`."""
    if not isinstance(conv, _ConvTransposeNd):
        return scale.view(-1, *[1] * (weight.dim() - 1))
    # A transposed kernel is (in, out / groups, ...), and input channels come group by group.
    per_group = scale.view(conv.groups, -1).repeat_interleave(weight.shape[0] // conv.groups, 0)
    return per_group.view(*per_group.shape, *[1] * (weight.dim() - 2))


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
