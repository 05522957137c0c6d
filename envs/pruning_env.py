"""The decision process: a Gymnasium environment assembled from parts."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from envs.actions import Action
from envs.band_reward import BandReward
from envs.budgets import Budget
from envs.compatibility import check_parts
from envs.episodes import Episode
from envs.observations import Observation
from envs.problem import Assignment, CostMeter, Problem, State, nonzero_macs
from envs.problem_view import ProblemView
from envs.recording import EpisodeLog, EpisodeRecord, EpisodeSink, by_score
from envs.rendering import draw_bars, write_bars
from envs.rewards import (
    AdaptiveReward,
    BandPenalty,
    Reward,
    TaskReward,
    Transition,
    likelihood_kept,
    merit,
)
from envs.shaping import Shaping
from pruning.plan import Candidate
from pruning.task import PruningTask


class PruningEnv(ProblemView, gymnasium.Env[Any, Any]):
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
    The least important channels go; `rank_by` changes the importance for one episode.

    ## Observation Space
    | part | episode | space | meaning |
    |---|---|---|---|
    | `layer` | layerwise | `Box(0, 1, (11,))` | AMC's features of the current site |
    | `layer` | whole | `Box(0, 1, (S * 11,))` | the same for all sites |
    | `graph` | both | `GraphObservationSpace` | the whole network; see graphs/observation.py |

    Both can hold more about every site, from activations or from counted evaluations that are made
    when the environment is; see envs/cut_features.py.

    ## Rewards
    Named terms, summed, in `info["reward_terms"]`. Layerwise they are paid at the last step, and
    the others pay 0, or what the shaping says. Outside a budget band the network is not measured,
    and the reward is below every reward inside. `info["reward_state"]` has the numbers behind a
    reward that depends on earlier results, such as its multiplier.

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
        shaping: what is paid for every site as it is decided, layerwise; None for nothing.
        sinks: take every finished episode.
        render_mode: "rgb_array", "ansi" or None.
        rank: key of a measured record within budget; `best` has the highest. The reward of the
            step by default.

    Attributes:
        task: as given.

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
        shaping: Shaping | None = None,
        sinks: Sequence[EpisodeSink] = (),
        render_mode: str | None = None,
        rank: Callable[[EpisodeRecord], Any] | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode must be one of {', '.join(self.metadata['render_modes'])} or None, "
                f"got {render_mode!r}."
            )
        reward = reward.bind(task) if isinstance(reward, TaskReward) else reward
        check_parts(action, episode, budget, reward, shaping)
        self.task = task
        self.render_mode = render_mode
        self._log = EpisodeLog(tuple(sinks), rank=rank or by_score)
        is_penalised = budget.can_be_missed and not isinstance(reward, BandReward)
        self._reward: Reward = BandPenalty(reward) if is_penalised else reward
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
        self._shaping = None if shaping is None else shaping.bind(self._problem)
        self._view = observation.view(self._problem)
        self.action_space = actions.space
        self.observation_space = self._view.space
        self._state: State = self._problem.initial()
        self._raw_action: tuple[float, ...] = ()
        self._mask: np.ndarray | None = None
        self._is_running = False
        self._start_episode()

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
        problem = self._problem
        assignment, clamps = self._execute(action)
        self._clamps += clamps
        self._record_action(action)
        before, self._state = self._state, problem.successor(self._state, assignment)
        terminated, truncated = problem.ends(self._state)
        finished = terminated or truncated
        terms = self._paid(before, finished)
        record = None
        if finished or not problem.is_sequential:
            record, terms = self._assess(finished, terms)
        else:
            self._reward_sum += float(sum(terms.values()))
        reward = float(sum(terms.values()))
        self._mask = problem.actions.mask(problem, self._state)
        info = self._info(terms)
        if record is not None and finished:
            self._finish(record)
            info["record"] = record
        return self._observe(), reward, terminated, truncated, info

    def foresee(self, action: Any) -> Candidate | None:
        """The candidate that `step(action)` would ask the evaluator for; nothing changes.

        Returns:
            The candidate, or None when that step would measure nothing.
        """
        problem = self._problem
        assignment, _ = self._execute(action)
        state = problem.successor(self._state, assignment)
        is_assessed = not problem.is_sequential or any(problem.ends(state))
        if not is_assessed or not problem.measures(state):
            return None
        return self.task.candidate(problem.actions.decisions(assignment))

    def rank_by(self, importance: str | None) -> None:
        """Let the channels go by another importance, at all sites, until the episode ends.

        An action says how many channels go, the importance says which. The next `reset` brings back
        the task's own.

        Args:
            importance: one of `task.importances`; None for the task's own.

        Raises:
            ValueError: no such importance, or it cannot score this network.
        """
        self.task.scores_by(importance)
        assignment = dataclasses.replace(self._state.assignment, importance=importance)
        self._state = dataclasses.replace(self._state, assignment=assignment)

    def sibling(self) -> PruningEnv:
        """Another environment of the same problem, at its first step.

        It shares task, history, best and sinks; episodes of both are told apart by their number.
        """
        other = copy.copy(self)
        other._is_running = False
        other._start_episode()
        return other

    def measure_counts(self, counts: Sequence[int] | np.ndarray) -> EpisodeRecord:
        """Measure the network with these kept counts: an episode of one exact decision.

        For agents that search over channel counts: nothing is clipped, scaled or rounded, and
        networks outside the budget are measured too. In all else it is an episode like any other:
        counted, recorded, written to the sinks, and `best` when it is within budget and better. An
        episode that is under way ends.

        Args:
            counts: kept channels per group, shape (S,), allowed ones by `round_to` and not below
                `smallest_counts`.

        Returns:
            The record of the episode.

        Raises:
            ValueError: actions are patterns, or counts are not allowed.
        """
        return self._measure_assignment(self._problem.with_counts(counts))

    def measure_again(self, record: EpisodeRecord) -> EpisodeRecord:
        """Measure the plan of a record once more: an episode of one exact decision.

        It costs an evaluation when more images are used now than then, and none otherwise.

        Args:
            record: a measured episode of this environment.
        """
        return self._measure_assignment(self._problem.of_plan(record.plan))

    def _measure_assignment(self, assignment: Assignment) -> EpisodeRecord:
        """An episode of one exact decision, measured within the budget or not."""
        problem = self._problem
        self._start_episode()
        self._raw_action = tuple(problem.actions.removed(assignment).tolist())
        self._state = State(
            step=1,
            site=None,
            assignment=assignment,
            decided=np.ones(problem.num_sites, dtype=bool),
            cost=problem.meter(assignment),
            quality=1.0,
        )
        paid = self._paid(problem.initial(), finished=True)
        record, _ = self._assess(True, paid, outside=True)
        self._finish(record)
        return record

    def render(self) -> Any:
        """The kept fraction of every site, as a picture or as text."""
        if self.render_mode is None:
            gymnasium.logger.warn("Nothing is drawn: give render_mode to gymnasium.make.")
            return None
        state = self._state
        kept = 1.0 - self._problem.actions.removed(state.assignment)
        if self.render_mode == "rgb_array":
            return draw_bars(kept, state.decided, state.site)
        labels = [str(value) for _, value in self._problem.executed(state.assignment)]
        names = [site.name for site in self.task.sites]
        return write_bars(names, kept, labels, state.site)

    def close(self) -> None:
        """Close the sinks."""
        for sink in self._log.sinks:
            sink.close()

    def _start_episode(self) -> None:
        self._state = self._problem.initial()
        self._mask = self._problem.actions.mask(self._problem, self._state)
        self._clamps = 0
        self._reward_sum = 0.0
        self._raw_action = ()
        self._started = time.perf_counter()

    def _record_action(self, action: Any) -> None:
        raw = tuple(float(value) for value in np.atleast_1d(np.asarray(action)))
        self._raw_action = (*self._raw_action, *raw) if self._problem.is_sequential else raw

    def _execute(self, action: Any) -> tuple[Assignment, int]:
        """What an action leads to, ranked as the episode is, and how often it was clamped."""
        assignment, clamps = self._problem.actions.execute(self._problem, self._state, action)
        importance = self._state.assignment.importance
        return dataclasses.replace(assignment, importance=importance), clamps

    def _paid(self, before: State, finished: bool) -> dict[str, float]:
        """What the shaping pays for coming from a state to the present one."""
        return {} if self._shaping is None else self._shaping.pay(before, self._state, finished)

    def _assess(
        self, finished: bool, paid: Mapping[str, float], *, outside: bool = False
    ) -> tuple[EpisodeRecord, dict[str, float]]:
        """Measure the current network and reward it; outside a band only where that is asked."""
        problem, state, task = self._problem, self._state, self.task
        decisions = problem.actions.decisions(state.assignment)
        candidate = task.candidate(decisions)
        assert np.array_equal(candidate.keep.counts, state.assignment.counts), (
            "the task executes other counts than the environment assigned"
        )
        met = problem.limits.met(state.cost)
        is_measured = outside or problem.measures(state)
        evaluation = task.evaluator.evaluate(candidate) if is_measured else None
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
            counts=tuple(int(count) for count in candidate.keep.counts),
            budget_distance=problem.limits.distance(state.cost),
            finished=finished,
        )
        terms = self._reward(transition)
        score = merit(self._reward, transition, terms)
        if self._shaping is not None:
            score += self._shaping.merit(state)
        terms = {**terms, **paid}
        self._reward_sum += float(sum(terms.values()))
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
            num_samples=0 if evaluation is None else evaluation.num_samples,
            relative_macs=transition.relative_macs,
            macs=macs,
            nonzero_macs=nonzero_macs(task, candidate),
            params=params,
            met=met,
            raw_action=self._raw_action,
            executed=problem.executed(state.assignment),
            clamps=self._clamps,
            seconds=time.perf_counter() - self._started,
            plan=task.plan(decisions, candidate),
            reward_state=self._reward_state(),
        )
        if met and evaluation is not None and self._log.ranks_higher(record):
            self._log.best = record
        return record, terms

    def _reward_state(self) -> dict[str, float]:
        return dict(self._reward.state) if isinstance(self._reward, AdaptiveReward) else {}

    def _finish(self, record: EpisodeRecord) -> None:
        self._is_running = False
        self.history.append(record)
        for sink in self._log.sinks:
            sink.write(record)

    def _info(self, terms: Mapping[str, float]) -> dict[str, Any]:
        state, problem = self._state, self._problem
        return {
            "reward_terms": dict(terms),
            "reward_state": self._reward_state(),
            "relative_macs": state.cost / problem.meter.base,
            "met": problem.limits.met(state.cost),
            "clamps": self._clamps,
        }
