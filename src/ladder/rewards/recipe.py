"""Builds a reward from a recipe's YAML. Parsing is strict: a misspelt key is an error, not a default.

reward: math                                        one reward with its defaults
reward: {math: {tolerance: 0.001}}                  one reward with options
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
from ladder.rewards.gym import GymReward
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
    "gym": GymReward,
    "user": User,
}


def kinds() -> list[str]:
    """The kinds of reward a recipe may name, sorted."""
    return sorted(_KINDS)


def build(spec: str | Mapping[str, Any] | list[Any], field: str = "reward") -> Guarded:
    """The reward that a recipe describes, validated by `guard`, with its child processes started.

    field: the recipe field of `spec`, for messages. Raises UserError on an unknown kind, key or type, on two
    components with the same name, on a user's function that cannot be loaded, and on an extra that is not installed.
    """
    if isinstance(spec, list):
        if not spec:
            raise UserError("no reward is given", field=field, hint=f"name one of: {', '.join(kinds())}")
        return _combined([part_of(s, f"{field}[{i}]") for i, s in enumerate(spec)], field)
    if isinstance(spec, Mapping) and "kind" not in spec and len(spec) > 1:
        return build([{kind: options} for kind, options in spec.items()], field)
    part = part_of(spec, field)
    return part.reward if part.weight == 1.0 and not part.gate else _combined([part], field)


def _combined(parts: list[Part], field: str) -> Guarded:
    names = [p.reward.name for p in parts]
    duplicates = sorted({n for n in names if names.count(n) > 1})
    if duplicates:
        message = f"two rewards have the name {duplicates[0]!r}"
        raise UserError(message, field=field, hint="give one of them another `name`")
    return guard(Combine(tuple(parts)))


def part_of(spec: Any, field: str) -> Part:
    """One component with its weight or gate. field: the recipe field of `spec`. Raises UserError."""
    kind, options = kind_of(spec, _KINDS, "reward", field)
    weight, gate = options.pop("weight", 1.0), options.pop("gate", False)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"must be a number, not {weight!r}", field=f"{field}.weight")
    if not isinstance(gate, bool):
        raise UserError(f"must be true or false, not {gate!r}", field=f"{field}.gate")
    if gate and weight != 1.0:
        message = "a gate multiplies the sum of the other rewards, so it has no weight"
        raise UserError(message, field=field, hint="remove `weight` or `gate`")
    return Part(guard(_build_reward(kind, options, field)), float(weight), gate)


def _build_reward(kind: str, options: dict[str, Any], field: str) -> Any:
    if kind == "cosine":
        if "of" not in options:
            message = "is missing: the reward that decides correctness"
            raise UserError(message, field=f"{field}.of", hint="for example of: {math: {}}")
        options["of"] = build(options["of"], f"{field}.of")
        return _build_cosine(options, field)
    reward = validate(_KINDS[kind], options, field)
    if isinstance(reward, User | Symbolic | GymReward):
        try:
            reward.start()
        except UserError as err:
            raise UserError(err.message, field=field, hint=err.hint) from err
    return reward


def _build_cosine(options: dict[str, Any], field: str) -> CosineLength:
    """`CosineLength` from its options, whose "of" is a built reward (so pydantic cannot validate them)."""
    of = options.pop("of")
    fields = [name for name in CosineLength.__annotations__ if name != "of"]
    for key, value in options.items():
        if key not in fields:
            raise UserError(f"unknown key {key!r}{near(key, fields)}", field=field)
        expected_type = str if key == "name" else int if key == "max_tokens" else (int, float)
        if isinstance(value, bool) or not isinstance(value, expected_type):
            wanted = {"name": "text", "max_tokens": "an integer"}.get(key, "a number")
            raise UserError(f"must be {wanted}, not {value!r}", field=f"{field}.{key}")
    if "max_tokens" not in options or options["max_tokens"] < 1:
        raise UserError("must be given and be at least 1", field=f"{field}.max_tokens")
    return CosineLength(of, **options)
