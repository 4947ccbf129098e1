"""The plan of a run: what would be done with each stage and why. The whole recipe is checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ladder.base.config import Document, near
from ladder.base.errors import UserError
from ladder.pipeline import evaluate, gates, identity
from ladder.pipeline.artifacts import ARTIFACTS, Makes
from ladder.pipeline.kinds import build
from ladder.pipeline.lineage import read_stage
from ladder.pipeline.recipe import Recipe
from ladder.pipeline.stage import StageConfig

Status = Literal["done", "resume", "new", "stale"]


@dataclass(slots=True)
class Planned:
    """A stage as it would be run. key: its identity. why: the reason for its status, for the console. measured: the
    identity of the evaluation after it (`evaluate.identity`)."""

    name: str
    config: StageConfig
    description: dict[str, Any]
    key: str
    status: Status
    why: str
    measured: str


def plan(recipe: Recipe, document: Document, out: Path) -> list[Planned]:
    """Checks the whole recipe and returns its stages in order, each with its status. Raises UserError."""
    keys: dict[str, str] = {}
    planned: list[Planned] = []
    with located(document):
        evaluate.check(recipe)
    for name, spec in recipe.stages.items():
        config = build(name, spec, document)
        with located(document):
            config.check(name, recipe)
            for figure, bound in config.require.items():
                gates.parse(bound, f"{name}.require.{figure}")
        for parent, _ in config.needs(recipe):
            if parent not in keys:
                raise document.error(f"{parent!r} is not an earlier stage", ["stages", name], "put it before this one")
        _check_makes(recipe, document, name, config, planned)
        description = identity.describe(recipe, config, {p: keys[p] for p, _ in config.needs(recipe)})
        keys[name] = identity.of(description)
        measured = evaluate.identity(recipe, keys)
        status, why = _status(out / name, keys[name], config, measured)
        planned.append(Planned(name, config, description, keys[name], status, why, measured))
    for field, stage in evaluate.scorers(recipe):
        _check_scorer(document, field, stage, planned)
    return planned


def prepare(recipe: Recipe, document: Document, planned: Sequence[Planned]) -> None:
    """Executes the user's code that the recipe names, so that its errors are raised before the first stage runs.
    Raises UserError."""
    with located(document):
        evaluate.prepare(recipe)
        for stage in planned:
            stage.config.prepare(stage.name, recipe)


@contextmanager
def located(document: Document) -> Iterator[None]:
    """Adds the recipe's file and line to every UserError that names a field of the recipe."""
    try:
        yield
    except UserError as err:
        place = (err.field or "").split(".")
        if err.file is not None or not err.field:
            raise
        if place[0] in document.data.get("stages", {}):
            place = ["stages", *place]
        raise document.error(err.message, place, err.hint) from err


def _check_scorer(document: Document, field: str, stage: str, planned: Sequence[Planned]) -> None:
    """Raises UserError unless the stage that judges an evaluation set trains a reward model."""
    configs = {p.name: p.config for p in planned}
    if stage not in configs:
        raise document.error(f"there is no stage {stage!r}{near(stage, list(configs))}", field.split("."))
    if configs[stage].makes != "scorer":
        raise document.error(_wrong_artifact(configs[stage], stage, "scorer"), field.split("."))


def _check_makes(
    recipe: Recipe, document: Document, name: str, config: StageConfig, before: Sequence[Planned]
) -> None:
    """Raises UserError unless every stage that this one reads makes the artifact that is read from it."""
    configs = {p.name: p.config for p in before}
    for parent, needed in config.needs(recipe):
        if configs[parent].makes != needed:
            message = _wrong_artifact(configs[parent], parent, needed)
            raise document.error(message, ["stages", name, ARTIFACTS[needed].field])


def _wrong_artifact(config: StageConfig, stage: str, needed: Makes) -> str:
    return f"stage {stage!r} makes {config.artifact.text}, and {ARTIFACTS[needed].text} is needed"


def _status(directory: Path, key: str, config: StageConfig, measured: str) -> tuple[Status, str]:
    """A stage's status and the reason for it, from its record on disk."""
    record = read_stage(directory)
    if record is None:
        return "new", "not run yet"
    if record["key"] != key:
        return "stale", "its configuration, inputs, parents or the code have changed"
    if record["status"] != "done":
        return "resume", "was interrupted"
    damage = config.artifact.damage(directory, record)
    if damage:
        return "new", f"its result is damaged: {damage}"
    if config.artifact.due and record.get("measured") != measured:
        return "resume", "the evaluation has changed"
    if not (directory / "summary.json").exists():
        return "resume", "its summary is missing"
    return "done", f"took {record['seconds']:.0f} s"
