"""Which channels stay: the executed part of every pruning decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphs.network_graph import Group, NetworkGraph


class InfeasibleKeep(ValueError):  # noqa: N818 - named after what it refuses
    """A keep-set that would empty an axis or names channels that do not exist."""


def kept_count(group: Group, pruning_ratio: float) -> int:
    """Channels left when `pruning_ratio` of a group is removed; halfway cases round to removal.

    Args:
        group: the dependency group.
        pruning_ratio: fraction removed, in [0, 1].

    Returns:
        The allowed count nearest to (1 - ratio) * size: for `round_to` 1,
        max(min_keep, size - floor(ratio * size + 0.5)).

    Raises:
        ValueError: the ratio is outside [0, 1] or not a number.
    """
    if not 0.0 <= pruning_ratio <= 1.0:
        raise ValueError(
            f"Pruning ratio must be in [0, 1], got {pruning_ratio} for group {group.name!r}."
        )
    return max(group.min_keep, unclipped_count(group, pruning_ratio))


def unclipped_count(group: Group, pruning_ratio: float) -> int:
    """What `kept_count` would be if a group might lose all its channels.

    Args:
        group: the dependency group.
        pruning_ratio: fraction removed, in [0, 1].

    Returns:
        The nearest of 0, the multiples of `round_to` and the size; ties go to the smaller one.
    """
    if group.round_to == 1:
        return group.size - math.floor(pruning_ratio * group.size + 0.5)
    removals = group.size - np.append(0, count_steps(group))
    distance = np.abs(removals - pruning_ratio * group.size)
    return group.size - int(removals[np.argmin(distance)])  # the first: most is removed


def count_steps(group: Group) -> np.ndarray:
    """Multiples of the group's `round_to`, then its size: ascending int64, without 0.

    `min_keep` is left to the caller.
    """
    return np.union1d(np.arange(group.round_to, group.size + 1, group.round_to), [group.size])


def allowed_counts(group: Group) -> np.ndarray:
    """Every count of channels that may be kept, ascending int64; the last is the group's size."""
    steps = count_steps(group)
    return steps[steps >= group.min_keep]


class CountGrid:
    """The allowed counts of all groups together, for code that moves many counts at once.

    Args:
        groups: the graph's groups.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._sizes = np.array([group.size for group in groups], dtype=np.int64)
        self._steps = np.array([group.round_to for group in groups], dtype=np.int64)
        self._min_keep = np.array([group.min_keep for group in groups], dtype=np.int64)

    def round_down(self, wanted: np.ndarray) -> np.ndarray:
        """The largest allowed counts that are not above `wanted`, at least min_keep.

        Args:
            wanted: kept channels before rounding, shape (num_groups,).

        Returns:
            Counts, int64 of shape (num_groups,).
        """
        # the tolerance keeps 3 - 1e-12 at 3
        whole = np.floor(wanted + 1e-9).astype(np.int64)
        rounded = np.where(whole >= self._sizes, self._sizes, whole - whole % self._steps)
        return np.maximum(rounded, self._min_keep)

    def next_up(self, counts: np.ndarray) -> np.ndarray:
        """The next larger count of every group, int64 (num_groups,); full groups stay as they are.

        Args:
            counts: kept channels, int64 of shape (num_groups,).
        """
        return np.minimum((counts // self._steps + 1) * self._steps, self._sizes)


@dataclass(frozen=True, eq=False)
class KeepSet:
    """The kept units of every group; immutable, hashable, equal by value.

    Attributes:
        mask: True for every kept unit, shape (num_units,).
        counts: kept units of each group in graph order, shape (num_groups,).
        groups: the graph's groups.
    """

    mask: np.ndarray
    counts: np.ndarray
    groups: tuple[Group, ...] = field(repr=False)

    def __post_init__(self) -> None:
        self.mask.setflags(write=False)
        self.counts.setflags(write=False)

    def __eq__(self, other: object) -> bool:
        """Equal when the same units are kept."""
        if not isinstance(other, KeepSet):
            return NotImplemented
        return self.mask.tobytes() == other.mask.tobytes()

    def __hash__(self) -> int:
        return hash(self.mask.tobytes())

    def kept(self, group_name: str) -> np.ndarray:
        """Sorted indices, counted within the group, of the channels that stay."""
        for group in self.groups:
            if group.name == group_name:
                return np.flatnonzero(self.mask[list(group.units)])
        known = ", ".join(group.name for group in self.groups)
        raise ValueError(f"No group is called {group_name!r}. The groups are: {known}.")

    @property
    def is_full(self) -> bool:
        """Whether nothing is removed."""
        return bool(self.mask.all())

    @classmethod
    def full(cls, graph: NetworkGraph) -> KeepSet:
        """Keep every channel."""
        return cls._from_mask(graph, np.ones(graph.num_units, dtype=bool))

    @classmethod
    def from_ratios(
        cls,
        graph: NetworkGraph,
        ratios: Mapping[str, float],
        scores: Mapping[str, np.ndarray] | None = None,
    ) -> KeepSet:
        """Remove a fraction of the channels of each named group, lowest score first.

        Args:
            graph: the traced network.
            ratios: pruning ratio in [0, 1] by group name; groups left out stay whole.
            scores: importance of each channel by group name, shape (size,); None removes from the
                end.

        Raises:
            ValueError: unknown group, ratio outside [0, 1] or scores of a wrong shape.
        """
        counts = {name: kept_count(graph.group(name), ratio) for name, ratio in ratios.items()}
        return cls.from_counts(graph, counts, scores)

    @classmethod
    def from_counts(
        cls,
        graph: NetworkGraph,
        counts: Mapping[str, int] | Sequence[int] | np.ndarray,
        scores: Mapping[str, np.ndarray] | None = None,
    ) -> KeepSet:
        """Keep a number of channels in each group, highest score first; ties keep the lower index.

        Args:
            graph: the traced network.
            counts: kept channels by group name (groups left out stay whole) or one per group.
            scores: as in `from_ratios`.

        Raises:
            InfeasibleKeep: a count is below min_keep, above the group's size, or neither the size
                nor a multiple of the group's `round_to`.
            ValueError: unknown group or scores of a wrong shape.
        """
        if not isinstance(counts, Mapping):
            if len(counts) != len(graph.groups):
                raise ValueError(f"Expected {len(graph.groups)} counts, got {len(counts)}.")
            counts = {group.name: int(n) for group, n in zip(graph.groups, counts, strict=True)}
        mask = np.ones(graph.num_units, dtype=bool)
        for name, count in counts.items():
            group = graph.group(name)
            if not group.min_keep <= count <= group.size:
                raise InfeasibleKeep(
                    f"Group {name!r} must keep between {group.min_keep} and {group.size} channels, "
                    f"got {count}."
                )
            if count % group.round_to and count != group.size:
                raise InfeasibleKeep(
                    f"Group {name!r} must keep a multiple of {group.round_to} channels or all "
                    f"{group.size}, got {count}. Change the count, or round_to."
                )
            units = np.asarray(group.units)
            if scores is None:
                mask[units[count:]] = False
                continue
            score = np.asarray(scores[name], dtype=np.float64)
            if score.shape != (group.size,):
                raise ValueError(
                    f"Scores of group {name!r} must have shape ({group.size},), got {score.shape}."
                )
            if not np.isfinite(score).all():
                raise ValueError(f"Scores of group {name!r} must be finite, got {score}.")
            mask[units[np.argsort(-score, kind="stable")[count:]]] = False
        return cls._from_mask(graph, mask)

    @classmethod
    def random(cls, graph: NetworkGraph, rng: np.random.Generator) -> KeepSet:
        """A random allowed number of random channels in every group, at least min_keep."""
        # integers() and not choice(): with round_to 1 a seed gives the keep-sets it always gave
        counts = {
            g.name: int(options[rng.integers(len(options))])
            for g in graph.groups
            for options in [allowed_counts(g)]
        }
        return cls.from_counts(graph, counts, {g.name: rng.random(g.size) for g in graph.groups})

    @classmethod
    def from_indices(cls, graph: NetworkGraph, kept: Mapping[str, Sequence[int]]) -> KeepSet:
        """Keep exactly the named channels; groups left out stay whole.

        What was decided elsewhere is executed as it is: `round_to` plays no part here, nor does
        the min_keep that comes with it.

        Raises:
            InfeasibleKeep: an index that the group does not have, or fewer than min_keep channels.
        """
        mask = np.ones(graph.num_units, dtype=bool)
        for name, indices in kept.items():
            group = graph.group(name)
            chosen = np.unique(np.asarray(indices, dtype=np.int64))
            if len(chosen) and (chosen[0] < 0 or chosen[-1] >= group.size):
                raise InfeasibleKeep(
                    f"Group {name!r} has channels 0 to {group.size - 1}, got {list(indices)}."
                )
            fewest = group.min_keep if group.round_to == 1 else 1
            if len(chosen) < fewest:
                raise InfeasibleKeep(
                    f"Group {name!r} must keep at least {fewest} channels, got {len(chosen)}."
                )
            units = np.asarray(group.units)
            mask[units] = False
            mask[units[chosen]] = True
        return cls._from_mask(graph, mask)

    @classmethod
    def _from_mask(cls, graph: NetworkGraph, mask: np.ndarray) -> KeepSet:
        counts = np.bincount(graph.unit_group[mask], minlength=len(graph.groups))
        return cls(mask=mask, counts=counts.astype(np.int64), groups=graph.groups)
