"""Shared by the task sources: assigning prompts to splits, and filling prompt templates.

A prompt's split is a function of the prompt alone (a hash), so no prompt can be in two splits, whatever the order,
the seed, the size or the number of copies.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from ladder.base.errors import UserError
from ladder.contract.rollouts import Message, Task

Prompt = str | list[Message]


def identity(prompt: Prompt) -> str:
    """A key that is equal for two prompts whose texts differ in letter case and whitespace only."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return " ".join(text.casefold().split())


def draw(prompt: Prompt) -> float:
    """A uniform number in [0, 1), a hash of the prompt."""
    digest = hashlib.blake2b(f"split/{identity(prompt)}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little") / 2**56


def deal(prompt: Prompt, shares: Mapping[str, float]) -> str:
    """The split of a prompt. shares: the share of all prompts of each split; the rest is "train"."""
    position, upper_bound = draw(prompt), 0.0
    for name, share in shares.items():
        upper_bound += share
        if position < upper_bound:
            return name
    return "train"


def check_shares(**shares: float) -> None:
    """Raises ValueError unless every share is in [0, 1) and their sum is below 1, so that "train" is not empty."""
    if any(not 0 <= s < 1 for s in shares.values()) or sum(shares.values()) >= 1:
        raise ValueError(f"{' + '.join(shares)} must be 0 or more, and together less than 1")


def first(tasks: Sequence[Task], n: int | None, split: str) -> list[Task]:
    """The first n tasks of a split (None: all). Raises UserError when there are fewer."""
    if n is not None and n > len(tasks):
        hint = "request fewer tasks, or enlarge the split"
        raise UserError(f"{n} tasks were requested and there are {len(tasks)}", field=f"split {split!r}", hint=hint)
    return list(tasks[:n])


def known(split: str, splits: Sequence[str], field: str | None = None) -> None:
    """Raises UserError unless `split` is one of `splits`. field: the recipe field that names it."""
    if split not in splits:
        raise UserError(f"there is no such split (there are: {', '.join(splits)})", field=field or f"split {split!r}")


_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def holes(template: str | Sequence[Message]) -> set[str]:
    """The names of the placeholders `{name}` in a template."""
    texts = [template] if isinstance(template, str) else [str(m["content"]) for m in template]
    return {name for t in texts for name in _PLACEHOLDER.findall(t)}


def fill(template: str | Sequence[Message], values: Mapping[str, object]) -> Prompt:
    """The template with each `{name}` that is in `values` replaced; other braces are kept."""

    def fill_text(text: str) -> str:
        return _PLACEHOLDER.sub(lambda m: str(values[m[1]]) if m[1] in values else m[0], text)

    if isinstance(template, str):
        return fill_text(template)
    return [m | {"content": fill_text(str(m["content"]))} for m in template]


def check_messages(prompt: object) -> str | None:
    """Why a prompt is not a list of chat messages, as the end of a sentence; None if it is one."""
    if not isinstance(prompt, list) or not prompt:
        return "must be text or a non-empty list of messages"
    for i, message in enumerate(prompt):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return f"message {i} must have `role` and `content`"
        if not isinstance(message["content"], str):
            return f"the content of message {i} must be text"
    return None
