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

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from ladder.base.config import near
from ladder.base.errors import UserError, at_field
from ladder.base.spec import kind_of, validate
from ladder.contract.rollouts import Outcome, Rollout
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


Named = Mapping[str, Callable[[Sequence[Rollout]], list[Outcome]]]
"""Rewards that have a name of their own beside the kinds: those that a world of tasks brings."""


@dataclass(frozen=True, slots=True)
class Component:
    """One reward of a recipe, parsed and validated; no child process runs and no user code was imported.

    reward: the callable. gate: its score multiplies the sum of the others, and its weight is 1.
    """

    reward: Callable[[Sequence[Rollout]], list[Outcome]]
    weight: float
    gate: bool
    field: str

    @property
    def plain(self) -> bool:
        """Whether the component alone is the whole reward, unweighted."""
        return self.weight == 1.0 and not self.gate

    @property
    def files(self) -> list[Path]:
        """The source files of the user's code that it calls, found without importing it. Raises UserError."""
        with at_field(self.field):
            return [path for user in _users(self.reward) if (path := user.file()) is not None]

    @property
    def name(self) -> str:
        """What its score is called among others."""
        return guard(self.reward).name

    def start(self) -> None:
        """Starts the child processes. Raises UserError if a function cannot be loaded or an extra is missing."""
        for child in _started(self.reward):
            with at_field(self.field):
                child.start()

    def part(self) -> Part:
        return Part(guard(self.reward), self.weight, self.gate)


def build(spec: str | Mapping[str, Any] | list[Any], field: str = "reward") -> Guarded:
    """The reward that a recipe describes, validated by `guard`, with its child processes started.

    field: the recipe field of `spec`, for messages. Raises UserError on an unknown kind, key or type, on two
    components with the same name, on a user's function that cannot be loaded, and on an extra that is not installed.
    """
    components = [component(one, place) for one, place in items(spec, field)]
    for one in components:
        one.start()
    if len(components) == 1 and components[0].plain and not isinstance(spec, list):
        return guard(components[0].reward)
    return combined([one.part() for one in components], field)


def items(spec: str | Mapping[str, Any] | list[Any], field: str) -> list[tuple[Any, str]]:
    """The rewards that a spec lists, each with its field. Raises UserError where it lists none."""
    if isinstance(spec, list):
        if not spec:
            raise UserError("no reward is given", field=field, hint=f"name one of: {', '.join(kinds())}")
        return [(one, f"{field}[{i}]") for i, one in enumerate(spec)]
    if isinstance(spec, Mapping) and "kind" not in spec and len(spec) > 1:
        return [({kind: options}, f"{field}[{i}]") for i, (kind, options) in enumerate(spec.items())]
    return [(spec, field)]


def combined(parts: Sequence[Part], field: str) -> Guarded:
    """Several components as one reward. Raises UserError where two have one name."""
    names = [p.reward.name for p in parts]
    duplicates = sorted({n for n in names if names.count(n) > 1})
    if duplicates:
        message = f"two rewards have the name {duplicates[0]!r}"
        raise UserError(message, field=field, hint="give one of them another `name`")
    return guard(Combine(tuple(parts)))


def component(spec: Any, field: str, named: Named = MappingProxyType({})) -> Component:
    """One reward with its weight or gate, parsed. field: the recipe field of `spec`. named: further rewards by name.
    Raises UserError."""
    kind, options = kind_of(spec, {**_KINDS, **named}, "reward", field)
    weight, gate = weight_of(options, field), options.pop("gate", False)
    if not isinstance(gate, bool):
        raise UserError(f"must be true or false, not {gate!r}", field=f"{field}.gate")
    if gate and weight != 1.0:
        message = "a gate multiplies the sum of the other rewards, so it has no weight"
        raise UserError(message, field=field, hint="remove `weight` or `gate`")
    if kind in named:
        name = options.pop("name", kind)
        if options:
            raise UserError(f"the reward {kind!r} has no options", field=f"{field}.{next(iter(options))}")
        return Component(guard(named[kind], str(name)), weight, gate, field)
    return Component(_build_reward(kind, options, field), weight, gate, field)


def weight_of(options: dict[str, Any], field: str) -> float:
    """Takes the weight out of a component's options. Raises UserError."""
    weight = options.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"must be a number, not {weight!r}", field=f"{field}.weight")
    if not math.isfinite(weight):
        raise UserError(f"must be finite, not {weight}", field=f"{field}.weight")
    return float(weight)


@runtime_checkable
class Starts(Protocol):
    """A reward that has something to start or to load before it can judge."""

    def start(self) -> None:
        """Raises UserError where that fails."""
        ...


def _started(reward: Any) -> list[Starts]:
    """The rewards inside a reward that have something to start."""
    if isinstance(reward, Starts):
        return [reward]
    if isinstance(reward, CosineLength):
        return _started(reward.of)
    if isinstance(reward, Guarded):
        return _started(reward.inner)
    return [one for part in reward.parts for one in _started(part.reward)] if isinstance(reward, Combine) else []


def _users(reward: Any) -> list[User]:
    return [one for one in _started(reward) if isinstance(one, User)]


def _build_reward(kind: str, options: dict[str, Any], field: str) -> Any:
    if kind == "cosine":
        if "of" not in options:
            message = "is missing: the reward that decides correctness"
            raise UserError(message, field=f"{field}.of", hint="for example of: {math: {}}")
        parts = [component(one, place) for one, place in items(options["of"], f"{field}.of")]
        single = len(parts) == 1 and parts[0].plain
        whole = guard(parts[0].reward) if single else combined([one.part() for one in parts], f"{field}.of")
        return _build_cosine(options | {"of": whole}, field)
    return validate(_KINDS[kind], options, field)


def _build_cosine(options: dict[str, Any], field: str) -> CosineLength:
    """`CosineLength` from its options, whose "of" is a built reward (so pydantic cannot validate them)."""
    of = options.pop("of")
    fields = [name for name in CosineLength.__annotations__ if name != "of"]
    for key, value in options.items():
        if key not in fields:
            raise UserError(f"unknown key {key!r}{near(key, fields)}", field=field)
        expected_type = str if key == "name" else int if key == "max_tokens" else (int, float)
        if isinstance(value, bool) or not isinstance(value, expected_type):
            type_name = {"name": "text", "max_tokens": "an integer"}.get(key, "a number")
            raise UserError(f"must be {type_name}, not {value!r}", field=f"{field}.{key}")
    if "max_tokens" not in options or options["max_tokens"] < 1:
        raise UserError("must be given and be at least 1", field=f"{field}.max_tokens")
    return CosineLength(of, **options)
