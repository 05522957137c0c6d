"""Every exchange with the model as one line of JSON: the record of a search, and its replay."""

from __future__ import annotations

import json
import logging
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents.llm.json_lines import append_line, cut_partial_line, whole_lines
from agents.llm.provider import Message, OutOfExchanges, ProviderError, Reply, Request

EXCHANGES_FILE = "llm_exchanges.jsonl"
EXCHANGE_FORMAT = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exchange:
    """One question and what became of it.

    Attributes:
        number: place in the search, from 0; a failed try has the number of the next answer.
        role: who asked.
        prompt: name and version of the prompt.
        subject: fingerprint of what the search is about.
        digest: of the request.
        provider: name of the model that was asked.
        model: name of the model that answered, as the server says.
        messages: the conversation, without secrets: keys are never part of it.
        reply: what was said; None when nothing was.
        error: why nothing was said; None when something was.
        input_tokens: tokens read; None when not known.
        output_tokens: tokens written; None when not known.
        cost: in the currency of `llm.prices`; None when not known.
        seconds: wall time, retries included.
        format: version of this layout.
    """

    number: int
    role: str
    prompt: str
    subject: str
    digest: str
    provider: str
    model: str
    messages: tuple[Message, ...]
    reply: str | None
    error: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost: float | None
    seconds: float
    format: int = EXCHANGE_FORMAT

    def answer(self) -> Reply:
        """The reply as a provider gives it; nothing is paid for it again.

        Raises:
            ValueError: there is none.
        """
        if self.reply is None:
            raise ValueError(f"Exchange {self.number} has no reply: {self.error}")
        return Reply(self.reply, self.input_tokens, self.output_tokens, self.cost, self.model)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Exchange:
        """Read one line.

        Raises:
            ValueError: it is not of this format.
        """
        if data.get("format") != EXCHANGE_FORMAT:
            raise ValueError(
                f"wanted are exchanges of format {EXCHANGE_FORMAT}, got {data.get('format')!r}"
            )
        try:
            messages = tuple(Message(**message) for message in data["messages"])
            return cls(**{**data, "messages": messages})
        except (KeyError, TypeError) as error:
            raise ValueError(f"wrong keys: {error}") from error


def read_exchanges(path: Path) -> list[Exchange]:
    """The exchanges of a file; a last line that a kill cut off is left out.

    Raises:
        ValueError: the file holds something else.
    """
    return [_parse(path, number, line) for number, line in enumerate(whole_lines(path), start=1)]


class ExchangeLog:
    """Appends exchanges to a file, and answers from those that it held when it was opened.

    A run that was killed and starts again in its own folder asks the same questions in the same
    order, so it is given the same answers and pays for none of them twice.

    Args:
        path: the file; its folder must exist. None keeps nothing.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[tuple[str, str], deque[Exchange]] = defaultdict(deque)
        if path is None or not path.exists():
            return
        for exchange in read_exchanges(path):
            if exchange.reply is not None:
                self._known[exchange.provider, exchange.digest].append(exchange)
        cut_partial_line(path)

    def known(self, provider: str, request: Request) -> Exchange | None:
        """The next earlier answer of this model to this question, each given out once."""
        answers = self._known.get((provider, request.digest))
        return answers.popleft() if answers else None

    def append(self, exchange: Exchange) -> None:
        """Write one line at once, so that nothing is lost when the run is killed."""
        if self._path is None:
            return
        append_line(self._path, json.dumps(asdict(exchange), allow_nan=False))


class ReplayProvider:
    """Gives the answers of a recorded search again, in their order: no network, no key.

    Questions hold measured accuracies, which differ in their last decimals between machines; so a
    question that differs is answered all the same, and the first one is warned of, unless `strict`.
    A recording of another network, budget or role is always refused.

    Args:
        path: `llm_exchanges.jsonl` of a run, or the folder of the run.
        strict: refuse a question that differs from the recorded one in a single character.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """

    def __init__(self, path: str | Path | None, *, strict: bool = False) -> None:
        if path is None:
            raise ValueError(
                f"llm=replay needs llm.path: {EXCHANGES_FILE} of a run, or the folder of the run."
            )
        file = Path(path).expanduser()
        file = file / EXCHANGES_FILE if file.is_dir() else file
        if not file.is_file():
            raise ValueError(f"There is no file {file}. Change llm.path.")
        self._file = file
        self._strict = strict
        self._exchanges = [e for e in read_exchanges(file) if e.reply is not None]
        if not self._exchanges:
            raise ValueError(f"{file} holds no answered exchange. Change llm.path.")
        self._next = 0
        self._is_warned = False
        self.name = "replay"

    def complete(self, request: Request) -> Reply:
        """The next recorded answer.

        Raises:
            OutOfExchanges: all were given.
            ProviderError: the recording is of another search.
        """
        if self._next == len(self._exchanges):
            raise OutOfExchanges(f"{self._file} holds no more than {self._next} exchanges")
        recorded = self._exchanges[self._next]
        if recorded.subject != request.subject:
            raise ProviderError(
                f"{self._file} was recorded for another network, budget or kind of plan. Give the "
                f"same network, round_to, env and budget, or change llm.path."
            )
        if recorded.role != request.role:
            raise ProviderError(
                f"Exchange {self._next} of {self._file} answers the {recorded.role} role, and the "
                f"{request.role} role asks: the recording is of a search with other settings."
            )
        if recorded.digest != request.digest:
            self._on_difference()
        self._next += 1
        return recorded.answer()

    def _on_difference(self) -> None:
        if self._strict:
            raise ProviderError(
                f"Exchange {self._next} of {self._file} answers another question: what was "
                f"measured, or the prompt, differs. Set llm.strict=false to replay by order."
            )
        if not self._is_warned:
            log.warning(
                "From exchange %d on, the questions differ from those in %s (accuracies measured "
                "on another machine, or another prompt); its answers are given in their order.",
                self._next, self._file,
            )  # fmt: skip
            self._is_warned = True


def _parse(path: Path, number: int, line: str) -> Exchange:
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise ValueError(f"a JSON object is wanted, got {type(data).__name__}")
        return Exchange.from_data(data)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}, is not an exchange: {error}.") from error
