"""Training with a penalty on batch-norm scales, so that those of dispensable channels vanish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from networks.data import Augmentation, SampleSet
from networks.training import Progress, accuracy, train

PENALTIES = ("l1", "smooth_l1")


@dataclass(frozen=True)
class SparseTraining:
    """The sparse training of Network Slimming (https://arxiv.org/abs/1708.06519), section 3.

    The loss is the cross-entropy plus `strength` times the sum, over the scales gamma of all batch
    norms, of |gamma| ("l1") or of its smooth version ("smooth_l1": gamma^2 / (2 beta) below beta,
    |gamma| - beta / 2 above).

    Attributes:
        epochs: passes over the train split, at least 1.
        penalty: one of PENALTIES.
        strength: weight of the penalty, above 0; 1e-4 to 1e-5 in the paper, over 160 epochs.
        beta: of the smooth version, above 0.
        learning_rate: peak of the schedule, above 0.
        momentum: in [0, 1).
        weight_decay: L2 penalty, 0 or more.
        batch_size: samples per step, at least 1.
        nesterov: whether momentum is Nesterov's.
        seed: of order and augmentation; apart from the seed of a run, so that all runs prune the
            same network.
        augment: changes the raw inputs of every batch, or None.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 15
    penalty: str = "l1"
    strength: float = 1e-2
    beta: float = 0.1
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 64
    nesterov: bool = True
    seed: int = 0
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        checks = (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("penalty", self.penalty in PENALTIES, f"one of {', '.join(PENALTIES)}"),
            ("strength", 0.0 < self.strength < float("inf"), "a number above 0"),
            ("beta", 0.0 < self.beta < float("inf"), "a number above 0"),
        )
        for name, holds, wanted in checks:
            if not holds:
                raise ValueError(
                    f"sparse_training.{name} must be {wanted}, got {getattr(self, name)!r}."
                )

    def __call__(
        self, network: nn.Module, samples: SampleSet, *, progress: Progress | None = None
    ) -> None:
        """Train a network in place, and leave it in eval mode.

        Args:
            network: trained from the weights it has.
            samples: the train split.
            progress: called after every step.

        Raises:
            ValueError: the network has no batch norm with a scale, or training diverges.
        """
        scales = batch_norm_scales(network)

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs, targets) + self.strength * self.penalty_of(scales)

        train(
            network,
            samples,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            nesterov=self.nesterov,
            seed=self.seed,
            augment=self.augment,
            progress=progress,
            loss=loss,
        )

    def penalty_of(self, scales: Sequence[Tensor]) -> Tensor:
        """Sum of the penalty over all scales, before it is weighted; a scalar."""
        joined = torch.cat(list(scales))
        if self.penalty == "l1":
            return joined.abs().sum()
        # torch divides by beta below it and subtracts beta / 2 above
        return F.smooth_l1_loss(joined, torch.zeros_like(joined), reduction="sum", beta=self.beta)


def batch_norm_scales(network: nn.Module) -> list[nn.Parameter]:
    """The scales gamma of all batch norms, each once, shapes (channels,).

    Raises:
        ValueError: there are none.
    """
    scales = {
        id(module.weight): module.weight
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.weight is not None
    }
    if not scales:
        raise ValueError(
            f"{type(network).__name__} has no batch norm with a scale, so there is nothing that "
            "sparse training could make sparse. Set sparse_training=none (and another agent than "
            "slimming), or change network."
        )
    return list(scales.values())


@dataclass(frozen=True)
class SparseTrainingResult:
    """What sparse training did to a network.

    Attributes:
        accuracy_before: on the given samples, in [0, 1].
        accuracy_after: likewise.
        small_scales_before: fraction of batch-norm scales below a hundredth of the largest.
        small_scales_after: likewise.
    """

    accuracy_before: float
    accuracy_after: float
    small_scales_before: float
    small_scales_after: float


def train_sparsely(
    network: nn.Module,
    samples: SampleSet,
    measured_on: SampleSet,
    recipe: SparseTraining,
    *,
    progress: Progress | None = None,
) -> SparseTrainingResult:
    """Train a classifier in place by `recipe`, and say what that did to it.

    Args:
        network: trained from the weights it has.
        samples: the train split.
        measured_on: images for the accuracies, such as the reward split.
        recipe: how.
        progress: called after every step.

    Raises:
        ValueError: the network has no batch norm with a scale, or training diverges.
    """
    small_before = _small_share(network)
    before = accuracy(network, measured_on)
    recipe(network, samples, progress=progress)
    return SparseTrainingResult(
        before, accuracy(network, measured_on), small_before, _small_share(network)
    )


def _small_share(network: nn.Module) -> float:
    scales = torch.cat([scale.detach().abs() for scale in batch_norm_scales(network)])
    return float((scales < 0.01 * scales.max()).double().mean())
