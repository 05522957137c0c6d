"""What the language model may answer: one strict schema per role.

A proposal chooses what the environment can execute. `with_choices` adds what a run lets it choose
further: the granularity of its entries, the importance, the fine-tuning of the final network.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

Answer = TypeVar("Answer", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NetworkNotes(_Strict):
    """What the profiling role makes of the network's description."""

    summary: str = Field(description="The network in two or three sentences.")
    sensitive_groups: list[str] = Field(description="Names of groups to prune least.")
    robust_groups: list[str] = Field(description="Names of groups to prune most.")
    advice: str = Field(description="How to reach the target, for the analysis role.")


class GroupRatio(_Strict):
    """A pruning ratio for one group, or for all groups that a shell pattern matches."""

    group: str = Field(description="Name of a group, or a shell pattern such as layer1.*")
    ratio: float = Field(description="Fraction of the channels to remove, in [0, 1).")


class GroupPattern(_Strict):
    """A pattern for one group, or for all groups that a shell pattern matches."""

    group: str = Field(description="Name of a group, or a shell pattern such as layer1.*")
    pattern: str = Field(description="Name of a pattern of the library.")


class RatioProposal(_Strict):
    """A plan of pruning ratios.

    `start_from` gives channels back: a later plan starts from an earlier one and changes some
    groups, to a lower ratio as well as to a higher one.
    """

    reasoning: str = Field(description="Why this plan, in at most 150 words.")
    start_from: int | None = Field(
        None, description="Number of an earlier proposal whose other ratios are kept, or null."
    )
    default_ratio: float = Field(
        0.0, description="Ratio of groups not listed; not used with start_from."
    )
    ratios: list[GroupRatio] = Field(description="Ratios of the groups that differ.")
    round_to: Literal[1, 2, 4, 8, 16] = Field(
        1, description="Channels kept in every group are a multiple of this, or all of them."
    )


class PatternProposal(_Strict):
    """A plan of patterns: channels at several ratios, whole filters or shapes within kernels."""

    reasoning: str = Field(description="Why this plan, in at most 150 words.")
    start_from: int | None = Field(
        None, description="Number of an earlier proposal whose other patterns are kept, or null."
    )
    default_pattern: str = Field(
        "dense", description="Pattern of groups not listed; not used with start_from."
    )
    patterns: list[GroupPattern] = Field(description="Patterns of the groups that differ.")


class FineTune(_Strict):
    """Settings of the fine-tuning of the final network; null leaves one as the run has it."""

    epochs: int | None = Field(None, description="Passes over the train split.")
    learning_rate: float | None = Field(None, description="Peak of the cosine schedule.")
    weight_decay: float | None = Field(None, description="L2 penalty.")
    label_smoothing: float | None = Field(None, description="In [0, 1).")
    distillation: bool | None = Field(
        None, description="Whether to learn from the outputs of the unpruned network too."
    )


CHOICES: dict[str, Any] = {
    "granularity": (
        Literal["channel", "pattern", "block"] | None,
        Field(None, description="What the listed names stand for; one that strategies lists."),
    ),
    "importance": (
        str | None,
        Field(None, description="Which channels of a group go first; one that strategies lists."),
    ),
    "fine_tune": (
        FineTune | None,
        Field(None, description="Settings of the final fine-tuning that differ, or null."),
    ),
}
"""What a proposal may be allowed to choose further: field by name."""


def with_choices(answer: type[Answer], names: Collection[str]) -> type[Answer]:
    """The schema of a proposal with further choices, all of which may be left out.

    Args:
        answer: RatioProposal or PatternProposal.
        names: keys of CHOICES.
    """
    if not names:
        return answer
    fields = {name: field for name, field in CHOICES.items() if name in names}
    return create_model(answer.__name__, __base__=answer, **fields)


class Verdict(_Strict):
    """What the master decides after it has read the history."""

    reasoning: str = Field(description="Why, in at most 100 words.")
    decision: Literal["continue", "stop"] = Field(description="Whether to go on proposing.")
    guidance: str = Field(description="What the analysis role should try next; empty with stop.")


def strict_schema(answer: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema as OpenAI's strict mode wants it: every property required, none other."""
    schema = answer.model_json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        part["required"] = list(part["properties"])
        part.pop("title", None)
        for name, field in part["properties"].items():
            part["properties"][name] = {
                key: value for key, value in field.items() if key not in ("title", "default")
            }
    return schema


def parse_answer(text: str, answer: type[Answer]) -> Answer:
    """Read a model's answer; prose and code fences around the JSON object are let pass.

    Args:
        text: what the model said.
        answer: the schema it should follow.

    Raises:
        ValueError: there is no JSON object, or it does not follow the schema; the message says
            where, in words that can be fed back.
    """
    try:
        return answer.model_validate(_find_object(text))
    except ValidationError as error:
        places = [
            f"{'.'.join(map(str, problem['loc'])) or 'the object'}: {problem['msg']}"
            for problem in error.errors()[:5]
        ]
        raise ValueError(f"it does not follow the schema ({'; '.join(places)})") from error


def _find_object(text: str) -> dict[str, Any]:
    """The first JSON object in a text.

    Raises:
        ValueError: there is none.
    """
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            start = text.find("{", start + 1)
            continue
        if isinstance(value, dict):
            return value
        start = text.find("{", start + 1)
    raise ValueError("it holds no complete JSON object")
