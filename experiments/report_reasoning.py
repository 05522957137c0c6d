"""What an agent proposed and why, for the report page; most agents say nothing of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report_charts import percent
from experiments.report_runs import ReportRun
from experiments.run_folder import RunFolder


def read_reasoning(runs: Sequence[ReportRun]) -> list[dict[str, Any]]:
    """The proposals of every run that has some, in order, as the template shows them."""
    stories = []
    for run in runs:
        path = RunFolder(run.folder).proposals
        if not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        proposals = [_shown(json.loads(line)) for line in lines if line.strip()]
        if proposals:
            stories.append(
                {"label": run.label, "seed": run.summary["seed"], "proposals": proposals}
            )
    return stories


def _shown(proposal: Mapping[str, Any]) -> dict[str, Any]:
    plan = proposal["plan"] or {}
    lines = [
        f"{group}: {value if isinstance(value, str) else format(value, '.3g')}"
        for group, value in plan.items()
    ]
    if proposal.get("importance") is not None:
        lines.append(f"importance: {proposal['importance']}")
    if proposal.get("fine_tune"):
        settings = (f"{name} {value}" for name, value in proposal["fine_tune"].items())
        lines.append(f"fine-tuning: {', '.join(settings)}")
    return {
        "outcome": _outcome(proposal),
        "reasoning": proposal["reasoning"],
        "repairs": proposal["repairs"],
        "refusal": proposal["refusal"],
        "plan": "\n".join(lines),
    }


def _outcome(proposal: Mapping[str, Any]) -> str:
    """What came of a proposal, in a line."""
    if proposal["status"] == "refused":
        return "refused"
    macs = f"{percent(proposal['relative_macs'], 1)} of the MACs"
    if proposal["status"] == "outside_band":
        return f"{macs}, outside the band, not measured"
    return f"{macs}, accuracy {percent(proposal['accuracy'], 2)} on the reward split"
