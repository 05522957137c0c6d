"""From the plan that was found to the files of the report."""

from __future__ import annotations

import time
from typing import Any

from experiments.figures import draw_groups, draw_search, draw_tradeoff
from experiments.final_report import FinalNetwork, FinalReport
from experiments.group_table import GroupRow, group_rows
from experiments.identity import RunIdentity
from experiments.progress import TrainingProgress
from experiments.run_folder import RunFolder
from experiments.search_stage import Found
from experiments.settings import Settings
from experiments.summary import PrunedFile, Summary
from pruning.artefact import save_pruned
from pruning.plan import Candidate

COST_NAMES = {"macs": "MACs", "nonzero_macs": "non-zero MACs"}
"""What a budget counts, in words."""


def write_report(
    report: FinalReport,
    found: Found,
    run: RunFolder,
    plain: dict[str, Any],
    identity: RunIdentity,
    settings: Settings,
    *,
    started: float,
) -> tuple[Summary, tuple[GroupRow, ...]]:
    """Measure base, pruned and uniform network, save the pruned one and draw the figures.

    Args:
        report: measures a network.
        found: what the search found.
        run: where the files go.
        plain: the config as plain data.
        identity: how the run is called.
        settings: the root keys.
        started: `time.monotonic()` at the start of the run.

    Returns:
        The summary, and what the plan does to each group.
    """
    task, plan = report.task, found.best.plan
    candidate = Candidate(plan.keep_set(task.graph), plan.masks)
    base = report.base()
    pruned = report.pruned(
        candidate,
        progress=_progress("fine-tuning pruned", settings),
        checkpoint=run.fine_tuning("pruned"),
    )
    cost = plain["budget"].get("cost", "macs")
    equal_macs = pruned.report.nonzero_macs if cost == "nonzero_macs" else pruned.report.macs
    uniform_candidate = task.uniform_candidate(max(equal_macs, task.min_macs))
    uniform = report.pruned(
        uniform_candidate,
        progress=_progress("fine-tuning uniform", settings),
        checkpoint=run.fine_tuning("uniform"),
        fine_tunes=settings.fine_tune_uniform,
    )
    builder = {key: value for key, value in plain["network"].items() if key != "checkpoint"}
    save_pruned(
        run.pruned,
        pruned.network,
        target=builder.pop("_target_"),
        kwargs=builder,
        graph=task.graph,
        plan=plan,
    )
    rows = group_rows(task, plan, candidate, uniform_candidate.keep)
    _draw(found, run, base, uniform, rows, identity, settings, COST_NAMES[cost])
    budget = plain["budget"].get("relative_macs")
    summary = Summary(
        network=identity.network,
        data=report.data.name,
        agent=identity.agent,
        env=identity.env,
        seed=settings.seed,
        evaluations=found.result.evaluations,
        cache_hits=found.result.cache_hits,
        episodes=len(found.history),
        replayed_evaluations=found.num_replayed,
        wall_seconds=round(found.seconds_before + time.monotonic() - started, 3),
        search_seconds=round(found.result.seconds, 3),
        stop_reason=found.result.stop_reason,
        best_reward=float(found.best.score),
        relative_macs=found.best.relative_macs,
        budget_relative_macs=1.0 if budget is None else float(budget),
        budget_cost=cost,
        budget_met=found.best.met,
        base=base.report,
        pruned=pruned.report,
        uniform=uniform.report,
        frozen=dict(task.graph.frozen),
        latency=report.latency_conditions,
        pruned_file=_pruned_file(run, pruned, len(report.data.test)),
    )
    return summary, rows


def _progress(title: str, settings: Settings) -> TrainingProgress:
    return TrainingProgress(title, enabled=settings.show_progress)


def _pruned_file(run: RunFolder, pruned: FinalNetwork, test_images: int) -> PrunedFile:
    finetuned = pruned.report.test_accuracy_finetuned
    key = "test_accuracy" if finetuned is None else "test_accuracy_finetuned"
    return PrunedFile(
        file=run.pruned.name,
        reproduces=f"pruned.{key}",
        test_accuracy=pruned.report.test_accuracy if finetuned is None else finetuned,
        test_correct=pruned.test_correct,
        test_images=test_images,
    )


def _draw(
    found: Found,
    run: RunFolder,
    base: FinalNetwork,
    uniform: FinalNetwork,
    rows: tuple[GroupRow, ...],
    identity: RunIdentity,
    settings: Settings,
    cost_name: str,
) -> None:
    relative_macs = uniform.report.macs / base.report.macs
    draw_search(
        found.history,
        run.figures / "search.png",
        title=f"{identity.title}, seed {settings.seed}",
        chosen=found.best,
        uniform_accuracy=uniform.report.reward_accuracy,
        base_accuracy=base.report.reward_accuracy,
    )
    draw_groups(
        rows,
        run.figures / "groups.png",
        title=f"{identity.title}: {found.best.relative_macs:.1%} of the {cost_name} left",
    )
    draw_tradeoff(
        found.history,
        run.figures / "tradeoff.png",
        title=f"{identity.title}: everything that was tried",
        chosen=found.best,
        cost_name=cost_name,
        uniform=(relative_macs, uniform.report.reward_accuracy),
        base_accuracy=base.report.reward_accuracy,
    )
