"""The shaping part: what is paid on the way of a layerwise episode, before anything is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from envs.problem import Problem, State


class BoundShaping(Protocol):
    """A shaping part bound to one problem."""

    def pay(self, before: State, after: State, finished: bool) -> dict[str, float]:
        """The terms of one step, to be added to those of the reward.

        Args:
            before: the state in which the action was taken.
            after: the state it led to.
            finished: whether the episode ends there.
        """

    def merit(self, state: State) -> float:
        """What the terms of a whole episode that ends in `state` add to the worth of its plan."""


class Shaping(Protocol):
    """Pays at every step."""

    @property
    def name(self) -> str:
        """Name of the option in conf/env/shaping."""

    def bind(self, problem: Problem) -> BoundShaping:
        """The shaping part for one problem."""


@dataclass(frozen=True)
class LocalErrorShaping:
    """Pays minus the local error of each site as soon as the site is decided.

    The local error of a site (`pruning.local_error`) is known from the unpruned network's
    activations, without an evaluation, while the reward of a layerwise episode comes with its last
    step. With e the local errors of the sites decided so far, a step pays the difference of the
    potential - weight * sum(e), so that all steps pay - weight * (sum of all local errors).

    With `refund` the potential of the last state is 0: the last step gives back all that was paid,
    a whole episode is worth what the reward says, and the best plan stays the same (potential-based
    shaping; Ng, Harada and Russell, "Policy invariance under reward transformations", ICML 1999).
    That holds for undiscounted returns, `agent.gamma=1`. An agent whose returns reach to the end of
    the episode learns nothing from a refund but another baseline; it matters to agents that look
    less far ahead, such as PPO with `agent.gae_lambda` below 1. Without `refund` the local errors
    are a part of the objective, also where plans are ranked, and a ruined plan inside a budget band
    may be paid less than a mild one outside.

    Only removed channels have a local error; weights that a pattern masks have none.

    Args:
        weight: what a local error of 1, the whole output of one operator, costs; above 0.
        refund: whether the last step gives it back.

    Raises:
        ValueError: the weight is out of range.
    """

    weight: float = 0.1
    refund: bool = True

    name = "local_error"

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < math.inf:
            raise ValueError(
                f"The weight of local errors must be a number above 0, got {self.weight}. "
                f"Change env.shaping.weight, or set env/shaping=none."
            )

    def bind(self, problem: Problem) -> BoundShaping:
        """Local errors of the groups of `problem`."""
        return BoundLocalErrorShaping(problem, self.weight, refund=self.refund)


class BoundLocalErrorShaping:
    """`LocalErrorShaping` bound to a problem.

    Args:
        problem: what is pruned.
        weight: see `LocalErrorShaping`.
        refund: see `LocalErrorShaping`.

    Raises:
        ValueError: local errors cannot be measured.
    """

    def __init__(self, problem: Problem, weight: float, *, refund: bool) -> None:
        self._errors = problem.task.local_errors
        self._sizes = problem.sizes
        self._weight = weight
        self._refund = refund

    def pay(self, before: State, after: State, finished: bool) -> dict[str, float]:
        """The term `local_error`: at most 0, but for the last step with a refund."""
        following = 0.0 if finished and self._refund else self._potential(after)
        return {"local_error": following - self._potential(before)}

    def merit(self, state: State) -> float:
        """Nothing with a refund."""
        return 0.0 if self._refund else self._potential(state)

    def _potential(self, state: State) -> float:
        kept = state.assignment.counts / self._sizes
        return -self._weight * float(self._errors(kept[None])[0][state.decided].sum())
