"""Is the final answer the right one? Numeric equality here, exactly and in rationals; symbolic in a child process.

`Math` is strict: by default the answer must stand behind `####`, in \\boxed{}, in <answer></answer>, or be all that
follows the thinking, and it must be one number and nothing else but a currency sign and a unit. So a text that lists
many numbers, or hedges ("18 or 19"), is wrong. `last` (the last number of the text) is lenient and must be asked for.
`Symbolic` asks math-verify whether two LaTeX expressions are equal. math-verify interrupts itself with SIGALRM, so it
gets a process of its own and no timer: our deadline kills it, and a kill is an InfraError, never a wrong answer.

Left out: number words ("eighteen"), and unit conversion ("50%" is 50, and "1 km" is not "1000 m" but 1).
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
"""Characters of an answer that can still be one number."""

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
    """The number that the whole of `text` is, exactly; None when it is anything else.

    Understands signs, thousands separators, decimals, exponents, fractions (3/4, \\frac{3}{4}, 1 1/2), currency signs,
    and, with `units`, up to four trailing words ("18 apples", "5 km/h").
    """
    if len(text) > LONGEST:
        return None
    bare = text.translate(_WIDE).strip()
    for pattern, by in _LATEX:
        bare = pattern.sub(by, bare)
    bare = bare.strip().removeprefix(r"\(").removesuffix(r"\)").removesuffix(".").strip()
    if len(bare) > 1 and bare.startswith("$") and bare.endswith("$"):
        bare = bare[1:-1].strip()
    bare = bare.strip("*").strip().removesuffix(".")
    found = _NUMBER.fullmatch(bare)
    return _value(found) if found and _fits(found["unit"], units) else None


def _fits(unit: str, units: bool) -> bool:
    """Whether what follows a number can be its unit: not a scale ("5 million"), a hedge ("5 or more") or a variable."""
    if not units:
        return not unit.strip(" %")
    words = re.findall(r"\w+", unit.lower())
    return all(w.rstrip("²³").isalpha() for w in words) and not _NOT_UNITS & set(words)


def _value(found: re.Match[str]) -> Fraction | None:
    """The number of a match, or None where its parts do not go together ("1 2", "3/0", "+-5", ".")."""
    part = found.groupdict()
    if not (part["int"] or part["dec"]) or (part["sign"] and part["sign2"]):
        return None
    if part["whole"] and (not part["den"] or part["dec"] or part["exp"]):
        return None
    number = Fraction((part["int"] or "0").replace(",", "") + (part["dec"] or ""))
    number *= Fraction(10) ** int(part["exp"] or 0)
    if part["den"]:
        below = int(part["den"].replace(",", ""))
        if below == 0:
            return None
        number /= below
    number += int(part["whole"] or 0)
    return -number if "-" in (part["sign"], part["sign2"]) else number


def gold_number(answer: Any) -> Fraction | None:
    """The number a gold answer is: a number, a number as text, or a text that ends in `#### number`."""
    if isinstance(answer, bool) or answer is None:
        return None
    found = find(str(answer), ("hash", "boxed", "bare"))
    return None if found is None else parse_number(found)


@dataclass(frozen=True, config=STRICT)
class Math:
    """1 where the answer is the gold number, 0 where it is not; Invalid where the gold answer is no number.

    places: where an answer may stand, in order; the first that holds something counts. tolerance: relative error
    allowed (0: exactly equal, 1/3 is not 0.333). units: whether trailing words are allowed. finished: an answer cut
    off at the length limit is wrong, since its last digits may be missing. open, close: the thinking tags.
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
        right = float(self._right(rollout, gold))
        return Score(right, {self.name: right})

    def _right(self, rollout: Rollout, gold: Fraction) -> bool:
        if self.finished and rollout.stop == "length":
            return False
        said = after_thinking(rollout.text, self.open, self.close)
        found = None if said is None else find(said, self.places)
        number = None if found is None else parse_number(found, self.units)
        return number is not None and abs(number - gold) <= Fraction(self.tolerance) * abs(gold)


@dataclass(frozen=True, config=STRICT)
class Symbolic:
    """1 where math-verify finds answer and gold equal (x+1 and 1+x, 1/2 and 0.5, intervals, sets), 0 where not.

    The answer is looked for as in `Math`; `whole` hands math-verify all that follows the thinking instead. Each answer
    has `deadline_s` seconds; past it the child is killed and the answer is an InfraError. Raises UserError when
    math-verify is not installed.
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
        """Starts the child now, so that what is missing is said before the first step."""
        self.child.start(extra=("math_verify", "math", "the reward 'symbolic'"))

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        self.start()
        return [self._judge(r) for r in group]

    def _judge(self, rollout: Rollout) -> Outcome:
        said = after_thinking(rollout.text, self.open, self.close)
        found = None if said is None else said if self.whole else find(said, self.places)
        if found is None or (self.finished and rollout.stop == "length"):
            return Score(0.0, {self.name: 0.0})
        return self.child.judge([replace(rollout, text=found)], self.name)[0]
