"""Names as a language model gives them: of groups, blocks, patterns, importances."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from typing import TypeVar

from graphs.network_graph import Group

Value = TypeVar("Value", float, str)


class Refused(Exception):  # noqa: N818 - said of a proposal
    """A proposal cannot be executed; the message is fed back to the model."""


def assign(
    groups: Sequence[Group],
    entries: Sequence[tuple[str, Value]],
    repairs: list[str],
    *,
    blocks: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Value]:
    """Values by group name.

    A block stands for the groups inside it, a shell pattern for all blocks it matches, else for all
    groups, and a group's own name beats both. The name of an operator stands for the group that is
    cut together with it, and a slip of the pen for the one group or block it is near to.

    Args:
        groups: the groups of the network.
        entries: names as the model gave them, with their values.
        repairs: what was changed is appended here.
        blocks: names of the groups inside, by block; None where entries name no blocks.

    Raises:
        Refused: no group fits a name, or a group is given two values.
    """
    producers = {name: group.name for group in groups for name in group.producers}
    names: list[str] = [group.name for group in groups]
    inside: dict[str, Sequence[str]] = dict(blocks or {})
    known = [*inside, *names]
    kind = "block or group" if inside else "group"
    by_name: dict[str, Value] = {}
    by_pattern: dict[str, Value] = {}
    for text, value in entries:
        if text not in known and any(sign in text for sign in "*?"):
            found = fnmatch.filter(inside, text)
            matched = [name for block in found for name in inside[block]]
            matched, target = matched or fnmatch.filter(names, text), by_pattern
            if not matched:
                raise Refused(f"no {kind} matches {text!r}; {near_to(text, known)}")
        elif text in producers and text not in known:
            matched, target = [producers[text]], by_name
            repairs.append(f"{text} is cut together with group {producers[text]}")
        else:
            meant = nearest(text, known, kind, repairs)
            is_block = meant in inside
            matched = list(inside[meant]) if is_block else [meant]
            target = by_pattern if is_block else by_name
        for name in matched:
            if target.get(name, value) != value:
                raise Refused(f"group {name!r} is given both {target[name]} and {value}")
            target[name] = value
    return {**by_pattern, **by_name}


def nearest(text: str, names: Sequence[str], kind: str, repairs: list[str]) -> str:
    """The name itself, or the only one that differs in case, quotes or a letter or two.

    Args:
        text: the name as the model gave it.
        names: all there are.
        kind: what they are names of, for messages.
        repairs: what was changed is appended here.

    Raises:
        Refused: none of them is meant, or it is not clear which.
    """
    if text in names:
        return text
    folded = {name.casefold(): name for name in names}
    stripped = text.strip(" \t\n\"'`").casefold()
    if stripped in folded and len(folded) == len(names):
        found = [folded[stripped]]
    else:
        found = difflib.get_close_matches(text, names, n=2, cutoff=0.9)
    if len(found) != 1:
        raise Refused(f"there is no {kind} {text!r}; {near_to(text, names)}")
    repairs.append(f"{kind} {text!r} read as {found[0]!r}")
    return found[0]


def near_to(text: str, names: Sequence[str]) -> str:
    """The names that a text may have meant, or all there are, in words."""
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    return f"near to it are: {', '.join(near)}" if near else f"there are: {', '.join(names)}"
