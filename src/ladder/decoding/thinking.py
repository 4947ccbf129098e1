"""Thinking budgets: a thinking block that is not closed within its budget is closed by forced tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ladder.base.errors import UserError
from ladder.contract.rollouts import Sampling


class Thinking:
    """The thinking budget of one request: the text that opens and closes a block, and the tokens that close it."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling, tokenizer: Any) -> None:
        """Raises UserError for tags that cannot be found or written."""
        self.open, self.close, self.budget = sampling.think_open, sampling.think_close, sampling.think_budget
        self.tokenizer = tokenizer
        self.prompt = tokenizer.decode(list(prompt))
        self.closing: list[int] = tokenizer.encode(self.close, add_special_tokens=False)
        if not self.open:
            raise UserError("a thinking budget needs a tag that opens the block", field="think_open")
        if not self.close or self.close not in tokenizer.decode(self.closing):
            raise UserError(
                f"the tokenizer cannot write {self.close!r}, so a thinking block could not be closed",
                field="think_close",
                hint="give a closing tag that the tokenizer knows, or set think_budget to 0",
            )
        self.opened = self.prompt.rfind(self.open) > self.prompt.rfind(self.close)

    def thought(self, before: int | None, tokens: Sequence[int]) -> int:
        """Tokens drawn inside the open block (-1: no block is open). before: the count before the last token."""
        text = self.prompt + self.tokenizer.decode(list(tokens))
        if text.rfind(self.open) <= text.rfind(self.close):  # -1 <= -1: no block at all
            return -1
        # the token that completes a drawn opening tag is not yet inside the block
        start = 0 if self.opened else -1
        return (start if before is None else before) + 1
