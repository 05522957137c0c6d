"""What processes that measure side by side save: the same candidates with and without them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.stopwatch import Taken, timed
from pruning.evaluation_pool import EvaluationPool
from pruning.keep_set import KeepSet
from pruning.plan import Candidate
from pruning.task import PruningTask

GOAL = 1.6
"""Wanted with two processes on two idle cores: so many times the speed of one after the other."""


@dataclass(frozen=True)
class ParallelFigures:
    """Candidates measured one after the other and side by side.

    Attributes:
        workers: processes of the pool.
        candidates: candidates per round.
        one_by_one: of each round, how long the main process took for all of them.
        pooled: of each round, how long the pool took for the same ones.
        equal: whether both measured the same, to the bit.
        load: programs that wanted a core when it began, on average over a minute.
        cores: cores that this process may use.
    """

    workers: int
    candidates: int
    one_by_one: Sequence[Taken]
    pooled: Sequence[Taken]
    equal: bool
    load: float
    cores: int

    @property
    def ratios(self) -> list[float]:
        """One after the other over side by side, of each round; higher is better."""
        pairs = zip(self.one_by_one, self.pooled, strict=True)
        return [alone.wall / pooled.wall for alone, pooled in pairs]

    @property
    def sentence(self) -> str:
        """The figures in words."""
        alone, pooled = (
            1e3 * statistics.median(taken.wall for taken in rounds)
            for rounds in (self.one_by_one, self.pooled)
        )
        ratios = self.ratios
        return (
            f"{self.candidates} new candidates take {alone:.0f} ms one after the other and "
            f"{pooled:.0f} ms in {self.workers} processes (medians of {len(ratios)} rounds): "
            f"{statistics.median(ratios):.2f} times as fast, {min(ratios):.2f} to "
            f"{max(ratios):.2f}. Load {self.load:.1f} on {self.cores} cores before it began; "
            f"{GOAL} times or more is wanted of 2 processes on 2 idle cores. Both measured "
            f"{'the same to the bit' if self.equal else 'DIFFERENT things'}."
        )


def measure_parallel(
    task: PruningTask,
    counts: Sequence[int] | np.ndarray,
    *,
    workers: int,
    candidates: int,
    rounds: int,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> ParallelFigures:
    """Measure new candidates one after the other and in a pool, in turns.

    Nothing is counted or cached: both sides measure every candidate.

    Args:
        task: what is pruned; its evaluator measures.
        counts: kept channels per group, int of shape (num_groups,).
        workers: processes of the pool, at least 1.
        candidates: candidates per round, at least 1.
        rounds: rounds that count, at least 1; one more comes first and does not.
        seed: of the channels that are kept.
        advance: called after every round.
    """
    rng = np.random.default_rng(seed)
    load = os.getloadavg()[0]
    alone: list[Taken] = []
    pooled: list[Taken] = []
    equal = True
    with EvaluationPool(task.evaluator, workers) as pool:
        for number in range(-1, rounds):
            asked = [_candidate(task, counts, rng) for _ in range(candidates)]

            def one_by_one(asked: Sequence[Candidate] = asked) -> list[object]:
                return [task.evaluator.outcome(each) for each in asked]

            def side_by_side(asked: Sequence[Candidate] = asked) -> list[object]:
                return list(pool.measure(asked).values())

            # who comes first alternates: other programs come and go meanwhile
            turns = [(alone, one_by_one), (pooled, side_by_side)]
            measured = []
            for taken_so_far, way in turns if number % 2 else turns[::-1]:
                taken, outcomes = timed(way)
                measured.append(outcomes)
                if number >= 0:  # in the first round every worker unpacks network and images
                    taken_so_far.append(taken)
            equal = equal and measured[0] == measured[1]
            advance()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ParallelFigures(workers, candidates, alone, pooled, equal, load, cores or 1)


def _candidate(
    task: PruningTask, counts: Sequence[int] | np.ndarray, rng: np.random.Generator
) -> Candidate:
    scores = {group.name: rng.random(group.size) for group in task.graph.groups}
    return Candidate(KeepSet.from_counts(task.graph, counts, scores))
