"""The reward part: what a transition is worth, as named terms that are summed.

Other families: envs/amc_rewards.py, envs/band_reward.py, envs/latency_reward.py and
envs/adaptive_rewards.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pruning.evaluation import Evaluation

if TYPE_CHECKING:
    from pruning.task import PruningTask


def likelihood_kept(evaluation: Evaluation, base: Evaluation) -> float:
    """Likelihood exp(-loss) over that of the unpruned network, in [0, 1].

    Losses below 0 count as 0. Taken from the difference of the losses, since the likelihood of a
    hopeless network is 0 in floating point.
    """
    return math.exp(min(0.0, max(base.loss, 0.0) - max(evaluation.loss, 0.0)))


def accuracy_kept(evaluation: Evaluation, base: Evaluation) -> float:
    """Accuracy, or the user's metric, over that of the unpruned network, in [0, 1].

    Raises:
        ValueError: the unpruned network has none.
    """
    if base.accuracy <= 0.0:
        raise ValueError(
            f"The unpruned network has an accuracy of {base.accuracy}, so none can be kept. "
            f"Check network.checkpoint, or set reward.quality=likelihood."
        )
    return min(1.0, max(0.0, evaluation.accuracy / base.accuracy))


QUALITIES: Mapping[str, Callable[[Evaluation, Evaluation], float]] = {
    "likelihood": likelihood_kept,
    "accuracy": accuracy_kept,
}
"""What can be kept of the unpruned network's quality."""


def check_quality(quality: str) -> None:
    """Refuse a name that is none of QUALITIES.

    Raises:
        ValueError: there is no such quality.
    """
    if quality not in QUALITIES:
        raise ValueError(
            f"The quality is one of {', '.join(QUALITIES)}, got {quality!r}. Change reward.quality."
        )


def quality_kept(quality: str, transition: Transition) -> float:
    """Quality of a measured network over that of the unpruned one, in [0, 1].

    Args:
        quality: one of QUALITIES.
        transition: of a network that was measured.

    Raises:
        ValueError: the unpruned network has no accuracy that could be kept.
    """
    assert transition.evaluation is not None, "a reward needs an evaluation"
    return QUALITIES[quality](transition.evaluation, transition.base)


@dataclass(frozen=True)
class Transition:
    """All that a reward sees.

    Attributes:
        evaluation: of the pruned network on the reward split; None when it was not measured.
        base: the same of the unpruned network.
        relative_macs: MACs left over those of the unpruned network, in [0, 1], as the budget
            counts them.
        macs: MACs left, dense hardware.
        params: parameters left.
        counts: channels left of each site.
        budget_distance: how far `relative_macs` lies outside the budget; 0 when inside.
        finished: whether the episode ends here.
    """

    evaluation: Evaluation | None
    base: Evaluation
    relative_macs: float
    macs: int
    params: int
    counts: tuple[int, ...]
    budget_distance: float
    finished: bool


class Reward(Protocol):
    """Names and scores the parts of one transition; the reward is their sum."""

    @property
    def name(self) -> str:
        """Name of the option in conf/reward."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest sum of the terms."""

    @property
    def pays_for_compression(self) -> bool:
        """Whether a smaller network of equal accuracy is worth more."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """The keys of every result."""

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The terms of a transition whose evaluation is there."""


@runtime_checkable
class TaskReward(Protocol):
    """A reward that has to know what is pruned, and so is completed when an environment is made."""

    def bind(self, task: PruningTask) -> Reward:
        """The reward for one task."""


@runtime_checkable
class AdaptiveReward(Protocol):
    """A reward that depends on the transitions it was asked about before.

    It is a function of their sequence and of nothing else, so asking again in the same order
    restores it. What it pays cannot rank plans, as the same plan is paid differently at another
    time; its merit can.
    """

    @property
    def state(self) -> dict[str, float]:
        """Numbers behind the last result, by name; they are logged."""

    def merit(self, transition: Transition) -> float:
        """What a plan is worth, whenever it is found; changes nothing."""


def merit(reward: Reward, transition: Transition, terms: Mapping[str, float]) -> float:
    """What a plan is worth, to rank it: the reward, or its merit when it is adaptive.

    Args:
        reward: the reward.
        transition: to the plan.
        terms: what the reward gave for it.
    """
    if isinstance(reward, AdaptiveReward):
        return reward.merit(transition)
    return float(sum(terms.values()))


@dataclass(frozen=True)
class AlphaReward:
    """Weighs compression against the quality that is kept.

        alpha * (1 - relative_macs) + (1 - alpha) * min(1, quality / base quality)

    The trade-off named in the abstract of AutoSculpt (https://arxiv.org/abs/2412.18091); neither a
    formula nor an alpha is in its released code, so this form is ours.

    Args:
        alpha: weight of compression in [0, 1]; higher prunes more.
        quality: "likelihood", exp(-loss), which is smooth, or "accuracy" (the user's metric, which
            must not be negative).
    """

    alpha: float = 0.5
    quality: str = "likelihood"

    name = "alpha"
    bounds = (0.0, 1.0)
    pays_for_compression = True
    term_names = ("compression", "quality")

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}. Change reward.alpha.")
        check_quality(self.quality)

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The terms `compression` in [0, alpha] and `quality` in [0, 1 - alpha].

        Raises:
            ValueError: the unpruned network has no accuracy that could be kept.
        """
        return {
            "compression": self.alpha * (1.0 - transition.relative_macs),
            "quality": (1.0 - self.alpha) * quality_kept(self.quality, transition),
        }


@dataclass(frozen=True)
class LogLikelihoodReward:
    """Minus the mean cross-entropy on the reward split: what a smooth search climbs.

    It tells plans apart whose accuracies are equal, and goes on telling them apart where the
    likelihood itself has vanished. It pays nothing for compression: a budget has to see to that.

    Args:
        lowest: what every worse network is paid as well, below 0, so that the reward has bounds.
    """

    lowest: float = -20.0

    name = "log_likelihood"
    pays_for_compression = False
    term_names = ("log_likelihood",)

    def __post_init__(self) -> None:
        if not -math.inf < self.lowest < 0.0:
            raise ValueError(
                f"The lowest reward must be a number below 0, got {self.lowest}. "
                f"Change reward.lowest."
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """From `lowest` to 0, a network that is always right and sure."""
        return self.lowest, 0.0

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The term `log_likelihood` in [lowest, 0]; a user's loss below 0 counts as 0."""
        assert transition.evaluation is not None, "a reward needs an evaluation"
        return {"log_likelihood": -min(max(transition.evaluation.loss, 0.0), -self.lowest)}


@dataclass(frozen=True)
class BandPenalty:
    """A reward, and outside the budget a term that puts it below every reward inside.

    Inside, the term `budget` is 0. Outside it is negative and falls with the distance:

        not measured: min(0, lowest) - distance        (the other terms are 0)
        measured:     min(0, lowest) - highest - distance

    where lowest and highest are the bounds of the reward.

    Args:
        reward: what is paid inside the budget.
    """

    reward: Reward

    @property
    def name(self) -> str:
        """Name of the reward inside the budget."""
        return self.reward.name

    @property
    def bounds(self) -> tuple[float, float]:
        """The distance is at most 1."""
        lowest, highest = self.reward.bounds
        return 2 * min(0.0, lowest) - max(0.0, highest) - 1.0, highest

    @property
    def pays_for_compression(self) -> bool:
        """True: it punishes too much of it, and too little."""
        return True

    @property
    def term_names(self) -> tuple[str, ...]:
        """Those of the reward, and `budget`."""
        return (*self.reward.term_names, "budget")

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The terms of the reward, and `budget`."""
        distance = transition.budget_distance
        lowest, highest = self.reward.bounds
        if transition.evaluation is None:
            assert distance > 0.0, "a network within budget was not measured"
            return {
                **dict.fromkeys(self.reward.term_names, 0.0),
                "budget": min(0.0, lowest) - distance,
            }
        terms = self.reward(transition)
        if distance == 0.0:
            return {**terms, "budget": 0.0}
        return {**terms, "budget": min(0.0, lowest) - max(0.0, highest) - distance}

    @property
    def state(self) -> dict[str, float]:
        """That of an adaptive reward; nothing otherwise."""
        return self.reward.state if isinstance(self.reward, AdaptiveReward) else {}

    def merit(self, transition: Transition) -> float:
        """Inside the merit of the reward, outside what is paid to networks that are not measured.

        A plan outside is never kept, whatever its merit.
        """
        if transition.budget_distance > 0.0:
            return min(0.0, self.reward.bounds[0]) - transition.budget_distance
        if isinstance(self.reward, AdaptiveReward):
            return self.reward.merit(transition)
        return float(sum(self.reward(transition).values()))
