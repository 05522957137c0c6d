"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def release_freed_memory() -> None:
    """Return freed heap pages to the system, where the C library can (glibc); elsewhere nothing.

    Every pruned network has tensors of other sizes, so freed blocks rarely fit the next ones and
    the heap grows by megabytes per evaluation although nothing leaks.
    """
    _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], object]:
    """The malloc_trim of glibc, or a function that does nothing."""
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return lambda pad: None
