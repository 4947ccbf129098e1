"""Losses built from a recipe, which names a class of `ladder.losses` or an import path."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import ladder.losses
from ladder.base.config import near, validated
from ladder.base.errors import UserError
from ladder.contract.training import Loss
from ladder.pipeline.build import named
from ladder.pipeline.recipe import Spec

UNITS = ("token", "sequence", "padded", "pair")


def loss(spec: Spec, field: str) -> Loss:
    """Builds a loss from the name of a class in `ladder.losses` or an import path (`file.py:Name`,
    `package.module:Name`), and its fields. Raises UserError."""
    kind, options = _named(spec, field)
    cls = _loss_class(kind, field)
    known = [f.name for f in fields(cls)]
    for name in options:
        if name not in known:
            raise UserError(f"{kind} has no field {name!r}{near(name, known)}", field=f"{field}.{name}")
    made = validated(cls, options, field)
    for name in ("unit", "needs", "entropy"):
        if not hasattr(made, name):
            raise UserError(f"{kind} has no {name!r}, which every loss has", field=field, hint="see CONTRIBUTING.md")
    if made.unit not in UNITS:
        message = f"{kind} counts in {made.unit!r}, which is no unit"
        raise UserError(message, field=field, hint=f"one of {', '.join(UNITS)}")
    return made


def known_loss(spec: Spec, field: str) -> Loss | None:
    """The built-in loss; None for a user's loss, which is located but not imported. Raises UserError."""
    kind, _ = _named(spec, field)
    if ":" not in kind:
        return loss(spec, field)
    named.located(kind, field)
    return None


def _named(spec: Spec, field: str) -> tuple[str, dict[str, Any]]:
    """Splits a loss's specification into (kind, options). Raises UserError."""
    if not isinstance(spec, str) and not (isinstance(spec, dict) and isinstance(spec.get("kind"), str)):
        raise UserError("a loss is named by its kind", field=field, hint="write {kind: PolicyClip, clip_high: 0.28}")
    return named.parts(spec, field)


def _loss_class(kind: str, field: str) -> Any:
    """The class of a loss. Raises UserError."""
    if ":" in kind:
        return named.described(kind, field)
    known = ladder.losses.__all__
    if kind not in known:
        raise UserError(f"no loss is called {kind!r}{near(kind, known)}", field=field)
    return getattr(ladder.losses, kind)
