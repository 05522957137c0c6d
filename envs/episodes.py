"""The episode part: how the sites are walked through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Episode(Protocol):
    """How many steps an episode has, and how many sites one step decides."""

    @property
    def name(self) -> str:
        """Name of the option in conf/env/episode."""

    @property
    def is_sequential(self) -> bool:
        """Whether one site is decided per step."""

    def horizon(self, num_sites: int) -> int:
        """Most steps of an episode."""


@dataclass(frozen=True)
class Layerwise:
    """One site per step in execution order; the network is evaluated at the end."""

    name = "layerwise"
    is_sequential = True

    def horizon(self, num_sites: int) -> int:
        """One step per site."""
        return num_sites


@dataclass(frozen=True)
class Whole:
    """Every step assigns all sites, evaluates, and shows the assignment in the next observation.

    The episode terminates inside the budget band and is truncated after `max_steps`; with a budget
    that cannot be missed it always has `max_steps` steps.

    Args:
        max_steps: most steps of an episode, at least 1.
    """

    max_steps: int = 20

    name = "whole"
    is_sequential = False

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(
                f"An episode needs at least 1 step, got {self.max_steps}. Change env.max_steps."
            )

    def horizon(self, num_sites: int) -> int:
        """`max_steps`, whatever the network."""
        return self.max_steps
