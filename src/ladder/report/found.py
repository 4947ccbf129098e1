"""Views of the alarms' findings: the sentence, the curves behind it, an early answer and one from that step."""

from __future__ import annotations

from dataclasses import dataclass

from ladder.diagnose.finding import Finding
from ladder.report import chart
from ladder.report.curves import Chart
from ladder.report.run import RunFiles, Stage

SHOWN = 3
"""Largest number of curves shown with one finding."""


@dataclass(frozen=True, slots=True)
class Found:
    """A finding with its charts. texts: (label, prompt and answer)."""

    stage: str
    finding: Finding
    charts: list[Chart]
    texts: list[tuple[str, str]]


def findings(run: RunFiles) -> list[Found]:
    """The findings of all stages, in the recipe's order."""
    return [_view(stage, finding) for stage in run.stages for finding in stage.findings]


def _view(stage: Stage, finding: Finding) -> Found:
    charts = []
    for name, points in finding.figures.items():
        if len(points) > 1:
            panel = chart.Panel(stage.name, points[-1][0], [chart.Line(points, tone=1)])
            charts.append(Chart(name, "", chart.curves([panel], f"{name} of {stage.name}", ground=None)))
    texts = list(zip(("at first", f"at step {finding.step}"), finding.texts, strict=False))
    return Found(stage.name, finding, charts[:SHOWN], texts)
