"""Importance from gradients of the loss: first-order Taylor and optimal brain damage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.scoring import ScoringInputs, slices_in_scope, sum_over_scope, undisturbed

BATCH_SIZE = 128
"""Samples in one forward pass whose gradients are added up."""

CHUNK_ENTRIES = 2**24
"""Most entries of per-sample gradients held at once (64 MiB of float32)."""

MAX_CHUNK = 64
"""Most samples whose gradients are computed at once."""

Parameters = dict[str, Tensor]
LossOf = Callable[[Parameters, Tensor, Tensor], Tensor]
"""From weights in scope, inputs and targets of a batch to the mean loss."""


def taylor(inputs: ScoringInputs) -> np.ndarray:
    """|Σ w ∂L/∂w| over the weights in scope, with L the mean loss over all samples.

    To first order, how much the loss changes when the weights are set to zero: the criterion of
    "Importance Estimation for Neural Network Pruning" (https://arxiv.org/abs/1906.10771)
    before it is squared, the terms of a unit summed with their signs.

    Raises:
        ValueError: no samples, or outputs that the loss cannot read.
    """
    number = len(inputs.samples)
    weights, loss_of = _weights_in_scope(inputs), _loss(inputs)
    gradients = _zeros(weights)
    with undisturbed(inputs.network):
        for batch, targets in inputs.batches(BATCH_SIZE):
            share = len(batch) / number  # the last batch may be smaller
            for name, gradient in _gradients(loss_of, weights, batch, targets).items():
                gradients[name] += gradient.double() * share
    return np.abs(sum_over_scope(inputs, lambda name: weights[name].double() * gradients[name]))


def obd(inputs: ScoringInputs) -> np.ndarray:
    """½ Σ h w² over the weights in scope, with h the diagonal of the empirical Fisher matrix.

    The saliency of "Optimal Brain Damage" (LeCun et al., 1989), where the diagonal of
    the Hessian is replaced by the mean over samples of the squared gradient of each sample's loss,
    as in "Group Fisher Pruning" (https://arxiv.org/abs/2108.00708). The gradient of a batch
    will not do: its square loses what cancels between samples.

    Raises:
        ValueError: no samples, or outputs that the loss cannot read.
    """
    weights = _weights_in_scope(inputs)
    fisher = _fisher_diagonal(inputs, weights)
    return 0.5 * sum_over_scope(inputs, lambda name: weights[name].double().square() * fisher[name])


def _fisher_diagonal(inputs: ScoringInputs, weights: Parameters) -> Parameters:
    """Mean over samples of each entry's squared gradient, float64."""
    loss_of = _loss(inputs)

    def loss_of_sample(weights: Parameters, sample: Tensor, target: Tensor) -> Tensor:
        return loss_of(weights, sample.unsqueeze(0), target.unsqueeze(0))

    per_sample = torch.func.vmap(
        torch.func.grad(loss_of_sample), in_dims=(None, 0, 0), randomness="different"
    )
    entries = sum(weight.numel() for weight in weights.values())
    chunk = min(MAX_CHUNK, max(1, CHUNK_ENTRIES // entries))
    total, vectorised = _zeros(weights), True
    with undisturbed(inputs.network):
        for batch, targets in inputs.batches(chunk):
            if vectorised:
                try:
                    gradients = per_sample(weights, batch, targets)
                except RuntimeError:  # control flow that reads values, an operation without a rule
                    vectorised = False
                else:
                    for name, gradient in gradients.items():
                        total[name] += gradient.square().sum(0, dtype=torch.float64)
            if not vectorised:
                for row in range(len(batch)):
                    one = slice(row, row + 1)
                    found = _gradients(loss_of, weights, batch[one], targets[one])
                    for name, gradient in found.items():
                        total[name] += gradient.double().square()
    return {name: squares / len(inputs.samples) for name, squares in total.items()}


def _weights_in_scope(inputs: ScoringInputs) -> Parameters:
    """The parameters that count, apart from the network's own graph of gradients."""
    names = {piece.tensor for piece in slices_in_scope(inputs.graph, inputs.scope)}
    return {name: inputs.tensors[name].detach() for name in sorted(names)}


def _zeros(weights: Parameters) -> Parameters:
    return {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}


def _gradients(loss_of: LossOf, weights: Parameters, batch: Tensor, targets: Tensor) -> Parameters:
    """Gradient of the mean loss of one batch; the network's own `.grad` are not touched."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        loss = loss_of(leaves, batch, targets)
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _loss(inputs: ScoringInputs) -> LossOf:
    """The loss as a function of weights; whatever else the network holds stays as it is."""
    network = inputs.network
    constants = {name: parameter.detach() for name, parameter in network.named_parameters()}
    buffers = dict(network.named_buffers())
    loss = inputs.loss or _cross_entropy

    def loss_of(weights: Parameters, batch: Tensor, targets: Tensor) -> Tensor:
        # a forward pass may write to its buffers
        state = {name: buffer.clone() for name, buffer in buffers.items()}
        outputs = torch.func.functional_call(network, {**constants, **state, **weights}, (batch,))
        return loss(outputs, targets)

    return loss_of


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, for outputs and targets that have one."""
    if (
        not isinstance(outputs, Tensor)
        or outputs.dim() < 2
        or targets.shape != (outputs.shape[0], *outputs.shape[2:])
        or targets.is_floating_point()
    ):
        found = (
            f"outputs of shape {tuple(outputs.shape)}"
            if isinstance(outputs, Tensor)
            else f"a {type(outputs).__name__}"
        )
        raise ValueError(
            f"Gradients are those of the cross-entropy between class scores (N, classes, ...) "
            f"and class numbers (N, ...); the network gave {found}, the targets are "
            f"{targets.dtype} of shape {tuple(targets.shape)}. Pass "
            f"loss=..., or change importance.criterion to one without gradients, such as l1."
        )
    return F.cross_entropy(outputs, targets.long())
