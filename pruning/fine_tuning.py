"""Training a pruned network further, with masked weights that stay zero."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn

from networks.data import Augmentation, SampleSet
from networks.training import Loss, Progress
from networks.training import train as train_network
from pruning.masks import MaskedWeights


def fine_tune(
    network: nn.Module,
    train: SampleSet,
    *,
    epochs: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    nesterov: bool,
    label_smoothing: float,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
    augment: Augmentation | None = None,
    progress: Progress | None = None,
    loss: Loss | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> None:
    """Train a pruned network in place by `networks.training`: SGD and a cosine schedule.

    Masked weights are set to zero before the first and after every step, because momentum and
    weight decay also move a weight whose gradient is zero. Every comparison of policies uses one
    recipe: the same arguments for all.

    Args:
        network: an independent slim network, such as `plan.apply(...)`; left in eval mode.
        train: images of the train split, never of the reward or test split.
        epochs: passes over the images, 0 or more; 0 leaves all that is not masked as it is.
        learning_rate: peak of the schedule, above 0.
        momentum: in [0, 1).
        weight_decay: L2 penalty, 0 or more.
        batch_size: images per step, 1 or more.
        nesterov: whether momentum is Nesterov's.
        label_smoothing: in [0, 1).
        seed: of order, augmentation and dropout; same seed and threads, same weights.
        masks: boolean masks (True = kept) by parameter name, in the shape of the slim parameters;
            `pruning.masks.slim_masks` makes them.
        augment: changes the raw images of every batch.
        progress: called after every step with steps done, steps in total and the loss.
        loss: replaces the cross-entropy.
        checkpoint: .safetensors file that gets the state after every epoch, and that an interrupted
            fine-tuning goes on from; see `networks.training.train`.

    Raises:
        ValueError: an argument is out of its range, a mask does not fit, or training diverges.
    """
    masked = MaskedWeights(network, masks) if masks else None
    train_network(
        network,
        train,
        epochs=epochs,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        batch_size=batch_size,
        nesterov=nesterov,
        label_smoothing=label_smoothing,
        seed=seed,
        augment=augment,
        progress=progress,
        after_step=masked.after_step if masked is not None else None,
        loss=loss,
        checkpoint=checkpoint,
    )
