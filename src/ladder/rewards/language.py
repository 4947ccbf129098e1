"""Does an answer keep to one script? DeepSeek-R1's language-consistency reward (arXiv:2501.12948, section 2.3.2),
made general: `Language` counts letters (Latin, Han, Cyrillic, ...), `Notation` counts digits (0-9, Chinese numerals,
Arabic-Indic, ...). The value is the share of one script among what is counted, as R1's is the share of target words;
`strict` makes it 1 for one script alone and 0 otherwise.

Characters are counted, not words: Chinese has no spaces to count by. The same tables serve filters and metrics:
`scripts`, `mixed`. Left out: telling languages of one script apart (English from French).
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
    """("digits", "ascii"), ("digits", "han"), ("letters", "latin"), ...; None for what is neither.

    A Chinese numeral is a digit, also inside a word. The script of another character is the first word of its Unicode
    name ("cyrillic", "arabic-indic", "cjk" as "han").
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
    """How many characters of each script the text holds."""
    found = (script(c) for c in text)
    return Counter(s[1] for s in found if s is not None and s[0] == counted)


def mixed(text: str, counted: Counted = "digits") -> bool:
    """Whether the text holds two scripts or more."""
    return len(scripts(text, counted)) > 1


def share(text: str, counted: Counted, target: str = "") -> float | None:
    """The share of the target script (of the commonest one when ""), in [0, 1]; None when nothing was counted."""
    found = scripts(text, counted)
    if not found:
        return None
    return (found[target] if target else max(found.values())) / found.total()


@dataclass(frozen=True, config=STRICT)
class Notation:
    """The share of one digit script. target: which one ("ascii", "han"; "" for whichever is commonest).

    strict: 1 for that script alone, 0 otherwise. where: which part of the text is judged. empty: the value of a text
    with nothing to count.
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
    """As `Notation`, of letters. target: "latin", "han", "cyrillic", "greek", "arabic", "kana", "hangul" ..."""

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
        found = share(_part(rollout.text, reward), counted, reward.target)
        value = reward.empty if found is None else float(found == 1.0) if reward.strict else found
        outcomes.append(Score(value, {reward.name: value}))
    return outcomes


def _part(text: str, reward: Notation | Language) -> str:
    """The judged part. Thinking that was opened and not closed is all thinking; a text without tags is all answer."""
    if reward.where == "all":
        return text
    answer = after_thinking(text, reward.open, reward.close)
    if reward.where == "answer":
        return answer or ""
    thinking = text if answer is None else text[: len(text) - len(answer)]
    return thinking.replace(reward.open, "").replace(reward.close, "")
