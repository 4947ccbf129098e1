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

from ladder.base.config import read
from ladder.base.errors import UserError
from ladder.base.jsonl import read_lines
from ladder.diagnose.finding import Finding

Figures = dict[str, Any]
State = Literal["finished", "unfinished", "missing"]

REWARDED = ("rl", "ppo")
"""Kinds that learn from rewards."""
GRADED_REWARDS = ("chain_gold",)
"""Rewards that are known to give more than 0 and 1; for runs that do not say so themselves."""

MOST_HEADER = 1 << 26
"""Bytes of a safetensors header that are believed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. spec: its part of the recipe. figures: set -> what was measured of its result. held_out: what it got
    right of pairs that it never saw, with `bins` and `by_margin` where it left them. counts: its summary's numbers.
    findings: of its alarms."""

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
    held_out: Figures = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def parent(self) -> str | None:
        """The stage whose model it starts from."""
        return self.spec.get("from")

    @property
    def is_data(self) -> bool:
        """It leaves documents or pairs behind, not a model."""
        return self.kind in ("rejection_sampling", "annotate")

    @property
    def is_scorer(self) -> bool:
        """Its model scores answers and writes none."""
        return self.kind == "reward_model"

    @property
    def is_rewarded(self) -> bool:
        return self.kind in REWARDED

    @property
    def reads(self) -> list[str]:
        """The stages that it needs: its parent, and whatever its part of the recipe names as `stage`."""
        return list(dict.fromkeys([*([self.parent] if self.parent else []), *_named(self.spec)]))

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
        return [s for s in self.stages if s.figures and not s.is_data and not s.is_scorer]

    def before(self, stage: Stage) -> Stage | None:
        """The nearest measured model that a stage started from; a stage that only measures stands for its parent."""
        seen, parent = {stage.name}, stage.parent
        while True:
            at = self.stage(parent)
            if at is not None and at.figures and not at.is_data and not at.is_scorer:
                return at
            same = [s for s in self.models if s.kind == "evaluate" and s.parent == parent and s is not stage]
            if same and stage.kind != "evaluate":
                return same[0]
            if at is None or at.name in seen:
                return None
            seen.add(at.name)
            parent = at.parent

    @property
    def ends(self) -> list[Stage]:
        """Measured models that no later measured model was made with: several where the recipe has branches."""
        made = [m for m in self.models if m.kind != "evaluate"]
        used = set().union(*(self._needed(m) for m in made)) if made else set()
        return [m for m in made if m.name not in used]

    @property
    def branches(self) -> list[tuple[Stage | None, list[Stage]]]:
        """(start, the alternatives that begin there); empty for a run that is one chain."""
        if len(self.ends) < 2:
            return []
        found: dict[str | None, tuple[Stage | None, list[Stage]]] = {}
        for end in self.ends:
            start = self.before(end)
            found.setdefault(start.name if start else None, (start, []))[1].append(end)
        return list(found.values())

    def _needed(self, stage: Stage) -> set[str]:
        """Every stage that went into one, however far back."""
        found: set[str] = set()
        waiting = list(stage.reads)
        while waiting:
            name = waiting.pop()
            one = self.stage(name)
            if name not in found and name != stage.name and one is not None:
                found.add(name)
                waiting += one.reads
        return found

    def graded(self, name: str) -> bool:
        """A set's figures are mean scores and no shares."""
        figures = [f for s in self.stages if (f := s.figures.get(name))]
        return any(_is_graded(f) for f in figures) or (bool(figures) and self.judge(name) in GRADED_REWARDS)

    def judge(self, name: str) -> Any:
        """What a set's answers are judged by."""
        spec = self.recipe.get("eval")
        sets = spec.get("sets") if isinstance(spec, dict) else None
        one = sets.get(name) if isinstance(sets, dict) else None
        own = one.get("reward") if isinstance(one, dict) else None
        return own if own is not None else self.recipe.get("reward")

    def most(self, name: str) -> float:
        """What the bars of a set end at: 1 for shares, the largest value for scores."""
        if not self.graded(name):
            return 1.0
        figures = [f for s in self.stages if (f := s.figures.get(name))]
        both = [*figures, *[f.get("greedy") for f in figures]]
        return max((x for f in both for k in ("accuracy", "high") if (x := number(f, k)) is not None), default=1.0)


def load(path: Path) -> Run:
    """Reads a run. Raises UserError where there is none."""
    if not (path / "recipe.yaml").is_file():
        raise UserError(
            "holds no run (there is no recipe.yaml in it)", file=path, hint="give the directory that `ladder run` wrote"
        )
    recipe = read(path / "recipe.yaml").data
    whole = _json(path / "summary.json", {})
    specs = recipe.get("stages")
    specs = specs if isinstance(specs, dict) else {}
    known = whole.get("stages") if isinstance(whole.get("stages"), dict) else {}
    sets = _wanted(recipe)
    stages = [_stage(path / n, n, specs.get(n), known.get(n), sets) for n in dict.fromkeys([*specs, *known])]
    seed = recipe.get("seed", whole.get("seed"))
    return Run(
        path,
        recipe,
        stages,
        _sets(recipe, stages),
        seed if isinstance(seed, int) else None,
        number(whole, "seconds"),
        next((b for s in stages if not s.is_scorer and (b := built(path / s.name / "model"))), None),
    )


def _stage(path: Path, name: str, spec: Any, known: Any, sets: list[str]) -> Stage:
    spec = spec if isinstance(spec, dict) else {}
    summary = _json(path / "summary.json", {}) or (known if isinstance(known, dict) else {})
    funnel = summary.get("funnel")
    samples = _json(path / "samples.json", [])
    metrics = read_lines(path / "metrics.jsonl")
    state: State = "finished" if summary else "unfinished" if metrics else "missing"
    return Stage(
        name,
        str(spec.get("kind") or ("rejection_sampling" if funnel else "")),
        spec,
        state,
        number(summary, "seconds"),
        {k: v for k, v in summary.items() if _is_set(k, v, sets)},
        [m for m in metrics if isinstance(m, dict) and number(m, "step") is not None],
        [e for e in read_lines(path / "evals.jsonl") if isinstance(e, dict) and number(e, "step") is not None],
        [s for s in samples if isinstance(s, dict)],
        {k: v for k in funnel if (v := number(funnel, k)) is not None} if isinstance(funnel, dict) else {},
        held_out(path, summary) if "held_out" not in sets else {},
        {k: v for k in summary if k != "seconds" and (v := number(summary, k)) is not None},
        _findings(path / "findings.jsonl"),
    )


def _findings(path: Path) -> list[Finding]:
    """What alarms wrote; a line that is none of theirs is left out."""
    found = []
    for row in read_lines(path):
        try:
            found.append(Finding.of(row))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return found


def _is_set(name: str, value: Any, sets: list[str]) -> bool:
    """Figures of a set; those of held-out pairs are no set's, unless a set bears that very name."""
    if name == "held_out" and name not in sets:
        return False
    return isinstance(value, dict) and bool({"accuracy", "length", "mixed"} & value.keys())


def held_out(path: Path, summary: Figures) -> Figures:
    """Figures of pairs that were never trained on, the finer ones of held_out.json included."""
    found = summary.get("held_out")
    fine = _json(path / "held_out.json", {})
    rows = {k: _rows(fine.get(k), width) for k, width in (("bins", 3), ("by_margin", 4))}
    plain = {k: v for k in found if (v := number(found, k)) is not None} if isinstance(found, dict) else {}
    return {**plain, **{k: v for k, v in rows.items() if v}} if plain else {}


def _rows(value: Any, width: int) -> list[list[float]]:
    """The rows of finite numbers of a table."""
    rows = [r for r in value if isinstance(r, list) and len(r) == width] if isinstance(value, list) else []
    known = [[number({"": x}, "") for x in r] for r in rows]
    return [[x for x in r if x is not None] for r in known if None not in r]


def _is_graded(figures: Any) -> bool:
    """Said so by itself, or beyond what a share can be."""
    values = [number(figures, k) for k in ("accuracy", "low", "high")]
    return figures.get("graded") is True or any(v is not None and not 0 <= v <= 1 for v in values)


def _named(spec: Any) -> list[str]:
    """All that stands under `stage` in a specification."""
    if isinstance(spec, list):
        return [n for one in spec for n in _named(one)]
    if not isinstance(spec, dict):
        return []
    own = spec.get("stage")
    names = own if isinstance(own, list) else [own]
    return [*[n for n in names if isinstance(n, str)], *[n for one in spec.values() for n in _named(one)]]


def _wanted(recipe: dict[str, Any]) -> list[str]:
    """Names of the sets that the recipe measures."""
    spec = recipe.get("eval")
    wanted = spec.get("sets") if isinstance(spec, dict) else None
    return [str(n) for n in wanted] if isinstance(wanted, dict) else []


def _sets(recipe: dict[str, Any], stages: list[Stage]) -> list[str]:
    """Names of the measured sets: the recipe's order, then the order in which they turn up."""
    found = dict.fromkeys(n for s in stages for n in s.figures)
    return list(dict.fromkeys([*[n for n in _wanted(recipe) if n in found], *found]))


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
