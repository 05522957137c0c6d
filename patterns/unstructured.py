"""Unstructured patterns: remove the smallest weights, of a site or of the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
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


@dataclass(frozen=True)
class GlobalUnstructuredPattern(SparsityPattern):
    """Zeroes single weights by global magnitude (Han et al. 2015, arXiv 1506.02626).

    All weights of the network's prunable convolutions and linear layers compete: those of at least
    the magnitude that leaves `sparsity` of them out stay, so a site loses more or less than that.
    A pattern that was not fitted to a network finds that magnitude in the given weight. Dense
    hardware saves nothing by it.

    Attributes:
        sparsity: fraction of the network's weights removed where every site has this pattern, in
            (0, 1).
        threshold: the smallest magnitude that stays; None before it is found.

    Raises:
        ValueError: `sparsity` is not in (0, 1).
    """

    threshold: float | None = None

    family = "unstructured_global"

    def applies_to(self, operator: OperatorShape) -> bool:
        """Whether `operator` is a convolution or linear."""
        return operator.kind in ("conv", "linear")

    def fitted(self, weights: Sequence[Tensor]) -> GlobalUnstructuredPattern:
        """The pattern with the threshold of a network.

        Args:
            weights: of any shape.
        """
        magnitudes = torch.cat(
            [torch.empty(0), *(weight.detach().abs().flatten().cpu() for weight in weights)]
        )
        if not len(magnitudes):
            return self
        kept = self.kept_of(magnitudes.numel())
        threshold = magnitudes.kthvalue(magnitudes.numel() - kept + 1).values
        return replace(self, threshold=float(threshold))

    def mask(self, weight: Tensor) -> Tensor | None:
        """The weights of at least the threshold; equal ones stay or go together.

        Args:
            weight: shape (rows, ...).

        Returns:
            Boolean tensor of the shape of `weight`, True = kept.
        """
        threshold = self.fitted([weight]).threshold if self.threshold is None else self.threshold
        if threshold is None:  # no weights at all
            return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        return weight.detach().abs() >= threshold
