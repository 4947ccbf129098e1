"""Reads the files of a run's directory into plain data. Missing, unfinished or null values become None, not errors.

Only a directory without a run raises. Formatting is left to the other modules of the package.
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
"""A parsed JSON object with figures: a step's metrics, one evaluation, one sample."""
State = Literal["finished", "unfinished", "missing"]

REWARDED = ("rl", "ppo")
"""Kinds of stages that train on rewards."""
GRADED_REWARDS = ("chain_gold",)
"""Rewards with values other than 0 and 1, for runs whose evaluations do not record `graded`."""

MOST_HEADER = 1 << 26
"""Largest size of a safetensors header, bytes; a larger one is taken for a damaged file."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The files of one stage. spec: its section of the recipe. figures: evaluation set -> figures of its model.
    held_out: accuracy on held-out preference pairs, with `bins` and `by_margin` where recorded. counts: the numbers of
    its summary. findings: of its alarms. metrics, evals: one entry a line of the log file. samples: shown answers."""

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
        """Name of the stage whose model this stage starts from."""
        return self.spec.get("from")

    @property
    def is_data(self) -> bool:
        """Whether the stage writes documents or pairs and no model."""
        return self.kind in ("rejection_sampling", "annotate")

    @property
    def is_scorer(self) -> bool:
        """Whether the stage's model scores answers and writes none."""
        return self.kind == "reward_model"

    @property
    def is_rewarded(self) -> bool:
        """Whether the stage trains on rewards."""
        return self.kind in REWARDED

    @property
    def reads(self) -> list[str]:
        """Names of the stages it depends on: its parent and every `stage` that its recipe section names."""
        return list(dict.fromkeys([*([self.parent] if self.parent else []), *_stage_names(self.spec)]))

    @property
    def steps(self) -> int | None:
        """The last recorded step."""
        return last_step(self.metrics)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a run: its stages, in the recipe's order. sets: names of the evaluation sets, in the recipe's order.
    seconds: total time. built: description of the trained model, e.g. "LlamaForCausalLM, 153,472 parameters"."""

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
        """The recipe's `model.source`, which the first stage starts from."""
        model = self.recipe.get("model")
        return str(model["source"]) if isinstance(model, dict) and "source" in model else None

    def stage(self, name: str | None) -> Stage | None:
        return next((s for s in self.stages if s.name == name), None)

    @property
    def models(self) -> list[Stage]:
        """Stages whose model was evaluated."""
        return [s for s in self.stages if s.figures and not s.is_data and not s.is_scorer]

    def before(self, stage: Stage) -> Stage | None:
        """The nearest evaluated model that a stage's model descends from.

        An `evaluate` stage has the same model as its parent, so it counts as the parent's evaluation.
        """
        seen, parent = {stage.name}, stage.parent
        while True:
            ancestor = self.stage(parent)
            if ancestor is not None and ancestor.figures and not ancestor.is_data and not ancestor.is_scorer:
                return ancestor
            evaluations = [s for s in self.models if s.kind == "evaluate" and s.parent == parent and s is not stage]
            if evaluations and stage.kind != "evaluate":
                return evaluations[0]
            if ancestor is None or ancestor.name in seen:
                return None
            seen.add(ancestor.name)
            parent = ancestor.parent

    @property
    def ends(self) -> list[Stage]:
        """Evaluated models that no other evaluated model depends on: several if the recipe has branches."""
        trained = [m for m in self.models if m.kind != "evaluate"]
        used = set().union(*(self._dependencies(m) for m in trained)) if trained else set()
        return [m for m in trained if m.name not in used]

    @property
    def branches(self) -> list[tuple[Stage | None, list[Stage]]]:
        """(common starting model, the alternative final models trained from it); empty for a run without branches."""
        if len(self.ends) < 2:
            return []
        by_start: dict[str | None, tuple[Stage | None, list[Stage]]] = {}
        for end in self.ends:
            start = self.before(end)
            by_start.setdefault(start.name if start else None, (start, []))[1].append(end)
        return list(by_start.values())

    def _dependencies(self, stage: Stage) -> set[str]:
        """Names of all direct and indirect dependencies of a stage."""
        names: set[str] = set()
        waiting = list(stage.reads)
        while waiting:
            name = waiting.pop()
            dependency = self.stage(name)
            if name not in names and name != stage.name and dependency is not None:
                names.add(name)
                waiting += dependency.reads
        return names

    def graded(self, name: str) -> bool:
        """Whether `accuracy` of an evaluation set is a mean score of any size, not a share of right answers."""
        figures = [f for s in self.stages if (f := s.figures.get(name))]
        return any(_is_graded(f) for f in figures) or (bool(figures) and self.judge(name) in GRADED_REWARDS)

    def judge(self, name: str) -> Any:
        """The specification of an evaluation set's reward: the set's own, else the recipe's."""
        spec = self.recipe.get("eval")
        sets = spec.get("sets") if isinstance(spec, dict) else None
        set_spec = sets.get(name) if isinstance(sets, dict) else None
        set_reward = set_spec.get("reward") if isinstance(set_spec, dict) else None
        return set_reward if set_reward is not None else self.recipe.get("reward")

    def most(self, name: str) -> float:
        """The value at the full length of a set's bars: 1 for shares, the largest value for scores."""
        if not self.graded(name):
            return 1.0
        sampled = [f for s in self.stages if (f := s.figures.get(name))]
        figures = [*sampled, *[f.get("greedy") for f in sampled]]
        return max((x for f in figures for k in ("accuracy", "high") if (x := number(f, k)) is not None), default=1.0)


def load(path: Path) -> RunFiles:
    """Reads a run's directory. Raises UserError when it contains no run."""
    if not (path / "recipe.yaml").is_file():
        raise UserError(
            "contains no run (it has no recipe.yaml)", file=path, hint="give the directory that `ladder run` wrote"
        )
    recipe = read(path / "recipe.yaml").data
    run_summary = _json(path / "summary.json", {})
    specs = recipe.get("stages")
    specs = specs if isinstance(specs, dict) else {}
    summaries = run_summary.get("stages") if isinstance(run_summary.get("stages"), dict) else {}
    sets = _recipe_sets(recipe)
    stages = [
        _read_stage(path / n, n, specs.get(n), summaries.get(n), sets) for n in dict.fromkeys([*specs, *summaries])
    ]
    seed = recipe.get("seed", run_summary.get("seed"))
    return RunFiles(
        path,
        recipe,
        stages,
        _evaluated_sets(recipe, stages),
        seed if isinstance(seed, int) else None,
        number(run_summary, "seconds"),
        next((b for s in stages if not s.is_scorer and (b := built(path / s.name / "model"))), None),
    )


def _read_stage(path: Path, name: str, spec: Any, run_summary: Any, sets: list[str]) -> Stage:
    """One stage. run_summary: the stage's entry in the run's summary.json, used where its own file is missing."""
    spec = spec if isinstance(spec, dict) else {}
    summary = _json(path / "summary.json", {}) or (run_summary if isinstance(run_summary, dict) else {})
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
        {k: v for k, v in summary.items() if _is_evaluation(k, v, sets)},
        [m for m in metrics if isinstance(m, dict) and number(m, "step") is not None],
        [e for e in read_lines(path / "evals.jsonl") if isinstance(e, dict) and number(e, "step") is not None],
        [s for s in samples if isinstance(s, dict)],
        {k: v for k in funnel if (v := number(funnel, k)) is not None} if isinstance(funnel, dict) else {},
        held_out(path, summary) if "held_out" not in sets else {},
        {k: v for k in summary if k != "seconds" and (v := number(summary, k)) is not None},
        _findings(path / "findings.jsonl"),
    )


def _findings(path: Path) -> list[Finding]:
    """The findings in an alarm file; malformed lines are skipped."""
    findings = []
    for row in read_lines(path):
        try:
            findings.append(Finding.of(row))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return findings


def _is_evaluation(name: str, value: Any, sets: list[str]) -> bool:
    """Whether a summary's entry holds the figures of an evaluation set.

    `held_out` holds figures of preference pairs, unless an evaluation set has that name.
    """
    if name == "held_out" and name not in sets:
        return False
    return isinstance(value, dict) and bool({"accuracy", "length", "mixed"} & value.keys())


def held_out(path: Path, summary: Figures) -> Figures:
    """Figures of held-out preference pairs: those of the summary, and the tables of held_out.json."""
    figures = summary.get("held_out")
    tables = _json(path / "held_out.json", {})
    rows = {k: _finite_rows(tables.get(k), width) for k, width in (("bins", 3), ("by_margin", 4))}
    numbers = {k: v for k in figures if (v := number(figures, k)) is not None} if isinstance(figures, dict) else {}
    return {**numbers, **{k: v for k, v in rows.items() if v}} if numbers else {}


def _finite_rows(value: Any, width: int) -> list[list[float]]:
    """The rows of `width` finite numbers in a table read from JSON; other rows are skipped."""
    rows = [r for r in value if isinstance(r, list) and len(r) == width] if isinstance(value, list) else []
    numbers = [[number({"": x}, "") for x in r] for r in rows]
    return [[x for x in r if x is not None] for r in numbers if None not in r]


def _is_graded(figures: Any) -> bool:
    """Whether figures are mean scores: they record `graded`, or a value lies outside 0 to 1."""
    values = [number(figures, k) for k in ("accuracy", "low", "high")]
    return figures.get("graded") is True or any(v is not None and not 0 <= v <= 1 for v in values)


def _stage_names(spec: Any) -> list[str]:
    """All values of `stage` in a specification, at any depth."""
    if isinstance(spec, list):
        return [n for item in spec for n in _stage_names(item)]
    if not isinstance(spec, dict):
        return []
    value = spec.get("stage")
    names = value if isinstance(value, list) else [value]
    return [*[n for n in names if isinstance(n, str)], *[n for item in spec.values() for n in _stage_names(item)]]


def _recipe_sets(recipe: dict[str, Any]) -> list[str]:
    """Names of the recipe's evaluation sets."""
    spec = recipe.get("eval")
    sets = spec.get("sets") if isinstance(spec, dict) else None
    return [str(n) for n in sets] if isinstance(sets, dict) else []


def _evaluated_sets(recipe: dict[str, Any], stages: list[Stage]) -> list[str]:
    """Names of the sets with figures: the recipe's in its order, then others in the order of the stages."""
    evaluated = dict.fromkeys(n for s in stages for n in s.figures)
    return list(dict.fromkeys([*[n for n in _recipe_sets(recipe) if n in evaluated], *evaluated]))


def _json(path: Path, empty: Any) -> Any:
    """The content of a JSON file; `empty` when the file is missing, invalid or of another type than `empty`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return empty
    return data if isinstance(data, type(empty)) else empty


def number(figures: Any, key: str) -> float | None:
    """`figures[key]` if it is a finite number, else None."""
    value = figures.get(key) if isinstance(figures, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def last_step(metrics: list[Figures]) -> int | None:
    return int(metrics[-1]["step"]) if metrics else None


def built(model: Path) -> str | None:
    """Description of a saved model, e.g. `LlamaForCausalLM, 153,472 parameters`; None when there is no model."""
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
    """The number of parameters in a safetensors file, counted from its header."""
    with path.open("rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        if size > MOST_HEADER:
            raise ValueError(f"{path} has a header of {size} bytes")
        header = json.loads(f.read(size))
    return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
