"""Ctrl-C during a search: the first ends it after the episode, the second stops everything."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from envs.recording import EpisodeRecord


class SearchInterrupted(KeyboardInterrupt):
    """The user asked the search to end; raised between episodes, when no network is half cut."""


class Interruption:
    """Ends a search between two episodes; an episode sink, the last one of the environment.

    Attributes:
        is_requested: whether Ctrl-C was pressed.
        is_repeated: whether it was pressed twice: nothing is to be reported.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self.is_repeated = False

    def write(self, record: EpisodeRecord) -> None:
        """Leave the search if the user asked for it."""
        if self.is_requested:
            raise SearchInterrupted

    def close(self) -> None:
        """Nothing to let go."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over Ctrl-C while the search runs; the usual meaning comes back at the end."""
        if (
            threading.current_thread() is not threading.main_thread()
        ):  # signals are the main thread's
            yield
            return
        previous = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.is_requested:
            self.is_repeated = True
            raise KeyboardInterrupt
        self.is_requested = True
        print(
            "\nCtrl-C: the search ends after this episode and the best plan so far is reported. "
            "Press again to stop at once.",
            file=sys.stderr,
            flush=True,
        )
