"""What came from what: every stage of a run with its parents, inputs and hashes, read from what the run wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ladder.base.errors import UserError
from ladder.base.files import read_json, sha256

SHORT = 12
"""Characters of a hash that are shown."""


def read_stage(directory: Path) -> dict[str, Any] | None:
    """A stage's record; None when there is none (or it was being written when the run died)."""
    path = directory / "stage.json"
    return read_json(path) if path.exists() else None


def stages(run: Path) -> list[dict[str, Any]]:
    """The records of a run's stages, in the recipe's order. Raises UserError when this is no run."""
    recipe = run / "recipe.yaml"
    if not recipe.exists():
        raise UserError("this is no run: it has no recipe.yaml", file=run, hint="give a directory under runs/")
    names = yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"]
    return [{"name": name, **(read_stage(run / name) or {"status": "not run"})} for name in names]


def lines(run: Path, check: bool = True) -> list[str]:
    """A run's lineage in words. check: also hash every result and compare."""
    made = []
    for stage in stages(run):
        if "key" not in stage:
            made.append(f"{stage['name']}: not run")
            continue
        made.append(f"{stage['name']}  {stage['key'][:SHORT]}  ({stage['config']['kind']}, {stage['status']})")
        made += [f"    from stage {name}  {key[:SHORT]}" for name, key in stage["parents"].items()]
        if not stage["config"].get("from_"):
            made.append(f"    from model {stage['model']['source']}")
        made += [f"    read {path}  sha256 {digest[:SHORT]}" for path, digest in stage["inputs"].items()]
        made.append(f"    seed {stage['seed']}, code {stage['code'][:SHORT]}")
        if "output" in stage:
            made.append(f"    wrote {_output(run / stage['name'], stage, check)}")
    return made


def _output(directory: Path, stage: dict[str, Any], check: bool) -> str:
    path = directory / ("model" if (directory / "model").is_dir() else "data.jsonl")
    shown = f"{directory.name}/{path.name}  sha256 {stage['output'][:SHORT]}"
    if not check:
        return shown
    if not path.exists():
        return f"{shown}  MISSING"
    return shown + ("  verified" if sha256(path) == stage["output"] else "  CHANGED since it was written")
