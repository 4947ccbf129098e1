"""The artifacts that stages write (a model, a reward model, data, figures): how each is named, verified and hashed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ladder.base.files import sha256
from ladder.engine import checkpoint

Makes = Literal["model", "data", "figures", "scorer"]


@dataclass(frozen=True, slots=True)
class Artifact:
    """One type of artifact. text: its name in messages. field: the recipe field by which another stage reads it. file:
    its name in the stage's directory, None if the stage writes only its summary. evaluated: the recipe's evaluation
    sets are measured on it. measures: the stage is itself an evaluation, so it runs again if the evaluation changes."""

    text: str
    field: str
    file: str | None
    evaluated: bool = False
    measures: bool = False

    @property
    def due(self) -> bool:
        """Whether the stage must run again, from its result on, if the recipe's evaluation changes."""
        return self.evaluated or self.measures

    def path(self, directory: Path) -> Path | None:
        """Where the artifact is; None if there is no file."""
        return None if self.file is None else directory / self.file

    def digest(self, directory: Path) -> str | None:
        """The hash that is written to the stage's record; None if there is no file to hash."""
        path = self.path(directory)
        return None if path is None else sha256(path)

    def damage(self, directory: Path, record: dict[str, Any]) -> str | None:
        """What is missing or changed in the result of a finished stage; None if it is intact."""
        path = self.path(directory)
        if path is None:
            return None
        if path.suffix != ".jsonl":
            return checkpoint.verify(path)
        if not path.exists():
            return f"{path.name} is missing"
        return None if sha256(path) == record["output"] else f"{path.name} has changed"


ARTIFACTS: dict[Makes, Artifact] = {
    "model": Artifact("a model", "from", "model", evaluated=True),
    "scorer": Artifact("a reward model", "reward", "model"),
    "data": Artifact("data", "data", "data.jsonl"),
    "figures": Artifact("nothing but figures", "from", None, measures=True),
}
