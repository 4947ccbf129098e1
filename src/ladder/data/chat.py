"""From text and chat messages to token ids and the mask of what is trained: the one place where that happens.

Text is tokenised as it stands; messages go through the tokenizer's chat template. What is trained is decided by
provenance, never by an id: the characters that the assistant wrote are located in the rendered template (by its
`{% generation %}` markers, or else by rendering the conversation up to each of its turns), and the tokens of exactly
these characters are trained, together with the turn's terminator and whatever the pad token is.

Three things hold for every row, by construction or by an error:
- the tokens before a trained turn are exactly `encode_prompt` of the conversation so far: where a token would
  straddle the two, the text is cut there, as it is when a model answers;
- at most one leading BOS (the template's, the text's own, or the tokenizer's);
- every trained turn ends in the template's terminator, and that is trained.

Some templates write earlier turns differently once the conversation goes on (Qwen3 takes out their thinking). A turn
that does not stand in the conversation as it was written is not trained, or is an error (`rewritten`).

Left out: images and audio, slow tokenizers, and continuing an assistant's half-written turn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from ladder.base.errors import UserError
from ladder.contract.rollouts import Message
from ladder.data.kinds import Answered, Chat, Content, Example, Labelled, Preference, Text

Tokens = list[int]
Mask = list[bool]
Span = tuple[int, int]
"""Characters [start, end) of a rendered text."""

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "Certainly"


def encode_prompt(
    tokenizer: Any, prompt: Content, *, chat_template: bool = False, tools: list[Any] | None = None
) -> Tokens:
    """Token ids of a prompt, ready to be continued: with the generation prompt for messages, with at most one BOS.

    chat_template: a text prompt is put as a user's turn. Raises UserError (no chat template, a conversation that the
    template refuses, nothing to encode).
    """
    return Encoder(tokenizer, chat_template=chat_template).prompt(prompt, tools)


def encode_example(
    tokenizer: Any,
    example: Example | Labelled,
    *,
    turns: Literal["all", "last"] = "all",
    rewritten: Literal["error", "skip"] = "error",
    chat_template: bool = False,
) -> tuple[Tokens, Mask]:
    """(token ids, what is trained) of one row; see `Encoder` for the options. Raises UserError naming the row."""
    return Encoder(tokenizer, turns, rewritten, chat_template).example(example)


def leading_bos(tokenizer: Any, tokens: Sequence[int]) -> int:
    """How many BOS tokens a sequence begins with. (Inside it, some templates use the same token to open turns.)"""
    bos = tokenizer.bos_token_id
    return next((i for i, t in enumerate(tokens) if t != bos), len(tokens))


def terminator(tokenizer: Any) -> str:
    """The text that ends an assistant's turn in the tokenizer's chat template, found by rendering one.

    Raises UserError when there is no template, or when it ends a turn with nothing but space: a model trained on
    that never learns to stop.
    """
    return Encoder(tokenizer).terminator


def stop_ids(tokenizer: Any) -> list[int]:
    """The tokens that end an answer: EOS and, where there is a chat template, what it ends an assistant's turn with."""
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if tokenizer.chat_template:
        end = tokenizer.encode(terminator(tokenizer), add_special_tokens=False)
        if len(end) > 1:
            raise UserError(
                f"the chat template ends a turn with {terminator(tokenizer)!r}, which is {len(end)} tokens, not one",
                field="chat_template",
                hint="end turns with a token of the vocabulary (most often EOS)",
            )
        ids.add(int(end[0]))
    if not ids:
        raise UserError("the tokenizer has no token that ends an answer", field="eos_token", hint="set eos_token in it")
    return sorted(ids)


@dataclass
class Encoder:
    """The same encoding for many rows.

    turns: which of the assistant's turns of a conversation are trained. rewritten: what to do about a turn that the
    template rewrites as the conversation goes on: "error", or "skip" it (it stays in the context, untrained; counted).
    chat_template: text prompts and completions are put as a user's and an assistant's turn.
    counts: "turns", "turns/rewritten", "cuts" (texts cut where a token would have straddled prompt and answer).
    """

    tokenizer: Any
    turns: Literal["all", "last"] = "all"
    rewritten: Literal["error", "skip"] = "error"
    chat_template: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    # ------------------------------------------------------------ rows

    def prompt(self, prompt: Content, tools: list[Any] | None = None) -> Tokens:
        """See `encode_prompt`."""
        row = Answered(prompt, "")
        if isinstance(prompt, str) and not self.chat_template:
            ids = self._with_bos(self._encode(prompt))
        else:
            turns = [_turn("user", prompt)] if isinstance(prompt, str) else prompt
            self._refuse_specials(row, {"prompt": turns})
            ids = self._encode(self._render(row, turns, tools, prompting=True))
        if not ids:
            raise row.error("holds nothing to continue", field="prompt", hint="give a prompt that is not empty")
        self._check_bos(row, ids)
        return ids

    def example(self, example: Example | Labelled) -> tuple[Tokens, Mask]:
        """Ids and mask of one row; the mask may be empty of True, when the conversation has no assistant's turn."""
        match example:
            case Text(text):
                return self._document(example, text)
            case Chat(messages, tools):
                return self._conversation(example, messages, 0, tools)
            case Answered(prompt, completion, tools) | Labelled(prompt, completion, _, tools):
                return self._answer(example, prompt, completion, tools)

    def pair(self, example: Preference) -> tuple[tuple[Tokens, Mask], tuple[Tokens, Mask]]:
        """Both answers of a preference, each after the same prompt tokens."""
        sides = [
            self.example(Answered(example.prompt, side, example.tools, origin=example.origin))
            for side in (example.chosen, example.rejected)
        ]
        starts = [mask.index(True) if True in mask else len(mask) for _, mask in sides]
        if sides[0][0][: starts[0]] != sides[1][0][: starts[1]]:
            raise example.error("the chat template writes the prompt differently for the two answers")
        return sides[0], sides[1]

    # ------------------------------------------------------------ text

    def _document(self, row: Example, text: str) -> tuple[Tokens, Mask]:
        ids = self._end(row, self._with_bos(self._encode(text)))
        self._check_bos(row, ids)
        return ids, [i > 0 for i in range(len(ids))]

    def _answer(
        self, row: Example | Labelled, prompt: Content, completion: Content, tools: list[Any] | None
    ) -> tuple[Tokens, Mask]:
        if isinstance(prompt, str) != isinstance(completion, str):
            raise row.error("prompt and completion must both be text or both be messages", field="completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            if not self.chat_template:
                return self._plain(row, prompt, completion)
            prompt, completion = [_turn("user", prompt)], [_turn("assistant", completion)]
        assert isinstance(prompt, list) and isinstance(completion, list)
        return self._conversation(row, prompt + completion, len(prompt), tools)

    def _plain(self, row: Example | Labelled, prompt: str, completion: str) -> tuple[Tokens, Mask]:
        """The prompt, then the completion and EOS, which are trained."""
        ids, (start,) = self._tokenise(row, prompt + completion, [len(prompt)])
        whole = self._with_bos(ids)
        start += len(whole) - len(ids)
        if len(whole) == start:
            return whole, [False] * len(whole)
        whole = self._end(row, whole)
        self._check_bos(row, whole)
        return whole, [i >= max(start, 1) for i in range(len(whole))]

    def _end(self, row: Example | Labelled, ids: Tokens) -> Tokens:
        """With EOS at the end, once."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise row.error("the tokenizer has no EOS token to end a text with", hint="set eos_token in the tokenizer")
        return ids if ids and ids[-1] == eos else [*ids, int(eos)]

    # ------------------------------------------------------------ conversations

    def _conversation(
        self, row: Example | Labelled, messages: list[Message], first: int, tools: list[Any] | None
    ) -> tuple[Tokens, Mask]:
        """The rendered conversation; the assistant's turns from message `first` on are trained."""
        self._refuse_specials(row, {"messages": messages})
        if _MARKERS.search(self._template(row)):
            text, spans = self._marked(row, messages, first, tools)
        else:
            text, spans = self._located(row, messages, first, tools)
        spans = spans[-1:] if self.turns == "last" else spans
        self.counts["turns"] += len(spans)
        spans = [self._trained(row, text, span) for span in spans]
        ids, bounds = self._tokenise(row, text, [at for span in spans for at in span])
        mask = [False] * len(ids)
        for start, end in zip(bounds[::2], bounds[1::2], strict=True):
            mask[start:end] = [True] * (end - start)
        if mask and mask[0]:
            raise row.error("the assistant's turn stands at the very beginning, where nothing predicts it")
        self._check_bos(row, ids)
        return ids, mask

    def _located(
        self, row: Example | Labelled, messages: list[Message], first: int, tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        """The rendered conversation and the characters of each assistant's turn, by rendering up to it."""
        text = self._render(row, messages, tools)
        wanted = [i for i, m in enumerate(messages) if i >= first and m["role"] == "assistant"]
        spans: list[Span] = []
        for i in wanted[-1:] if self.turns == "last" else wanted:
            before = self._render(row, messages[:i], tools, prompting=True) if i else None
            after = self._render(row, messages[: i + 1], tools).rstrip()
            if before is not None and text.startswith(before) and text.startswith(after):
                spans.append((len(before), len(after)))
            elif self.rewritten == "skip":
                self.counts["turns/rewritten"] += 1
            else:
                raise self._rewritten(row, text, before, after, i)
        return text, spans

    def _marked(
        self, row: Example | Labelled, messages: list[Message], first: int, tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        """The same from the template's own markers, of which each assistant's turn is to have one pair."""
        text, spans = self._rendered_with_markers(row, messages, tools)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if len(spans) != len(turns):
            raise row.error(
                f"the chat template marks {len(spans)} generated stretches for {len(turns)} assistant's turns",
                hint="put one pair of {% generation %} markers around each assistant's turn in the template",
            )
        return text, [span for i, span in zip(turns, spans, strict=True) if i >= first]

    def _trained(self, row: Example | Labelled, text: str, span: Span) -> Span:
        """The turn without the space behind its terminator. Raises UserError when it has no terminator."""
        start, end = span
        turn = text[start:end].rstrip()
        if not turn.endswith(self.terminator):
            raise row.error(
                f"the chat template ends this assistant's turn with {turn[-20:]!r}, not with its terminator "
                f"{self.terminator!r}, so the model would not learn to stop",
                hint="let the template (and its generation markers) end every assistant's turn alike",
            )
        return start, start + len(turn)

    def _rewritten(self, row: Example | Labelled, text: str, before: str | None, after: str, i: int) -> UserError:
        """Says where the conversation and its rendering up to turn i part."""
        if before is None:
            hint = "drop the turn, put a user's turn before it, or set rewritten: skip (it stays, untrained)"
            return row.error("the conversation begins with an assistant's turn", field="messages[0]", hint=hint)
        short = before if not text.startswith(before) else after
        at = next((k for k, (a, b) in enumerate(zip(text, short, strict=False)) if a != b), min(len(text), len(short)))
        name = self.tokenizer.name_or_path or type(self.tokenizer).__name__
        return row.error(
            f"the chat template of {name!r} writes this turn differently once the conversation goes on "
            f"({short[at : at + 30]!r} becomes {text[at : at + 30]!r}), so it cannot be trained as it was written",
            field=f"messages[{i}]",
            hint="set rewritten: skip (train the turns that stay), turns: last, or use a template that keeps its turns",
        )

    # ------------------------------------------------------------ templates

    @cached_property
    def terminator(self) -> str:
        """See the function `terminator`."""
        row = Chat([_turn("user", "Hello"), _turn("assistant", _PROBE)])
        text = self._render(row, row.messages, None)
        _, found, rest = text.rpartition(_PROBE)
        if not found:
            raise row.error("the chat template does not write the assistant's turn", field="chat_template")
        if not rest.strip():
            raise row.error(
                "the chat template ends an assistant's turn with nothing, so the model would not learn to stop",
                field="chat_template",
                hint="write the EOS token behind the assistant's content in the template",
            )
        return rest.strip()

    def _template(self, row: Any) -> str:
        if not self.tokenizer.chat_template:
            raise row.error(
                "messages need a chat template, and the tokenizer has none",
                hint="use a model whose tokenizer has one, set tokenizer.chat_template, or give prompt and completion "
                "as text",
            )
        return self.tokenizer.get_chat_template()

    def _render(self, row: Any, messages: list[Message], tools: list[Any] | None, *, prompting: bool = False) -> str:
        """The conversation as text; prompting: followed by what opens the assistant's turn."""
        self._template(row)
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=prompting
            )
        except (TemplateError, TypeError, KeyError, IndexError, AttributeError) as err:
            raise row.error(f"the chat template refuses this conversation: {err}", field="messages") from err

    def _rendered_with_markers(
        self, row: Any, messages: list[Message], tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        try:
            texts, spans = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self._template(row),
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, KeyError, IndexError, AttributeError) as err:
            raise row.error(f"the chat template refuses this conversation: {err}", field="messages") from err
        return texts[0], [(int(a), int(b)) for a, b in spans[0]]

    # ------------------------------------------------------------ tokens

    def _encode(self, text: str) -> Tokens:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _decode(self, ids: Tokens) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _tokenise(self, row: Any, text: str, cuts: list[int]) -> tuple[Tokens, list[int]]:
        """Ids of the text, and at which token each cut (a character, ascending) falls.

        Where a token would straddle a cut, the text is tokenised in two pieces. Raises UserError when that changes
        the text (tokenizers that put a space before every piece).
        """
        ids: Tokens = []
        bounds: list[int] = []
        base, rest = 0, self._encode(text)
        for cut in cuts:
            head = self._encode(text[base:cut])
            if rest[: len(head)] == head:
                bounds.append(len(ids) + len(head))
                continue
            ids, base = ids + head, cut
            rest = self._encode(text[cut:])
            bounds.append(len(ids))
        ids += rest
        if base:
            self.counts["cuts"] += 1
            if self._decode(ids) != self._decode(self._encode(text)):
                raise row.error(
                    f"prompt and answer meet inside a token ({text[base - 8 : base + 8]!r}), and this tokenizer "
                    "cannot tokenise them apart without changing the text",
                    hint="move the space between them from the prompt's end to the answer's beginning, or drop it",
                )
        return ids, bounds

    @cached_property
    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer.encode("a")[:1] == [bos]

    def _with_bos(self, ids: Tokens) -> Tokens:
        """With the BOS that the tokenizer puts before a text, unless the text begins with it."""
        bos = self.tokenizer.bos_token_id
        return [int(bos), *ids] if self._adds_bos and ids[:1] != [bos] else ids

    def _check_bos(self, row: Any, ids: Tokens) -> None:
        if self.tokenizer.bos_token_id is not None and leading_bos(self.tokenizer, ids[:2]) > 1:
            raise row.error("begins with two BOS tokens", hint="take the BOS token out of the text or of the template")

    @cached_property
    def _specials(self) -> re.Pattern[str] | None:
        """What the tokenizer reads as a special token; the one for the unknown does no harm."""
        added = {t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special}
        names = (added | set(self.tokenizer.all_special_tokens)) - {self.tokenizer.unk_token}
        found = sorted(names, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, found))) if found else None

    def _refuse_specials(self, row: Any, fields: dict[str, list[Message]]) -> None:
        """A special token's text inside a message would be read as the real one (and end a turn, or open one)."""
        if self._specials is None:
            return
        for name, messages in fields.items():
            for i, message in enumerate(messages):
                content = message.get("content")
                found = self._specials.search(content) if isinstance(content, str) else None
                if found:
                    raise row.error(
                        f"holds {found.group()!r}, which the tokenizer would read as a special token",
                        field=f"{name}[{i}].content",
                        hint="take it out; for text that is already in the template's form, use the column `text`",
                    )


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}
