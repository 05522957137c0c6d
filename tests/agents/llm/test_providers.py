"""The real clients against a server on loopback, with every failure a server can have."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace

import pytest

from agents.llm.provider import ProviderError
from agents.llm.providers.anthropic_messages import AnthropicMessages
from agents.llm.providers.openai_compatible import OpenAICompatible


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def make(**options):
        options = {"max_retries": 1, "timeout": 30.0, **options}
        return OpenAICompatible("some-model", f"{server.url}/v1", **options)

    return make


def test_a_chat_completion_is_asked_for_in_the_schema(client, server, make_completion, request_of):
    server.respond = lambda path, sent: (200, make_completion('{"a": 1}'))
    prices = {"input": 3.0, "output": 15.0}
    reply = client(prices=prices, options={"temperature": 0.0}).complete(request_of(content="{}"))
    assert (reply.text, reply.model) == ('{"a": 1}', "served-model")
    assert (reply.input_tokens, reply.output_tokens) == (1000, 200)
    assert reply.cost == pytest.approx(0.003 + 0.003)
    ((path, _, sent),) = server.received
    assert path == "/v1/chat/completions"
    assert sent["model"] == "some-model"
    assert sent["temperature"] == 0.0
    assert "stream" not in sent
    assert sent["messages"][1] == {"role": "user", "content": "{}"}
    assert sent["response_format"]["json_schema"] == {
        "name": "Answer", "schema": {"type": "object"}, "strict": True,
    }  # fmt: skip


def test_a_server_that_knows_no_schema_is_asked_for_text(
    client, server, make_completion, request_of
):
    server.respond = lambda path, sent: (200, make_completion("{}"))
    client(response_format="text").complete(request_of())
    assert "response_format" not in server.received[0][2]


def test_after_a_429_the_client_tries_again(client, server, make_completion, request_of):
    def respond(path, sent):
        if len(server.received) == 1:
            return 429, {"error": {"message": "slow down"}}, {"retry-after-ms": "1"}
        return 200, make_completion("{}")

    server.respond = respond
    assert client().complete(request_of()).text == "{}"
    assert len(server.received) == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (429, {"error": {"message": "slow down"}}),
            "answered 429, too many .* 1 try: slow down. ",
        ),
        (
            (500, {"error": {"message": "out of memory"}}),
            "answered 500 in 1 try: out of memory. Ch",
        ),
        (
            (404, {"error": {"message": "no such model"}}),
            "answered 404 .* no such model. .*llm.name",
        ),
        ((401, {"error": {"message": "key"}}), "refuses the key of the .* variable OPENAI_API_KEY"),
        ((200, '{"choices": [{'), "something that is not of its protocol"),
        ((200, {"error": "hello"}), "not of its protocol .no choices in it.. Check llm.base_url"),
        ((200, "hello"), "something that is not of its protocol"),
        ((200, {}, {}, 3.0), r"did not answer within 0.5 s in 1 try. Raise llm.timeout"),
    ],
    ids=["429", "500", "404", "401", "cut off", "wrong body", "no json", "slow"],
)
def test_every_failure_is_one_clear_line(client, server, request_of, answer, message):
    server.respond = lambda path, sent: answer
    with pytest.raises(ProviderError, match=message) as caught:
        client(max_retries=0, timeout=0.5 if len(answer) == 4 else 30.0).complete(request_of())
    assert "\n" not in str(caught.value)


def test_a_dead_server_is_named(monkeypatch, request_of):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = OpenAICompatible("m", f"http://127.0.0.1:{port}/v1", max_retries=0)
    with pytest.raises(ProviderError, match=rf"127.0.0.1:{port}/v1 cannot be reached in 1 try"):
        client.complete(request_of())


def test_settings_that_cannot_be_are_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"Set llm.name"):
        OpenAICompatible()
    with pytest.raises(ValueError, match=r"environment variable OPENAI_API_KEY, or llm.base_url"):
        OpenAICompatible("m")
    with pytest.raises(ValueError, match=r"llm.response_format=xml: wanted is one of json_schema"):
        OpenAICompatible("m", response_format="xml")
    with pytest.raises(ValueError, match=r"llm.timeout=0"):
        OpenAICompatible("m", "http://127.0.0.1", timeout=0)
    with pytest.raises(ValueError, match=r"llm.prices="):
        OpenAICompatible("m", "http://127.0.0.1", prices={"in": 1})
    with pytest.raises(ValueError, match=r"llm.requests_per_minute=0"):
        OpenAICompatible("m", "http://127.0.0.1", requests_per_minute=0)


def test_requests_keep_their_pace(client, server, make_completion, request_of, monkeypatch):
    server.respond = lambda path, sent: (200, make_completion("{}"))
    provider, clock, slept = client(requests_per_minute=30), [100.0], []
    clocks = SimpleNamespace(monotonic=lambda: clock[0], sleep=slept.append)
    monkeypatch.setattr("agents.llm.providers.hosted.time", clocks)
    provider.complete(request_of())
    clock[0] += 0.5
    provider.complete(request_of())
    assert slept == pytest.approx([0.0, 1.5])


def test_anthropic_answers_through_a_forced_tool(server, request_of):
    def respond(path, sent):
        block = {"type": "tool_use", "id": "1", "name": "Answer", "input": {"a": 1}}
        usage = {"input_tokens": 7, "output_tokens": 3}
        return 200, {
            "id": "1", "type": "message", "role": "assistant", "model": "served", "usage": usage,
            "content": [block], "stop_reason": "tool_use", "stop_sequence": None,
        }  # fmt: skip

    server.respond = respond
    provider = AnthropicMessages("some-model", server.url, max_retries=0, max_tokens=99)
    reply = provider.complete(request_of())
    assert (json.loads(reply.text), reply.input_tokens, reply.output_tokens) == ({"a": 1}, 7, 3)
    ((path, _, sent),) = server.received
    assert (path, sent["system"], sent["max_tokens"]) == ("/v1/messages", "prompt", 99)
    assert sent["tool_choice"] == {"type": "tool", "name": "Answer"}
    assert sent["tools"][0]["input_schema"] == {"type": "object"}
    server.respond = lambda path, sent: (529, {"error": {"message": "overloaded"}})
    with pytest.raises(ProviderError, match="answered 529 in 1 try: overloaded"):
        provider.complete(request_of())
