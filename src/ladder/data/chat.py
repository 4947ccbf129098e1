"""Tokenises text and chat messages and builds the mask of trained tokens: the only implementation of both.

Text is tokenised unchanged; messages are rendered with the tokenizer's chat template. Provenance decides which tokens
are trained, never a token id: the characters of the assistant's turns are located in the rendered text (by the
template's `{% generation %}` markers, or else by rendering the conversation up to each turn), and exactly the tokens of
these characters are trained, including the turn's terminator, also if it is the pad token.

Three invariants hold for every row, by construction or by an error:
- the tokens before a trained turn equal `encode_prompt` of the conversation so far: if a token would span the end of
  the prompt, the text is split there before tokenising, as it is during sampling;
- at most one leading BOS (the template's, the text's own, or the tokenizer's);
- every trained turn ends with the template's terminator, which is trained.

Some templates render earlier turns differently once the conversation continues (Qwen3 removes their thinking). A turn
whose text in the full conversation differs from its text as the last turn is not trained, or is an error (`rewritten`).

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
"""Character range [start, end) of a rendered text."""

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "Certainly"
"""An assistant's content that is rendered to find the terminator."""


def encode_prompt(
    tokenizer: Any, prompt: Content, *, chat_template: bool = False, tools: list[Any] | None = None
) -> Tokens:
    """Token ids of a prompt for generation: messages end with the generation prompt; at most one leading BOS.

    chat_template: render a text prompt as a user's turn. Raises UserError if there is no chat template, if the template
    rejects the conversation, and if the prompt is empty.
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
    """(token ids, mask) of one example; see `Encoder` for the options. Raises UserError naming the row."""
    return Encoder(tokenizer, turns, rewritten, chat_template).example(example)


def leading_bos(tokenizer: Any, tokens: Sequence[int]) -> int:
    """Number of BOS tokens at the start of a sequence. (Further inside, some templates use the token to open turns.)"""
    bos = tokenizer.bos_token_id
    return next((i for i, t in enumerate(tokens) if t != bos), len(tokens))


def terminator(tokenizer: Any) -> str:
    """The text that ends an assistant's turn in the tokenizer's chat template, found by rendering a turn.

    Raises UserError if there is no template, or if only whitespace follows the content: a model trained on such turns
    does not learn to stop.
    """
    return Encoder(tokenizer).terminator


def stop_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that end an answer: EOS and, if there is a chat template, its terminator."""
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if tokenizer.chat_template:
        end_ids = tokenizer.encode(terminator(tokenizer), add_special_tokens=False)
        if len(end_ids) > 1:
            raise UserError(
                f"the chat template ends a turn with {terminator(tokenizer)!r}: {len(end_ids)} tokens, not one",
                field="chat_template",
                hint="let the template end turns with a single token of the vocabulary (usually EOS)",
            )
        ids.add(int(end_ids[0]))
    if not ids:
        raise UserError("the tokenizer has no token that ends an answer", field="eos_token", hint="set eos_token")
    return sorted(ids)


@dataclass
class Encoder:
    """Encodes many examples with the same settings.

    turns: which of the assistant's turns of a conversation are trained. rewritten: what to do with a turn that the
    template renders differently once the conversation continues: "error", or "skip" (it is counted and stays in the
    context, untrained). chat_template: render text prompts and completions as a user's and an assistant's turn.
    counts: "turns", "turns/rewritten", "cuts" (texts split where a token would have spanned prompt and answer).
    """

    tokenizer: Any
    turns: Literal["all", "last"] = "all"
    rewritten: Literal["error", "skip"] = "error"
    chat_template: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    # ------------------------------------------------------------ examples

    def prompt(self, prompt: Content, tools: list[Any] | None = None) -> Tokens:
        """See `encode_prompt`."""
        row = Answered(prompt, "")
        if isinstance(prompt, str) and not self.chat_template:
            ids = self._with_bos(self._encode(prompt))
        else:
            turns = [_turn("user", prompt)] if isinstance(prompt, str) else prompt
            self._reject_special_tokens(row, {"prompt": turns})
            ids = self._encode(self._render(row, turns, tools, prompting=True))
        if not ids:
            raise row.error("has no tokens", field="prompt", hint="give a prompt that is not empty")
        self._check_bos(row, ids)
        return ids

    def example(self, example: Example | Labelled) -> tuple[Tokens, Mask]:
        """Token ids and mask of one example. The mask is all False if the conversation has no assistant's turn."""
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
            raise example.error("the chat template renders the prompt differently for the two answers")
        return sides[0], sides[1]

    # ------------------------------------------------------------ text

    def _document(self, row: Example, text: str) -> tuple[Tokens, Mask]:
        """A document, followed by EOS; all tokens but the first are trained."""
        ids = self._with_eos(row, self._with_bos(self._encode(text)))
        self._check_bos(row, ids)
        return ids, [i > 0 for i in range(len(ids))]

    def _answer(
        self, row: Example | Labelled, prompt: Content, completion: Content, tools: list[Any] | None
    ) -> tuple[Tokens, Mask]:
        """A prompt and a completion, both text or both messages."""
        if isinstance(prompt, str) != isinstance(completion, str):
            raise row.error("prompt and completion must both be text or both be messages", field="completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            if not self.chat_template:
                return self._text_answer(row, prompt, completion)
            prompt, completion = [_turn("user", prompt)], [_turn("assistant", completion)]
        assert isinstance(prompt, list) and isinstance(completion, list)
        return self._conversation(row, prompt + completion, len(prompt), tools)

    def _text_answer(self, row: Example | Labelled, prompt: str, completion: str) -> tuple[Tokens, Mask]:
        """A text prompt, followed by the completion and EOS, which are trained."""
        ids, (start,) = self._tokenise(row, prompt + completion, [len(prompt)])
        tokens = self._with_bos(ids)
        start += len(tokens) - len(ids)
        if len(tokens) == start:
            return tokens, [False] * len(tokens)
        tokens = self._with_eos(row, tokens)
        self._check_bos(row, tokens)
        return tokens, [i >= max(start, 1) for i in range(len(tokens))]

    def _with_eos(self, row: Example | Labelled, ids: Tokens) -> Tokens:
        """The ids followed by EOS, unless they already end with it."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise row.error("the tokenizer has no EOS token to end a text with", hint="set eos_token in the tokenizer")
        return ids if ids and ids[-1] == eos else [*ids, int(eos)]

    # ------------------------------------------------------------ conversations

    def _conversation(
        self, row: Example | Labelled, messages: list[Message], first: int, tools: list[Any] | None
    ) -> tuple[Tokens, Mask]:
        """A rendered conversation; the assistant's turns from message `first` on are trained."""
        self._reject_special_tokens(row, {"messages": messages})
        if _MARKERS.search(self._template(row)):
            text, spans = self._spans_by_markers(row, messages, first, tools)
        else:
            text, spans = self._spans_by_rendering(row, messages, first, tools)
        spans = spans[-1:] if self.turns == "last" else spans
        self.counts["turns"] += len(spans)
        spans = [self._trained_span(row, text, span) for span in spans]
        ids, bounds = self._tokenise(row, text, [at for span in spans for at in span])
        mask = [False] * len(ids)
        for start, end in zip(bounds[::2], bounds[1::2], strict=True):
            mask[start:end] = [True] * (end - start)
        if mask and mask[0]:
            raise row.error("the first token is part of an assistant's turn and has no context to be predicted from")
        self._check_bos(row, ids)
        return ids, mask

    def _spans_by_rendering(
        self, row: Example | Labelled, messages: list[Message], first: int, tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        """The rendered conversation and the span of each assistant's turn, located by rendering the conversation up to
        the turn."""
        text = self._render(row, messages, tools)
        turns = [i for i, m in enumerate(messages) if i >= first and m["role"] == "assistant"]
        spans: list[Span] = []
        for i in turns[-1:] if self.turns == "last" else turns:
            before = self._render(row, messages[:i], tools, prompting=True) if i else None
            after = self._render(row, messages[: i + 1], tools).rstrip()
            if before is not None and text.startswith(before) and text.startswith(after):
                spans.append((len(before), len(after)))
            elif self.rewritten == "skip":
                self.counts["turns/rewritten"] += 1
            else:
                raise self._rewritten_error(row, text, before, after, i)
        return text, spans

    def _spans_by_markers(
        self, row: Example | Labelled, messages: list[Message], first: int, tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        """The rendered conversation and the spans given by the template's markers, one pair per assistant's turn."""
        text, spans = self._rendered_with_markers(row, messages, tools)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if len(spans) != len(turns):
            raise row.error(
                f"the chat template marks {len(spans)} generated spans for {len(turns)} assistant's turns",
                hint="put one pair of {% generation %} markers around each assistant's turn in the template",
            )
        return text, [span for i, span in zip(turns, spans, strict=True) if i >= first]

    def _trained_span(self, row: Example | Labelled, text: str, span: Span) -> Span:
        """The span without whitespace after the terminator. Raises UserError if the turn has no terminator."""
        start, end = span
        turn = text[start:end].rstrip()
        if not turn.endswith(self.terminator):
            raise row.error(
                f"the chat template ends this assistant's turn with {turn[-20:]!r}, not with its terminator "
                f"{self.terminator!r}, so the model would not learn to stop",
                hint="let the template end every assistant's turn with its terminator, inside the generation markers",
            )
        return start, start + len(turn)

    def _rewritten_error(
        self, row: Example | Labelled, text: str, before: str | None, after: str, i: int
    ) -> UserError:
        """The error that shows where the full rendering and the rendering up to turn i differ."""
        if before is None:
            hint = "drop the turn, put a user's turn before it, or set rewritten: skip (the turn stays, untrained)"
            return row.error("the conversation begins with an assistant's turn", field="messages[0]", hint=hint)
        prefix = before if not text.startswith(before) else after
        shorter = min(len(text), len(prefix))
        at = next((k for k, (a, b) in enumerate(zip(text, prefix, strict=False)) if a != b), shorter)
        name = self.tokenizer.name_or_path or type(self.tokenizer).__name__
        return row.error(
            f"the chat template of {name!r} renders this turn differently once the conversation continues "
            f"({prefix[at : at + 30]!r} becomes {text[at : at + 30]!r}), so the turn cannot be trained",
            field=f"messages[{i}]",
            hint="set rewritten: skip (train the other turns) or turns: last, or use a template that keeps its turns",
        )

    # ------------------------------------------------------------ templates

    @cached_property
    def terminator(self) -> str:
        """See the function `terminator`."""
        row = Chat([_turn("user", "Hello"), _turn("assistant", _PROBE)])
        text = self._render(row, row.messages, None)
        _, probe, rest = text.rpartition(_PROBE)
        if not probe:
            raise row.error("the chat template does not render the assistant's content", field="chat_template")
        if not rest.strip():
            raise row.error(
                "the chat template ends an assistant's turn with nothing, so the model would not learn to stop",
                field="chat_template",
                hint="write the EOS token after the assistant's content in the template",
            )
        return rest.strip()

    def _template(self, row: Any) -> str:
        """The chat template. Raises UserError if the tokenizer has none."""
        if not self.tokenizer.chat_template:
            raise row.error(
                "messages need a chat template, and the tokenizer has none",
                hint="use a model whose tokenizer has one, set tokenizer.chat_template, or give prompt and completion "
                "as text",
            )
        return self.tokenizer.get_chat_template()

    def _render(self, row: Any, messages: list[Message], tools: list[Any] | None, *, prompting: bool = False) -> str:
        """The conversation as text. prompting: whether the generation prompt follows it."""
        self._template(row)
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=prompting
            )
        except (TemplateError, TypeError, KeyError, IndexError, AttributeError) as err:
            raise row.error(f"the chat template rejects this conversation: {err}", field="messages") from err

    def _rendered_with_markers(
        self, row: Any, messages: list[Message], tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        """The conversation as text and the spans between the template's markers."""
        try:
            texts, spans = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self._template(row),
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, KeyError, IndexError, AttributeError) as err:
            raise row.error(f"the chat template rejects this conversation: {err}", field="messages") from err
        return texts[0], [(int(a), int(b)) for a, b in spans[0]]

    # ------------------------------------------------------------ tokens

    def _encode(self, text: str) -> Tokens:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _decode(self, ids: Tokens) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _tokenise(self, row: Any, text: str, cuts: list[int]) -> tuple[Tokens, list[int]]:
        """Token ids of the text, and the token index of each cut (character offsets, ascending).

        If a token would span a cut, the text is tokenised in two pieces. Raises UserError if that changes the decoded
        text (tokenizers that put a space before every piece).
        """
        ids: Tokens = []
        bounds: list[int] = []
        base, rest = 0, self._encode(text)  # rest: the ids of text[base:]
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
                    "cannot tokenise them separately without changing the text",
                    hint="move the space from the end of the prompt to the start of the answer, or drop it",
                )
        return ids, bounds

    @cached_property
    def _adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS before a text."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer.encode("a")[:1] == [bos]

    def _with_bos(self, ids: Tokens) -> Tokens:
        """The ids after the BOS that the tokenizer puts before a text, unless they already begin with it."""
        bos = self.tokenizer.bos_token_id
        return [int(bos), *ids] if self._adds_bos and ids[:1] != [bos] else ids

    def _check_bos(self, row: Any, ids: Tokens) -> None:
        if self.tokenizer.bos_token_id is not None and leading_bos(self.tokenizer, ids[:2]) > 1:
            raise row.error("begins with two BOS tokens", hint="remove the BOS from the text or the template")

    @cached_property
    def _specials(self) -> re.Pattern[str] | None:
        """Matches the texts of special tokens; the unknown token is left out, because its text is harmless."""
        added = {t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special}
        names = (added | set(self.tokenizer.all_special_tokens)) - {self.tokenizer.unk_token}
        longest_first = sorted(names, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def _reject_special_tokens(self, row: Any, fields: dict[str, list[Message]]) -> None:
        """Raises UserError on a special token's text in a message: it would be tokenised as that token, and end or open
        a turn."""
        if self._specials is None:
            return
        for name, messages in fields.items():
            for i, message in enumerate(messages):
                content = message.get("content")
                special = self._specials.search(content) if isinstance(content, str) else None
                if special:
                    raise row.error(
                        f"holds {special.group()!r}, which the tokenizer would read as a special token",
                        field=f"{name}[{i}].content",
                        hint="remove it; for text that is already rendered with the template, use the column `text`",
                    )


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}
