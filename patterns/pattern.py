"""What a pattern is: a regular shape of removed weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class OperatorShape(Protocol):
    """What a pattern may ask of an operator; `graphs.network_graph.Operator` satisfies it."""

    @property
    def kind(self) -> str:
        """One of "conv", "linear" and "attention"."""

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Spatial kernel, () for linear and attention."""

    @property
    def depthwise(self) -> bool:
        """Whether every input channel is convolved alone."""


class Pattern(Protocol):
    """A regular shape of removed weights: whole channels, or a mask inside the weights.

    Patterns are immutable and equal by value.
    """

    @property
    def name(self) -> str:
        """Name, unique in a library."""

    @property
    def family(self) -> str:
        """Name of the family, a key of `patterns.library.FAMILIES`."""

    @property
    def channel_ratio(self) -> float:
        """Fraction of the site's channels removed, in [0, 1); 0 for mask patterns."""

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data from which the family's `from_spec` builds an equal pattern."""

    def applies_to(self, operator: OperatorShape) -> bool:
        """Whether the pattern can be applied to the weights of `operator`."""

    def mask(self, weight: Tensor) -> Tensor | None:
        """Which weights stay.

        Args:
            weight: rows (output channels) of the weight of an operator the pattern applies to,
                shape (rows, ...).

        Returns:
            Boolean tensor of the shape of `weight`, True = kept; None when nothing is masked.
        """


@runtime_checkable
class NetworkWidePattern(Pattern, Protocol):
    """A pattern of which something is decided for the whole network, before any mask is made."""

    def fitted(self, weights: Sequence[Tensor]) -> Pattern:
        """The pattern for one network; its name and specification are the same.

        Args:
            weights: the unpruned weights of the operators that the pattern applies to.
        """


def check_keys(spec: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuse a specification that lacks a key or has one too many.

    Raises:
        ValueError: the keys of `spec` are not "family" and those in `allowed`.
    """
    found = set(spec) - {"family"}
    if found != set(allowed):
        raise ValueError(
            f"A pattern of the family {spec['family']!r} takes the keys {sorted(allowed)}, got "
            f"{sorted(map(str, found))} in {dict(spec)}. Change patterns.specs."
        )
