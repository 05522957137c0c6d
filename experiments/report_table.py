"""The table a run ends with: base, pruned and uniform network side by side."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from experiments.summary import Summary

EARLY_ENDS = {
    "interrupted": (
        "The search was ended early by Ctrl-C; this is the best plan until then. The same command "
        "with resume=auto goes on with the search."
    ),
    "minutes": "The search ended after search.minutes.",
    "max_timesteps": "The search ended after search.max_timesteps.",
    "patience": "The search ended because the agent only repeated known plans (search.patience).",
}
"""Why a search ended before its evaluations were spent."""


def print_report(summary: Summary, folder: Path, targets: Mapping[str, str]) -> None:
    """Print the result of a run and what to do with it.

    Args:
        summary: the result.
        folder: the run folder.
        targets: what builds the "network" and the "data", as dotted paths; those of the user have
            to be named again when the run is reloaded.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{summary.agent} prunes {summary.network} ({summary.env}), seed {summary.seed}",
        title_justify="left",
        caption=_caption(summary),
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name, style in (("base", "green"), ("pruned", "bold cyan"), ("uniform", "yellow")):
        table.add_column(name, justify="right", style=style, no_wrap=True)
    reports = (summary.base, summary.pruned, summary.uniform)
    table.add_row(
        "reward-split accuracy", *(_percent(report.reward_accuracy) for report in reports)
    )
    table.add_row("test accuracy", *(_percent(report.test_accuracy) for report in reports))
    table.add_row("  after fine-tuning", *(_percent(r.test_accuracy_finetuned) for r in reports))
    base = summary.base
    table.add_row("MACs", *(_of(report.macs, base.macs) for report in reports))
    if any(report.nonzero_macs != report.macs for report in reports):
        table.add_row("  non-zero weights", *(_of(r.nonzero_macs, base.macs) for r in reports))
    table.add_row("parameters", *(_of(report.params, base.params) for report in reports))
    if any(report.nonzero_params != report.params for report in reports):
        table.add_row("  non-zero", *(_of(r.nonzero_params, base.params) for r in reports))
    table.add_row("latency", *(_milliseconds(report.latency_ms) for report in reports))
    if any(report.latency_onnxruntime_ms is not None for report in reports):
        table.add_row(
            "  in onnxruntime", *(_milliseconds(r.latency_onnxruntime_ms) for r in reports)
        )
    console = Console(soft_wrap=False)
    console.print()
    console.print(table)
    budget = f"budget of {summary.budget_relative_macs:.4g} of the MACs"
    verdict = "met" if summary.budget_met else "[bold red]not met[/]"
    before = summary.replayed_evaluations
    resumed = f"{before} of them before the run was resumed, " if before else ""
    console.print(
        f"{summary.evaluations} evaluations ({resumed}{summary.cache_hits} more from the cache), "
        f"{summary.episodes} episodes in {summary.search_seconds:.0f} s; {budget} {verdict}."
    )
    if summary.stop_reason in EARLY_ENDS:
        console.print(EARLY_ENDS[summary.stop_reason])
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    console.print(f"\nRun folder: {shown}", soft_wrap=True, highlight=False)
    own = [
        f" --{name} {target}"
        for name, target in targets.items()
        if not target.startswith("networks.")
    ]
    command = f"python -m experiments.evaluate_pruned {shlex.quote(str(shown))}{''.join(own)}"
    console.print(f"Test it in a new process: {command}", soft_wrap=True, highlight=False)


def _caption(summary: Summary) -> str:
    latency = summary.latency
    cost = "MACs" if summary.budget_cost == "macs" else "MACs of non-zero weights"
    runtimes = " and ".join(name for name in (latency.runtime, latency.onnxruntime) if name)
    threads = "thread" if latency.threads == 1 else "threads"
    return (
        f"uniform: every group pruned alike, at equal {cost}; same fine-tuning\n"
        f"latency: {runtimes}, batch {latency.batch}, {latency.threads} {threads}"
    )


def _percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{100 * accuracy:.2f} %"


def _of(value: int, base: int) -> str:
    share = "" if value == base else f" ({100 * value / base:.1f} %)"
    number = f"{value:,}" if value < 10_000_000 else f"{value / 1e6:,.2f} M"
    return f"{number}{share}"


def _milliseconds(latency: float | None) -> str:
    return "–" if latency is None else f"{latency:.2f} ms"
