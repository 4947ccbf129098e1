"""The lineage of a run: every stage with its parents, inputs and hashes, read from the run's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ladder.base.errors import UserError
from ladder.base.files import read_json, sha256

SHORT = 12
"""Number of characters of a hash that are shown."""


def read_stage(directory: Path) -> dict[str, Any] | None:
    """A stage's record (`stage.json`); None if there is none (also after a kill before it was written)."""
    path = directory / "stage.json"
    return read_json(path) if path.exists() else None


def stages(run: Path) -> list[dict[str, Any]]:
    """The records of a run's stages, in the recipe's order. Raises UserError if the directory is not a run."""
    recipe = run / "recipe.yaml"
    if not recipe.exists():
        raise UserError("this is not a run: it has no recipe.yaml", file=run, hint="give a directory under runs/")
    names = yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"]
    return [{"name": name, **(read_stage(run / name) or {"status": "not run"})} for name in names]


def lines(run: Path, check: bool = True) -> list[str]:
    """The lines of a run's lineage for the console. check: also hash every result and compare it with its record."""
    text = []
    for stage in stages(run):
        if "key" not in stage:
            text.append(f"{stage['name']}: not run")
            continue
        text.append(f"{stage['name']}  {stage['key'][:SHORT]}  ({stage['config']['kind']}, {stage['status']})")
        text += [f"    from stage {name}  {key[:SHORT]}" for name, key in stage["parents"].items()]
        if not stage["config"].get("from_"):
            text.append(f"    from model {stage['model']['source']}")
        text += [f"    read {path}  sha256 {digest[:SHORT]}" for path, digest in stage["inputs"].items()]
        text.append(f"    seed {stage['seed']}, code {stage['code'][:SHORT]}")
        if "output" in stage:
            text.append(f"    wrote {_output_line(run / stage['name'], stage, check)}")
    return text


def _output_line(directory: Path, stage: dict[str, Any], check: bool) -> str:
    """The path and hash of a stage's result, and with `check` whether the hash still holds."""
    path = directory / ("model" if (directory / "model").is_dir() else "data.jsonl")
    shown = f"{directory.name}/{path.name}  sha256 {stage['output'][:SHORT]}"
    if not check:
        return shown
    if not path.exists():
        return f"{shown}  MISSING"
    return shown + ("  verified" if sha256(path) == stage["output"] else "  CHANGED since it was written")
