"""Rewards: text in, outcome out. `build` makes one from a recipe, `guard` wraps a callable of one's own.

Names are handed out lazily: the worker child (`ladder.rewards.worker`) lives in this package and must start in
milliseconds, so importing the package imports nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
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
    "Gym": "gym",
    "User": "user",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(import_module(f"{__name__}.{_WHERE[name]}"))[name]
