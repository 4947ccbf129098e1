"""What alarms found, as views: the sentence, the curves that show it, an answer from the start and one from then."""

from __future__ import annotations

from dataclasses import dataclass

from ladder.diagnose.finding import Finding
from ladder.report import chart
from ladder.report.curves import Chart
from ladder.report.run import Run, Stage

SHOWN = 3
"""Curves of one finding."""


@dataclass(frozen=True, slots=True)
class Found:
    """texts: (label, what prompt and answer were)."""

    stage: str
    finding: Finding
    charts: list[Chart]
    texts: list[tuple[str, str]]


def findings(run: Run) -> list[Found]:
    """Those of all stages, in order."""
    return [_found(stage, finding) for stage in run.stages for finding in stage.findings]


def _found(stage: Stage, finding: Finding) -> Found:
    charts = []
    for name, points in finding.figures.items():
        if len(points) > 1:
            panel = chart.Panel(stage.name, points[-1][0], [chart.Line(points, tone=1)])
            charts.append(Chart(name, "", chart.curves([panel], f"{name} of {stage.name}", ground=None)))
    texts = list(zip(("at first", f"at step {finding.step}"), finding.texts, strict=False))
    return Found(stage.name, finding, charts[:SHOWN], texts)
