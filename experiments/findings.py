"""What some agents leave beside a plan: files, and a picture of the curves among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agents.sensitivity import CURVES_FILE, Sensitivities
from experiments.figures import AGENT, BASE, page_of_axes
from experiments.run_folder import RunFolder, write_text


def write_findings(findings: Mapping[str, str], run: RunFolder) -> None:
    """Write texts into the run folder, and draw what can be drawn.

    Args:
        findings: texts by path within the run folder.
        run: the run folder.
    """
    for name, text in findings.items():
        path = run.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    if CURVES_FILE in findings:
        curves = Sensitivities.from_json(findings[CURVES_FILE])
        draw_sensitivities(curves, run.figures / "sensitivities.png")


def draw_sensitivities(sensitivities: Sensitivities, path: Path) -> None:
    """One small picture per group: accuracy over the fraction of its channels removed.

    Args:
        sensitivities: the curves.
        path: PNG file to write.
    """
    curves = sensitivities.curves
    with page_of_axes(path, len(curves)) as (figure, panels):
        for axes, curve in zip(panels, curves, strict=True):
            removed = [1.0 - count / curve.size for count in curve.counts]
            axes.axhline(curve.accuracies[0], color=BASE, linestyle=":", linewidth=1.4)
            axes.plot(removed, curve.accuracies, color=AGENT, marker="o", markersize=3.5)
            axes.set_title(f"{curve.group} ({curve.size})", fontsize=8.5, fontweight="normal")
        figure.suptitle("Accuracy with one group pruned alone (dotted: unpruned)", fontsize=11)
        figure.supxlabel("channels of the group removed", fontsize=10)
        figure.supylabel("reward-split accuracy", fontsize=10)
