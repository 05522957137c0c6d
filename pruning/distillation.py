"""Knowledge distillation: the pruned network learns from the outputs of the unpruned one too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.recalibration import evaluation_mode


@dataclass(frozen=True)
class Distillation:
    """How much of the loss is the distance to a teacher, and how soft the outputs are.

    Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network
    (https://arxiv.org/abs/1503.02531), section 2: with the temperature T, softened outputs
    softmax(logits / T) and the weight w, the loss is

        (1 - w) * cross-entropy + w * T^2 * KL(softened teacher || softened student)

    T^2 keeps the gradients of the second term as large as those of the first, whatever T is. The
    KL divergence differs from the paper's cross-entropy by a constant, so its gradients are equal.

    Attributes:
        temperature: above 0; the paper used 1 to 20.
        weight: of the distance to the teacher, in (0, 1]; 1 leaves the labels out.

    Raises:
        ValueError: one of them is out of its range.
    """

    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0 < self.temperature < float("inf"), "a number above 0"),
            ("weight", 0 < self.weight <= 1, "in (0, 1]"),
        )
        for name, holds, wanted in checks:
            if not holds:
                raise ValueError(
                    f"fine_tune.distillation.{name} must be {wanted}, got {getattr(self, name)!r}."
                )

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T^2 times the KL divergence of the softened outputs, mean over the batch; a scalar.

        Args:
            student: logits, shape (batch, classes).
            teacher: logits for the same samples, likewise.
        """
        softened = F.log_softmax(student.float() / self.temperature, dim=1)
        target = F.log_softmax(teacher.float() / self.temperature, dim=1)
        divergence = F.kl_div(softened, target, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence

    def term(self, teacher: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        """The weighted distance to a teacher that sees the same, augmented, samples.

        Args:
            teacher: evaluated in eval mode and without gradients; its own modes stay.

        Returns:
            What maps a batch and the student's logits for it to a scalar.
        """

        def term(inputs: Tensor, output: Tensor) -> Tensor:
            with evaluation_mode(teacher), torch.inference_mode():
                logits = teacher(inputs)
            # an inference tensor cannot be kept for the backward pass, its copy can
            return self.weight * self.distance(output, logits.clone())

        return term
