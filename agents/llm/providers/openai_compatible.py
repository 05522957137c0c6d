"""Any server that speaks OpenAI's chat completions: hosted, vLLM, Ollama, llama.cpp, a proxy."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from agents.llm.provider import Reply, Request
from agents.llm.providers.hosted import HostedProvider

RESPONSE_FORMATS = ("json_schema", "json_object", "text")


class OpenAICompatible(HostedProvider):
    """Chat completions of the library `openai`, without streaming.

    Args:
        name: name of the model on the server.
        base_url: address that ends in /v1 as a rule; None for OpenAI's own.
        response_format: "json_schema" where the server holds the model to the schema,
            "json_object" where it knows JSON alone, "text" where it knows neither; the answer is
            validated here in any case.
        settings: the others of `HostedProvider`.

    Raises:
        ValueError: a setting is out of range, the package or the key is missing.
    """

    package = "openai"
    extra = "llm"
    usual_key_variable = "OPENAI_API_KEY"

    def __init__(
        self,
        name: str | None = None,
        base_url: str | None = None,
        *,
        response_format: str = "json_schema",
        **settings: Any,
    ) -> None:
        if response_format not in RESPONSE_FORMATS:
            raise ValueError(
                f"llm.response_format={response_format}: wanted is one of "
                f"{', '.join(RESPONSE_FORMATS)}."
            )
        self.response_format = response_format
        super().__init__(name, base_url, **settings)

    def _make_client(self, **settings: Any) -> Any:
        return self._library.OpenAI(**settings)

    def _ask(self, request: Request) -> Reply:
        completion = self._client.chat.completions.create(
            model=self.name,
            messages=[asdict(message) for message in request.messages],
            **self._format(request),
            **self.options,
        )
        choices = getattr(completion, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise self._not_protocol("no choices in it")
        message, usage = choices[0].message, completion.usage
        read = None if usage is None else usage.prompt_tokens
        written = None if usage is None else usage.completion_tokens
        text = message.content or getattr(message, "refusal", None) or ""
        return Reply(text, read, written, self._cost(read, written), completion.model or self.name)

    def _format(self, request: Request) -> dict[str, Any]:
        if self.response_format == "text":
            return {}
        if self.response_format == "json_object":
            return {"response_format": {"type": "json_object"}}
        schema = {"name": request.schema_name, "schema": dict(request.schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
