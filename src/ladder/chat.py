"""The one place where text becomes tokens and a mask. Provenance decides the mask, never a token id.

A conversation is rendered piece by piece with the tokenizer's own template: up to an assistant turn (with the
generation prompt), then with that turn. What the second adds is what the assistant wrote, and it is trained with its
terminator; whitespace after the terminator is not. Pieces are tokenised apart, which is how sampling sees them too.
A template that rewrites what came before (some drop earlier thinking) breaks the prefix property and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ladder.errors import UserError
from ladder.types import Message

Encoded = tuple[list[int], list[bool]]


def encode_prompt(tokenizer: Any, prompt: str | Sequence[Message]) -> list[int]:
    """A prompt as the model is asked: text as it is (with the tokenizer's BOS), messages with a generation prompt."""
    if isinstance(prompt, str):
        ids = _starts(tokenizer, prompt)
    else:
        ids = _ids(tokenizer, _render(tokenizer, prompt, ask=True))
    _one_bos(tokenizer, ids)
    return ids


def encode_pair(tokenizer: Any, prompt: str | Sequence[Message], completion: str | Sequence[Message]) -> Encoded:
    """A prompt and its answer: (ids, mask), the answer trained with its terminator."""
    if isinstance(prompt, str) != isinstance(completion, str):
        raise UserError("prompt and completion must both be text, or both be messages")
    if not isinstance(prompt, str):
        return encode_messages(tokenizer, [*prompt, *completion], first_trained=len(prompt))  # pyright: ignore
    assert isinstance(completion, str)
    ids = encode_prompt(tokenizer, prompt)
    answer = [*_ids(tokenizer, completion), _eos(tokenizer)]
    return ids + answer, [False] * len(ids) + [True] * len(answer)


def encode_text(tokenizer: Any, text: str) -> Encoded:
    """A plain document: everything but its first token is trained, and its end."""
    ids = [*_starts(tokenizer, text), _eos(tokenizer)]
    _one_bos(tokenizer, ids)
    return ids, [False] + [True] * (len(ids) - 1)


def encode_messages(tokenizer: Any, messages: Sequence[Message], first_trained: int = 0) -> Encoded:
    """A conversation: assistant turns from index `first_trained` on are trained, each with its terminator."""
    ids: list[int] = []
    mask: list[bool] = []
    done = ""

    def add(text: str, trained: bool) -> None:
        new = _ids(tokenizer, text) if text else []
        ids.extend(new)
        mask.extend([trained] * len(new))

    for i, message in enumerate(messages):
        if message.get("role") != "assistant" or i < first_trained:
            continue
        before = _render(tokenizer, messages[:i], ask=True)
        after = _render(tokenizer, messages[: i + 1], ask=False)
        if not before.startswith(done) or not after.startswith(before):
            raise UserError(
                f"the chat template rewrites the conversation before turn {i + 1}, so its tokens are not what the "
                f"model would have seen",
                mend="train on the last turn only, or use a template that keeps earlier turns as they are",
            )
        add(before[len(done) :], False)
        body = after[len(before) :]
        trained = body.rstrip()
        _check_terminator(tokenizer, trained, i)
        add(trained, True)
        add(body[len(trained) :], False)
        done = after
    if not any(mask):
        raise UserError("no assistant turn to train on", field="messages")
    _one_bos(tokenizer, ids)
    return ids, mask


def _render(tokenizer: Any, messages: Sequence[Message], *, ask: bool) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template, so messages cannot be rendered",
            mend="use plain-text prompts, or a model whose tokenizer brings a template",
        )
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)


def _check_terminator(tokenizer: Any, trained: str, turn: int) -> None:
    """The assistant's turn must end in a special token, or nothing would teach the model to stop."""
    special = [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]
    if not any(trained.endswith(token) for token in special):
        raise UserError(
            f"the chat template ends turn {turn + 1} with {trained[-20:]!r}, which is no special token: the model would "
            f"never learn to stop",
            mend="use a template that closes the assistant's turn",
        )


def _starts(tokenizer: Any, text: str) -> list[int]:
    """A text from its beginning: with whatever the tokenizer puts before one, without what it puts after."""
    ids: list[int] = tokenizer(text)["input_ids"]
    eos = tokenizer.eos_token_id
    return ids[:-1] if ids and ids[-1] == eos and not text.endswith(tokenizer.eos_token or "\0") else ids


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _eos(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer names no token that ends an answer (eos_token)")
    return tokenizer.eos_token_id


def _one_bos(tokenizer: Any, ids: Sequence[int]) -> None:
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and list(ids[:2]) == [bos, bos]:
        raise UserError("the prompt begins with two BOS tokens", mend="take the BOS out of the text or the template")
