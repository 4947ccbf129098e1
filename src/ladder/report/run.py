"""A run's directory as plain data. Whatever is missing, unfinished or null is None here, and never an error.

Only a directory that holds no run at all is refused. Nothing here knows how it will look.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ladder.config import read
from ladder.errors import UserError
from ladder.log import read_lines

Figures = dict[str, Any]
State = Literal["finished", "unfinished", "missing"]

MOST_HEADER = 1 << 26
"""Bytes of a safetensors header that are believed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. spec: its part of the recipe. figures: set -> what was measured of its result."""

    name: str
    kind: str
    spec: dict[str, Any]
    state: State
    seconds: float | None = None
    figures: dict[str, Figures] = field(default_factory=dict)
    metrics: list[Figures] = field(default_factory=list)
    evals: list[Figures] = field(default_factory=list)
    samples: list[Figures] = field(default_factory=list)
    funnel: dict[str, float] = field(default_factory=dict)

    @property
    def parent(self) -> str | None:
        """The stage whose model it starts from."""
        return self.spec.get("from")

    @property
    def is_data(self) -> bool:
        """It leaves documents behind, not a model."""
        return self.kind == "harvest"

    @property
    def steps(self) -> int | None:
        return last_step(self.metrics)


@dataclass(frozen=True, slots=True)
class Run:
    """All stages in the recipe's order. sets: the names of what is measured, in the recipe's order."""

    path: Path
    recipe: dict[str, Any]
    stages: list[Stage]
    sets: list[str]
    seed: int | None
    seconds: float | None
    built: str | None

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or self.path.name)

    @property
    def source(self) -> str | None:
        """The model at the root of the run."""
        model = self.recipe.get("model")
        return str(model["source"]) if isinstance(model, dict) and "source" in model else None

    def stage(self, name: str | None) -> Stage | None:
        return next((s for s in self.stages if s.name == name), None)

    @property
    def models(self) -> list[Stage]:
        """Stages with a measured model."""
        return [s for s in self.stages if s.figures and not s.is_data]

    def before(self, stage: Stage) -> Stage | None:
        """The nearest measured model that a stage started from."""
        seen, at = {stage.name}, self.stage(stage.parent)
        while at is not None and at.name not in seen:
            if at.figures and not at.is_data:
                return at
            seen.add(at.name)
            at = self.stage(at.parent)
        return None


def load(path: Path) -> Run:
    """Reads a run. Raises UserError where there is none."""
    if not (path / "recipe.yaml").is_file():
        raise UserError(
            "holds no run (there is no recipe.yaml in it)", file=path, mend="give the directory that `ladder run` wrote"
        )
    recipe = read(path / "recipe.yaml").data
    whole = _json(path / "summary.json", {})
    specs = recipe.get("stages")
    specs = specs if isinstance(specs, dict) else {}
    known = whole.get("stages") if isinstance(whole.get("stages"), dict) else {}
    stages = [_stage(path / n, n, specs.get(n), known.get(n)) for n in dict.fromkeys([*specs, *known])]
    seed = recipe.get("seed", whole.get("seed"))
    return Run(
        path,
        recipe,
        stages,
        _sets(recipe, stages),
        seed if isinstance(seed, int) else None,
        number(whole, "seconds"),
        next((b for s in stages if (b := built(path / s.name / "model"))), None),
    )


def _stage(path: Path, name: str, spec: Any, known: Any) -> Stage:
    spec = spec if isinstance(spec, dict) else {}
    summary = _json(path / "summary.json", {}) or (known if isinstance(known, dict) else {})
    funnel = summary.get("funnel")
    samples = _json(path / "samples.json", [])
    metrics = read_lines(path / "metrics.jsonl")
    state: State = "finished" if summary else "unfinished" if metrics else "missing"
    return Stage(
        name,
        str(spec.get("kind") or ("harvest" if funnel else "")),
        spec,
        state,
        number(summary, "seconds"),
        {k: v for k, v in summary.items() if isinstance(v, dict) and {"accuracy", "length", "mixed"} & v.keys()},
        [m for m in metrics if isinstance(m, dict) and number(m, "step") is not None],
        [e for e in read_lines(path / "evals.jsonl") if isinstance(e, dict) and number(e, "step") is not None],
        [s for s in samples if isinstance(s, dict)],
        {k: v for k in funnel if (v := number(funnel, k)) is not None} if isinstance(funnel, dict) else {},
    )


def _sets(recipe: dict[str, Any], stages: list[Stage]) -> list[str]:
    """Names of the measured sets: the recipe's order, then the order in which they turn up."""
    spec = recipe.get("eval")
    wanted = spec.get("sets") if isinstance(spec, dict) else None
    found = dict.fromkeys(n for s in stages for n in s.figures)
    return list(dict.fromkeys([*[n for n in (wanted or {}) if n in found], *found]))


def _json(path: Path, empty: Any) -> Any:
    """A JSON file of the same type as `empty`; `empty` when it is missing, broken or of another type."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return empty
    return data if isinstance(data, type(empty)) else empty


def number(figures: Any, key: str) -> float | None:
    """A finite number; None for anything else."""
    value = figures.get(key) if isinstance(figures, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def last_step(metrics: list[Figures]) -> int | None:
    return int(metrics[-1]["step"]) if metrics else None


def built(model: Path) -> str | None:
    """What a saved model is: `LlamaForCausalLM, 153,472 parameters`; None without one."""
    config = _json(model / "config.json", {})
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else None
    try:
        count = sum(map(parameters, sorted(model.glob("*.safetensors"))))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        count = 0
    parts = [name, f"{count:,} parameters" if count else None]
    return ", ".join(p for p in parts if p) or None


def parameters(path: Path) -> int:
    """The numbers in a safetensors file, counted from its header alone."""
    with path.open("rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        if size > MOST_HEADER:
            raise ValueError(f"{path} has a header of {size} bytes")
        header = json.loads(f.read(size))
    return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
