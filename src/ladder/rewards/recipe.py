"""A reward from a recipe's YAML: strict, so that a misspelt key is an error and not a default.

reward: math                                        one reward with its defaults
reward: {math: {tolerance: 0.001}}                  one with options
reward:                                             several: weighted sum times gates, see `combine.py`
  - {kind: math}
  - {kind: format, weight: 0.2}
  - {kind: notation, target: ascii, gate: true}
  - {kind: user, function: rewards.py:brevity, weight: 0.1, name: brevity}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ladder.base.errors import UserError
from ladder.base.spec import kind_of, near, validate
from ladder.rewards.combine import Combine, Part
from ladder.rewards.exact import Exact
from ladder.rewards.format import Format
from ladder.rewards.guarded import Guarded, guard
from ladder.rewards.gym import Gym
from ladder.rewards.language import Language, Notation
from ladder.rewards.length import CosineLength, Length, LengthRange, Overlong
from ladder.rewards.math import Math, Symbolic
from ladder.rewards.user import User

_KINDS: dict[str, type] = {
    "math": Math,
    "symbolic": Symbolic,
    "exact": Exact,
    "format": Format,
    "length": Length,
    "length_range": LengthRange,
    "overlong": Overlong,
    "cosine": CosineLength,
    "language": Language,
    "notation": Notation,
    "gym": Gym,
    "user": User,
}


def kinds() -> list[str]:
    """What a recipe may ask for."""
    return sorted(_KINDS)


def build(spec: str | Mapping[str, Any] | list[Any], field: str = "reward") -> Guarded:
    """The reward a recipe describes, guarded, its children started.

    field: what the spec is called in messages. Raises UserError on an unknown kind, key or type, on two parts of one
    name, on a user's function that cannot be loaded, and on an extra that is not installed.
    """
    if isinstance(spec, list):
        if not spec:
            raise UserError("no reward is given", field=field, hint=f"name one of {', '.join(kinds())}")
        return _combined([part_of(s, f"{field}[{i}]") for i, s in enumerate(spec)], field)
    if isinstance(spec, Mapping) and "kind" not in spec and len(spec) > 1:
        return build([{kind: options} for kind, options in spec.items()], field)
    part = part_of(spec, field)
    return part.reward if part.weight == 1.0 and not part.gate else _combined([part], field)


def _combined(parts: list[Part], field: str) -> Guarded:
    names = [p.reward.name for p in parts]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"two rewards are called {twice[0]!r}", field=field, hint="give one of them a `name`")
    return guard(Combine(tuple(parts)))


def part_of(spec: Any, field: str) -> Part:
    """One component with its weight or gate. Raises UserError."""
    kind, options = kind_of(spec, _KINDS, "reward", field)
    weight, gate = options.pop("weight", 1.0), options.pop("gate", False)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"not a number: {weight!r}", field=f"{field}.weight")
    if not isinstance(gate, bool):
        raise UserError(f"not true or false: {gate!r}", field=f"{field}.gate")
    if gate and weight != 1.0:
        raise UserError("a gate multiplies the whole and has no weight", field=field, hint="drop `weight` or `gate`")
    return Part(guard(_make(kind, options, field)), float(weight), gate)


def _make(kind: str, options: dict[str, Any], field: str) -> Any:
    if kind == "cosine":
        if "of" not in options:
            raise UserError("the cosine needs to know what is right", field=f"{field}.of", hint="of: {math: {}}")
        options["of"] = build(options["of"], f"{field}.of")
        return _cosine(options, field)
    reward = validate(_KINDS[kind], options, field)
    if isinstance(reward, User | Symbolic | Gym):
        try:
            reward.start()
        except UserError as err:
            raise UserError(err.message, field=field, hint=err.hint) from err
    return reward


def _cosine(options: dict[str, Any], field: str) -> CosineLength:
    of = options.pop("of")
    known = {n: t for n, t in CosineLength.__annotations__.items() if n != "of"}
    for key, value in options.items():
        if key not in known:
            raise UserError(f"unknown key {key!r}{near(key, list(known))}", field=field)
        wanted = str if key == "name" else int if key == "max_tokens" else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise UserError(f"a value of the wrong type: {value!r}", field=f"{field}.{key}")
    if "max_tokens" not in options or options["max_tokens"] < 1:
        raise UserError("must be given, and be 1 or more", field=f"{field}.max_tokens")
    return CosineLength(of, **options)
