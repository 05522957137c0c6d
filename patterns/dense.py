"""The dense pattern: keep everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patterns.pattern import OperatorShape, check_keys


@dataclass(frozen=True)
class DensePattern:
    """Removes nothing; index 0 of every library, so that "leave it alone" is always a choice."""

    name = "dense"
    family = "dense"
    channel_ratio = 0.0

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> DensePattern:
        """Build from `{family: dense}`."""
        check_keys(spec, ())
        return cls()

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that `from_spec` reads."""
        return {"family": self.family}

    def applies_to(self, operator: OperatorShape) -> bool:
        """True: anything can be left alone."""
        return True

    def mask(self, weight: Tensor) -> Tensor | None:
        """None: nothing is masked."""
        return None
