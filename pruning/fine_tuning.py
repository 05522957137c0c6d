"""Training a pruned network further, with masked weights that stay zero."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.data import Augmentation, SampleSet
from networks.training import ExtraLoss, Loss, Progress
from networks.training import train as train_network
from pruning.distillation import Distillation
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
    distillation: Distillation | None = None,
    teacher: nn.Module | None = None,
    l1_penalty: float | None = None,
    precision: str | None = None,
    channels_last: bool | None = None,
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
        distillation: how it learns from the outputs of `teacher` too; None for not at all.
        teacher: the unpruned network, on the same device; only with `distillation`.
        l1_penalty: of the loss per unit of the summed magnitude of all weights with two axes or
            more (convolutions and linear layers, neither biases nor batch norms), 0 or more; None
            for none. `weight_decay` is the L2 penalty.
        precision: "bfloat16" or None; see `networks.training.train`.
        channels_last: layout of 4-d inputs; see `networks.training.train`.
        checkpoint: .safetensors file that gets the state after every epoch, and that an interrupted
            fine-tuning goes on from; see `networks.training.train`.

    Raises:
        ValueError: an argument is out of its range, a mask does not fit, distillation has no
            teacher, or training diverges.
    """
    if l1_penalty is not None and not 0 <= l1_penalty < float("inf"):
        raise ValueError(f"fine_tune.l1_penalty must be null or 0 or more, got {l1_penalty!r}.")
    if distillation is not None and teacher is None:
        raise ValueError(
            "Distillation needs a teacher: pass teacher=, the unpruned network, or set "
            "fine_tune/distillation=null."
        )
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
        loss=_share_of_labels(loss, label_smoothing, distillation),
        extra_loss=_extra_loss(network, distillation, teacher, l1_penalty),
        precision=precision,
        channels_last=channels_last,
        checkpoint=checkpoint,
    )


def with_learning_rate(recipe: Mapping[str, Any], original: float | None) -> dict[str, Any]:
    """A recipe whose learning rate is a number, for `fine_tune`.

    Args:
        recipe: arguments of `fine_tune`; `learning_rate` may be None, and is then the fraction
            `relative_learning_rate`, above 0, of the learning rate of the original training.
        original: peak learning rate that the network was trained with; None when unknown.

    Returns:
        The recipe with `learning_rate` set and without `relative_learning_rate`.

    Raises:
        ValueError: neither is set, the original is unknown, or the fraction is not above 0.
    """
    arguments = dict(recipe)
    fraction = arguments.pop("relative_learning_rate", None)
    if arguments["learning_rate"] is not None:
        return arguments
    if fraction is None:
        raise ValueError(
            "fine_tune has no learning rate: set fine_tune.learning_rate, or "
            "fine_tune.relative_learning_rate and leave the other null."
        )
    if original is None:
        raise ValueError(
            "fine_tune.relative_learning_rate is a fraction of the learning rate that the network "
            "was trained with, and pretrain does not say it: add +pretrain.learning_rate=VALUE, or "
            "set fine_tune.learning_rate instead."
        )
    if not 0 < fraction < float("inf"):
        raise ValueError(
            f"fine_tune.relative_learning_rate must be null or above 0, got {fraction!r}."
        )
    arguments["learning_rate"] = fraction * original
    return arguments


def changed_recipe(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with a few settings changed, for `fine_tune`.

    Args:
        recipe: arguments of `fine_tune`.
        changes: the settings that differ; "distillation" may be a switch instead: True for that of
            the recipe, or its defaults where the recipe has none, False for none.
    """
    changed = {**recipe, **changes}
    if changes.get("distillation") is True:
        changed["distillation"] = recipe.get("distillation") or Distillation()
    elif changes.get("distillation") is False:
        changed["distillation"] = None
    return changed


def check_fine_tuning(recipe: Mapping[str, Any]) -> None:
    """Refuse what `fine_tune` would refuse, before a search has cost time.

    Args:
        recipe: arguments of `fine_tune`.

    Raises:
        ValueError: an argument is out of its range.
    """
    nothing = nn.Identity()
    samples = SampleSet(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
    checked = {**recipe, "epochs": min(0, recipe["epochs"])}
    fine_tune(nothing, samples, teacher=nothing, **checked)


def _share_of_labels(
    loss: Loss | None, label_smoothing: float, distillation: Distillation | None
) -> Loss | None:
    """The loss against the labels, weighted; as it is without distillation."""
    if distillation is None:
        return loss
    share = 1.0 - distillation.weight

    def weighted(output: Tensor, targets: Tensor) -> Tensor:
        if loss is not None:
            return share * loss(output, targets)
        return share * F.cross_entropy(output, targets, label_smoothing=label_smoothing)

    return weighted


def _extra_loss(
    network: nn.Module,
    distillation: Distillation | None,
    teacher: nn.Module | None,
    l1_penalty: float | None,
) -> ExtraLoss | None:
    """What is added to the loss against the labels, or None."""
    terms: list[ExtraLoss] = []
    if distillation is not None and teacher is not None:
        terms.append(distillation.term(teacher))
    if l1_penalty:
        weights = [weight for weight in network.parameters() if weight.dim() >= 2]
        strength = l1_penalty

        def magnitude(inputs: Tensor, output: Tensor) -> Tensor:
            return strength * torch.stack([weight.abs().sum() for weight in weights]).sum()

        terms.append(magnitude)
    if not terms:
        return None

    def total(inputs: Tensor, output: Tensor) -> Tensor:
        return torch.stack([term(inputs, output) for term in terms]).sum()

    return total
