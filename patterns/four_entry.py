"""Four-entry patterns: each 3x3 kernel keeps its centre and three more cells."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from patterns.pattern import OperatorShape, check_keys
from patterns.sparsity import exact, keep_largest

CENTRE = 4
AROUND = tuple(cell for cell in range(9) if cell != CENTRE)
CANDIDATES = tuple(tuple(sorted((CENTRE, *three))) for three in itertools.combinations(AROUND, 3))
"""The 56 shapes of PatDNN: cells kept, row by row, of which one is the centre."""


@dataclass(frozen=True)
class FourEntryPattern:
    """Gives each 3x3 kernel the best of a few shapes of 4 cells (PatDNN, arXiv 2001.00138).

    The few shapes are voted from the network: each 3x3 kernel of it votes for its centre and the 3
    largest of its other weights, and those with the most votes are taken. Then each kernel keeps
    the shape in which its L2 norm is largest. A pattern that was not fitted to a network lets the
    kernels of the given weight vote. Applies to every convolution with a 3x3 kernel, depthwise too.
    Dense hardware saves nothing by it.

    Attributes:
        num_shapes: how many of the 56 shapes there are to choose from, in [1, 56].
        shapes: indices into CANDIDATES of the voted shapes; () before the vote.

    Raises:
        ValueError: `num_shapes` is no integer in [1, 56].
    """

    num_shapes: int
    shapes: tuple[int, ...] = ()

    family = "four_entry"
    channel_ratio = 0.0

    def __post_init__(self) -> None:
        number = isinstance(self.num_shapes, int) and not isinstance(self.num_shapes, bool)
        if not number or not 1 <= self.num_shapes <= len(CANDIDATES):
            raise ValueError(
                f"num_shapes of a four-entry pattern must be an integer in [1, {len(CANDIDATES)}], "
                f"got {self.num_shapes!r}. Change patterns.specs."
            )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> FourEntryPattern:
        """Build from `{family: four_entry, num_shapes: 8}`; 8 is what PatDNN settles on."""
        check_keys(spec, ("num_shapes",))
        return cls(spec["num_shapes"])

    @property
    def name(self) -> str:
        """For example "four_entry_8"."""
        return f"{self.family}_{self.num_shapes}"

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that `from_spec` reads."""
        return {"family": self.family, "num_shapes": self.num_shapes}

    def applies_to(self, operator: OperatorShape) -> bool:
        """Whether `operator` is a convolution with a 3x3 kernel."""
        return operator.kind == "conv" and tuple(operator.kernel_size) == (3, 3)

    def fitted(self, weights: Sequence[Tensor]) -> FourEntryPattern:
        """The pattern with the shapes that all 3x3 kernels of a network vote for.

        Args:
            weights: shape (rows, channels, 3, 3) each.
        """
        if not weights:
            return self
        energies = torch.cat([exact(weight).square().reshape(-1, 9) for weight in weights])
        return replace(self, shapes=tuple(voted(energies, self.num_shapes).tolist()))

    def mask(self, weight: Tensor) -> Tensor | None:
        """The best voted shape of every kernel; of equal ones that of lower index in CANDIDATES.

        Args:
            weight: shape (rows, channels, 3, 3).

        Returns:
            Boolean tensor of the shape of `weight`, True = kept; 4 True in every kernel.
        """
        assert weight.shape[-2:] == (3, 3), f"not 3x3 kernels: {tuple(weight.shape)}"
        energies = exact(weight).square().reshape(-1, 9)
        chosen = torch.tensor(self.shapes) if self.shapes else voted(energies, self.num_shapes)
        shapes = _cells()[chosen]
        best = (energies @ shapes.double().T).argmax(dim=1)
        return shapes[best].view(weight.shape).to(weight.device)


def voted(energies: Tensor, count: int) -> Tensor:
    """The shapes with the most votes; of equal ones those of lower index in `CANDIDATES`.

    Args:
        energies: squared weights, shape (kernels, 9).
        count: how many shapes to take, in [1, 56].

    Returns:
        Indices into `CANDIDATES`, ascending, int64 of shape (count,).
    """
    bits = 2 ** torch.arange(9)
    index_of = torch.full((2**9,), -1)
    index_of[(_cells() * bits).sum(dim=1)] = torch.arange(len(CANDIDATES))
    ballots = torch.ones(energies.shape, dtype=torch.bool)
    ballots[:, list(AROUND)] = keep_largest(energies[:, list(AROUND)], 3)
    votes = torch.bincount(index_of[(ballots * bits).sum(dim=1)], minlength=len(CANDIDATES))
    return keep_largest(votes, count).nonzero().flatten()


def _cells() -> Tensor:
    """The 56 shapes, boolean of shape (56, 9), True = kept."""
    cells = torch.zeros(len(CANDIDATES), 9, dtype=torch.bool)
    return cells.scatter_(1, torch.tensor(CANDIDATES), True)
