"""Unstructured patterns: remove the smallest weights, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from patterns.pattern import OperatorShape
from patterns.sparsity import SparsityPattern, keep_largest


@dataclass(frozen=True)
class UnstructuredPattern(SparsityPattern):
    """Zeroes single weights by local magnitude (Han et al. 2015, arXiv 1506.02626).

    The weights of a site in one operator compete with each other only, so their number is exact
    there. Applies to every convolution, depthwise too, and to linear layers. Dense hardware saves
    nothing by it.

    Attributes:
        sparsity: fraction of the weights removed, in (0, 1).

    Raises:
        ValueError: `sparsity` is not in (0, 1).
    """

    family = "unstructured"

    def applies_to(self, operator: OperatorShape) -> bool:
        """Whether `operator` is a convolution or linear."""
        return operator.kind in ("conv", "linear")

    def mask(self, weight: Tensor) -> Tensor | None:
        """The weights of largest magnitude; of equal ones those of lower flat index.

        Args:
            weight: shape (rows, ...).

        Returns:
            Boolean tensor of the shape of `weight`, True = kept; `kept_of(weight.numel())` True.
        """
        magnitudes = weight.detach().abs().flatten()
        return keep_largest(magnitudes, self.kept_of(weight.numel())).view(weight.shape)
