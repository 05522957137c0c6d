"""What the clients of hosted models share: key, timeout, retries, pace, prices, clear errors."""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from agents.llm.provider import ProviderError, Reply, Request

MAX_MESSAGE = 300
"""Longest part of a server's own words in an error."""


class HostedProvider(ABC):
    """A model behind an HTTP interface, reached with the vendor's own client library.

    The client retries what may pass (connection errors, timeouts, 408, 409, 429 and 5xx), with
    growing pauses, and waits as long as the server asks for.

    Args:
        name: name of the model on the server.
        base_url: address of the server; None for the vendor's own.
        api_key_variable: environment variable that holds the key, which is never written anywhere;
            it may be unset with `base_url`. None for the vendor's usual one.
        timeout: seconds that a try may take, above 0.
        max_retries: further tries after the first, at least 0.
        requests_per_minute: most requests a minute, above 0; None for no limit.
        prices: {"input": ..., "output": ...} per million tokens; None for unknown.
        options: further fields of every request, such as temperature.

    Raises:
        ValueError: a setting is out of range, the package or the key is missing.
    """

    package: str
    """The client library."""

    extra: str
    """The extra of Topiary that installs it."""

    usual_key_variable: str

    def __init__(
        self,
        name: str | None = None,
        base_url: str | None = None,
        *,
        api_key_variable: str | None = None,
        timeout: float = 120.0,
        max_retries: int = 3,
        requests_per_minute: float | None = None,
        prices: Mapping[str, float] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not name:
            raise ValueError("No model is named. Set llm.name to its name on the server.")
        if not timeout > 0:
            raise ValueError(f"llm.timeout={timeout}: wanted are seconds above 0.")
        if max_retries < 0:
            raise ValueError(f"llm.max_retries={max_retries}: wanted is a whole number >= 0.")
        if requests_per_minute is not None and not requests_per_minute > 0:
            raise ValueError(
                f"llm.requests_per_minute={requests_per_minute}: wanted is a number above 0, or "
                f"null for no limit."
            )
        if prices is not None and set(prices) != {"input", "output"}:
            raise ValueError(
                f"llm.prices={dict(prices)}: wanted are input and output, each per million tokens, "
                f"or null."
            )
        self.name = name
        self.timeout = timeout
        self.max_retries = max_retries
        self.options = dict(options or {})
        self._prices = prices
        self._pause = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._last = -float("inf")
        self._library = _import_client(self.package, self.extra)
        for transport in ("httpx", "httpx2"):  # a line per request on the terminal helps nobody
            logging.getLogger(transport).setLevel(logging.WARNING)
        self._key_variable = api_key_variable or self.usual_key_variable
        self._where = base_url or f"the server of {self.package}"
        self._client = self._make_client(
            api_key=_read_key(self._key_variable, base_url),
            base_url=base_url,
            timeout=timeout,
            max_retries=max_retries,
        )

    @abstractmethod
    def _make_client(self, **settings: Any) -> Any:
        """The client of the library."""

    @abstractmethod
    def _ask(self, request: Request) -> Reply:
        """Send the request; errors of the library pass."""

    def complete(self, request: Request) -> Reply:
        """Answer a request, not sooner than the pace allows.

        Raises:
            ProviderError: no answer, after the retries.
        """
        time.sleep(max(0.0, self._last + self._pause - time.monotonic()))
        self._last = time.monotonic()
        try:
            return self._ask(request)
        except (self._library.APIError, json.JSONDecodeError) as error:
            raise ProviderError(self._explain(error)) from error

    def _cost(self, input_tokens: int | None, output_tokens: int | None) -> float | None:
        if self._prices is None or input_tokens is None or output_tokens is None:
            return None
        read, written = self._prices["input"], self._prices["output"]
        return (input_tokens * read + output_tokens * written) / 1e6

    def _explain(self, error: Exception) -> str:
        """One line that says what happened and what to change."""
        library, tries = self._library, 1 + self.max_retries
        times = f"in {tries} {'try' if tries == 1 else 'tries'}"
        if isinstance(error, library.APITimeoutError):
            return (
                f"{self._where} did not answer within {self.timeout:g} s {times}. Raise "
                f"llm.timeout, or check the server."
            )
        if isinstance(error, library.APIConnectionError):
            cause = error.__cause__ or error
            return (
                f"{self._where} cannot be reached {times} ({_brief(cause)}). Check llm.base_url "
                f"and that the server runs."
            )
        if isinstance(error, library.AuthenticationError):
            return (
                f"{self._where} refuses the key of the environment variable "
                f"{self._key_variable}. Set another, or llm.api_key_variable."
            )
        if isinstance(error, library.RateLimitError):
            return (
                f"{self._where} answered 429, too many requests, {times}: {_words(error)}. Set "
                f"llm.requests_per_minute, or raise llm.max_retries."
            )
        if isinstance(error, library.APIStatusError):
            hint = (
                "Check llm.name, llm.options and llm.response_format."
                if error.status_code < 500
                else "Check the server, or raise llm.max_retries."
            )
            return f"{self._where} answered {error.status_code} {times}: {_words(error)}. {hint}"
        return (
            f"{self._where} answered something that is not of its protocol ({_brief(error)}). "
            f"Check llm.base_url."
        )

    def _not_protocol(self, what: str) -> ProviderError:
        return ProviderError(
            f"{self._where} answered something that is not of its protocol ({what}). "
            f"Check llm.base_url."
        )


def _import_client(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"llm={package} needs the package {package!r}: pip install 'topiary-rl[{extra}]'."
        ) from error


def _read_key(variable: str, base_url: str | None) -> str:
    key = os.environ.get(variable, "")
    if key:
        return key
    if base_url is not None:
        return "none"  # the clients insist on one; servers of one's own ask for none as a rule
    raise ValueError(
        f"No key: set the environment variable {variable}, or llm.base_url to a server that needs "
        f"none."
    )


def _words(error: Any) -> str:
    """What the server says of an error, in one short line without a final dot."""
    body = error.body
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    message = inner.get("message") if isinstance(inner, Mapping) else inner
    return _brief(message or error.message)


def _brief(text: Any) -> str:
    line = " ".join(str(text).split()).rstrip(".")
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}..."
