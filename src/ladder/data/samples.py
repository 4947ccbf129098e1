"""Encodes examples as samples: tokens and mask, limited in length, each with at least one trained token.

A row that is too long or has nothing to train is an error naming the row, unless the recipe asks for a drop or a cut,
which is counted and reported. A cut from the right may remove the terminator; a cut from the left keeps a leading BOS.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.contract.training import Pair, Sample
from ladder.data.chat import Encoder, Mask, Tokens
from ladder.data.kinds import ExampleKind, Labelled, Preference
from ladder.data.source import Data, Report

Encoded = tuple[Tokens, Mask]
"""Token ids and mask of one sequence."""


class Encoding(Config):
    """The settings of encoding.

    max_tokens: maximum length of a row in tokens; None for no limit. over_long: what to do with a longer row: "error",
    "drop", or cut it from the "left" or the "right". untrained: what to do with a row without a trained token: "error"
    or "drop". turns, rewritten, chat_template: see `chat.Encoder`.
    """

    max_tokens: int | None = Field(default=None, ge=2)
    over_long: Literal["error", "drop", "left", "right"] = "error"
    untrained: Literal["error", "drop"] = "error"
    turns: Literal["all", "last"] = "all"
    rewritten: Literal["error", "skip"] = "error"
    chat_template: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Encoding:
        if self.max_tokens is None and self.over_long != "error":
            raise ValueError(f"over_long: {self.over_long} needs max_tokens")
        return self

    def encoder(self, tokenizer: Any) -> Encoder:
        return Encoder(tokenizer, self.turns, self.rewritten, self.chat_template)


def load(data: Data, tokenizer: Any, encoding: Encoding | None = None) -> tuple[list[Sample], Report]:
    """All rows of a source as samples, in order. Raises UserError as `to_samples` does, and if no row is left."""
    report = Report()
    samples = to_samples(data.examples(report), tokenizer, encoding, report)
    if not samples:
        raise UserError(f"no row is left ({'; '.join(report.lines())})", file=data.path)
    return samples, report


def to_samples(
    examples: Iterable[ExampleKind], tokenizer: Any, encoding: Encoding | None = None, report: Report | None = None
) -> list[Sample]:
    """One sample for each document, conversation or answer. Its meta holds the "origin" and, for a labelled answer, the
    "label".

    Raises UserError naming the first row that is too long or has nothing to train, unless `encoding` asks for another
    treatment, and on preferences, which are encoded as pairs (`to_pairs`).
    """
    encoding, report = encoding or Encoding(), Report() if report is None else report
    encoder, samples = encoding.encoder(tokenizer), []
    for example in examples:
        if isinstance(example, Preference):
            raise example.error("is a preference, which cannot be one sample", hint="give prompt and completion")
        fitted = _fit(example, encoder.example(example), encoding, report, tokenizer.bos_token_id)
        if fitted is not None:
            samples.append(_sample(example, fitted))
    for name, n in encoder.counts.items():
        report.add(name, n=n)
    return samples


def to_pairs(
    examples: Iterable[ExampleKind], tokenizer: Any, encoding: Encoding | None = None, report: Report | None = None
) -> list[Pair]:
    """One pair for each preference; both answers follow the same prompt tokens. If one side is dropped, the pair is.

    Raises UserError as `to_samples` does, on other kinds of examples, and if `over_long` is "left" (the two prompts
    would be cut differently).
    """
    encoding, report = encoding or Encoding(), Report() if report is None else report
    if encoding.over_long == "left":
        raise UserError("pairs cannot be cut from the left", field="over_long", hint="use error, drop or right")
    encoder, pairs = encoding.encoder(tokenizer), []
    for example in examples:
        if not isinstance(example, Preference):
            raise example.error(f"is {type(example).__name__}, not a preference", hint="give chosen and rejected")
        fitted = [_fit(example, side, encoding, report, tokenizer.bos_token_id) for side in encoder.pair(example)]
        if fitted[0] is not None and fitted[1] is not None:
            pairs.append(Pair(_sample(example, fitted[0]), _sample(example, fitted[1])))
    for name, n in encoder.counts.items():
        report.add(name, n=n)
    return pairs


def _fit(example: ExampleKind, encoded: Encoded, encoding: Encoding, report: Report, bos: int | None) -> Encoded | None:
    """Tokens and mask within `max_tokens`; None if the row is dropped."""
    tokens, mask = encoded
    if encoding.max_tokens is not None and len(tokens) > encoding.max_tokens:
        if encoding.over_long == "error":
            raise example.error(
                f"is {len(tokens):,} tokens long, more than max_tokens = {encoding.max_tokens:,}",
                hint="raise max_tokens, or set over_long: drop, left or right",
            )
        if encoding.over_long == "drop":
            report.add("over-long, dropped", example.origin)
            return None
        report.add(f"over-long, cut from the {encoding.over_long}", example.origin)
        tokens, mask = _cut(tokens, mask, encoding.max_tokens, left=encoding.over_long == "left", bos=bos)
    if not any(mask):
        if encoding.untrained == "error":
            raise example.error(
                "nothing in it is trained", hint="give it an answer, or set untrained: drop to leave out such rows"
            )
        report.add("nothing to train, dropped", example.origin)
        return None
    return tokens, mask


def _cut(tokens: Tokens, mask: Mask, max_tokens: int, *, left: bool, bos: int | None) -> Encoded:
    """The first `max_tokens` tokens; with `left` the last ones, after a leading BOS if there is one."""
    if not left:
        return tokens[:max_tokens], mask[:max_tokens]
    n_bos = 1 if tokens[0] == bos else 0
    start = len(tokens) - max_tokens + n_bos
    mask = mask[:n_bos] + mask[start:]
    return tokens[:n_bos] + tokens[start:], [False, *mask[1:]]


def _sample(example: ExampleKind, encoded: Encoded) -> Sample:
    tokens, mask = encoded
    meta: dict[str, Any] = {} if example.origin is None else {"origin": str(example.origin)}
    if isinstance(example, Labelled):
        meta["label"] = example.label
    return Sample(torch.tensor(tokens, dtype=torch.int64), torch.tensor(mask, dtype=torch.bool), {}, meta)
