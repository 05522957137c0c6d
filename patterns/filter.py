"""Filter patterns: mask whole output filters, and leave the network its width."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from patterns.pattern import OperatorShape
from patterns.sparsity import SparsityPattern, exact, keep_largest


@dataclass(frozen=True)
class FilterPattern(SparsityPattern):
    """Zeroes whole filters by L1 norm (Li et al. 2017, arXiv 1608.08710), as a mask.

    Each operator of a site loses its own smallest filters, also where operators share their
    channels through an addition, so that the network keeps its width; a bias and a normalisation
    after the filter stay. What dense hardware saves it saves by the channel family; here only the
    non-zero MACs fall. Applies to every convolution, depthwise too, and to linear layers.

    Attributes:
        sparsity: fraction of the filters removed, in (0, 1); at least one filter stays.

    Raises:
        ValueError: `sparsity` is not in (0, 1).
    """

    family = "filter"

    def applies_to(self, operator: OperatorShape) -> bool:
        """Whether `operator` is a convolution or linear."""
        return operator.kind in ("conv", "linear")

    def mask(self, weight: Tensor) -> Tensor | None:
        """The filters of largest L1 norm; of equal ones those of lower index.

        Args:
            weight: shape (rows, ...).

        Returns:
            Boolean tensor of the shape of `weight`, True = kept; `kept_of(rows)` rows True.
        """
        norms = exact(weight).abs().flatten(1).sum(dim=1)
        kept = keep_largest(norms, self.kept_of(weight.shape[0]))
        kept = kept.view(-1, *(1 for _ in weight.shape[1:]))
        return kept.expand(weight.shape).to(weight.device)
