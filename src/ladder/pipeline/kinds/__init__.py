"""The kinds of stages, by the name a recipe gives them. A new kind is one file here: a class with `named` and `run`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from ladder.base.config import Document, check, near
from ladder.pipeline.stage import StageConfig


def _find_kinds() -> dict[str, type[StageConfig]]:
    """Every stage class in the modules of this package that defines `named`, its name in recipes."""
    kinds: dict[str, type[StageConfig]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, StageConfig) and "named" in vars(value):
                assert kinds.setdefault(value.named, value) is value, f"two kinds are called {value.named!r}"
    return kinds


KINDS: dict[str, type[StageConfig]] = _find_kinds()

RENAMED = {"measure": "evaluate", "harvest": "rejection_sampling", "prefer": "preference"}
"""Old name to new name, of kinds that were renamed before version 0.1.0."""


def build(name: str, spec: dict[str, Any], document: Document) -> StageConfig:
    """Parses and checks a stage's configuration. Raises UserError with the recipe's line."""
    at = ["stages", name]
    if not isinstance(spec, dict):
        raise document.error("a stage must be a mapping of fields", at)
    kind = spec.get("kind")
    if kind in RENAMED:
        raise document.error(f"the kind {kind!r} is called {RENAMED[kind]!r} now", [*at, "kind"], "write the new name")
    if kind not in KINDS:
        raise document.error(f"no stage is of kind {kind!r}{near(str(kind), list(KINDS))}", [*at, "kind"])
    return check(KINDS[kind], document, spec, at)
