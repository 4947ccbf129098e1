"""The child's side of `math.Symbolic`: two answers compared by math-verify, in verl's signature.

math-verify's own timers are off (they turn a hang into "not equal"); the parent's deadline kills this process instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any


def _judge() -> Callable[[str, Any], dict[str, Any]]:
    """Imports math-verify now, while the worker loads, so that no answer pays for it out of its deadline."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timers are off, as they must be

    def parse(text: str) -> list[Any]:
        # Bare LaTeX is put between dollars, where math-verify looks for it. A text it cannot parse stays a str.
        latex = text if "$" in text or "boxed" in text else f"${text}$"
        found = math_verify.parse(latex, parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]
        return [f for f in found if not isinstance(f, str)]

    def compute_score(solution_str: str, ground_truth: Any) -> dict[str, Any]:
        gold = parse(str(ground_truth))
        if not gold:
            return {"score": None, "why": f"the gold answer {ground_truth!r} does not parse"}
        said = parse(solution_str)
        if not said:
            return {"score": 0.0}
        return {"score": float(math_verify.verify(gold, said, timeout_seconds=None, raise_on_error=True))}

    return compute_score


compute_score = _judge()
