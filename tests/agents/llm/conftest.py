"""A server on loopback for the real clients, and a scripted provider."""

from __future__ import annotations

import json

import pytest

from agents.llm.provider import Message, Reply, Request
from tests.agents.llm.loopback import LoopbackServer, completion


class ScriptedProvider:
    """Gives prepared answers in order; an exception among them is raised.

    Args:
        answers: dicts (sent as JSON), texts, or exceptions.
    """

    name = "scripted"

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def complete(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Reply(answer if isinstance(answer, str) else json.dumps(answer), 10, 5, 0.25)

    @property
    def told(self):
        """The data of every request."""
        return [json.loads(request.messages[1].content) for request in self.requests]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = LoopbackServer()
    yield server
    server.close()


@pytest.fixture
def make_completion():
    return completion


@pytest.fixture
def scripted():
    return ScriptedProvider


@pytest.fixture
def request_of():
    """Builds a request: request_of(role, content of the user's message)."""

    def make(role="analysis", content="{}", subject="s"):
        messages = (Message("system", "prompt"), Message("user", content))
        return Request(role, f"v1/{role}", subject, messages, "Answer", {"type": "object"})

    return make
