"""The pattern library: which patterns there are to choose from, in which order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from patterns.channel import ChannelPattern
from patterns.connectivity import ConnectivityPattern
from patterns.dense import DensePattern
from patterns.filter import FilterPattern
from patterns.four_entry import FourEntryPattern
from patterns.kernel_shape import KernelShapePattern
from patterns.n_m import NMPattern
from patterns.pattern import Pattern
from patterns.unstructured import GlobalUnstructuredPattern, UnstructuredPattern
from patterns.vector import VectorPattern

FAMILIES: dict[str, Callable[[Mapping[str, Any]], Pattern]] = {
    DensePattern.family: DensePattern.from_spec,
    ChannelPattern.family: ChannelPattern.from_spec,
    KernelShapePattern.family: KernelShapePattern.from_spec,
    UnstructuredPattern.family: UnstructuredPattern.from_spec,
    GlobalUnstructuredPattern.family: GlobalUnstructuredPattern.from_spec,
    VectorPattern.family: VectorPattern.from_spec,
    NMPattern.family: NMPattern.from_spec,
    FourEntryPattern.family: FourEntryPattern.from_spec,
    ConnectivityPattern.family: ConnectivityPattern.from_spec,
    FilterPattern.family: FilterPattern.from_spec,
}
"""What builds a pattern of each family from its specification."""


@dataclass(frozen=True)
class PatternLibrary:
    """Patterns in the order in which an action counts them; index 0 is always the dense one.

    Attributes:
        patterns: the patterns; the position is the index an agent chooses.

    Raises:
        ValueError: the first pattern is not the dense one, or two patterns share a name.
    """

    patterns: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        if not self.patterns or self.patterns[0].family != DensePattern.family:
            found = self.patterns[0].name if self.patterns else "nothing"
            raise ValueError(
                f"Index 0 of a pattern library must be the dense pattern, found {found}. Put "
                f"{{family: dense}} first in patterns.specs, or leave it out: it is then added."
            )
        names = [pattern.name for pattern in self.patterns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"Pattern names must differ, got more than one {', '.join(twice)}. "
                f"Change patterns.specs."
            )

    @classmethod
    def from_specs(cls, specs: Iterable[Mapping[str, Any]]) -> PatternLibrary:
        """Build a library from plain data, as YAML or JSON gives it.

        Args:
            specs: one mapping per pattern: its "family" and the keys of that family. The dense
                pattern is put first when no entry is dense.

        Raises:
            ValueError: an entry is not a mapping, its family is unknown (the message lists the
                families), or its keys are not those of the family.
        """
        patterns = [_build(spec) for spec in specs]
        if all(pattern.family != DensePattern.family for pattern in patterns):
            patterns.insert(0, DensePattern())
        return cls(tuple(patterns))

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Name of each pattern, in order."""
        return tuple(pattern.name for pattern in self.patterns)

    @property
    def specs(self) -> list[dict[str, Any]]:
        """Plain, JSON-able data; `from_specs` gives an equal library."""
        return [pattern.spec for pattern in self.patterns]

    def index(self, name: str) -> int:
        """Index of the pattern called `name`.

        Raises:
            ValueError: no such pattern; the message lists the names.
        """
        if name not in self.names:
            raise ValueError(
                f"No pattern is called {name!r}. The library has: {', '.join(self.names)}."
            )
        return self.names.index(name)

    def __len__(self) -> int:
        return len(self.patterns)

    def __getitem__(self, index: int) -> Pattern:
        return self.patterns[index]

    def __iter__(self) -> Iterator[Pattern]:
        return iter(self.patterns)


def _build(spec: Mapping[str, Any]) -> Pattern:
    """The pattern that one specification describes."""
    if not isinstance(spec, Mapping) or "family" not in spec:
        raise ValueError(
            f"A pattern is described by a mapping with the key family, got {spec!r}. "
            f"Change patterns.specs."
        )
    if spec["family"] not in FAMILIES:
        raise ValueError(
            f"No pattern family is called {spec['family']!r}. The families are: "
            f"{', '.join(FAMILIES)}. Change patterns.specs."
        )
    return FAMILIES[spec["family"]](spec)
