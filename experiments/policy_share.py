"""What agents cost beside the evaluations they ask for, in real searches."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from agents.search import run_search
from experiments.composed_task import ComposedTask, compose_config, new_agent
from experiments.pipeline import seed_everything
from experiments.settings import Settings
from experiments.stopwatch import Taken, timed
from pruning.evaluation import Evaluation, Evaluator
from pruning.plan import Candidate

GOAL = 0.10
"""Wanted is at most so much work of the agent per second of evaluation."""

AGENTS: dict[str, tuple[str, ...]] = {
    "ppo (autosculpt)": ("agent=ppo", "env=autosculpt"),
    # warm-ups are kept short: no learning takes place in them
    "amc (amc)": ("agent=amc", "env=amc", "agent.warmup_episodes=4"),
    "imagination (allocation)": ("agent=imagination", "env=allocation", "agent.warm_up=4"),
}
"""The searches that are timed: overrides by name."""

HEAD = ("agent (env)", "evaluations", "steps", "evaluation ms", "agent ms", "share", "share, CPU")
SHARE_LEGEND = (
    "Real searches, warm-ups cut short. Evaluation: median of the measurements. Agent: all of the "
    "search that is not a measurement (inference, updates, and the environment's own work), per "
    "evaluation. Share: agent over evaluation, sums of the whole search, by the wall and by "
    f"processor time; wanted is at most {GOAL:.2f} on a network of the size of ResNet-56."
)


class TimedEvaluator:
    """An evaluator that notes how long every measurement took.

    Args:
        evaluator: measures, counts and caches.

    Attributes:
        taken: of every measurement, in order; cache hits are none.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.taken: list[Taken] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)

    def evaluate(
        self, candidate: Candidate, overlay: Mapping[str, Tensor] | None = None
    ) -> Evaluation:
        """What the evaluator says."""
        taken, evaluation = timed(lambda: self._evaluator.evaluate(candidate, overlay))
        if not evaluation.cached:
            self.taken.append(taken)
        return evaluation


@dataclass(frozen=True)
class PolicyShare:
    """What one search spent on what.

    Attributes:
        name: agent and environment.
        steps: environment steps.
        evaluations: of every measurement.
        search: the whole search.
    """

    name: str
    steps: int
    evaluations: Sequence[Taken]
    search: Taken

    @property
    def own(self) -> Taken:
        """What was no measurement."""
        return self.search - self._measuring

    @property
    def share(self) -> Taken:
        """The agent's own work over the measurements, both of the whole search."""
        own, measuring = self.own, self._measuring
        return Taken(own.wall / measuring.wall, own.cpu / measuring.cpu)

    @property
    def cells(self) -> list[str]:
        """The row as text, see HEAD."""
        count = len(self.evaluations)
        median = statistics.median(taken.wall for taken in self.evaluations)
        own, share = self.own, self.share
        return [
            self.name, str(count), str(self.steps), f"{1e3 * median:.1f}",
            f"{1e3 * own.wall / count:.1f}", f"{share.wall:.3f}", f"{share.cpu:.3f}",
        ]  # fmt: skip

    @property
    def _measuring(self) -> Taken:
        return sum(self.evaluations, Taken(0.0, 0.0))


def measure_share(name: str, composed: ComposedTask, evaluations: int) -> PolicyShare:
    """Run one search and time it.

    Args:
        name: agent and environment.
        composed: the config with both, and what is pruned.
        evaluations: measurements after which the search ends, at least 1.
    """
    seed_everything(composed.settings.seed)
    task = copy.copy(composed.new_task())
    evaluator = TimedEvaluator(task.evaluator)
    task.evaluator = evaluator  # type: ignore[assignment]
    env = composed.new_env(task)
    agent = new_agent(composed.config, env)
    taken, result = timed(lambda: run_search(agent, env, evaluations=evaluations))
    return PolicyShare(name, result.timesteps, evaluator.taken, taken)


def with_agent(
    composed: ComposedTask, overrides: Sequence[str], own: Sequence[str]
) -> ComposedTask:
    """The same network and data with another agent in another environment.

    Args:
        composed: what is pruned.
        overrides: it was composed with; those of agent, encoder and environment are left out.
        own: those of the other agent.
    """
    config, plain = compose_config([*_without_agent(overrides), *own])
    settings = Settings.from_config(plain, show_progress=False)
    return ComposedTask(config, plain, settings, composed.data, composed.network)


def _without_agent(overrides: Iterable[str]) -> list[str]:
    sections = ("agent", "encoder", "env", "pairing", "preset")
    return [
        override
        for override in overrides
        if override.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0]
        not in sections
    ]


def shares_to_markdown(shares: Sequence[PolicyShare]) -> str:
    """The table and its legend as Markdown."""
    lines = [
        "| " + " | ".join(HEAD) + " |",
        "|---|" + "---:|" * (len(HEAD) - 1),
        *("| " + " | ".join(share.cells) + " |" for share in shares),
        "",
        SHARE_LEGEND,
    ]
    return "\n".join(lines) + "\n"
