"""Who answers: the one interface between the agent and a language model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol


class ProviderError(OSError):
    """The model gave no usable answer; the message is one line and says what to change."""


class OutOfExchanges(ProviderError):  # noqa: N818 - an end of the search, not a failure
    """A recording holds no further exchange."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: the text.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Request:
    """What a role asks.

    Attributes:
        role: "profiling", "analysis" or "master".
        prompt: name and version of the prompt, such as "v1/analysis".
        subject: fingerprint of what the search is about: groups, band and kind of plans.
        messages: the conversation so far, the system prompt first.
        schema_name: name of the schema of the answer.
        schema: the schema of the answer, strict.
    """

    role: str
    prompt: str
    subject: str
    messages: tuple[Message, ...]
    schema_name: str
    schema: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the role and the messages: equal for equal questions."""
        asked = {"role": self.role, "messages": [asdict(message) for message in self.messages]}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What the model said.

    Attributes:
        text: the answer, meant to be one JSON object.
        input_tokens: tokens read; None when the server does not say.
        output_tokens: tokens written; None when the server does not say.
        cost: in the currency of `llm.prices`; None when it is not known.
        model: name of the model that answered.
    """

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    model: str = ""


class Provider(Protocol):
    """Answers requests, one after the other."""

    @property
    def name(self) -> str:
        """Name of the model; a run that goes on after a kill trusts answers of this model only."""

    def complete(self, request: Request) -> Reply:
        """Answer a request.

        Raises:
            ProviderError: no answer, after the retries.
        """
