"""Correctness of the final answer: `Math` compares numbers exactly, as rationals; `Symbolic` LaTeX expressions.

`Math` is strict: by default the answer must follow `####`, be inside \\boxed{} or <answer></answer>, or be all the text
after the thinking, and it must be a single number, with at most a currency sign and a unit. A text that lists many
numbers or hedges ("18 or 19") is wrong. The place `last` (the last number of the text) is lenient and not a default.
`Symbolic` calls math-verify. math-verify limits its time with SIGALRM, which works in a main thread only, so it runs
in a child process with its timers off; our deadline kills the child, which is an InfraError, never a wrong answer.

Left out: number words ("eighteen"), and unit conversion ("50%" is 50, and "1 km" is 1, not 1000 m).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ladder.contract.rollouts import Invalid, Outcome, Rollout, Score
from ladder.rewards.child import Child
from ladder.rewards.text import CLOSE, OPEN, Place, after_thinking, check_places, find

STRICT = ConfigDict(extra="forbid")
PLACES: tuple[Place, ...] = ("hash", "boxed", "tag", "bare")
LONGEST = 120
"""Most characters of a text that is parsed as a number."""

_WIDE = {0xFF10 + i: str(i) for i in range(10)} | {
    ord(wide): plain for wide, plain in zip("＋－−．，／＄％", "+--.,/$%", strict=True)
}
_SCALES = {"hundred", "thousand", "million", "billion", "trillion", "dozen", "dozens", "k", "bn"}
_HEDGES = {"or", "and", "to", "plus", "minus", "times", "not", "maybe"}
_NOT_UNITS = _SCALES | _HEDGES | {"x", "y", "z", "e", "i", "pi"}
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_UNIT = r"(?:\s*(?:%|°|[^\W\d_]+[²³]?\.?)(?:[\s/\-]+[^\W\d_]+[²³]?\.?){0,3})?"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*[$€£¥]?\s*(?P<sign2>[-+]?)"
    rf"(?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/))?"
    rf"(?P<int>{_DIGITS})?(?P<dec>\.[0-9]+)?(?:[eE](?P<exp>[-+]?[0-9]{{1,3}}))?"
    rf"(?:\s*/\s*(?P<den>{_DIGITS}))?(?P<unit>{_UNIT})"
)
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" \1/\2 "),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\{,\}|\\,(?=[0-9]{3})"), ","),
    (re.compile(r"\^\s*\{?\\circ\}?"), "°"),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\[!,;: ]"), " "),
)


def parse_number(text: str, units: bool = True) -> Fraction | None:
    """The exact value of a text that is a number and nothing else; None for any other text.

    Accepts signs, thousands separators, decimals, exponents, fractions (3/4, \\frac{3}{4}, 1 1/2), currency signs,
    and, with `units`, up to four trailing words ("18 apples", "5 km/h").
    """
    if len(text) > LONGEST:
        return None
    plain = text.translate(_WIDE).strip()
    for pattern, replacement in _LATEX:
        plain = pattern.sub(replacement, plain)
    plain = plain.strip().removeprefix(r"\(").removesuffix(r"\)").removesuffix(".").strip()
    if len(plain) > 1 and plain.startswith("$") and plain.endswith("$"):
        plain = plain[1:-1].strip()
    plain = plain.strip("*").strip().removesuffix(".")
    match = _NUMBER.fullmatch(plain)
    return _value_of(match) if match and _is_unit(match["unit"], units) else None


def _is_unit(unit: str, units: bool) -> bool:
    """Whether the text after a number can be its unit: not a scale ("5 million"), a hedge ("5 or more") or a variable.
    units: whether units are allowed at all ("%" always is)."""
    if not units:
        return not unit.strip(" %")
    words = re.findall(r"\w+", unit.lower())
    return all(w.rstrip("²³").isalpha() for w in words) and not _NOT_UNITS & set(words)


def _value_of(match: re.Match[str]) -> Fraction | None:
    """The number of a match of `_NUMBER`; None for an impossible combination of parts ("1 2", "3/0", "+-5", ".")."""
    part = match.groupdict()
    if not (part["int"] or part["dec"]) or (part["sign"] and part["sign2"]):
        return None
    if part["whole"] and (not part["den"] or part["dec"] or part["exp"]):
        return None
    number = Fraction((part["int"] or "0").replace(",", "") + (part["dec"] or ""))
    number *= Fraction(10) ** int(part["exp"] or 0)
    if part["den"]:
        denominator = int(part["den"].replace(",", ""))
        if denominator == 0:
            return None
        number /= denominator
    number += int(part["whole"] or 0)
    return -number if "-" in (part["sign"], part["sign2"]) else number


def gold_number(answer: Any) -> Fraction | None:
    """The value of a gold answer given as a number, as its text, or as a text with `#### number` or \\boxed{number};
    None for anything else."""
    if isinstance(answer, bool) or answer is None:
        return None
    final_answer = find(str(answer), ("hash", "boxed", "bare"))
    return None if final_answer is None else parse_number(final_answer)


@dataclass(frozen=True, config=STRICT)
class Math:
    """1 if the answer equals the gold number, otherwise 0; Invalid if the gold answer is not a number.

    places: where the answer is looked for, in order (`rewards.text.Place`); the first place that is present counts.
    tolerance: relative error allowed (0: exactly equal, 1/3 is not 0.333). units: whether words may follow the number.
    finished: a completion cut off at the length limit is wrong, since its last digits may be missing. open, close: the
    thinking tags.
    """

    places: tuple[Place, ...] = PLACES
    tolerance: float = 0.0
    units: bool = True
    finished: bool = True
    open: str = OPEN
    close: str = CLOSE
    name: str = "math"

    def __post_init__(self) -> None:
        check_places(self.places)

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        return [self._judge(r) for r in group]

    def _judge(self, rollout: Rollout) -> Outcome:
        gold = gold_number(rollout.task.answer)
        if gold is None:
            return Invalid(f"{self.name}: the gold answer {rollout.task.answer!r} is not a number")
        right = float(self._is_correct(rollout, gold))
        return Score(right, {self.name: right})

    def _is_correct(self, rollout: Rollout, gold: Fraction) -> bool:
        if self.finished and rollout.stop == "length":
            return False
        final_text = after_thinking(rollout.text, self.open, self.close)
        answer = None if final_text is None else find(final_text, self.places)
        number = None if answer is None else parse_number(answer, self.units)
        return number is not None and abs(number - gold) <= Fraction(self.tolerance) * abs(gold)


@dataclass(frozen=True, config=STRICT)
class Symbolic:
    """1 if math-verify finds answer and gold answer equal (x+1 and 1+x, 1/2 and 0.5, intervals, sets), otherwise 0.

    The answer is looked for as in `Math`; with `whole`, math-verify gets all the text after the thinking. deadline_s:
    seconds for one answer, after which the child is killed and the answer is an InfraError. memory_mb: data-segment
    limit of the child in MiB (0: none). Raises UserError when math-verify is not installed.
    """

    places: tuple[Place, ...] = PLACES
    whole: bool = False
    finished: bool = True
    deadline_s: float = 5.0
    memory_mb: int = 4096
    open: str = OPEN
    close: str = CLOSE
    name: str = "symbolic"

    def __post_init__(self) -> None:
        check_places(self.places)

    @cached_property
    def child(self) -> Child:
        return Child("ladder.rewards.symbolic_child:compute_score", self.deadline_s, memory_mb=self.memory_mb)

    def start(self) -> None:
        """Starts the child process. Raises UserError when math-verify is not installed, so before the first step."""
        self.child.start(extra=("math_verify", "math", "the reward 'symbolic'"))

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        self.start()
        return [self._judge(r) for r in group]

    def _judge(self, rollout: Rollout) -> Outcome:
        final_text = after_thinking(rollout.text, self.open, self.close)
        answer = None if final_text is None else final_text if self.whole else find(final_text, self.places)
        if answer is None or (self.finished and rollout.stop == "length"):
            return Score(0.0, {self.name: 0.0})
        return self.child.judge([replace(rollout, text=answer)], self.name)[0]
