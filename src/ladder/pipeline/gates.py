"""Gates: bounds on a stage's figures; a run stops at the first one that fails. `require: {easy.accuracy: ">= 0.9"}`."""

from __future__ import annotations

import operator
import re
from typing import Any

from ladder.base.errors import UserError

_OPS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_BOUND = re.compile(r"\s*(>=|<=|>|<)\s*(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)\s*")


def check(stage: str, require: dict[str, str], summary: dict[str, Any]) -> None:
    """Raises UserError for the first bound that does not hold or cannot be parsed."""
    for name, bound in require.items():
        field = f"{stage}.require.{name}"
        sign, limit = parse(bound, field)
        value: Any = summary
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, int | float):
            raise UserError("the stage's summary has no such figure", field=field)
        if not _OPS[sign](value, limit):
            hint = "the stage's result is kept; change the stage or the bound"
            raise UserError(f"is {value:.4g} and must be {bound.strip()}", field=field, hint=hint)


def parse(bound: str, field: str) -> tuple[str, float]:
    """Parses a bound into (sign, limit). Raises UserError."""
    parsed = _BOUND.fullmatch(bound)
    if parsed is None:
        raise UserError(f"{bound!r} is not a bound", field=field, hint='write e.g. ">= 0.9"')
    return parsed[1], float(parsed[2])
