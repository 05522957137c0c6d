"""What makes a search keep one measured plan and not another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class Measured(Protocol):
    """A plan and what its evaluation said."""

    @property
    def score(self) -> float:
        """What the reward makes of it."""

    @property
    def accuracy(self) -> float | None:
        """In [0, 1], on the reward split; None when not measured."""

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy there, likewise."""


def _known(value: float | None) -> float:
    assert value is not None, "only measured plans are ranked"
    return value


RANKS: Mapping[str, Callable[[Measured], tuple[float, ...]]] = {
    "reward": lambda plan: (plan.score,),
    "accuracy": lambda plan: (_known(plan.accuracy), -_known(plan.loss)),
    "loss": lambda plan: (-_known(plan.loss),),
}
"""What the kept plan has the highest of, by `search.keep`."""
