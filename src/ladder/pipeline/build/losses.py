"""Losses built from a recipe: by the name of a class in `ladder.losses`, or by import path."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

import ladder.losses
from ladder.base.config import near, validated
from ladder.base.errors import UserError
from ladder.contract.training import Loss
from ladder.pipeline.recipe import Spec


def loss(spec: Spec, field: str) -> Loss:
    """A loss by its class's name in `ladder.losses`, or by import path, with its fields."""
    options = {"kind": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, dict) else {}
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError("a loss is named by its kind", field=field, hint="write {kind: PolicyClip, clip_high: 0.28}")
    cls = _loss_class(kind, field)
    known = [f.name for f in fields(cls)]
    for name in options:
        if name not in known:
            raise UserError(f"{kind} has no field {name!r}{near(name, known)}", field=f"{field}.{name}")
    return validated(cls, options, field)


def _loss_class(kind: str, field: str) -> Any:
    if ":" in kind:
        module, _, name = kind.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as err:
            raise UserError(f"cannot import {kind!r}: {err}", field=field) from err
    known = ladder.losses.__all__
    if kind not in known:
        raise UserError(f"no loss is called {kind!r}{near(kind, known)}", field=field)
    return getattr(ladder.losses, kind)
