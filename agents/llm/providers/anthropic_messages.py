"""Anthropic's messages, the answer forced into a tool whose input is the schema."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from agents.llm.provider import Reply, Request
from agents.llm.providers.hosted import HostedProvider


class AnthropicMessages(HostedProvider):
    """Messages of the library `anthropic`, without streaming.

    Args:
        name: name of the model.
        base_url: address of the server; None for Anthropic's own.
        max_tokens: most tokens of an answer, at least 1.
        settings: the others of `HostedProvider`.

    Raises:
        ValueError: a setting is out of range, the package or the key is missing.
    """

    package = "anthropic"
    extra = "anthropic"
    usual_key_variable = "ANTHROPIC_API_KEY"

    def __init__(
        self,
        name: str | None = None,
        base_url: str | None = None,
        *,
        max_tokens: int = 4096,
        **settings: Any,
    ) -> None:
        if max_tokens < 1:
            raise ValueError(f"llm.max_tokens={max_tokens}: wanted is a whole number >= 1.")
        self.max_tokens = max_tokens
        super().__init__(name, base_url, **settings)

    def _make_client(self, **settings: Any) -> Any:
        return self._library.Anthropic(**settings)

    def _ask(self, request: Request) -> Reply:
        system, *conversation = request.messages
        message = self._client.messages.create(
            model=self.name,
            max_tokens=self.max_tokens,
            system=system.content,
            messages=[asdict(message) for message in conversation],
            tools=[
                {
                    "name": request.schema_name,
                    "description": "Hands in the answer.",
                    "input_schema": dict(request.schema),
                }
            ],
            tool_choice={"type": "tool", "name": request.schema_name},
            **self.options,
        )
        blocks = getattr(message, "content", None)
        if not blocks:
            raise self._not_protocol("no content in it")
        texts = [
            json.dumps(block.input) if block.type == "tool_use" else getattr(block, "text", "")
            for block in blocks
        ]
        read, written = message.usage.input_tokens, message.usage.output_tokens
        return Reply("\n".join(texts), read, written, self._cost(read, written), message.model)
