"""The child's side of `math.Symbolic`: compares two answers with math-verify; a function with verl's signature.

math-verify's own timers are off, because they report a hang as "not equal"; the parent's deadline kills this process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any


def _make_compute_score() -> Callable[[str, Any], dict[str, Any]]:
    """Imports math-verify while the worker loads, so that the import does not count against an answer's deadline."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timers are off, which is intended

    def parse(text: str) -> list[Any]:
        # math-verify looks for LaTeX between dollar signs. It returns a text that it cannot parse as str.
        latex = text if "$" in text or "boxed" in text else f"${text}$"
        expressions = math_verify.parse(latex, parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]
        return [e for e in expressions if not isinstance(e, str)]

    def compute_score(solution_str: str, ground_truth: Any) -> dict[str, Any]:
        gold = parse(str(ground_truth))
        if not gold:
            return {"score": None, "why": f"the gold answer {ground_truth!r} cannot be parsed"}
        answer = parse(solution_str)
        if not answer:
            return {"score": 0.0}
        return {"score": float(math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True))}

    return compute_score


compute_score = _make_compute_score()
