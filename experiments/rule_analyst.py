"""An analyst that follows a rule, behind the interface of a language model: no model, no key.

It reads the same JSON as a model and answers in the same schemas, so it measures what the schema,
the repairs and the history are worth without one, and it makes recordings for tests.
"""

from __future__ import annotations

import json
import math
from typing import Any

from agents.llm.provider import Reply, Request

STEP = 0.05
"""Fraction of a group's channels that is moved from one group to another, once in the band."""


class RuleAnalyst:
    """Meets the band by a secant on the kept fraction, then moves channels between groups.

    The size: groups start at one ratio, sqrt(target) of every group kept, and all kept fractions
    are scaled by sqrt(target / relative MACs) of the last plan until the MACs lie in the band. The
    shape: from the best plan, one group after the other is given STEP more of its channels, and the
    others are scaled in the same way. With one group after the other tried, the master stops.
    """

    name = "rule analyst"

    def complete(self, request: Request) -> Reply:
        """Answer as the role asks."""
        data = json.loads(request.messages[1].content)
        answers = {"profiling": _notes, "analysis": _proposal, "master": _verdict}
        return Reply(json.dumps(answers[request.role](data)), model=self.name)


def _notes(data: dict[str, Any]) -> dict[str, Any]:
    groups = data["network"]["groups"]
    by_saving = sorted(groups, key=lambda group: group["macs_saved_by_removing_half"])
    names = [group["name"] for group in by_saving]
    quarter = max(1, len(names) // 4)
    return {
        "summary": f"{len(names)} groups, {data['network']['macs']} MACs.",
        "sensitive_groups": names[:quarter],
        "robust_groups": names[-quarter:],
        "advice": f"Keep {math.sqrt(_target(data)):.3f} of every group at first.",
    }


def _proposal(data: dict[str, Any]) -> dict[str, Any]:
    groups = {group["name"]: group for group in data["network"]["groups"]}
    executed = [entry for entry in data["history"] if entry["status"] != "refused"]
    if not executed:
        kept = dict.fromkeys(groups, math.sqrt(_target(data)))
        return _as_proposal(groups, kept, "Equal ratios whose product of widths is the target.")
    last = executed[-1]
    if last["error_percent"]:
        factor = math.sqrt(_target(data) / last["relative_macs"])
        # A plan that rounds to the same channels again would be refused.
        factor = factor ** (1.0 + data["progress"]["refused"])
        reason = f"Proposal {last['number']} is {last['error_percent']:+.1f} % off: all scaled."
        return _as_proposal(groups, _scaled(last["plan"], factor), reason)
    best = max(
        (entry for entry in executed if entry["accuracy"] is not None),
        key=lambda entry: (entry["accuracy"], -entry["loss"]),
    )
    favoured = list(groups)[data["next_number"] % len(groups)]
    size = groups[favoured]["size"]
    kept = _scaled(best["plan"], 1.0)
    kept[favoured] = min(1.0, kept[favoured] + max(STEP, 1.0 / size))
    saved = groups[favoured]["macs_saved_by_removing_half"] * 2.0 * STEP
    shrunk = _scaled({n: 1.0 - k for n, k in kept.items()}, math.sqrt(1.0 - saved))
    shrunk[favoured] = kept[favoured]
    reason = f"From proposal {best['number']}, channels moved to {favoured}."
    return _as_proposal(groups, shrunk, reason)


def _verdict(data: dict[str, Any]) -> dict[str, Any]:
    since = data["progress"]["proposals_since_best"]
    is_over = since is not None and since >= 10
    return {
        "reasoning": f"{since} proposals since the best.",
        "decision": "stop" if is_over else "continue",
        "guidance": "",
    }


def _target(data: dict[str, Any]) -> float:
    band = data["network"]["band"]
    return (band["lowest_relative_macs"] + band["highest_relative_macs"]) / 2.0


def _scaled(plan: dict[str, float], factor: float) -> dict[str, float]:
    return {name: min(1.0, (1.0 - ratio) * factor) for name, ratio in plan.items()}


def _as_proposal(groups: dict[str, Any], kept: dict[str, float], reasoning: str) -> dict[str, Any]:
    ratios = {
        name: min(groups[name]["largest_ratio"], max(0.0, 1.0 - fraction))
        for name, fraction in kept.items()
    }
    return {
        "reasoning": reasoning,
        "start_from": None,
        "default_ratio": 0.0,
        "ratios": [{"group": name, "ratio": round(ratio, 4)} for name, ratio in ratios.items()],
        "round_to": 1,
    }
