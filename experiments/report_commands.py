"""Commands that repeat a run and test its network again, for the report page."""

from __future__ import annotations

import shlex

from experiments.report_rendering import shown
from experiments.report_runs import ReportRun


def evaluation_command(run: ReportRun) -> str:
    """Tests the saved network of a run in a new process."""
    targets = [
        f" --{section} {run.config[section]['_target_']}"
        for section in ("network", "data")
        if not str(run.config[section]["_target_"]).startswith("networks.")
    ]
    folder = shlex.quote(str(shown(run.folder)))
    return f"python -m experiments.evaluate_pruned {folder}{''.join(targets)}"


def search_command(run: ReportRun) -> str:
    """Does a run again; "" where its overrides are not known."""
    again = " ".join(shlex.quote(text) for text in run.overrides)
    return f"python train_agent.py {again}" if run.overrides else ""
