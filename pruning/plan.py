"""The decisions of one pruned network, and the file that replays them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from graphs.network_graph import NetworkGraph
from patterns.library import PatternLibrary
from pruning.keep_set import KeepSet
from pruning.masks import MaskChoice, PatternMasks
from pruning.slimming import Slimmer

PLAN_FORMAT = "topiary-plan-1"


@dataclass(frozen=True)
class Decision:
    """What is done at one site; exactly one of `pattern` and `ratio` is set.

    Attributes:
        site: name of the site.
        pattern: name of a pattern of the library, or None.
        ratio: pruning ratio, the fraction of the site's channels removed, in [0, 1), or None.
        importance: name of the importance whose lowest channels go first; None for the task's own.

    Raises:
        ValueError: both or none of the two are set, or the ratio is not in [0, 1).
    """

    site: str
    pattern: str | None = None
    ratio: float | None = None
    importance: str | None = None

    def __post_init__(self) -> None:
        if (self.pattern is None) == (self.ratio is None):
            raise ValueError(
                f"A decision has either a pattern or a ratio, got pattern={self.pattern!r} and "
                f"ratio={self.ratio!r} at site {self.site!r}."
            )
        if self.ratio is not None and not 0.0 <= self.ratio < 1.0:
            raise ValueError(
                f"A pruning ratio must be in [0, 1), got {self.ratio} at site {self.site!r}."
            )
        if self.ratio is not None:
            object.__setattr__(self, "ratio", float(self.ratio))  # JSON takes no NumPy scalars


@dataclass(frozen=True)
class Candidate:
    """A pruned network as it is executed; hashable, so it is the key of the evaluation cache.

    Attributes:
        keep: the channels that stay.
        masks: ("operator@group", pattern name) for every mask inside the weights.
    """

    keep: KeepSet
    masks: tuple[MaskChoice, ...] = ()


@dataclass(frozen=True)
class PruningPlan:
    """All that is needed to prune the same network in the same way again.

    Attributes:
        graph: fingerprint of the network graph the plan is for.
        decisions: what was decided, in order.
        keep: kept channel indices by group name: what was executed.
        masks: ("operator@group", pattern name) for every mask inside the weights.
        patterns: specifications of the patterns that decisions and masks name.
    """

    graph: str
    decisions: tuple[Decision, ...]
    keep: Mapping[str, tuple[int, ...]]
    masks: tuple[MaskChoice, ...] = ()
    patterns: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives an equal plan."""
        fields = {"format": PLAN_FORMAT, **asdict(self)}
        for decision in fields["decisions"]:
            if decision["importance"] is None:  # as in plans that know only one
                del decision["importance"]
        # one line per field: readable, and without one line per channel index
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, of another format, or not complete.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"Not a pruning plan: the text is not JSON ({error}).") from error
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        if found != PLAN_FORMAT:
            raise ValueError(
                f"Not a pruning plan of format {PLAN_FORMAT!r}: found {found!r}. "
                f"Run the search again to write one."
            )
        try:
            return cls(
                graph=str(data["graph"]),
                decisions=tuple(Decision(**item) for item in data["decisions"]),
                keep={
                    str(name): tuple(int(index) for index in kept)
                    for name, kept in data["keep"].items()
                },
                masks=tuple((str(where), str(pattern)) for where, pattern in data["masks"]),
                patterns=tuple(data["patterns"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Not a complete pruning plan: {type(error).__name__}: {error}."
            ) from error

    def keep_set(self, graph: NetworkGraph) -> KeepSet:
        """The channels that stay.

        Raises:
            ValueError: the plan is for another graph.
        """
        if self.graph != graph.fingerprint:
            raise ValueError(
                f"The plan is for the network graph {self.graph}, this network's graph is "
                f"{graph.fingerprint}. Use the network (and the input shape) that was pruned: "
                f"change network, or the plan."
            )
        return KeepSet.from_indices(graph, self.keep)

    def candidate(self, graph: NetworkGraph) -> Candidate:
        """What the plan executes, as the search measured it.

        Raises:
            ValueError: the plan is for another graph.
        """
        return Candidate(self.keep_set(graph), self.masks)

    def pattern_masks(self, network: nn.Module, graph: NetworkGraph) -> PatternMasks:
        """What builds the plan's masks from the weights of `network`."""
        return PatternMasks(network, graph, PatternLibrary.from_specs(self.patterns))

    def apply(self, network: nn.Module, graph: NetworkGraph) -> nn.Module:
        """Prune `network` by this plan.

        Args:
            network: the unpruned network with its weights; left unchanged.
            graph: its trace.

        Returns:
            An independent slim network; masked weights are exactly zero.

        Raises:
            ValueError: the plan is for another graph.
        """
        keep = self.keep_set(graph)
        overlay = self.pattern_masks(network, graph).overlay(self.masks) if self.masks else None
        return Slimmer(network, graph).materialize(keep, overlay=overlay)
