"""The child's side of `math.Symbolic`: two answers compared by math-verify, in verl's signature.

math-verify's own timers are off (they turn a hang into "not equal"); the parent's deadline kills this process instead.
"""

from __future__ import annotations

import logging
from typing import Any

import math_verify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timers are off; they are meant to be


def compute_score(solution_str: str, ground_truth: Any) -> dict[str, Any]:
    """{"score": 1.0 or 0.0}; None with a reason when the gold answer does not parse."""
    gold = _parse(str(ground_truth))
    if not gold:
        return {"score": None, "why": f"the gold answer {ground_truth!r} does not parse"}
    said = _parse(solution_str)
    if not said:
        return {"score": 0.0}
    equal = math_verify.verify(gold, said, timeout_seconds=None, raise_on_error=True)  # type: ignore[call-arg]
    return {"score": float(equal)}


def _parse(text: str) -> list[Any]:
    """The expressions in a text; bare LaTeX ("\\frac12") is put between dollars, where math-verify looks for it."""
    latex = text if "$" in text or "boxed" in text else f"${text}$"
    found = math_verify.parse(latex, parsing_timeout=None, raise_on_error=True)  # type: ignore[call-arg]
    return [f for f in found if not isinstance(f, str)]
