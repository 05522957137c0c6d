"""What the entries of a proposal stand for: groups of channels, patterns, or whole blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.llm.names import Refused
from graphs.blocks import bypassed_blocks
from graphs.network_graph import NetworkGraph


@dataclass(frozen=True)
class Granularity:
    """What an environment executes of "channel", "pattern" and "block".

    An entry of granularity "block" stands for all groups inside a block that a connection goes
    around. The block is cut down as far as its groups go; the connection and what is left of the
    groups stay, since no environment takes an operator out of a network.

    Attributes:
        allowed: what is executed; the first is that of a proposal that says none. Empty where a
            proposal cannot say, and entries name groups.
        blocks: names of the groups inside, by block.
        missing: why the others are not, by granularity.
    """

    allowed: tuple[str, ...] = ()
    blocks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: NetworkGraph, *, decides_patterns: bool) -> Granularity:
        """What there is for one network in one kind of environment."""
        blocks = bypassed_blocks(graph)
        allowed, missing = ["channel"], {}
        if decides_patterns:
            allowed.insert(0, "pattern")
        else:
            missing["pattern"] = "the environment decides ratios; env/action=pattern decides them"
        if blocks:
            allowed.append("block")
        else:
            missing["block"] = "the network has no block that a connection goes around"
        return cls(tuple(allowed), blocks, missing)

    @property
    def choices(self) -> tuple[str, ...]:
        """What it adds to the schema of a proposal, of `agents.llm.schema.CHOICES`."""
        return ("granularity",) if self.allowed else ()

    def describe(self) -> dict[str, Any]:
        """What may be chosen, as JSON takes it."""
        if not self.allowed:
            return {}
        blocks = {name: list(groups) for name, groups in self.blocks.items()}
        return {"granularity": list(self.allowed), "blocks": blocks}

    def chosen(self, proposal: Any) -> str | None:
        """The granularity of a proposal; None where it cannot say.

        Raises:
            Refused: it is not executed here.
        """
        if not self.allowed:
            return None
        asked: str = proposal.granularity or self.allowed[0]
        if asked not in self.allowed:
            raise Refused(
                f"the granularity {asked!r} is not executed here: {self.missing[asked]}. "
                f"There are: {', '.join(self.allowed)}"
            )
        return asked

    def blocks_of(self, proposal: Any) -> Mapping[str, Sequence[str]] | None:
        """The blocks that the entries of a proposal may name; None for none.

        Raises:
            Refused: its granularity is not executed here.
        """
        return self.blocks if self.chosen(proposal) == "block" else None


GROUPS_ALONE = Granularity()
"""Entries name groups, and a proposal cannot say otherwise; so it was with the first prompts."""
