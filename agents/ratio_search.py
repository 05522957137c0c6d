"""Searches over one ratio for all groups: what an agent that proposes plans is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from agents.whole_plans import WholePlanAgent
from graphs.network_graph import Group
from pruning.keep_set import kept_count


@dataclass(frozen=True)
class Trial:
    """One ratio that was tried.

    Attributes:
        ratio: pruning ratio of all groups.
        macs: MACs left.
        met: whether they lie in the band.
        score: reward; only that of plans in the band can be compared.
    """

    ratio: float
    macs: int
    met: bool
    score: float


class RatioSearchAgent(WholePlanAgent, ABC):
    """Tries one ratio for all groups after the other, each at most once as a plan.

    Args:
        env: an environment whose episodes are one step with a Box action of one entry per group,
            and whose budget is a band.
        seed: not used: nothing is random.

    Attributes:
        trials: what was tried, in order.

    Raises:
        ValueError: the environment is another one.
    """

    def __init__(self, env: Any, *, seed: int | None = None) -> None:
        self.trials: list[Trial] = []
        self._plans: Iterator[float] | None = None
        self._ratio = 0.0
        super().__init__(env, seed=seed)

    @property
    def num_proposals(self) -> int:
        """Plans proposed so far."""
        return len(self.trials)

    @abstractmethod
    def _ratios(self, env: Any) -> Iterator[float]:
        """The ratios in order; `trials` holds the outcome of all those before.

        Args:
            env: the pruning environment.
        """

    def _has_next(self, env: VecEnv) -> bool:
        if self._plans is None:
            self._plans = self._ratios(self.pruning_env(env))
        ratio = next(self._plans, None)
        if ratio is None:
            return False
        self._ratio = ratio
        return True

    def _propose(self, env: VecEnv) -> np.ndarray:
        groups = self.pruning_env(env).task.graph.groups
        return self._encode(env, executed_ratios(groups, self._ratio))

    def _take_in(self, action: np.ndarray, reward: float, done: bool) -> None:
        record = self.pruning_env(self._attached_env()).history[-1]
        self.trials.append(Trial(self._ratio, record.macs, record.met, record.score))

    def _best_ratios(self) -> Mapping[str, float] | None:
        met = [trial for trial in self.trials if trial.met]
        if not met:
            return None
        groups = self.pruning_env(self._attached_env()).task.graph.groups
        return executed_ratios(groups, max(met, key=lambda trial: trial.score).ratio)

    def _memory(self) -> list[dict[str, Any]]:
        return [asdict(trial) for trial in self.trials]

    def _remember(self, memory: list[dict[str, Any]]) -> None:
        self.trials = [Trial(**trial) for trial in memory]


class BisectionAgent(RatioSearchAgent):
    """Bisects one ratio until the MACs lie in the band, then tries every other plan in the band.

    MACs never grow with the ratio, so each proposal halves the plans that are left: the natural
    rival of an agent that searches one ratio with a language model. Those that share the band are
    known from the analytic cost and are tried from the largest network to the smallest.

    Args:
        env: an environment whose episodes are one step with a Box action of one entry per group,
            and whose budget is a band.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: not used: nothing is random.
        verbose: not used.

    Raises:
        ValueError: the environment is another one.
    """

    def __init__(
        self, env: Any, *, policy: Any = None, seed: int | None = None, verbose: int = 0
    ) -> None:
        super().__init__(env, seed=seed)

    def _ratios(self, env: Any) -> Iterator[float]:
        groups, limits = env.task.graph.groups, env.limits
        ladder = distinct_ratios(groups, max(env.largest_ratios().values()))
        low, high = 0, len(ladder)  # of plans not ruled out yet
        while low < high:
            middle = (low + high) // 2
            yield ladder[middle]
            trial = self.trials[-1]
            if trial.met:
                break
            low, high = (middle + 1, high) if trial.macs > limits.upper else (low, middle)
        else:
            return  # no plan of one ratio lies in the band
        for index, ratio in enumerate(ladder):
            counts = [kept_count(group, ratio) for group in groups]
            if index != middle and limits.met(env.task.cost.macs_of_counts(counts)):
                yield ratio


class GridAgent(RatioSearchAgent):
    """Tries the ratios of a grid, from mild to heavy.

    Args:
        env: an environment whose episodes are one step with a Box action of one entry per group,
            and whose budget is a band.
        num_ratios: equally spaced in (0, max_ratio], at least 1; those that round to a plan tried
            before are left out.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: not used: nothing is random.
        verbose: not used.

    Raises:
        ValueError: `num_ratios` is out of range, or the environment is another one.
    """

    def __init__(
        self,
        env: Any,
        *,
        num_ratios: int = 50,
        policy: Any = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        if num_ratios < 1:
            raise ValueError(
                f"num_ratios={num_ratios}: wanted is a whole number of at least 1. "
                f"Change agent.num_ratios."
            )
        self.num_ratios = num_ratios
        super().__init__(env, seed=seed)

    def _ratios(self, env: Any) -> Iterator[float]:
        groups = env.task.graph.groups
        largest = max(env.largest_ratios().values())
        seen = set()
        for ratio in np.linspace(0.0, largest, self.num_ratios + 1)[1:].tolist():
            counts = tuple(kept_count(group, ratio) for group in groups)
            if counts not in seen:
                seen.add(counts)
                yield ratio

    def _settings(self) -> dict[str, Any]:
        return {"num_ratios": self.num_ratios}


def executed_ratios(groups: tuple[Group, ...], ratio: float) -> dict[str, float]:
    """The ratio of every group after rounding to channels.

    Args:
        groups: the groups of the network.
        ratio: asked for in all of them, in [0, 1].
    """
    return {group.name: 1.0 - kept_count(group, ratio) / group.size for group in groups}


def distinct_ratios(groups: tuple[Group, ...], largest: float) -> list[float]:
    """Ratios that give every plan of one ratio exactly once, ascending.

    Args:
        groups: the groups of the network.
        largest: largest ratio, in [0, 1].

    Returns:
        Ratios in [0, largest]; their MACs never grow.
    """
    # Halfway between two counts a group changes; a ratio between two neighbouring changes is safe.
    changes = {
        min(largest, (removed - 0.5) / group.size)
        for group in groups
        for removed in range(1, group.size + 1)
    }
    edges = np.unique([0.0, *changes, largest])
    ratios, seen = [], set()
    for ratio in [0.0, *((edges[:-1] + edges[1:]) / 2.0).tolist(), largest]:
        counts = tuple(kept_count(group, float(ratio)) for group in groups)
        if counts not in seen:
            seen.add(counts)
            ratios.append(float(ratio))
    return ratios
