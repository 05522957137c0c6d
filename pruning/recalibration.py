"""Batch-norm statistics of a pruned network, measured again on a few images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from networks.data import SampleSet

MIN_BATCH = 3
"""Smallest batch size that cuts every number of images into batches of two or more."""


def recalibrate_batch_norm(network: nn.Module, samples: SampleSet, batch_size: int = 250) -> None:
    """Replace the running statistics of every batch norm by their average over `samples`.

    Adaptive batch normalisation of "EagleEye: Fast Sub-net Evaluation for Efficient Neural
    Network Pruning" (https://arxiv.org/abs/2007.02491), section 3.3: the statistics a pruned
    network inherits belong to the unpruned one. Statistics are the plain average over batches of
    equal size (within one image), so the order of the images inside a batch does not matter.

    The buffers are written in place: give this a network that owns its storage, such as
    `slimmer.applied(keep, copy=True)` or `slimmer.materialize(keep)`.

    Args:
        network: the network; only its batch norms run in training mode, so dropout stays off.
        samples: images of the calibration split, never of the reward or test split.
        batch_size: most images in one forward pass, at least MIN_BATCH.

    Raises:
        ValueError: fewer than two images, or `batch_size` below MIN_BATCH.
    """
    if batch_size < MIN_BATCH:
        raise ValueError(
            f"Batch norm is recalibrated in batches of {MIN_BATCH} images or more, got "
            f"{batch_size}. Raise evaluation.batch_size."
        )
    inputs, _ = normalised_tensors(samples, batch_size)
    recalibrate_on_batches(network, balanced_split(inputs, batch_size))


def recalibrate_on_batches(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Same as `recalibrate_batch_norm`, on inputs that are normalised already.

    Args:
        network: the network; its batch-norm buffers are written in place.
        batches: network inputs, each batch with two or more images.

    Raises:
        ValueError: there is no batch, or a batch has fewer than two images.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluation_mode(network), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's name for the cumulative average
                norm.train()
            num_batches = 0
            for batch in batches:
                if len(batch) < 2:
                    raise ValueError(
                        f"Batch norm cannot be recalibrated on a batch of {len(batch)} image(s). "
                        "Give the calibration split at least 2 images (data.calibration_size)."
                    )
                network(batch)
                num_batches += 1
            if num_batches == 0:
                raise ValueError("The calibration split is empty. Raise data.calibration_size.")
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and give each its own mode back at the end."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in network.modules():
            module.training = False
        for module in training:
            module.training = True


def normalised_tensors(samples: SampleSet, batch_size: int) -> tuple[Tensor, Tensor]:
    """All inputs, normalised float32 (N, ...), and all targets (N,), in the order of the set."""
    if len(samples) == 0:
        raise ValueError("The sample set is empty; it needs at least one image.")
    inputs, targets = zip(*samples.batches(batch_size), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def balanced_split(tensor: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Views of at most `batch_size` rows whose lengths differ by one at most.

    Equal batches weigh every image alike in an average over batches, and from MIN_BATCH on never
    leave a last batch of one image, which batch norm refuses.
    """
    return torch.tensor_split(tensor, -(-len(tensor) // batch_size))
