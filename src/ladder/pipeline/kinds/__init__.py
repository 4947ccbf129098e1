"""The kinds of stages, by the name a recipe gives them. A new kind is one file here: a class with `named` and `run`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from ladder.base.config import Document, check, near
from ladder.pipeline.stage import StageConfig


def _found() -> dict[str, type[StageConfig]]:
    """Every class of a module of this package that has a name for recipes."""
    kinds: dict[str, type[StageConfig]] = {}
    for module in pkgutil.iter_modules(__path__):
        for one in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(one, type) and issubclass(one, StageConfig) and "named" in vars(one):
                assert kinds.setdefault(one.named, one) is one, f"two kinds are called {one.named!r}"
    return kinds


KINDS: dict[str, type[StageConfig]] = _found()

RENAMED = {"measure": "evaluate", "harvest": "rejection_sampling", "prefer": "preference"}
"""Kinds that had another name before version 0.1.0."""


def build(name: str, spec: dict[str, Any], document: Document) -> StageConfig:
    """A stage's configuration, checked. Raises UserError at its line."""
    at = ["stages", name]
    if not isinstance(spec, dict):
        raise document.error("a stage is a group of fields", at)
    kind = spec.get("kind")
    if kind in RENAMED:
        raise document.error(f"the kind {kind!r} is called {RENAMED[kind]!r} now", [*at, "kind"], "write the new name")
    if kind not in KINDS:
        raise document.error(f"no stage is of kind {kind!r}{near(str(kind), list(KINDS))}", [*at, "kind"])
    return check(KINDS[kind], document, spec, at)
