"""The decision process: a Gymnasium environment assembled from parts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from envs.actions import Action
from envs.budgets import Budget, Limits
from envs.episodes import Episode
from envs.observations import Observation
from envs.problem import Assignment, CostMeter, Problem, State, nonzero_macs
from envs.recording import EpisodeRecord, EpisodeSink
from envs.rendering import draw_bars, write_bars
from envs.rewards import BandPenalty, Reward, Transition, likelihood_kept
from pruning.evaluation import Evaluation
from pruning.plan import Candidate
from pruning.task import PruningTask

REFUSED = {
    ("env/episode", "whole", "budget", "wall"): (
        "a wall bounds one decision at a time. Use budget=project (ratios) or budget=band"
    ),
    ("env/episode", "layerwise", "budget", "project"): (
        "a projection scales all decisions at once. Use budget=wall"
    ),
    ("env/action", "pattern", "budget", "project"): (
        "a projection scales ratios, and patterns are not ratios. Use budget=band"
    ),
}
"""Pairs of parts that make no sense together, and what to do instead."""


class PruningEnv(gymnasium.Env[Any, Any]):
    """Decides what to cut from a trained network.

    ## Description
    The sites of the decision are the dependency groups of a network: channels that can only be
    removed together. An action says what each site loses; the network is really cut, its batch
    norms are recalibrated, and its accuracy is measured on the reward split. The task owns the
    network, its data and the measuring; what the agent sees, may do and is paid for are parts.

    ## Action Space
    | part | episode | space | meaning |
    |---|---|---|---|
    | `ratio` | layerwise | `Box(-1, 1, (1,))` | ratio of the site, linear in [0, max_ratio] |
    | `ratio` | whole | `Box(-1, 1, (S,))` | the same for all sites |
    | `allocation` | layerwise | `Box(-1, 1, (1,))` | log factor on the uniform kept fraction |
    | `allocation` | whole | `Box(-1, 1, (S,))` | the same for all sites |
    | `pattern` | layerwise | `Discrete(P)` | entry of the pattern library |
    | `pattern` | whole | `MultiDiscrete([P] * S)` | the same for all sites |

    The budget may bound or scale ratios, and an invalid pattern becomes the nearest valid milder
    channel pattern; `info["clamps"]` counts both. `action_masks()` says which patterns are valid.

    ## Observation Space
    | part | episode | space | meaning |
    |---|---|---|---|
    | `layer` | layerwise | `Box(0, 1, (11,))` | AMC's features of the current site |
    | `layer` | whole | `Box(0, 1, (S * 11,))` | the same for all sites |
    | `graph` | both | `GraphObservationSpace` | the whole network; see graphs/observation.py |

    ## Rewards
    Named terms, summed, in `info["reward_terms"]`. Layerwise they are paid at the last step, and
    the others pay 0. Outside a budget band the network is not measured, and the reward is below
    every reward inside.

    ## Starting State
    The unpruned network, nothing decided. Nothing is random: the same actions give the same
    episode, whatever the seed.

    ## Episode End
    Layerwise: terminated when every site is decided. Whole: terminated inside the budget band,
    truncated after `max_steps`; with one step it is always terminated.

    ## Arguments
    Every part is one small object; see the classes in envs/. Pairs that make no sense are refused.

    ## Version History
    * v0: first version

    Args:
        task: network, data, sites, patterns and evaluator.
        observation: what the agent sees.
        action: what the agent may do.
        episode: how the sites are walked through.
        budget: how many MACs may be left.
        reward: what an outcome is worth.
        sinks: take every finished episode.
        render_mode: "rgb_array", "ansi" or None.

    Attributes:
        task: as given.
        history: a record of every finished episode.
        best: the measured network within budget that had the highest reward, of any step of any
            episode; None before the first.

    Raises:
        ValueError: parts that do not fit together, a budget that cannot be reached, or an unknown
            render mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        task: PruningTask,
        *,
        observation: Observation,
        action: Action,
        episode: Episode,
        budget: Budget,
        reward: Reward,
        sinks: Sequence[EpisodeSink] = (),
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode must be one of {', '.join(self.metadata['render_modes'])} or None, "
                f"got {render_mode!r}."
            )
        _check_parts(action, episode, budget, reward)
        self.task = task
        self.render_mode = render_mode
        self.history: list[EpisodeRecord] = []
        self.best: EpisodeRecord | None = None
        self._sinks = tuple(sinks)
        self._reward: Reward = BandPenalty(reward) if budget.can_be_missed else reward
        actions = action.bind(task, episode.is_sequential)
        meter = CostMeter(task, actions, budget.cost)
        smallest = actions.smallest(meter)
        self._problem = Problem(
            task=task,
            is_sequential=episode.is_sequential,
            horizon=episode.horizon(len(task.sites)),
            actions=actions,
            budget=budget,
            limits=budget.limits(meter.base, meter(smallest)),
            meter=meter,
            smallest=smallest,
        )
        self._view = observation.view(self._problem)
        self.action_space = actions.space
        self.observation_space = self._view.space
        self._state: State = self._problem.initial()
        self._mask: np.ndarray | None = None
        self._is_running = False
        self._start_episode()

    @property
    def num_evaluations(self) -> int:
        """Counted evaluations of the task; all that share the task count together."""
        return self.task.evaluator.num_evaluations

    @property
    def horizon(self) -> int:
        """Most steps of an episode."""
        return self._problem.horizon

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start from the unpruned network."""
        super().reset(seed=seed)
        self._start_episode()
        self._is_running = True
        return self._observe(), self._info({})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Execute an action and, layerwise at the end, measure the network."""
        if not self._is_running:
            raise gymnasium.error.ResetNeeded("The episode is over: call reset() before step().")
        problem, previous = self._problem, self._state
        assignment, clamps = problem.actions.execute(problem, previous, action)
        self._clamps += clamps
        self._record_action(action)
        self._state = self._successor(assignment)
        terminated, truncated = self._ends()
        finished = terminated or truncated
        terms: dict[str, float] = {}
        record = None
        if finished or not problem.is_sequential:
            record, terms = self._assess(finished)
        reward = float(sum(terms.values()))
        self._mask = problem.actions.mask(problem, self._state)
        info = self._info(terms)
        if record is not None and finished:
            self._finish(record)
            info["record"] = record
        return self._observe(), reward, terminated, truncated, info

    def action_masks(self) -> np.ndarray:
        """Which choices are allowed now, flat as sb3-contrib's MaskablePPO wants it.

        Returns:
            bool array of shape (P,) layerwise, (S * P,) in whole episodes.

        Raises:
            ValueError: actions are ratios, which have no mask.
        """
        if self._mask is None:
            raise ValueError(
                "Ratio actions have no mask. Set env/action=pattern, or take an agent that needs "
                "no mask."
            )
        return self._mask.ravel().copy()

    def encode_ratios(self, ratios: Mapping[str, float]) -> Any:
        """The action of the current step that comes closest to pruning by the given ratios.

        Args:
            ratios: pruning ratio in [0, 1) by group name; groups left out are kept whole.

        Returns:
            An element of the action space. With patterns, the nearest valid channel pattern.

        Raises:
            ValueError: a group that the network does not have.
        """
        for name in ratios:
            self.task.graph.group(name)
        return self._problem.actions.encode(self._problem, self._state, ratios)

    @property
    def limits(self) -> Limits:
        """The budget in MACs of this network."""
        return self._problem.limits

    def largest_ratios(self) -> dict[str, float]:
        """The largest pruning ratio that an action can give each group, in [0, 1)."""
        removed = self._problem.actions.removed(self._problem.smallest)
        return {site.group: float(r) for site, r in zip(self.task.sites, removed, strict=True)}

    def uniform_ratios(self) -> dict[str, float]:
        """Nearly equal pruning ratios per group that meet the budget; none without a budget."""
        return dict(self._problem.actions.uniform(self._problem, self._problem.limits.upper))

    def render(self) -> Any:
        """The kept fraction of every site, as a picture or as text."""
        if self.render_mode is None:
            gymnasium.logger.warn("Nothing is drawn: give render_mode to gymnasium.make.")
            return None
        state = self._state
        kept = 1.0 - self._problem.actions.removed(state.assignment)
        if self.render_mode == "rgb_array":
            return draw_bars(kept, state.decided, state.site)
        labels = [str(value) for _, value in self._executed(state.assignment)]
        names = [site.name for site in self.task.sites]
        return write_bars(names, kept, labels, state.site)

    def close(self) -> None:
        """Close the sinks."""
        for sink in self._sinks:
            sink.close()

    def _start_episode(self) -> None:
        self._state = self._problem.initial()
        self._mask = self._problem.actions.mask(self._problem, self._state)
        self._clamps = 0
        self._reward_sum = 0.0
        self._raw_action: tuple[float, ...] = ()
        self._started = time.perf_counter()

    def _record_action(self, action: Any) -> None:
        raw = tuple(float(value) for value in np.atleast_1d(np.asarray(action)))
        self._raw_action = (*self._raw_action, *raw) if self._problem.is_sequential else raw

    def _successor(self, assignment: Assignment) -> State:
        """The state after an assignment; its quality is known once it is measured."""
        problem, state = self._problem, self._state
        decided = state.decided.copy()
        site = state.site
        if site is None:
            decided[:] = True
        else:
            decided[site] = True
            site = site + 1 if site + 1 < problem.num_sites else None
        return State(
            step=state.step + 1,
            site=site,
            assignment=assignment,
            decided=decided,
            cost=problem.meter(assignment),
            quality=state.quality,
        )

    def _ends(self) -> tuple[bool, bool]:
        """Whether the episode is terminated, and whether it is truncated."""
        problem, state = self._problem, self._state
        is_last = state.step >= problem.horizon
        if problem.is_sequential or problem.horizon == 1:  # nothing would follow one step
            return is_last, False
        terminated = problem.budget.can_be_missed and problem.limits.met(state.cost)
        return terminated, is_last and not terminated

    def _assess(self, finished: bool) -> tuple[EpisodeRecord, dict[str, float]]:
        """Measure the current network, unless it is outside a band, and reward it."""
        problem, state, task = self._problem, self._state, self.task
        decisions = problem.actions.decisions(state.assignment)
        candidate = task.candidate(decisions)
        assert np.array_equal(candidate.keep.counts, state.assignment.counts), (
            "the task executes other counts than the environment assigned"
        )
        met = problem.limits.met(state.cost)
        evaluation = self._evaluate(candidate) if met or problem.budget.evaluate_outside else None
        if evaluation is not None:
            quality = likelihood_kept(evaluation, task.base)
            self._state = dataclasses.replace(state, quality=quality)
        macs, params = task.cost.macs(candidate.keep), task.cost.params(candidate.keep)
        transition = Transition(
            evaluation=evaluation,
            base=task.base,
            relative_macs=state.cost / problem.meter.base,
            macs=macs,
            params=params,
            budget_distance=problem.limits.distance(state.cost),
            finished=finished,
        )
        terms = self._reward(transition)
        score = float(sum(terms.values()))
        self._reward_sum += score
        record = EpisodeRecord(
            episode=len(self.history),
            steps=state.step,
            evaluations=self.num_evaluations,
            cached=evaluation is not None and evaluation.cached,
            reward=self._reward_sum,
            score=score,
            reward_terms=dict(terms),
            accuracy=None if evaluation is None else evaluation.accuracy,
            loss=None if evaluation is None else evaluation.loss,
            relative_macs=transition.relative_macs,
            macs=macs,
            nonzero_macs=nonzero_macs(task, candidate),
            params=params,
            met=met,
            raw_action=self._raw_action,
            executed=self._executed(state.assignment),
            clamps=self._clamps,
            seconds=time.perf_counter() - self._started,
            plan=task.plan(decisions, candidate),
        )
        is_better = self.best is None or score > self.best.score
        if met and evaluation is not None and is_better:
            self.best = record
        return record, terms

    def _evaluate(self, candidate: Candidate) -> Evaluation:
        overlay = self.task.overlay(candidate) if candidate.masks else None
        return self.task.evaluator.evaluate(candidate, overlay=overlay)

    def _finish(self, record: EpisodeRecord) -> None:
        self._is_running = False
        self.history.append(record)
        for sink in self._sinks:
            sink.write(record)

    def _executed(self, assignment: Assignment) -> tuple[tuple[str, float | str], ...]:
        """Name of each site, and the ratio or the name of the pattern executed there."""
        return tuple(
            (decision.site, value)
            for decision in self._problem.actions.decisions(assignment)
            for value in (decision.pattern, decision.ratio)
            if value is not None
        )

    def _observe(self) -> Any:
        return self._view.observe(self._state, self._mask)

    def _info(self, terms: Mapping[str, float]) -> dict[str, Any]:
        state, problem = self._state, self._problem
        return {
            "reward_terms": dict(terms),
            "relative_macs": state.cost / problem.meter.base,
            "met": problem.limits.met(state.cost),
            "clamps": self._clamps,
        }


def _check_parts(action: Action, episode: Episode, budget: Budget, reward: Reward) -> None:
    """Refuse parts that make no sense together.

    Raises:
        ValueError: the message names both keys.
    """
    parts = {
        "env/action": action.name,
        "env/episode": episode.name,
        "budget": budget.name,
    }
    for (first, one, second, other), reason in REFUSED.items():
        if parts[first] == one and parts[second] == other:
            raise ValueError(f"{first}={one} and {second}={other} do not go together: {reason}.")
    if not reward.pays_for_compression and budget.name == "none":
        raise ValueError(
            f"reward={reward.name} and budget=none do not go together: neither asks for a smaller "
            f"network, so the best plan would be to prune nothing. Set a budget, or "
            f"reward=alpha."
        )
