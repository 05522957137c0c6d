"""Fewer images for the first evaluations of a search, all of them for those that decide."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """How many images of the reward split a counted evaluation uses.

    A search begins with plans that any few images tell apart, and ends with plans that differ by
    less than a small subset can show: the idea of successive halving (Jamieson and Talwalkar,
    https://arxiv.org/abs/1502.07943), with a subset that grows instead of a set of plans that
    shrinks. What is measured on a part of the images never wins over what is measured on all of
    them; the best plans are measured again at the end.

    Attributes:
        first: share of the images that the first evaluation uses, in (0, 1].
        whole_at: evaluation from which all images are used, at least 1; the share grows linearly.
        finalists: plans measured again on all images when the search has ended, the best of
            those that were not; counted, and taken from the evaluations of the search. At least 1.

    Raises:
        ValueError: a value is out of range.
    """

    first: float = 0.2
    whole_at: int = 100
    finalists: int = 5

    def __post_init__(self) -> None:
        if not 0.0 < self.first <= 1.0:
            raise ValueError(f"evaluation.growth.first must be in (0, 1], got {self.first}.")
        for key in ("whole_at", "finalists"):
            if getattr(self, key) < 1:
                raise ValueError(
                    f"evaluation.growth.{key} must be 1 or more, got {getattr(self, key)}."
                )

    def images(self, evaluation: int, total: int) -> int:
        """Images of one evaluation: the first so many of the split, which is in random order.

        Args:
            evaluation: its number, from 1.
            total: images of the reward split.
        """
        if evaluation >= self.whole_at:
            return total
        progress = (evaluation - 1) / (self.whole_at - 1)
        return max(1, round(total * (self.first + (1.0 - self.first) * progress)))
