"""Training and plain accuracy of a network; deterministic by seed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.data import Augmentation, SampleSet
from networks.epoch_checkpoint import EpochCheckpoint

Progress = Callable[[int, int, float], None]
"""Called after every step with the steps done, the steps in total, and the loss of the step."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps the network's output and the targets to a scalar."""

ExtraLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps a batch of inputs and the network's output for it to a scalar that is added to the loss."""

PRECISIONS = {"bfloat16": torch.bfloat16}
"""Number formats that a training can compute in, by name; float16 would need scaled gradients."""

_WARM_UP = 0.05


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained from scratch: SGD with momentum and a cosine schedule.

    Attributes:
        epochs: passes over the train split, at least 0; 0 asks for a checkpoint instead.
        learning_rate: peak of the schedule, positive.
        momentum: in [0, 1).
        weight_decay: L2 penalty on all parameters, at least 0.
        batch_size: samples per step, at least 1.
        nesterov: Nesterov momentum; needs a positive momentum.
        label_smoothing: in [0, 1).
        seed: of initial weights, order and augmentation; apart from the seed of a run, so that all
            runs start from the same network.
        augment: changes the raw inputs of every batch, or None.
    """

    epochs: int = 0
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    nesterov: bool = True
    label_smoothing: float = 0.0
    seed: int = 0
    augment: Augmentation | None = None


def train(
    network: nn.Module,
    samples: SampleSet,
    *,
    epochs: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    seed: int,
    augment: Augmentation | None = None,
    progress: Progress | None = None,
    nesterov: bool = True,
    label_smoothing: float = 0.0,
    after_step: Callable[[], None] | None = None,
    loss: Loss | None = None,
    extra_loss: ExtraLoss | None = None,
    precision: str | None = None,
    channels_last: bool | None = None,
    stop_after: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> None:
    """Train a network in place, on the device it is on, and leave it in eval mode.

    The learning rate rises linearly over the first 5 % of the steps and then follows a cosine to
    zero (https://arxiv.org/abs/1608.03983, eq. 5, one cycle, per step). Samples that do not fill
    the last batch of an epoch are left out of that epoch: batch norm on a handful of samples hurts.
    torch's global random numbers are the same afterwards as before.

    Args:
        network: trained in place; only parameters that require gradients change.
        samples: the train split.
        epochs: passes over the samples, at least 0.
        learning_rate: peak of the schedule, positive.
        momentum: in [0, 1).
        weight_decay: L2 penalty, at least 0.
        batch_size: samples per step, at least 1.
        seed: of order, augmentation and dropout; same seed and threads, same weights.
        augment: changes the raw inputs of every batch.
        progress: called after every step.
        nesterov: Nesterov momentum; needs a positive momentum.
        label_smoothing: in [0, 1); only for the built-in loss.
        after_step: called after every optimiser step, for example to set masked weights to zero.
        loss: replaces the cross-entropy.
        extra_loss: added to the loss of every batch, such as a penalty on the weights.
        precision: "bfloat16" computes the forward pass in it where torch holds it safe
            (torch.autocast), on a CPU too; weights and their updates stay float32. None for float32
            throughout.
        channels_last: whether to lay 4-d inputs out channels last, in which convolutions on a CPU
            run faster; the sums are rounded differently, so the weights differ in the last bits.
        stop_after: epochs after which it ends, at least 0, as if it had been killed then: the
            schedule is that of all `epochs`. None for all.
        checkpoint: .safetensors file that gets the state after every epoch (of very short ones,
            not every one: `networks.epoch_checkpoint.MOST_SHARE`); the caller removes it.
            If it is there already, of a training with the same settings, initial weights and
            targets, that one goes on, and ends with the weights it would have had in one go.
            Inputs, augmentation, hook and losses are taken to be the same.

    Raises:
        ValueError: when an argument is out of its range, or the loss is no longer finite.
    """
    _check_recipe(epochs, learning_rate, momentum, weight_decay, batch_size, label_smoothing)
    if nesterov and momentum == 0:
        raise ValueError("nesterov=true needs a positive momentum; set nesterov=false.")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(
            f"precision must be null or {' or '.join(PRECISIONS)}, got {precision!r}. Change it in "
            "fine_tune."
        )
    if len(samples) == 0:
        raise ValueError("There are no samples to train on: the train split is empty.")
    parameters = [p for p in network.parameters() if p.requires_grad]
    if epochs == 0:
        network.eval()
        return
    if not parameters:
        raise ValueError("No parameter of the network requires a gradient, so it cannot train.")
    device = parameters[0].device
    compute_loss = loss or (
        lambda output, targets: F.cross_entropy(output, targets, label_smoothing=label_smoothing)
    )
    computed_in = None if precision is None else PRECISIONS[precision]
    batch_size = min(batch_size, len(samples))
    steps_per_epoch = len(samples) // batch_size
    total = epochs * steps_per_epoch
    optimizer = torch.optim.SGD(
        parameters, learning_rate, momentum, weight_decay=weight_decay, nesterov=nesterov
    )
    order = torch.Generator().manual_seed(seed)
    kept = None
    if checkpoint is not None:
        settings: dict[str, Any] = {
            "recipe": [epochs, learning_rate, momentum, weight_decay, batch_size, seed],
            "options": [nesterov, label_smoothing],
            "inputs": list(samples.inputs.shape),
            "precision": precision,
        }
        if channels_last:
            settings["channels_last"] = True
        kept = EpochCheckpoint(
            Path(checkpoint), network, optimizer, order, samples.targets, settings
        )
    network.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # for dropout and the like, which read the global generator
        first = 0 if kept is None else kept.restore(epochs)
        step = before = first * steps_per_epoch
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: _factor(before + done, total)
        )
        for epoch in range(first, epochs if stop_after is None else min(stop_after, epochs)):
            epoch_loss = torch.zeros((), device=device)
            batches = samples.batches(batch_size, generator=order, augment=augment)
            for _, (inputs, targets) in zip(range(steps_per_epoch), batches, strict=False):
                inputs, targets = inputs.to(device), targets.to(device)
                if channels_last and inputs.dim() == 4:
                    inputs = inputs.contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, computed_in, enabled=precision is not None):
                    output = network(inputs)
                    extra = None if extra_loss is None else extra_loss(inputs, output)
                if precision is not None:
                    output = output.float()  # a loss in 8 bits of mantissa learns little
                value = compute_loss(output, targets)
                value = value if extra is None else value + extra
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                schedule.step()
                if after_step is not None:
                    after_step()
                step += 1
                epoch_loss += value.detach()
                if progress is not None:
                    progress(step, total, float(value.detach()))
            if not bool(torch.isfinite(epoch_loss)):
                raise ValueError(
                    f"Training diverged in epoch {epoch + 1} of {epochs}: the loss is not finite. "
                    f"Lower learning_rate (now {learning_rate}) in pretrain or fine_tune."
                )
            if kept is not None:
                kept.save(epoch + 1, epochs)
    optimizer.zero_grad(set_to_none=True)
    network.eval()


def accuracy(network: nn.Module, samples: SampleSet, batch_size: int = 250) -> float:
    """Measure the fraction of samples whose highest score is the right class.

    Args:
        network: measured in eval mode; its mode is restored.
        samples: inputs and class numbers.
        batch_size: samples per forward pass, at least 1.

    Returns:
        Top-1 accuracy in [0, 1].

    Raises:
        ValueError: when there are no samples.
    """
    if len(samples) == 0:
        raise ValueError("There are no samples to measure accuracy on: the split is empty.")
    device = next((p.device for p in network.parameters()), samples.inputs.device)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    correct = 0
    try:
        with torch.inference_mode():
            for inputs, targets in samples.batches(batch_size):
                predicted = network(inputs.to(device)).argmax(dim=1)
                correct += int((predicted == targets.to(device)).sum())
    finally:
        for module, training in modes:
            module.training = training
    return correct / len(samples)


def _check_recipe(
    epochs: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    label_smoothing: float,
) -> None:
    checks = (
        (epochs >= 0, f"epochs must be at least 0, got {epochs}"),
        (learning_rate > 0, f"learning_rate must be positive, got {learning_rate}"),
        (0 <= momentum < 1, f"momentum must be in [0, 1), got {momentum}"),
        (weight_decay >= 0, f"weight_decay must be at least 0, got {weight_decay}"),
        (batch_size >= 1, f"batch_size must be at least 1, got {batch_size}"),
        (0 <= label_smoothing < 1, f"label_smoothing must be in [0, 1), got {label_smoothing}"),
    )
    for holds, message in checks:
        if not holds:
            raise ValueError(f"{message}. Change it in pretrain or fine_tune.")


def _factor(done: int, total: int) -> float:
    """Fraction of the peak learning rate after `done` of `total` steps."""
    warm_up = max(1, round(_WARM_UP * total))
    if done < warm_up:
        return (done + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / max(1, total - warm_up)))
