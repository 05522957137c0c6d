"""Asks the model, keeps the record, counts the calls, and has a wrong answer corrected."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from agents.llm.exchanges import Exchange, ExchangeLog
from agents.llm.provider import Message, Provider, ProviderError, Reply, Request
from agents.llm.schema import Answer, parse_answer, strict_schema

LONGEST_QUOTE = 160
"""Longest part of an unusable answer in an error."""


class CallLimitReached(Exception):  # noqa: N818 - an end of the search, not a failure
    """The next call would be one more than allowed."""


class Conversation:
    """Questions to one model, each answered in the schema of its role.

    A question is two messages: the system prompt, a text file of this package, and one JSON
    document of data. Whatever comes from outside, such as names in the network and the user's
    notes, is inside that document, so it is quoted, and the prompt says that it is data.

    Args:
        provider: who answers.
        prompts: version of the prompts, a folder of agents/llm/prompts.
        max_calls: hard cap on calls; answers that come from the run's own record count as well, so
            that a run that goes on after a kill ends where it would have ended.
        max_corrections: how often in a row an answer that does not follow the schema is sent back.

    Attributes:
        num_calls: answered calls so far.

    Raises:
        ValueError: a bound is out of range, or there is no such version of the prompts.
    """

    def __init__(
        self, provider: Provider, *, prompts: str, max_calls: int, max_corrections: int
    ) -> None:
        if max_calls < 1:
            raise ValueError(
                f"max_calls={max_calls}: wanted is at least 1. Change agent.max_calls."
            )
        if max_corrections < 0:
            raise ValueError(
                f"max_corrections={max_corrections}: wanted is 0 or more. "
                f"Change agent.max_corrections."
            )
        self.provider = provider
        self.max_calls = max_calls
        self.max_corrections = max_corrections
        self.num_calls = 0
        self._replies: list[Reply] = []
        self._prompts = prompts
        self._log = ExchangeLog(None)
        read_prompt(prompts, "analysis")  # refuses an unknown version before anything costs time

    @property
    def usage(self) -> str:
        """Calls, tokens and cost so far, in words; what servers do not say counts as nothing."""
        read = sum(reply.input_tokens or 0 for reply in self._replies)
        written = sum(reply.output_tokens or 0 for reply in self._replies)
        costs = [reply.cost for reply in self._replies if reply.cost is not None]
        cost = f", cost {sum(costs):.4f}" if costs else ""
        return f"{self.num_calls} calls, {read:,} tokens read, {written:,} written{cost}"

    def open_log(self, path: Path) -> None:
        """Record in this file from now on, and answer from what it holds already."""
        self._log = ExchangeLog(path)

    def ask(
        self, role: str, subject: str, data: Mapping[str, Any], answer: type[Answer]
    ) -> tuple[Answer, int]:
        """Ask until the answer follows the schema.

        Args:
            role: name of the role, and of its prompt.
            subject: fingerprint of what the search is about.
            data: all that the role is told, as JSON takes it.
            answer: schema of the answer.

        Returns:
            The answer, and the number of its exchange.

        Raises:
            CallLimitReached: the cap on calls.
            ProviderError: no answer, or none that follows the schema.
        """
        messages: tuple[Message, ...] = (
            Message("system", read_prompt(self._prompts, role)),
            Message("user", json.dumps(data, ensure_ascii=True, allow_nan=False)),
        )
        for _ in range(self.max_corrections + 1):
            request = Request(
                role=role,
                prompt=f"{self._prompts}/{role}",
                subject=subject,
                messages=messages,
                schema_name=answer.__name__,
                schema=strict_schema(answer),
            )
            reply = self._call(request)
            try:
                return parse_answer(reply.text, answer), self.num_calls - 1
            except ValueError as error:
                problem = str(error)
            correction = (
                f"Your answer cannot be used: {problem}. Answer again with one JSON object of the "
                f"described form and nothing else."
            )
            messages = (*messages, Message("assistant", reply.text), Message("user", correction))
        raise ProviderError(
            f"The {role} role got no usable answer from {self.provider.name} in "
            f"{self.max_corrections + 1} tries: {problem}. The last one began "
            f"{_quote(reply.text)}. Change llm.name, llm.response_format or the length limit in "
            f"llm.options, or raise agent.max_corrections."
        )

    def _call(self, request: Request) -> Reply:
        if self.num_calls >= self.max_calls:
            raise CallLimitReached
        known = self._log.known(self.provider.name, request)
        reply = self._ask_provider(request) if known is None else known.answer()
        self.num_calls += 1
        self._replies.append(reply)
        return reply

    def _ask_provider(self, request: Request) -> Reply:
        started = time.monotonic()
        try:
            reply = self.provider.complete(request)
        except ProviderError as error:
            self._record(request, Reply("", model=self.provider.name), str(error), started)
            raise
        self._record(request, reply, None, started)
        return reply

    def _record(self, request: Request, reply: Reply, error: str | None, started: float) -> None:
        self._log.append(
            Exchange(
                number=self.num_calls,
                role=request.role,
                prompt=request.prompt,
                subject=request.subject,
                digest=request.digest,
                provider=self.provider.name,
                model=reply.model or self.provider.name,
                messages=request.messages,
                reply=reply.text if error is None else None,
                error=error,
                input_tokens=reply.input_tokens,
                output_tokens=reply.output_tokens,
                cost=reply.cost,
                seconds=round(time.monotonic() - started, 3),
            )
        )


def read_prompt(version: str, role: str) -> str:
    """The system prompt of a role.

    Args:
        version: a folder of agents/llm/prompts.
        role: name of the role.

    Raises:
        ValueError: there is no such version.
    """
    folder = resources.files("agents.llm") / "prompts"
    file = folder / version / f"{role}.txt"
    if not version.isidentifier() or not file.is_file():
        versions = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise ValueError(
            f"There are no prompts {version!r}. Change agent.prompts to one of: "
            f"{', '.join(versions)}."
        )
    return file.read_text(encoding="utf-8")


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= LONGEST_QUOTE else f"{line[:LONGEST_QUOTE]}...")
