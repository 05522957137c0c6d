"""The agent whose plans a language model proposes, with the interface of every other agent."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from agents.llm.choices import ChoosingStrategies, FineTuneLimits
from agents.llm.conversation import CallLimitReached, Conversation
from agents.llm.exchanges import EXCHANGES_FILE
from agents.llm.granularity import GROUPS_ALONE, Granularity
from agents.llm.names import Refused
from agents.llm.profile import describe_network, fingerprint
from agents.llm.proposals import (
    MEASURED,
    OUTSIDE_BAND,
    PROPOSALS_FILE,
    REFUSED,
    Proposal,
    ProposalLog,
    best_of,
)
from agents.llm.provider import OutOfExchanges, Provider, ProviderError
from agents.llm.roles import Roles
from agents.llm.strategies import (
    PatternStrategies,
    Plan,
    RatioStrategies,
    Strategies,
)
from agents.whole_plans import WholePlanAgent
from pruning.task import PruningTask

FIRST_PROMPTS = "v1"
"""Prompts that know groups, ratios and patterns, and no further choice."""

log = logging.getLogger(__name__)


class LLMAgent(WholePlanAgent):
    """A language model proposes whole plans, sees what became of them, and proposes again.

    After AgenticPruner (https://arxiv.org/abs/2601.12272), with a ratio or a pattern per group
    where its released code searches one ratio: a profiling role describes the network once, an
    analysis role proposes, a master judges every few proposals. A proposal is repaired where its
    intent is clear and refused, with the reason fed back, where it is not. A plan outside the band
    of the budget costs a call and no evaluation.

    Where that is switched on, a proposal chooses the importance and the fine-tuning of the final
    network too. Either makes the space of plans wider than that of every other agent.

    Args:
        env: an environment whose episodes are one step that decides all groups by ratios or
            patterns, and whose budget is a band.
        llm: who answers; None for an agent that only predicts what it has found.
        max_proposals: the search ends after so many proposals, refused ones included.
        max_calls: hard cap on answered calls; the search ends there with what it has.
        max_refusals: the search ends after so many refused proposals in a row.
        max_corrections: how often in a row an answer that does not follow the schema is sent back.
        master_every: proposals between two judgements of the master.
        history_length: earlier proposals that the model is shown.
        notes: what the user knows of the network, for the model; quoted as data.
        prompts: version of the prompts.
        importances: importances that a proposal may choose from beside the task's own, names of
            `task.importances`; None for the task's own alone.
        proposes_fine_tune: whether a proposal may change the fine-tuning of the final network.
        fine_tune_limits: what it may change: lowest and highest value of "epochs",
            "learning_rate", "weight_decay" and "label_smoothing", and the allowed values of
            "distillation"; what is left out stays as it is.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: not used: nothing here is random; a model has its own, see `llm.options`.
        verbose: not used.

    Attributes:
        proposals: all proposals, in order.
        stop_reason: why it stopped by itself; "" while it has not.

    Raises:
        ValueError: a setting is out of range, or the environment is another one.
    """

    action_spaces = (spaces.Box, spaces.MultiDiscrete)

    def __init__(
        self,
        env: Any,
        *,
        llm: Provider | None = None,
        max_proposals: int = 30,
        max_calls: int = 60,
        max_refusals: int = 5,
        max_corrections: int = 2,
        master_every: int = 5,
        history_length: int = 10,
        notes: str | None = None,
        prompts: str = "v2",
        importances: Sequence[str] | None = None,
        proposes_fine_tune: bool = False,
        fine_tune_limits: Mapping[str, Any] | None = None,
        policy: Any = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        bounds = {
            "max_proposals": max_proposals,
            "max_refusals": max_refusals,
            "master_every": master_every,
            "history_length": history_length,
        }
        for name, bound in bounds.items():
            if bound < 1:
                raise ValueError(f"{name}={bound}: wanted is at least 1. Change agent.{name}.")
        self.max_proposals = max_proposals
        self.max_refusals = max_refusals
        self.master_every = master_every
        self.history_length = history_length
        self.notes = notes
        self.importances = tuple(importances or ())
        self._fine_tune = dict(fine_tune_limits or {}) if proposes_fine_tune else None
        self._fine_tune_limits = (  # refused before it costs anything
            None if self._fine_tune is None else FineTuneLimits.from_config(self._fine_tune)
        )
        if prompts == FIRST_PROMPTS and (self.importances or proposes_fine_tune):
            raise ValueError(
                f"The prompts {prompts} know neither importances nor fine-tuning. Set "
                f"agent.prompts=v2, or agent.importances=null and agent.proposes_fine_tune=false."
            )
        self.proposals: list[Proposal] = []
        self.stop_reason = ""
        self._limits = {"max_calls": max_calls, "max_corrections": max_corrections}
        self._prompts = prompts
        self._conversation = (
            None if llm is None else Conversation(llm, prompts=prompts, **self._limits)
        )
        self._roles: Roles | None = None
        self._folder: Path | None = None
        self._proposal_log: ProposalLog | None = None
        self._open: tuple[Any, int, Plan[Any]] | None = (
            None  # asked for, exchange, what is executed
        )
        super().__init__(env, seed=seed)

    @property
    def num_proposals(self) -> int:
        """Proposals so far, refused ones included."""
        return len(self.proposals)

    def keep_records_in(self, folder: Path) -> None:
        """Record every exchange and proposal in a folder, and go on from what it holds.

        Args:
            folder: folder of the run.

        Raises:
            ValueError: its records are damaged.
        """
        self._folder = folder
        self._proposal_log = ProposalLog(folder / PROPOSALS_FILE)
        if self._conversation is not None:
            self._conversation.open_log(folder / EXCHANGES_FILE)

    def learn(self, total_timesteps: int, *arguments: Any, **options: Any) -> Any:
        """Search as every other agent does, and say what the model was asked and what it cost."""
        learned = super().learn(total_timesteps, *arguments, **options)
        if self._conversation is not None:
            log.info("%s: %s", self._conversation.provider.name, self._conversation.usage)
        return learned

    def _has_next(self, env: VecEnv) -> bool:
        try:
            self.stop_reason = self._think(env)
        except CallLimitReached:
            self.stop_reason = f"all {self._limits['max_calls']} calls are spent (agent.max_calls)"
        except OutOfExchanges as error:
            self.stop_reason = str(error)
        except ProviderError as error:
            raise ProviderError(f"{error}{self._how_to_go_on()}") from error
        if self.stop_reason:
            log.info("The agent stops: %s", self.stop_reason)
        return not self.stop_reason

    def _think(self, env: VecEnv) -> str:
        """Ask until there is a plan to execute.

        Returns:
            Why to stop; "" when there is a plan.
        """
        roles, pruning_env = self._roles_for(env), self.pruning_env(env)
        refused_in_a_row = 0
        while self.num_proposals < self.max_proposals:
            is_due = self.num_proposals > 0 and self.num_proposals % self.master_every == 0
            if is_due and refused_in_a_row == 0 and self._is_called_off(roles):
                return "the master ends the search"
            asked, exchange = roles.propose(self.proposals)
            try:
                plan = self._plan(roles.strategies, asked)
            except Refused as refusal:
                self._keep(
                    Proposal(
                        number=self.num_proposals,
                        exchange=exchange,
                        status=REFUSED,
                        reasoning=asked.reasoning,
                        asked=asked.model_dump(),
                        refusal=str(refusal),
                    )
                )
                refused_in_a_row += 1
                if refused_in_a_row == self.max_refusals:
                    return (
                        f"{refused_in_a_row} proposals in a row were refused, the last: {refusal}"
                    )
                continue
            self._open = (asked, exchange, plan)
            self._rank(env, plan.importance)
            self._action = roles.strategies.action(pruning_env, plan.values)
            return ""
        return f"all {self.max_proposals} proposals are made (agent.max_proposals)"

    def _is_called_off(self, roles: Roles) -> bool:
        """Whether the master ends the search; not before anything in the band was measured."""
        verdict = roles.judge(self.proposals, self.max_proposals - self.num_proposals)
        if verdict.decision == "continue":
            return False
        if best_of(self.proposals) is None:
            log.info("The master wants to stop, and no plan in the band is measured: it goes on")
            return False
        return True

    def _plan(self, strategies: Strategies, asked: Any) -> Plan[Any]:
        """The plan of a proposal.

        Raises:
            Refused: it cannot be executed, or is known already.
        """
        earlier = {
            p.number: Plan(p.plan, p.repairs, p.importance, p.fine_tune)
            for p in self.proposals
            if p.plan is not None
        }
        plan = strategies.plan(asked, earlier)
        for number, other in earlier.items():
            if (other.values, other.importance) == (plan.values, plan.importance):
                raise Refused(f"after rounding this is the plan of proposal {number} again")
        return plan

    def _propose(self, env: VecEnv) -> np.ndarray:
        return self._action

    def _take_in(self, action: np.ndarray, reward: float, done: bool) -> None:
        env = self.pruning_env(self._attached_env())
        record, limits = env.history[-1], env.limits
        assert self._open is not None, "a step without a proposal"
        asked, exchange, plan = self._open
        lowest, highest = limits.lower / limits.base, limits.upper / limits.base
        edge = lowest if record.relative_macs < lowest else highest
        self._keep(
            Proposal(
                number=self.num_proposals,
                exchange=exchange,
                status=MEASURED if record.met else OUTSIDE_BAND,
                reasoning=asked.reasoning,
                asked=asked.model_dump(),
                repairs=plan.repairs,
                plan=plan.values,
                importance=plan.importance,
                fine_tune=plan.fine_tune,
                episode=record.episode,
                macs=record.macs,
                relative_macs=record.relative_macs,
                error_percent=0.0 if record.met else 100.0 * (record.relative_macs / edge - 1.0),
                accuracy=record.accuracy,
                loss=_number(record.loss),
                score=_number(record.score),
            )
        )

    def _keep(self, proposal: Proposal) -> None:
        self.proposals.append(proposal)
        if self._proposal_log is not None:
            self._proposal_log.write(proposal)

    def _roles_for(self, env: VecEnv) -> Roles:
        if self._roles is None:
            if self._conversation is None:
                raise ValueError(f"{type(self).__name__} has no language model to ask: give llm.")
            pruning_env = self.pruning_env(env)
            task, limits = pruning_env.task, pruning_env.limits
            largest = pruning_env.largest_ratios()
            strategies = self._strategies(env, task, largest)
            self._roles = Roles(
                conversation=self._conversation,
                subject=fingerprint(task.graph.groups, limits, strategies.describe()),
                network=describe_network(task, limits, largest),
                strategies=strategies,
                user_notes=self.notes,
                history_length=self.history_length,
            )
        return self._roles

    def _strategies(
        self, env: VecEnv, task: PruningTask, largest_ratios: Mapping[str, float]
    ) -> Strategies:
        """What a proposal may choose."""
        is_ratio, granularity = isinstance(env.action_space, spaces.Box), GROUPS_ALONE
        if self._prompts != FIRST_PROMPTS:
            granularity = Granularity.of(task.graph, decides_patterns=not is_ratio)
        inner: Strategies = (
            RatioStrategies(task, largest_ratios, granularity)
            if is_ratio
            else PatternStrategies(task, granularity)
        )
        return ChoosingStrategies(inner, task, self.importances, self._fine_tune_limits)

    def fine_tune_of(self, episode: int) -> Mapping[str, Any]:
        """Settings of the fine-tuning that the proposal of an episode changes; empty for none.

        Args:
            episode: number of the episode of the plan that is kept.
        """
        for proposal in self.proposals:
            if proposal.episode == episode:
                return proposal.fine_tune or {}
        return {}

    @staticmethod
    def _rank(env: VecEnv, importance: str | None) -> None:
        """Let the channels of the current episode go by an importance."""
        if importance is not None:
            env.env_method("rank_by", importance)

    def _recommended(self, env: VecEnv) -> np.ndarray:
        """The best plan so far; the current episode is ranked as that plan was."""
        best = best_of(self.proposals)
        self._rank(env, None if best is None else best.importance)
        return super()._recommended(env)

    def _how_to_go_on(self) -> str:
        if self._folder is None or self._conversation is None or not self._conversation.num_calls:
            return ""
        return (
            f" {self._conversation.num_calls} answers are kept in {self._folder / EXCHANGES_FILE}: "
            f"the same command with hydra.run.dir={self._folder} goes on from there."
        )

    def _best_ratios(self) -> Mapping[str, float] | None:
        best = best_of(self.proposals)
        return None if best is None else best.plan

    def _encode(self, env: VecEnv, ratios: Mapping[str, Any]) -> np.ndarray:
        if any(isinstance(value, str) for value in ratios.values()):
            return PatternStrategies(self.pruning_env(env).task).action(env, ratios)
        return super()._encode(env, ratios)

    def _settings(self) -> dict[str, Any]:
        return {
            **self._limits,
            "max_proposals": self.max_proposals,
            "max_refusals": self.max_refusals,
            "master_every": self.master_every,
            "history_length": self.history_length,
            "notes": self.notes,
            "prompts": self._prompts,
            "importances": list(self.importances) or None,
            "proposes_fine_tune": self._fine_tune is not None,
            "fine_tune_limits": self._fine_tune,
        }

    def _memory(self) -> list[dict[str, Any]]:
        return [asdict(proposal) for proposal in self.proposals]

    def _remember(self, memory: list[dict[str, Any]]) -> None:
        self.proposals = [
            Proposal(**{**proposal, "repairs": tuple(proposal["repairs"])}) for proposal in memory
        ]


def _number(value: float | None) -> float | None:
    """The value, unless it is none: JSON knows neither infinity nor "not a number"."""
    return value if value is not None and math.isfinite(value) else None
