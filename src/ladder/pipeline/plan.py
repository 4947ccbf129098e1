"""What a run would do, stage by stage and why, with everything in the recipe checked before anything starts."""

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
    """A stage as it would be run. why: in words. measured: the identity of what is measured after it."""

    name: str
    config: StageConfig
    description: dict[str, Any]
    key: str
    status: Status
    why: str
    measured: str


def plan(recipe: Recipe, document: Document, out: Path) -> list[Planned]:
    """What a run would do, in order; everything in the recipe is checked. Raises UserError."""
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
                raise document.error(f"{parent!r} is no earlier stage", ["stages", name], "put it before this one")
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
    """Executes the user's code that the recipe names, so that what is wrong with it is found before the first stage.
    Raises UserError."""
    with located(document):
        evaluate.prepare(recipe)
        for one in planned:
            one.config.prepare(one.name, recipe)


@contextmanager
def located(document: Document) -> Iterator[None]:
    """Gives errors that know a field of the recipe its line."""
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
    """The stage that an evaluation set is judged by makes a reward model."""
    made = {p.name: p.config for p in planned}
    if stage not in made:
        raise document.error(f"there is no stage {stage!r}{near(stage, list(made))}", field.split("."))
    if made[stage].makes != "scorer":
        raise document.error(_other(made[stage], stage, "scorer"), field.split("."))


def _check_makes(
    recipe: Recipe, document: Document, name: str, config: StageConfig, before: Sequence[Planned]
) -> None:
    """Every stage that this one reads has made what is read from it."""
    made = {p.name: p.config for p in before}
    for parent, wanted in config.needs(recipe):
        if made[parent].makes != wanted:
            raise document.error(_other(made[parent], parent, wanted), ["stages", name, ARTIFACTS[wanted].field])


def _other(config: StageConfig, stage: str, wanted: Makes) -> str:
    return f"stage {stage!r} makes {config.artifact.text}, and {ARTIFACTS[wanted].text} is wanted"


def _status(directory: Path, key: str, config: StageConfig, measured: str) -> tuple[Status, str]:
    found = read_stage(directory)
    if found is None:
        return "new", "not run yet"
    if found["key"] != key:
        return "stale", "its configuration, inputs, parents or the code have changed"
    if found["status"] != "done":
        return "resume", "was interrupted"
    wrong = config.artifact.damage(directory, found)
    if wrong:
        return "new", f"its result is damaged: {wrong}"
    if config.artifact.due and found.get("measured") != measured:
        return "resume", "what is measured has changed"
    if not (directory / "summary.json").exists():
        return "resume", "its summary is missing"
    return "done", f"took {found['seconds']:.0f} s"
