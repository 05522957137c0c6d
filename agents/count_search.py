"""Agents that search over channel counts: the classic ways to choose a pruning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from agents.baselines import ScriptedAgent, uniform_action
from pruning.keep_set import KeepSet, allowed_counts
from pruning.plan import Candidate
from pruning.task import PruningTask


@dataclass(frozen=True)
class Measured:
    """What one evaluation said.

    Attributes:
        score: the reward of the plan.
        accuracy: on the reward split, in [0, 1] or the user's metric.
        loss: on the reward split.
        met: whether the budget is met.
    """

    score: float
    accuracy: float
    loss: float
    met: bool


@dataclass(frozen=True, eq=False)
class OffRecord:
    """An evaluation that counts, but is no episode: what it measures cannot be the plan to keep.

    Attributes:
        counts: kept channels per group, int64 (S,).
        network: the slim network with weights of its own, trained further; None for the weights
            that every plan starts from.
    """

    counts: np.ndarray
    network: nn.Module | None = None


Search: TypeAlias = Generator["np.ndarray | OffRecord", Measured, None]
"""Asks for evaluations, of kept counts (S,) or off the record, and is sent the answers."""


@dataclass(frozen=True, eq=False)
class CountSpace:
    """The channel counts an agent may choose from.

    Attributes:
        task: what is pruned.
        levels: allowed kept counts of each group within the reach of the actions, ascending; the
            last is the group's size.
        max_macs: most MACs within budget.
    """

    task: PruningTask
    levels: tuple[np.ndarray, ...]
    max_macs: int

    @classmethod
    def of(
        cls, task: PruningTask, smallest: Sequence[int] | np.ndarray, max_macs: int
    ) -> CountSpace:
        """The allowed counts of a task from `smallest`, shape (S,), upwards."""
        levels = []
        for group, least in zip(task.graph.groups, smallest, strict=True):
            allowed = allowed_counts(group)
            levels.append(allowed[allowed >= least])
        return cls(task, tuple(levels), int(max_macs))

    @property
    def sizes(self) -> np.ndarray:
        """Channels before pruning, int64 (S,)."""
        return np.asarray([levels[-1] for levels in self.levels], dtype=np.int64)

    @property
    def smallest(self) -> np.ndarray:
        """Fewest channels, int64 (S,)."""
        return np.asarray([levels[0] for levels in self.levels], dtype=np.int64)

    def macs(self, counts: np.ndarray) -> int:
        """MACs of kept counts (S,)."""
        return int(self.task.cost.macs_of_counts(counts))

    def fits(self, counts: np.ndarray) -> bool:
        """Whether kept counts (S,) are within budget."""
        return self.macs(counts) <= self.max_macs

    def round_down(self, wanted: np.ndarray) -> np.ndarray:
        """The largest counts of the space that are not above `wanted` (S,), or the smallest."""
        return np.maximum(self.task.count_grid.round_down(wanted), self.smallest)

    def filled(self, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Counts within budget, topped up while a channel fits; far below `wanted` goes first."""
        return self.task.cost.top_up(counts, wanted, self.max_macs)

    def shrunk(self, counts: np.ndarray) -> np.ndarray:
        """`counts` scaled by one common factor, as large as the budget allows, and topped up."""
        low, high = 0.0, 1.0
        if self.fits(counts):
            return np.asarray(counts, dtype=np.int64)
        for _ in range(60):
            middle = 0.5 * (low + high)
            fits = self.fits(self.round_down(middle * counts))
            low, high = (middle, high) if fits else (low, middle)
        wanted = low * counts
        return np.minimum(self.filled(self.round_down(wanted), wanted), self.sizes)

    def replaced(self, counts: np.ndarray, group: int, count: int) -> np.ndarray:
        """`counts` with another count of one group."""
        changed = np.array(counts, dtype=np.int64)
        changed[group] = count
        return changed

    def candidate(self, counts: np.ndarray) -> Candidate:
        """What kept counts execute: the least important channels go first."""
        return Candidate(KeepSet.from_counts(self.task.graph, counts, self.task.scores))


class CountSearchAgent(ScriptedAgent, ABC):
    """Searches over channel counts, with the interface of an SB3 agent.

    Every network the search asks for is measured by the environment's `measure_counts`: counted,
    recorded, and the best plan of the environment when it is. Kept counts are exact, whatever the
    actions of the environment can express; it is ratio actions that say how far a group may be
    pruned. The search is deterministic by seed, and starts from its beginning when a loaded agent
    learns: plans that are in the environment's memory are free.

    Args:
        env: an environment with ratio (or allocation) actions and a budget.
        seed: same seed, same plans; None draws one.
        evaluations: how many the search has, for agents that plan ahead; None when not known.

    Raises:
        ValueError: evaluations is out of range, or the environment has pattern actions or no
            budget.
    """

    def __init__(self, env: Any, *, seed: int | None, evaluations: int | None = None) -> None:
        if evaluations is not None and evaluations < 1:
            raise ValueError(
                f"evaluations={evaluations}: wanted is 1 or more, or null. "
                f"Change agent.evaluations."
            )
        self.evaluations = evaluations
        self._search_seed = int(np.random.default_rng(seed).integers(2**31))
        self._running: Search | None = None
        self._question: np.ndarray | OffRecord | None = None
        self._best_ratios: dict[str, float] | None = None
        self._best_score = -np.inf
        self._findings: dict[str, str] = {}
        super().__init__(env, lambda env, rng: self._encoded(env), seed=seed)

    def set_env(self, env: Any) -> None:
        """Attach an environment; a search that was under way starts anew.

        Raises:
            ValueError: it has pattern actions, no budget, or holds several environments.
        """
        super().set_env(env)
        vec_env = self._attached_env()
        if not isinstance(vec_env.action_space, spaces.Box) or not vec_env.has_attr(
            "measure_counts"
        ):
            self.env = None
            raise ValueError(
                f"{type(self).__name__} decides channel counts, and the actions here are "
                f"{vec_env.action_space}. Set env=allocation, env=amc or env/action=ratio."
            )
        space = count_space(vec_env)
        if space.fits(space.sizes):
            self.env = None
            raise ValueError(
                f"{type(self).__name__} prunes until a budget is met, and the unpruned network "
                f"meets this one. Set budget=project (or wall) and lower budget.relative_macs."
            )
        self._running = None

    def findings(self) -> dict[str, str]:
        """What the search leaves beside its plan: JSON texts by path within the run folder."""
        return dict(self._findings)

    @abstractmethod
    def _search(self, space: CountSpace, rng: np.random.Generator) -> Search:
        """Asks for networks one by one, and ends when there is nothing more to try."""

    def _advance(self, env: VecEnv) -> dict[str, Any] | None:
        if self._running is None:
            rng = np.random.default_rng(self._search_seed)
            self._running = self._search(count_space(env), rng)
            self._question = next(self._running, None)
        if self._question is None:
            return None
        measured, info = self._measure(env, self._question)
        try:
            self._question = self._running.send(measured)
        except StopIteration:
            self._question = None
        return {
            "new_obs": None,
            "rewards": np.array([measured.score], dtype=np.float32),
            "dones": np.array([True]),
            "infos": [info],
        }

    def _measure(
        self, env: VecEnv, question: np.ndarray | OffRecord
    ) -> tuple[Measured, dict[str, Any]]:
        if isinstance(question, OffRecord):
            space = count_space(env)
            candidate = space.candidate(question.counts)
            evaluator, network = space.task.evaluator, question.network
            evaluation = (
                evaluator.evaluate(candidate)
                if network is None
                else evaluator.evaluate_trained(candidate, network)
            )
            score = -evaluation.loss
            met = space.fits(question.counts)
            return Measured(score, evaluation.accuracy, evaluation.loss, met), {}
        (record,) = env.env_method("measure_counts", question)
        assert record.accuracy is not None, "measured within budget or not"
        assert record.loss is not None, "likewise"
        if record.met and record.score > self._best_score:
            self._best_score = record.score
            self._best_ratios = {site: float(ratio) for site, ratio in record.executed}
        return Measured(record.score, record.accuracy, record.loss, record.met), {"record": record}

    def _encoded(self, env: VecEnv) -> np.ndarray:
        """The action closest to the best plan found; before a search, to the uniform plan."""
        if self._best_ratios is None:
            return uniform_action(env, self.rng)
        (action,) = env.env_method("encode_ratios", self._best_ratios)
        return np.asarray(action)

    def _settings(self) -> dict[str, Any]:
        return {"evaluations": self.evaluations}

    def _memory(self) -> dict[str, Any]:
        return {
            "seed": self._search_seed,
            "ratios": self._best_ratios,
            "score": None if self._best_ratios is None else self._best_score,
            "findings": self._findings,
        }

    def _remember(self, memory: dict[str, Any]) -> None:
        self._search_seed = memory["seed"]
        self._best_ratios = memory["ratios"]
        self._best_score = -np.inf if memory["score"] is None else memory["score"]
        self._findings = memory["findings"]
        self._running = None


def count_space(env: VecEnv) -> CountSpace:
    """The channel counts of the first environment."""
    (task,), (smallest,) = env.get_attr("task"), env.get_attr("smallest_counts")
    return CountSpace.of(task, smallest, env.get_attr("limits")[0].upper)
