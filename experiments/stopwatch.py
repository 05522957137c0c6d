"""How long something took, by the clock on the wall and by that of the processor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Taken:
    """How long something took.

    Attributes:
        wall: seconds that went by.
        cpu: seconds of processor time, of all threads of this process together.
    """

    wall: float
    cpu: float

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Taken) -> Taken:
        return Taken(self.wall - other.wall, self.cpu - other.cpu)


def timed(function: Callable[[], _T]) -> tuple[Taken, _T]:
    """Call a function: how long it took, and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu), result
