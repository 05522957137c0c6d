"""Channel patterns: remove a fraction of the channels of a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patterns.pattern import OperatorShape, check_keys


@dataclass(frozen=True)
class ChannelPattern:
    """Removes whole channels, the least important first, and so shrinks the dense network.

    Which channels go is not the pattern's business: the task ranks them by importance. How many is
    rounded by `pruning.keep_set.kept_count`.

    Attributes:
        channel_ratio: fraction of the site's channels removed, in (0, 1).

    Raises:
        ValueError: `channel_ratio` is not in (0, 1).
    """

    channel_ratio: float

    family = "channel"

    def __post_init__(self) -> None:
        if isinstance(self.channel_ratio, bool) or not isinstance(self.channel_ratio, int | float):
            raise ValueError(
                f"The ratio of a channel pattern must be a number in (0, 1), got "
                f"{self.channel_ratio!r}. Change patterns.specs."
            )
        if not 0.0 < self.channel_ratio < 1.0:
            raise ValueError(
                f"The ratio of a channel pattern must be in (0, 1), got {self.channel_ratio}. "
                f"Change patterns.specs; the dense pattern is what removes nothing."
            )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> ChannelPattern:
        """Build from `{family: channel, ratio: 0.5}`; `ratio` is the fraction removed."""
        check_keys(spec, ("ratio",))
        return cls(spec["ratio"])

    @property
    def name(self) -> str:
        """For example "channel_0.5"."""
        return f"channel_{self.channel_ratio:g}"

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that `from_spec` reads."""
        return {"family": self.family, "ratio": self.channel_ratio}

    def applies_to(self, operator: OperatorShape) -> bool:
        """True: every operator that produces a group has channels to give."""
        return True

    def mask(self, weight: Tensor) -> Tensor | None:
        """None: channels are removed, not masked."""
        return None
