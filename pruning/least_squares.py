"""The linear algebra of reconstruction: outputs, refits and ridge solves of one operator."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.patches import OperatorCall

UNTOUCHED = 1e-5
"""Relative error of an operator's outputs below which there is nothing to correct."""


def outputs_of(call: OperatorCall, patches: Tensor) -> Tensor:
    """Outputs at sampled positions, float64 (samples, outputs).

    Args:
        call: the operator.
        patches: (groups, samples, patch).
    """
    outputs = patches @ call.rows(call.weight.detach()).double().mT
    flat = outputs.transpose(0, 1).flatten(1)
    return flat if call.bias is None else flat + call.bias.detach().double()


def refitted(
    call: OperatorCall, patches: Tensor, target: Tensor, refits_bias: bool, ridge: float
) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias that bring outputs closest to a target.

    Args:
        call: the operator as it is.
        patches: its sampled inputs, float64 (groups, samples, patch).
        target: (samples, outputs).
        refits_bias: whether its bias may change.
        ridge: see `LeastSquares`.

    Returns:
        Weight and bias in their shapes and dtypes, or None where the outputs are right already.
    """
    error = target.double() - outputs_of(call, patches)
    if not error.norm() > UNTOUCHED * target.double().norm():
        return None
    error = error.unflatten(1, (call.groups, -1)).transpose(0, 1)  # (groups, samples, outputs)
    mean, mean_error = patches.mean(1, keepdim=True), error.mean(1, keepdim=True)
    if refits_bias:
        patches, error = patches - mean, error - mean_error
    change = ridge_solve(patches.mT @ patches, error.mT @ patches, ridge)
    weight = call.from_rows(call.rows(call.weight.detach()).double() + change)
    bias = call.bias
    if refits_bias:
        assert bias is not None, "there is one to refit"
        moved = (mean_error - mean @ change.mT).flatten()
        bias = (bias.detach().double() + moved).to(bias.dtype)
    return weight, bias


def ridge_solve(gram: Tensor, side: Tensor, ridge: float) -> Tensor:
    """Solve for A in A (gram + ridge * mean(diagonal) I) = side, block by block.

    Args:
        gram: positive semi-definite, float64 (groups, n, n).
        side: float64 (groups, rows, n).
        ridge: relative, above 0; it is raised tenfold until the factorisation succeeds.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    scale = diagonal.mean(1)
    scale = torch.where(scale > 0, scale, 1.0)  # inputs that are always zero
    while True:
        shifted = gram.clone()
        shifted.diagonal(dim1=1, dim2=2).add_(ridge * scale[:, None])
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed.any():
            return torch.cholesky_solve(side.mT, factor).mT
        if ridge > 1.0:
            raise ValueError(
                "The inputs of an operator are not finite, so its weights cannot be refitted. "
                "Check the weights of the network, or change reconstruction to none."
            )
        ridge *= 10.0
