"""Vector patterns: remove rows or columns of kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patterns.pattern import OperatorShape, check_keys
from patterns.sparsity import SparsityPattern, exact, keep_largest

SUMMED_AXIS = {"row": -1, "column": -2}
"""Axis of a weight along which a row or a column of a kernel runs."""


@dataclass(frozen=True)
class VectorPattern(SparsityPattern):
    """Zeroes whole rows or columns inside kernels (Mao et al. 2017, arXiv 1705.08922).

    All rows (or columns) of all kernels of a site in one operator compete, by L2 norm, so one
    kernel may lose none and another all of its own. Applies to convolutions, depthwise too, whose
    kernel has two axes longer than 1: in others a vector is a weight or a whole kernel. Dense
    hardware saves nothing by it.

    Attributes:
        sparsity: fraction of the vectors removed, in (0, 1).
        axis: "row" (1 x width) or "column" (height x 1).

    Raises:
        ValueError: `sparsity` is not in (0, 1), or `axis` is none of the two.
    """

    axis: str

    family = "vector"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in SUMMED_AXIS:
            raise ValueError(
                f"The axis of a vector pattern must be one of {', '.join(SUMMED_AXIS)}, got "
                f"{self.axis!r}. Change patterns.specs."
            )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> VectorPattern:
        """Build from `{family: vector, axis: row, sparsity: 0.5}`."""
        check_keys(spec, ("axis", "sparsity"))
        return cls(spec["sparsity"], spec["axis"])

    @property
    def name(self) -> str:
        """For example "vector_row_0.5"."""
        return f"{self.family}_{self.axis}_{self.sparsity:g}"

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that `from_spec` reads."""
        return {"family": self.family, "axis": self.axis, "sparsity": self.sparsity}

    def applies_to(self, operator: OperatorShape) -> bool:
        """Whether `operator` is a convolution with a kernel of two axes longer than 1."""
        kernel = operator.kernel_size
        return operator.kind == "conv" and len(kernel) == 2 and min(kernel) > 1

    def mask(self, weight: Tensor) -> Tensor | None:
        """The vectors of largest L2 norm; of equal ones those of lower (filter, channel, position).

        Args:
            weight: shape (rows, channels, height, width).

        Returns:
            Boolean tensor of the shape of `weight`, True = kept.
        """
        along = SUMMED_AXIS[self.axis]
        energies = exact(weight).square().sum(along, keepdim=True)
        kept = keep_largest(energies.flatten(), self.kept_of(energies.numel()))
        return kept.view(energies.shape).expand(weight.shape).to(weight.device)
