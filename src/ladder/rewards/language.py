"""Language-consistency reward of DeepSeek-R1 (arXiv:2501.12948, section 2.3.2), generalised from languages to scripts:
`Language` counts letters (Latin, Han, Cyrillic, ...), `Notation` counts digits (0-9, Chinese numerals, Arabic-Indic,
...). The value is the share of one script among the counted characters, as R1's is the share of words of the target
language; with `strict` it is 1 if all counted characters are of one script, otherwise 0.

Characters are counted, not words, because Chinese does not separate words by spaces. Filters and metrics use the same
functions, `scripts` and `mixed`. Left out: telling apart languages of one script (English from French).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ladder.contract.rollouts import Outcome, Rollout, Score
from ladder.rewards.text import CLOSE, OPEN, after_thinking

Counted = Literal["digits", "letters"]
Where = Literal["all", "thinking", "answer"]
STRICT = ConfigDict(extra="forbid")
HAN_NUMERALS = frozenset("〇零一二三四五六七八九十百千万亿两壹贰叁肆伍陆柒捌玖拾佰仟")


@lru_cache(maxsize=4096)
def script(char: str) -> tuple[Counted, str] | None:
    """The class and script of a character: ("digits", "ascii"), ("letters", "latin"), ...; None if it is neither.

    A Chinese numeral is a digit, also inside a word. The script of any other character is the first word of its
    Unicode name ("cyrillic", "arabic-indic"), with "cjk" as "han", "katakana" and "hiragana" as "kana".
    """
    if char in HAN_NUMERALS:
        return "digits", "han"
    category = unicodedata.category(char)
    if category == "Nd":
        name = "ascii" if char.isascii() else unicodedata.name(char).split()[0].lower()
        return "digits", name
    if not category.startswith("L") or category == "Lm":
        return None
    name = unicodedata.name(char, "unnamed").split()[0].lower()
    return "letters", {"cjk": "han", "katakana": "kana", "hiragana": "kana"}.get(name, name)


def scripts(text: str, counted: Counted) -> Counter[str]:
    """The number of characters of each script in the text. counted: which class of characters to count."""
    classes = (script(c) for c in text)
    return Counter(s[1] for s in classes if s is not None and s[0] == counted)


def mixed(text: str, counted: Counted = "digits") -> bool:
    """Whether the text has characters of two scripts or more."""
    return len(scripts(text, counted)) > 1


def share(text: str, counted: Counted, target: str = "") -> float | None:
    """The share of the target script ("": of the commonest one) among the counted characters, in [0, 1]; None if there
    are none."""
    counts = scripts(text, counted)
    if not counts:
        return None
    return (counts[target] if target else max(counts.values())) / counts.total()


@dataclass(frozen=True, config=STRICT)
class Notation:
    """The share of one digit script among all digits. target: the script ("ascii", "han"; "": the commonest one).

    strict: 1 if all digits are of that script, otherwise 0. where: which part of the completion is judged. empty: the
    value if it has no digits. open, close: the thinking tags.
    """

    target: str = ""
    strict: bool = False
    where: Where = "all"
    empty: float = 0.0
    open: str = OPEN
    close: str = CLOSE
    name: str = "notation"

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        return _judge(self, group, "digits")


@dataclass(frozen=True, config=STRICT)
class Language:
    """As `Notation`, for letters. target: "latin", "han", "cyrillic", "greek", "arabic", "kana", "hangul", ..."""

    target: str = ""
    strict: bool = False
    where: Where = "thinking"
    empty: float = 0.0
    open: str = OPEN
    close: str = CLOSE
    name: str = "language"

    def __call__(self, group: Sequence[Rollout]) -> list[Outcome]:
        return _judge(self, group, "letters")


def _judge(reward: Notation | Language, group: Sequence[Rollout], counted: Counted) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for rollout in group:
        script_share = share(_judged_part(rollout.text, reward), counted, reward.target)
        value = reward.empty if script_share is None else float(script_share == 1.0) if reward.strict else script_share
        outcomes.append(Score(value, {reward.name: value}))
    return outcomes


def _judged_part(text: str, reward: Notation | Language) -> str:
    """The part of a completion that `reward.where` names. From an opening tag without a closing one everything is
    thinking; a text without tags is all answer."""
    if reward.where == "all":
        return text
    answer = after_thinking(text, reward.open, reward.close)
    if reward.where == "answer":
        return answer or ""
    thinking = text if answer is None else text[: len(text) - len(answer)]
    return thinking.replace(reward.open, "").replace(reward.close, "")
