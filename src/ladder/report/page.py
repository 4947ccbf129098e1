"""Writes `report.html`, a self-contained page: the template `page.html` lays out views that the other modules compute.

The page is inert: no script and no network request (a content security policy forbids both), and the template escapes
every text. The same run gives the same bytes.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ladder.report import curves, found, kinds, marks, sections, story, terms, words, written
from ladder.report.run import RunFiles, load

HERE = Path(__file__).parent
NAME = "report.html"


def write(run: Path) -> Path:
    """Writes the report of a run's directory; returns its path. Raises UserError when the directory has no run."""
    text = render(load(run))
    path, partial = run / NAME, run / f".{NAME}.partial"
    with partial.open("w", encoding="utf-8", errors="replace") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(partial, path)
    return path


def render(run: RunFiles) -> str:
    """The HTML of the report."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(views(run))


def views(run: RunFiles) -> dict[str, Any]:
    """The variables of the template `page.html`."""
    main, more = curves.side_by_side(run)
    sets = written.problem_sets(run)
    return {
        "run": run,
        "about": words.visible(run.recipe.get("about") or "").strip(),
        "headline": story.headline(run),
        "moments": story.moments(run),
        "missing": story.missing(run),
        "facts": facts(run),
        "tiles": sections.tiles(run),
        "table": sections.table(run),
        "cards": sections.cards(run),
        "found": found.findings(run),
        "splits": kinds.splits(run),
        "greedy": any("greedy" in f for m in run.models for f in m.figures.values()),
        "rewarded": sum(s.is_rewarded and bool(s.metrics) for s in run.stages),
        "main": main,
        "more": more,
        "sets": sets,
        "notations": any(marks.classifier(run.recipe, s.name) for s in sets),
        "terms": terms.terms(run),
        "command": command(run),
    }


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """(label, value) of the run's model, seed, time and stages, where known."""
    model = " · ".join(p for p in (run.source, run.built) if p)
    values = {
        "model": model,
        "seed": "" if run.seed is None else str(run.seed),
        "time": "" if run.seconds is None else words.duration(run.seconds),
        "stages": (" · " if run.branches else " → ").join(s.name for s in run.stages),
    }
    return [(label, value) for label, value in values.items() if value]


def command(run: RunFiles) -> str:
    """The shell command that repeats the run in another directory from its resolved recipe."""
    directory = place(run.path)
    return shlex.join(["ladder", "run", str(directory / "recipe.yaml"), "--out", f"{directory}-again"])


def place(path: Path) -> Path:
    """A path relative to the working directory if it lies below it, else unchanged."""
    full, here = path.resolve(), Path.cwd()
    return full.relative_to(here) if full.is_relative_to(here) and full != here else path
