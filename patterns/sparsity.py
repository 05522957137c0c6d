"""What the patterns that remove a fraction of the weights share: the fraction, and the ranking."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from patterns.pattern import check_keys

Built = TypeVar("Built", bound="SparsityPattern")


@dataclass(frozen=True)
class SparsityPattern:
    """Masks a fraction of some unit (weights, vectors, kernels, filters), the smallest first.

    The subclass says what the unit is: `family`, `applies_to` and `mask`.

    Attributes:
        sparsity: fraction of the units removed, in (0, 1); rounded by `kept_of`.

    Raises:
        ValueError: `sparsity` is not in (0, 1).
    """

    sparsity: float

    family: ClassVar[str]
    channel_ratio = 0.0

    def __post_init__(self) -> None:
        number = isinstance(self.sparsity, int | float) and not isinstance(self.sparsity, bool)
        if not number or not 0.0 < self.sparsity < 1.0:
            raise ValueError(
                f"The sparsity of a pattern of the family {self.family!r} must be a number in "
                f"(0, 1), got {self.sparsity!r}. Change patterns.specs; the dense pattern is what "
                f"removes nothing."
            )

    @classmethod
    def from_spec(cls: type[Built], spec: Mapping[str, Any]) -> Built:
        """Build from `{family: FAMILY, sparsity: 0.5}`; `sparsity` is the fraction removed."""
        check_keys(spec, ("sparsity",))
        return cls(spec["sparsity"])

    @property
    def name(self) -> str:
        """The family and the sparsity, for example "unstructured_0.5"."""
        return f"{self.family}_{self.sparsity:g}"

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that `from_spec` reads."""
        return {"family": self.family, "sparsity": self.sparsity}

    def kept_of(self, total: int) -> int:
        """How many of `total` units stay; half a unit rounds to removal, and one always stays.

        Args:
            total: units to choose from, >= 0.

        Returns:
            max(1, total - floor(sparsity * total + 0.5)); 0 when `total` is 0.
        """
        removed = math.floor(self.sparsity * total + 0.5)
        return max(min(total, 1), total - removed)


def keep_largest(scores: Tensor, kept: int) -> Tensor:
    """Mark the `kept` largest scores along the last axis; of equal ones those of lower index.

    Args:
        scores: shape (..., n).
        kept: how many to mark in each row, in [0, n].

    Returns:
        Boolean tensor of the shape of `scores`, `kept` times True in each row.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :kept]
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(
        -1, order, True
    )


def exact(weight: Tensor) -> Tensor:
    """The weight in float64 on the CPU, so that sums over it rank alike on every device.

    Sums in float32 depend on the order in which a device adds, and so would masks near a tie.
    """
    return weight.detach().cpu().double()
