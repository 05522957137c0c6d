"""What searches found, ranked among all plans of a space that was measured as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from envs.pruning_env import PruningEnv

TOLERANCE = 1e-9
"""Rewards that differ by less are those of equally good plans."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True)
class Trace:
    """What one search measured.

    Attributes:
        evaluations: counted evaluations when each plan within the budget was proposed.
        scores: its reward.
    """

    evaluations: tuple[int, ...]
    scores: tuple[float, ...]

    def best_after(self, count: int) -> float:
        """Highest reward within the first `count` evaluations; -inf before the first plan."""
        known = [s for e, s in zip(self.evaluations, self.scores, strict=True) if e <= count]
        return max(known, default=-math.inf)


class TraceCallback(BaseCallback):
    """Notes every plan within the budget, whether or not its episode ended with it.

    Args:
        env: the environment of the search; its episodes are whole.

    Attributes:
        evaluations, scores: see `Trace`.
    """

    def __init__(self, env: PruningEnv) -> None:
        super().__init__()
        self.env = env
        self.evaluations: list[int] = []
        self.scores: list[float] = []

    def _on_step(self) -> bool:
        (info,) = self.locals["infos"]
        if info["met"]:
            self.evaluations.append(self.env.num_evaluations)
            self.scores.append(float(sum(info["reward_terms"].values())))
        return True


class Ranking:
    """All plans of a space, from the best to the worst.

    Args:
        scores: rewards of all plans within the budget, at least one, in any order.

    Attributes:
        scores: the rewards in falling order, float64 (n,).
        best: the highest.
        num_best: how many plans share it.
    """

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
        self.best = float(self.scores[0])
        self.num_best = int((self.scores >= self.best - TOLERANCE).sum())

    def rank(self, score: float) -> float:
        """1 for the best plan: one more than there are better plans; infinity for -infinity."""
        if score == -math.inf:
            return math.inf
        return 1.0 + int((self.scores > score + TOLERANCE).sum())

    def rank_after(self, trace: Trace, count: int) -> float:
        """Rank of the best plan within the first `count` evaluations; infinity when there is none.

        A search that ended sooner keeps what it has.
        """
        return self.rank(trace.best_after(count))

    def found_after(self, trace: Trace) -> int | None:
        """Evaluations after which a best plan had been measured; None when it never was."""
        pairs = zip(trace.evaluations, trace.scores, strict=True)
        return next((count for count, score in pairs if score >= self.best - TOLERANCE), None)

    @property
    def expected_evaluations(self) -> float:
        """Mean number of plans drawn without replacement until a best one is among them."""
        return (len(self.scores) + 1) / (self.num_best + 1)

    def chance_to_find(self, count: int) -> float:
        """Probability that a best plan is among `count` drawn without replacement."""
        total, others = len(self.scores), len(self.scores) - self.num_best
        drawn = min(count, total)
        return 1.0 - math.comb(others, drawn) / math.comb(total, drawn)

    def expected_rank(self, count: int) -> float:
        """Mean rank of the best of `count` plans drawn without replacement.

        The smallest of m numbers drawn without replacement from 1..n has the mean (n + 1)/(m + 1);
        ranks of equal rewards are a little smaller, since plans share the best of their ranks.
        """
        total = len(self.scores)
        drawn = min(count, total)
        # P(the i best are all missed), summed over the ranks that plans really have
        ranks = np.array([self.rank(score) for score in self.scores])
        missed = [math.comb(total - i, drawn) / math.comb(total, drawn) for i in range(total + 1)]
        return float(
            sum(rank * (missed[i] - missed[i + 1]) for i, rank in enumerate(ranks.tolist()))
        )


def to_json(
    ranking: Ranking, traces: Mapping[str, Sequence[Trace]], after: Sequence[int]
) -> dict[str, Any]:
    """All figures as plain data; null where an agent had no plan yet."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "plans": len(ranking.scores),
        "best_reward": ranking.best,
        "best_plans": ranking.num_best,
        "random_expected": {
            "evaluations": ranking.expected_evaluations,
            "rank_after": {str(n): ranking.expected_rank(n) for n in after},
        },
        "agents": {
            label: {
                "found_after": [ranking.found_after(run) for run in runs],
                "rank_after": {
                    str(n): [finite(ranking.rank_after(run, n)) for run in runs] for n in after
                },
            }
            for label, runs in traces.items()
        },
    }


def draw_ranks(
    ranking: Ranking, traces: Mapping[str, Sequence[Trace]], evaluations: int, path: Path
) -> None:
    """Rank of the best plan so far over the evaluations, beside what random draws expect.

    Args:
        ranking: all plans.
        traces: searches by agent.
        evaluations: largest count that is drawn.
        path: PNG file to write.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from experiments.figures import STYLE

    counts = range(1, evaluations + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.6), layout="constrained")
        axes = figure.subplots()
        for index, (label, runs) in enumerate(traces.items()):
            colour = COLOURS[index % len(COLOURS)]
            ranks = np.array([[ranking.rank_after(run, n) for n in counts] for run in runs])
            ranks = np.minimum(ranks, len(ranking.scores))
            axes.fill_between(
                counts, ranks.min(0), ranks.max(0), step="post", color=colour, alpha=0.13, lw=0
            )
            axes.step(
                counts,
                np.median(ranks, axis=0),
                where="post",
                color=colour,
                linewidth=2.2,
                label=f"{label}: median and range of {len(runs)} seeds",
            )
        axes.plot(
            counts,
            [ranking.expected_rank(n) for n in counts],
            color="#444444",
            linestyle="--",
            linewidth=1.4,
            label="random draws, expected",
        )
        axes.set_yscale("log")
        axes.set_ylim(len(ranking.scores), 0.9)
        ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n <= len(ranking.scores)]
        axes.set_yticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.set_xlim(1, evaluations)
        axes.set_xlabel("evaluations")
        axes.set_ylabel(f"rank among all {len(ranking.scores)} plans")
        axes.set_title("How good is the best plan so far?")
        axes.legend(loc="lower right")
        figure.savefig(path)
