"""Progress bars for a terminal; silent where nobody watches."""

from __future__ import annotations

import sys
from typing import Any

from envs.recording import EpisodeRecord


def shows_progress(progress_bar: bool | str) -> bool:
    """Whether bars are drawn.

    Args:
        progress_bar: True, False, or "auto" for only when stderr is a terminal.

    Raises:
        ValueError: anything else.
    """
    if isinstance(progress_bar, bool):
        return progress_bar
    if progress_bar == "auto":
        return sys.stderr.isatty()
    raise ValueError(f"progress_bar must be auto, true or false, got {progress_bar!r}.")


class TrainingProgress:
    """A bar over the steps of a training; call it after every step.

    Args:
        title: what is trained.
        enabled: whether anything is drawn.
    """

    def __init__(self, title: str, *, enabled: bool) -> None:
        self.title = title
        self.enabled = enabled
        self._bar: Any = None

    def __call__(self, step: int, total: int, loss: float) -> None:
        """Show that `step` (from 1) of `total` ended with `loss`."""
        if not self.enabled:
            return
        if self._bar is None:
            self._bar = _bar(self.title, total, "step")
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update(step - self._bar.n)
        if step >= total:
            self._bar.close()
            self._bar = None


class SearchProgress:
    """A bar over the evaluations of a search; an episode sink.

    Args:
        evaluations: evaluations after which the search ends.
        enabled: whether anything is drawn.
    """

    def __init__(self, evaluations: int | None, *, enabled: bool) -> None:
        self._bar: Any = _bar("search", evaluations, "evaluation") if enabled else None
        self._best: EpisodeRecord | None = None

    def write(self, record: EpisodeRecord) -> None:
        """Show the evaluations so far and the best episode within budget."""
        if self._bar is None:
            return
        if record.met and (self._best is None or record.score > self._best.score):
            self._best = record
        self._bar.update(record.evaluations - self._bar.n)
        if self._best is not None:
            accuracy = self._best.accuracy
            shown = "" if accuracy is None else f"accuracy {accuracy:.1%}, "
            self._bar.set_postfix_str(
                f"best {self._best.score:.3f}: {shown}{self._best.relative_macs:.1%} of the MACs"
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bar(title: str, total: int | None, unit: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit=f" {unit}", dynamic_ncols=True, leave=True)
