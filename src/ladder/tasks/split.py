"""How prompts are dealt to splits, and how templates are filled: what the sources share.

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
    """What makes two prompts the same: their text up to letter case and whitespace."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return " ".join(text.casefold().split())


def draw(prompt: Prompt) -> float:
    """A number in [0, 1) that is a function of the prompt alone."""
    digest = hashlib.blake2b(f"split/{identity(prompt)}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little") / 2**56


def deal(prompt: Prompt, shares: Mapping[str, float]) -> str:
    """The split of a prompt: each name of `shares` gets its share, "train" the rest."""
    at, start = draw(prompt), 0.0
    for name, share in shares.items():
        start += share
        if at < start:
            return name
    return "train"


def check_shares(**shares: float) -> None:
    """Raises ValueError unless shares are in [0, 1) and leave something to train on."""
    if any(not 0 <= s < 1 for s in shares.values()) or sum(shares.values()) >= 1:
        raise ValueError(f"{' + '.join(shares)} must be 0 or more, and less than 1 together")


def first(tasks: Sequence[Task], n: int | None, split: str) -> list[Task]:
    """The first n tasks, or all. Raises UserError when there are fewer."""
    if n is not None and n > len(tasks):
        hint = "ask for fewer, or change what the split may hold"
        raise UserError(f"{n} tasks were asked for and there are {len(tasks)}", field=f"split {split!r}", hint=hint)
    return list(tasks[:n])


def known(split: str, splits: Sequence[str], field: str | None = None) -> None:
    """Raises UserError for a split there is not. field: where it was asked for."""
    if split not in splits:
        raise UserError(f"there is no such split (there are: {', '.join(splits)})", field=field or f"split {split!r}")


_HOLE = re.compile(r"\{([a-z_]+)\}")


def holes(template: str | Sequence[Message]) -> set[str]:
    """The names in braces."""
    texts = [template] if isinstance(template, str) else [str(m["content"]) for m in template]
    return {name for t in texts for name in _HOLE.findall(t)}


def fill(template: str | Sequence[Message], values: Mapping[str, object]) -> Prompt:
    """The template with `{name}` replaced where `values` has the name; other braces stay as they are."""

    def one(text: str) -> str:
        return _HOLE.sub(lambda m: str(values[m[1]]) if m[1] in values else m[0], text)

    if isinstance(template, str):
        return one(template)
    return [m | {"content": one(str(m["content"]))} for m in template]


def check_messages(prompt: object) -> str | None:
    """What is wrong with a list of chat messages; None when nothing is."""
    if not isinstance(prompt, list) or not prompt:
        return "must be text or a non-empty list of messages"
    for i, message in enumerate(prompt):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return f"message {i} must have `role` and `content`"
        if not isinstance(message["content"], str):
            return f"the content of message {i} must be text"
    return None
