"""Reward functions: a group of rollouts in, one outcome per rollout out. `build` makes one from a recipe; `guard` wraps
any callable.

Names are imported lazily: the worker process (`ladder.rewards.worker`) is part of this package and must start in
milliseconds, so importing the package imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "build": "recipe",
    "kinds": "recipe",
    "guard": "guarded",
    "Guarded": "guarded",
    "Combine": "combine",
    "Part": "combine",
    "Math": "math",
    "Symbolic": "math",
    "parse_number": "math",
    "Exact": "exact",
    "Format": "format",
    "Length": "length",
    "LengthRange": "length",
    "Overlong": "length",
    "CosineLength": "length",
    "Language": "language",
    "Notation": "language",
    "GymReward": "gym",
    "User": "user",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(import_module(f"{__name__}.{_MODULE_OF[name]}"))[name]
