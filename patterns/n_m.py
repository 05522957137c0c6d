"""N:M patterns: keep N of every M consecutive weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from patterns.pattern import OperatorShape, check_keys
from patterns.sparsity import keep_largest


@dataclass(frozen=True)
class NMPattern:
    """Keeps the N largest of every M weights along the input channels (arXiv 2104.08378 for 2:4).

    Groups are M consecutive input channels of one filter at one kernel position, the last axis of
    the layout (filters, height, width, channels); in a linear layer M consecutive inputs. When M
    does not divide the channels, the last group is shorter: it keeps its N largest, or all of them
    when it has no more than N. So an operator of N input channels or fewer loses nothing.

    Applies to linear layers and to convolutions that are not depthwise. Groups are those of the
    base weights: removing input channels as well leaves groups that no longer have exactly N.
    Dense hardware saves nothing by it; sparse tensor cores do by 2:4.

    Attributes:
        n: weights kept of a group, in [1, m).
        m: weights of a group, at least 2.

    Raises:
        ValueError: `n` and `m` are no integers with 1 <= n < m.
    """

    n: int
    m: int

    family = "n_m"
    channel_ratio = 0.0

    def __post_init__(self) -> None:
        integers = all(
            isinstance(number, int) and not isinstance(number, bool) for number in (self.n, self.m)
        )
        if not integers or not 1 <= self.n < self.m:
            raise ValueError(
                f"An N:M pattern keeps n of every m weights with integers 1 <= n < m, got "
                f"n={self.n!r}, m={self.m!r}. Change patterns.specs."
            )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> NMPattern:
        """Build from `{family: n_m, n: 2, m: 4}`."""
        check_keys(spec, ("n", "m"))
        return cls(spec["n"], spec["m"])

    @property
    def name(self) -> str:
        """For example "n_m_2_4"."""
        return f"{self.family}_{self.n}_{self.m}"

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that `from_spec` reads."""
        return {"family": self.family, "n": self.n, "m": self.m}

    def applies_to(self, operator: OperatorShape) -> bool:
        """Whether `operator` is linear, or a convolution that is not depthwise."""
        return operator.kind == "linear" or (operator.kind == "conv" and not operator.depthwise)

    def mask(self, weight: Tensor) -> Tensor | None:
        """The N largest magnitudes of every group; of equal ones those of lower channel.

        Args:
            weight: shape (rows, channels, ...).

        Returns:
            Boolean tensor of the shape of `weight`, True = kept.
        """
        magnitudes = weight.detach().abs().movedim(1, -1)
        channels = magnitudes.shape[-1]
        # -1 is below every magnitude: padding never takes the place of a weight
        padded = F.pad(magnitudes, (0, -channels % self.m), value=-1.0)
        kept = keep_largest(padded.unflatten(-1, (padded.shape[-1] // self.m, self.m)), self.n)
        return kept.flatten(-2)[..., :channels].movedim(-1, 1)
