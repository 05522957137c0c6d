"""Connectivity patterns: remove whole kernels, equally many from every filter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from patterns.pattern import OperatorShape
from patterns.sparsity import SparsityPattern, exact, keep_largest


@dataclass(frozen=True)
class ConnectivityPattern(SparsityPattern):
    """Zeroes whole kernels, the links of one input channel to one filter (PCONV, arXiv 1909.05073).

    The kernels of one filter compete by L2 norm, and every filter keeps the same number, at least
    one, so that none falls behind in work. Applies to convolutions of any kernel size that are not
    depthwise: a depthwise filter has one kernel. Dense hardware saves nothing by it.

    Attributes:
        sparsity: fraction of the kernels of each filter removed, in (0, 1).

    Raises:
        ValueError: `sparsity` is not in (0, 1).
    """

    family = "connectivity"

    def applies_to(self, operator: OperatorShape) -> bool:
        """Whether `operator` is a convolution that is not depthwise."""
        return operator.kind == "conv" and not operator.depthwise

    def mask(self, weight: Tensor) -> Tensor | None:
        """The kernels of largest L2 norm of each filter; of equal ones those of lower channel.

        Args:
            weight: shape (rows, channels, ...).

        Returns:
            Boolean tensor of the shape of `weight`, True = kept; `kept_of(channels)` kernels in
            every row.
        """
        energies = exact(weight).square().flatten(2).sum(dim=2)
        kept = keep_largest(energies, self.kept_of(weight.shape[1]))
        kept = kept.view(*kept.shape, *(1 for _ in weight.shape[2:]))
        return kept.expand(weight.shape).to(weight.device)
