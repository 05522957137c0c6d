"""What one evaluation costs, beside the bare forward pass that it cannot do without.

Then what it saves to measure side by side, and what the agents of three searches cost beside the
evaluations that they ask for. Overrides are those of train_agent.py, such as
network=resnet56_cifar10 data.root=DIR network.checkpoint=FILE budget.relative_macs=0.5
num_threads=2.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from agents.search import check_agent
from envs.pruning_env import PruningEnv
from experiments.command_line import CONFIG_FOLDER
from experiments.composed_task import ComposedTask
from experiments.evaluation_table import (
    BARE,
    COLUMNS,
    HIT,
    LEGEND,
    MASKED,
    PLAIN,
    POLICY,
    RECALIBRATED,
    EvaluationFigures,
    EvaluationTable,
)
from experiments.parallel_evaluation import measure_parallel
from experiments.policy_share import (
    AGENTS,
    HEAD,
    SHARE_LEGEND,
    measure_share,
    shares_to_markdown,
    with_agent,
)
from experiments.run_folder import write_text
from experiments.search_stage import build_parts
from experiments.stopwatch import Taken, timed
from networks.data import SearchSplits
from pruning.evaluation import Evaluation, Evaluator
from pruning.folding import channels_last_weights, folded
from pruning.keep_set import KeepSet
from pruning.outputs import forward
from pruning.plan import Candidate
from pruning.recalibration import balanced_split, evaluation_mode, normalised_tensors
from pruning.task import PruningTask


def measure_evaluation(
    task: PruningTask,
    search: SearchSplits,
    counts: Sequence[int] | np.ndarray,
    *,
    rounds: int,
    options: Mapping[str, Any] | None = None,
    decide: Callable[[], None] | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> EvaluationFigures:
    """Measure every way in turns, on a new candidate in every round.

    Args:
        task: holds the network, its graph and the slimmer.
        search: the calibration and reward splits.
        counts: kept channels per group, int of shape (num_groups,).
        rounds: rounds that count, at least 1; one more comes first and does not.
        options: further arguments of `Evaluator`.
        decide: what an agent and its environment do for one candidate; None leaves out the row.
        seed: of the channels that are kept.
        advance: called after every round.
    """
    rng = np.random.default_rng(seed)
    ways = _Ways(task, search, options or {})
    turns: list[tuple[str, Callable[[Candidate], tuple[Taken, Evaluation | None]]]] = [
        (MASKED, ways.masked),
        (RECALIBRATED, ways.recalibrated),
        (PLAIN, ways.plain),
        (BARE, ways.bare),
    ]
    if decide is not None:
        turns.append((POLICY, lambda _: timed(decide)))
    taken: dict[str, list[Taken]] = {name: [] for name in (*dict(turns), HIT)}
    differences = dict.fromkeys((PLAIN, BARE), 0.0)
    for number in range(-1, rounds):
        scores = {group.name: rng.random(group.size) for group in task.graph.groups}
        candidate = Candidate(KeepSet.from_counts(task.graph, counts, scores))
        # everyone runs after everyone: who comes first finds other things in the processor's cache
        first = number % len(turns)
        times, losses = {}, {}
        for name, way in turns[first:] + turns[:first]:
            times[name], evaluation = way(candidate)
            if evaluation is not None:
                losses[name] = evaluation.loss
        times[HIT], _ = ways.plain(candidate)
        for name in differences:
            difference = abs(losses[name] - losses[MASKED]) / (1.0 + abs(losses[MASKED]))
            differences[name] = max(differences[name], difference)
        if number >= 0:  # the first round prepares torch's kernels for these shapes
            for name, value in times.items():
                taken[name].append(value)
        advance()
    return EvaluationFigures(taken, differences)


class _Ways:
    """The ways to measure a candidate; each returns how long it took and what it measured."""

    def __init__(self, task: PruningTask, search: SearchSplits, options: Mapping[str, Any]) -> None:
        self._task = task
        splits = (task.slimmer, search.calibration, search.reward)
        self._recalibrating = Evaluator(*splits, recalibrate=True, **options)
        self._evaluator = Evaluator(*splits, recalibrate=False, **options)
        inputs, self._targets = normalised_tensors(search.reward, self._evaluator.batch_size)
        self._batches = balanced_split(inputs, self._evaluator.batch_size)
        self._has_layout = self._evaluator.channels_last and inputs.dim() == 4
        self._laid_out = self._batches
        if self._has_layout:
            laid_out = inputs.contiguous(memory_format=torch.channels_last)
            self._laid_out = balanced_split(laid_out, self._evaluator.batch_size)

    def masked(self, candidate: Candidate) -> tuple[Taken, Evaluation]:
        """What tools without slimming pay."""

        def measure() -> Evaluation:
            with self._task.slimmer.masked(candidate.keep) as network, evaluation_mode(network):
                return self._scored(forward(network, self._batches))

        return timed(measure)

    def recalibrated(self, candidate: Candidate) -> tuple[Taken, Evaluation]:
        """The evaluator with recalibration."""
        return timed(lambda: self._recalibrating.evaluate(candidate))

    def plain(self, candidate: Candidate) -> tuple[Taken, Evaluation]:
        """The evaluator without recalibration."""
        return timed(lambda: self._evaluator.evaluate(candidate))

    def bare(self, candidate: Candidate) -> tuple[Taken, Evaluation]:
        """Only the forward pass; everything around it is not timed."""
        slimmer = self._task.slimmer
        with ExitStack() as stack:
            slim = stack.enter_context(slimmer.applied(candidate.keep))
            stack.enter_context(evaluation_mode(slim))
            if self._has_layout:
                stack.enter_context(channels_last_weights(slim))
            if self._evaluator.fold:
                stack.enter_context(folded(slim, slimmer.graph.folds))
            taken, outputs = timed(lambda: forward(slim, self._laid_out))
        return taken, self._scored(outputs)

    def _scored(self, outputs: Tensor) -> Evaluation:
        with torch.inference_mode():
            accuracy = float(self._evaluator.metric(outputs, self._targets))
            loss = float(self._evaluator.loss(outputs, self._targets))
        return Evaluation(accuracy, loss, len(self._targets))


class FreeEvaluator:
    """Answers every candidate with the same evaluation, at no cost: what is left is the rest.

    Args:
        evaluation: the answer.

    Attributes:
        num_evaluations: candidates asked for so far.
        num_cache_hits: always 0.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self.num_evaluations = 0
        self.num_cache_hits = 0

    def evaluate(
        self, candidate: Candidate, overlay: Mapping[str, Tensor] | None = None
    ) -> Evaluation:
        """The one answer."""
        self.num_evaluations += 1
        return self._evaluation


class Decider:
    """One decision about the whole network by the agent of a config: predict and step.

    Args:
        config: the sections `agent`, `env`, `budget` and `reward`.
        task: what is pruned; its own evaluator is not asked.
    """

    def __init__(self, config: DictConfig, task: PruningTask) -> None:
        parts = build_parts(config)
        free = copy.copy(task)
        self.evaluator = FreeEvaluator(task.base)
        free.evaluator = self.evaluator  # type: ignore[assignment]
        self._env = PruningEnv(free, **parts)
        make_agent = instantiate(config.agent, _partial_=True, _convert_="all")
        check_agent(make_agent.func, self._env)
        self._agent = make_agent(env=self._env)
        self._steps = len(task.sites) if parts["episode"].is_sequential else 1
        self._observation, _ = self._env.reset()

    def __call__(self) -> None:
        """Decide every site once."""
        for _ in range(self._steps):
            action, _ = self._agent.predict(self._observation, deterministic=False)
            self._observation, _, terminated, truncated, _ = self._env.step(action)
            if terminated or truncated:
                self._observation, _ = self._env.reset()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it as Markdown.

    Returns:
        0, or 1 when the slim network's loss is not the masked one's.

    Raises:
        ValueError: an option or an override is wrong.
    """
    options = _parser().parse_intermixed_args(arguments)
    lowest = {
        "rounds": 1, "workers": 0, "candidates": 1, "parallel-rounds": 1, "search-evaluations": 0,
    }  # fmt: skip
    for name, least in lowest.items():
        value = getattr(options, name.replace("-", "_"))
        if value < least:
            raise ValueError(f"--{name} must be {least} or more, got {value}.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        choices = compose("train_agent", options.overrides, return_hydra_config=True)
    network_name = str(choices.hydra.runtime.choices.network)
    composed = ComposedTask.from_overrides(options.overrides)
    task = composed.new_task()
    table = _measure(composed, task, network_name, options)
    console = Console(width=140)
    _print(table.title, COLUMNS, table.cells, (table.verdict, LEGEND), console)
    text = table.to_markdown()
    if options.workers > 0:
        parallel = measure_parallel(
            task,
            _counts(composed, task),
            workers=options.workers,
            candidates=options.candidates,
            rounds=options.parallel_rounds,
            seed=composed.settings.seed,
        )
        console.print(parallel.sentence, markup=False, highlight=False)
        text += f"\n{parallel.sentence}\n"
    count = options.search_evaluations
    if count > 0:
        shares = [
            measure_share(name, with_agent(composed, options.overrides, own), count)
            for name, own in AGENTS.items()
        ]
        cells = [share.cells for share in shares]
        _print("What agents cost beside evaluations", HEAD, cells, (SHARE_LEGEND,), console)
        text += f"\n{shares_to_markdown(shares)}"
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "evaluation.md", text)
    print(f"Written to {folder / 'evaluation.md'}.")
    return 0 if max(table.figures.loss_differences.values()) < 1e-3 else 1


def _counts(composed: ComposedTask, task: PruningTask) -> np.ndarray:
    """Kept channels of the uniform plan within the budget of the config."""
    relative_macs = composed.plain["budget"].get("relative_macs", 0.5)
    return task.uniform_counts(relative_macs * task.cost.base_macs)


def _measure(
    composed: ComposedTask, task: PruningTask, network_name: str, options: argparse.Namespace
) -> EvaluationTable:
    settings, search = composed.settings, composed.data.search
    counts = _counts(composed, task)
    evaluation = instantiate(composed.config.evaluation, _convert_="all")
    bar = _bar(options.rounds + 1, enabled=settings.show_progress)
    figures = measure_evaluation(
        task,
        search,
        counts,
        rounds=options.rounds,
        options={k: v for k, v in evaluation.items() if k not in ("recalibrate", "latency")},
        decide=Decider(composed.config, task),
        seed=settings.seed,
        advance=bar.update,
    )
    bar.close()
    return EvaluationTable(
        network=network_name,
        data=composed.data.name,
        relative_macs=float(task.cost.macs_of_counts(counts) / task.cost.base_macs),
        images=len(search.reward),
        calibration_images=len(search.calibration),
        batch_size=task.evaluator.batch_size,
        threads=settings.num_threads,
        figures=figures,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark evaluation", description=__doc__
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config")
    parser.add_argument("--rounds", type=int, default=20, help="candidates that are measured")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes side by side; 0 leaves that out"
    )
    parser.add_argument("--candidates", type=int, default=8, help="side by side in a round")
    parser.add_argument("--parallel-rounds", type=int, default=7, help="of those candidates")
    parser.add_argument(
        "--search-evaluations",
        type=int,
        default=64,
        help="of each search in which an agent is timed; 0 leaves that out",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmark_evaluation"),
        help="folder of evaluation.md",
    )
    return parser


def _print(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    lines: Sequence[str],
    console: Console,
) -> None:
    view = Table(title=title, title_justify="left")
    is_text = (columns[0], COLUMNS[-1])
    for column in columns:
        view.add_column(column, justify="left" if column in is_text else "right")
    for cells in rows:
        view.add_row(*cells)
    console.print(view)
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _bar(total: int, *, enabled: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="evaluations", unit=" round", disable=not enabled)
