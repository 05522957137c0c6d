"""The three roles of AgenticPruner (https://arxiv.org/abs/2601.12272): what each is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.llm.conversation import Conversation
from agents.llm.proposals import Proposal, progress, shown_history
from agents.llm.schema import NetworkNotes, Verdict
from agents.llm.strategies import Strategies


@dataclass
class Roles:
    """Profiling, analysis and master, all of one model and about one network.

    Args:
        conversation: asks the model.
        subject: fingerprint of what the search is about.
        network: `agents.llm.profile.describe_network`.
        strategies: the plans that the environment executes.
        user_notes: what the user knows of the network; quoted as data.
        history_length: how many earlier proposals are shown.

    Attributes:
        notes: what the profiling role said; asked for when it is first needed.
        guidance: what the master said last.
    """

    conversation: Conversation
    subject: str
    network: Mapping[str, Any]
    strategies: Strategies
    user_notes: str | None
    history_length: int
    notes: Mapping[str, Any] | None = None
    guidance: str = ""

    def profile(self) -> Mapping[str, Any]:
        """What the profiling role makes of the network; asked once."""
        if self.notes is None:
            data = {"network": self.network, "strategies": self.strategies.describe()}
            answer, _ = self._ask("profiling", data, NetworkNotes)
            self.notes = answer.model_dump()
        return self.notes

    def propose(self, proposals: Sequence[Proposal]) -> tuple[Any, int]:
        """The next proposal of the analysis role, and the number of its exchange."""
        data = {
            "network": self.network,
            "notes": self.profile(),
            "strategies": self.strategies.describe(),
            "guidance": self.guidance,
            "history": shown_history(proposals, self.history_length),
            "progress": progress(proposals),
            "next_number": len(proposals),
        }
        return self._ask("analysis", data, self.strategies.answer)

    def judge(self, proposals: Sequence[Proposal], remaining: int) -> Verdict:
        """Whether to go on; the master's guidance is kept for the next proposals."""
        brief = {key: value for key, value in self.network.items() if key != "groups"}
        data = {
            "network": brief,
            "history": shown_history(proposals, self.history_length),
            "progress": progress(proposals),
            "remaining": remaining,
        }
        verdict, _ = self._ask("master", data, Verdict)
        self.guidance = verdict.guidance
        return verdict

    def _ask(self, role: str, data: Mapping[str, Any], answer: Any) -> tuple[Any, int]:
        told = {**data, "user_notes": self.user_notes}
        return self.conversation.ask(role, self.subject, told, answer)
