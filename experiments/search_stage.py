"""The search: an agent decides in the environment until its evaluations are spent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from agents.count_search import CountSearchAgent
from agents.search import SearchResult, check_agent, run_search
from agents.several import for_environments
from envs.pruning_env import PruningEnv
from envs.recording import CsvSink, EpisodeRecord, EpisodeSink
from envs.vec_env import PruningVecEnv
from experiments.command_line import comes_from
from experiments.findings import write_findings
from experiments.interruption import Interruption, SearchInterrupted
from experiments.kept_plan import RANKS
from experiments.patience import Patience
from experiments.progress import SearchProgress
from experiments.run_folder import RunFolder, write_text
from experiments.settings import Settings
from pruning.evaluation_pool import EvaluationPool
from pruning.journal import EvaluationJournal, JournalSubject
from pruning.task import PruningTask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        best: the measured plan that is kept.
        history: all episodes.
        result: how the search ended.
        num_replayed: evaluations that were measured before the run was interrupted.
        seconds_before: seconds the search had taken until then.
        fine_tune: settings of the fine-tuning that the agent changes for its plan, if any.
    """

    best: EpisodeRecord
    history: tuple[EpisodeRecord, ...]
    result: SearchResult
    num_replayed: int
    seconds_before: float
    fine_tune: Mapping[str, Any] = field(default_factory=dict)


def search(
    config: DictConfig,
    settings: Settings,
    task: PruningTask,
    run: RunFolder,
    sinks: Sequence[EpisodeSink],
) -> Found:
    """Let the agent of the config search, and save it and its best plan.

    Args:
        config: the config of the job.
        settings: the root keys.
        task: what is pruned.
        run: gets `evaluations.jsonl`, `metrics.csv`, the agent's own log, `agent.zip` and
            `plan.json`. What the first of them holds already is not measured again.
        sinks: further receivers of every episode.

    Raises:
        ValueError: agent and environment do not fit, the budget cannot be reached, nothing
            within budget was found, or `evaluations.jsonl` is damaged or another network's.
        OSError: a file cannot be written.
        KeyboardInterrupt: Ctrl-C, twice or before anything was found.
    """
    interruption = Interruption()
    with ExitStack() as stack:
        journal = stack.enter_context(_journalled(task, run))
        run.forget_results(evaluations=False)
        progress = SearchProgress(settings.evaluations, enabled=settings.show_progress)
        all_sinks = (CsvSink(run.metrics), *sinks, progress, interruption)
        env = PruningEnv(task, **build_parts(config), sinks=all_sinks, rank=RANKS[settings.keep])
        stack.callback(env.close)
        stack.callback(progress.close)
        make_agent = instantiate(config.agent, _partial_=True, _convert_="all")
        check_agent(make_agent.func, env)
        make_agent = for_environments(make_agent, settings.num_envs)
        agent = _build_agent(make_agent, stack.enter_context(several(env, settings)))
        if hasattr(agent, "keep_records_in"):  # agents that record more than their own log
            agent.keep_records_in(run.path)
        stack.enter_context(interruption.listening())
        patience = Patience(env, settings.patience)
        finalists = _num_finalists(task, settings)
        result = run_search(
            agent,
            env,
            evaluations=settings.evaluations - finalists,
            max_timesteps=settings.max_timesteps,
            minutes=settings.minutes,
            log_dir=run.path / "agent_log",
            callbacks=[patience],
            clock=journal.elapsed,
        )
        if patience.is_exhausted:
            result = replace(result, stop_reason="patience")
        if finalists:
            result = _measure_finalists(env, finalists, result, journal)
        best, history = env.best, tuple(env.history)
    if interruption.is_repeated or (interruption.is_requested and best is None):
        raise KeyboardInterrupt
    if best is None:
        raise ValueError(_nothing_found(history, settings))
    write_text(run.plan, best.plan.to_json())
    agent.save(run.agent)
    if isinstance(agent, CountSearchAgent):
        write_findings(agent.findings(), run)
    proposed = next(record.episode for record in history if record.plan == best.plan)
    changes = agent.fine_tune_of(proposed) if hasattr(agent, "fine_tune_of") else {}
    return Found(best, history, result, journal.num_replayed, journal.seconds_before, changes)


def _num_finalists(task: PruningTask, settings: Settings) -> int:
    """Evaluations that are kept for the best plans, where the first ones see fewer images.

    Raises:
        ValueError: nothing would be left for the search.
    """
    growth = task.evaluator.growth
    if growth is None:
        return 0
    if growth.finalists >= settings.evaluations:
        raise ValueError(
            f"evaluation.growth.finalists={growth.finalists} leaves none of "
            f"search.evaluations={settings.evaluations} for the search. Lower the one or raise the "
            "other."
        )
    return growth.finalists


def _measure_finalists(
    env: PruningEnv, number: int, result: SearchResult, journal: EvaluationJournal
) -> SearchResult:
    """Measure the best plans on all images; Ctrl-C leaves it at those that were."""
    env.task.evaluator.growth = None
    started = journal.elapsed()
    with suppress(SearchInterrupted):
        for record in env.finalists(number):
            env.measure_again(record)
    return replace(
        result,
        evaluations=env.num_evaluations,
        seconds=result.seconds + journal.elapsed() - started,
    )


@contextmanager
def _journalled(task: PruningTask, run: RunFolder) -> Iterator[EvaluationJournal]:
    """The journal of a search, which its evaluations go through."""
    journal = EvaluationJournal(run.journal, JournalSubject(task.graph.fingerprint, task.base))
    if len(journal):
        log.info(
            "%d evaluations are in %s and are not measured again", len(journal), run.journal.name
        )
    task.evaluator.journal = journal
    try:
        yield journal
    finally:
        task.evaluator.journal = None
        journal.close()


def build_parts(config: DictConfig) -> dict[str, Any]:
    """The parts of the environment, from the sections env, budget and reward.

    Raises:
        ValueError: a value is out of range.
    """
    parts = {
        "observation": config.env.observation,
        "action": config.env.action,
        "episode": config.env.episode,
        "budget": config.budget,
        "reward": config.reward,
    }
    built = {name: instantiate(part, _convert_="all") for name, part in parts.items()}
    shaping = config.env.get("shaping")
    return {**built, "shaping": instantiate(shaping, _convert_="all") if shaping else None}


@contextmanager
def several(env: PruningEnv, settings: Settings) -> Iterator[PruningEnv | PruningVecEnv]:
    """What an agent is built with: the environment, or as many as `vec_env` says."""
    if settings.num_envs == 1 and settings.workers == 0:
        yield env
        return
    with ExitStack() as stack:
        pool = None
        if settings.workers > 0:
            pool = stack.enter_context(EvaluationPool(env.task.evaluator, settings.workers))
        yield PruningVecEnv(env, settings.num_envs, pool)


def _build_agent(make_agent: Callable[..., Any], env: PruningEnv | PruningVecEnv) -> Any:
    """The agent of the config.

    Raises:
        ValueError: the library the agent comes from refuses its settings.
    """
    try:
        return make_agent(env=env)
    except (AssertionError, ValueError) as error:
        if not comes_from(error, "stable_baselines3", "sb3_contrib"):
            raise
        raise ValueError(
            f"The agent refuses its settings: {' '.join(str(error).split())} Change agent."
        ) from error


def _nothing_found(history: Sequence[EpisodeRecord], settings: Settings) -> str:
    nearest = min((record.relative_macs for record in history), default=1.0)
    return (
        f"None of {len(history)} episodes met the budget (fewest relative MACs: {nearest:.4f}). "
        f"Raise search.evaluations (now {settings.evaluations}) or budget.relative_macs, or take a "
        "budget that cannot be missed, such as budget=wall."
    )
