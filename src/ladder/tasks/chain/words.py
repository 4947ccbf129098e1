"""The vocabulary of the chain world: 51 words and their token ids. A word is one token; spaces join the words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("<pad>", "<s>", "</s>")
DIGITS_A = tuple("0123456789")
DIGITS_B = tuple("〇一二三四五六七八九")
OPS_A = ("+1", "+2", "-1", "-2")
OPS_B = ("加一", "加二", "减一", "减二")
LABELS = tuple("abcdefghijklmnop")
EQUALS, ANSWER, CHECK, THUS = "=", "#", "?", "∴"

WORDS = (*SPECIAL, *DIGITS_A, *DIGITS_B, *OPS_A, *OPS_B, *LABELS, EQUALS, ANSWER, CHECK, THUS)
ID = {word: i for i, word in enumerate(WORDS)}
DELTAS = (1, 2, -1, -2)
"""The number that each operation of OPS_A and OPS_B adds."""

NOTATION_A = frozenset(DIGITS_A + OPS_A)
NOTATION_B = frozenset(DIGITS_B + OPS_B)


def tokenizer() -> Tokenizer:
    """The tokenizer, one token per word: it prepends <s> when encoding and joins words with spaces when decoding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    t = Tokenizer(models.WordLevel(dict(ID), unk_token="<pad>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    t.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A", special_tokens=[("<s>", ID["<s>"])]
    )
    t.add_special_tokens(list(SPECIAL))
    return t
