"""What a stage leaves behind, and how it is named, verified and hashed: a model, a reward model, data, figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ladder.base.files import sha256
from ladder.engine import checkpoint

Makes = Literal["model", "data", "figures", "scorer"]


@dataclass(frozen=True, slots=True)
class Artifact:
    """text: what it is, for messages. field: of a recipe by which another stage reads it. file: its name in the stage's
    directory, None where the summary is all. evaluated: the recipe's sets are measured on it. measures: the stage
    itself measures, so another measurement makes it due again."""

    text: str
    field: str
    file: str | None
    evaluated: bool = False
    measures: bool = False

    @property
    def due(self) -> bool:
        """Whether a change of what is measured makes the stage go on."""
        return self.evaluated or self.measures

    def path(self, directory: Path) -> Path | None:
        return None if self.file is None else directory / self.file

    def digest(self, directory: Path) -> str | None:
        """The hash that the stage's record keeps; None where there is nothing to hash."""
        path = self.path(directory)
        return None if path is None else sha256(path)

    def damage(self, directory: Path, record: dict[str, Any]) -> str | None:
        """What is wrong with a result that once was whole; None when it still is what it was."""
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
