"""Rows to samples: tokenised, masked, held to a length, and never with nothing to train.

What does not fit or trains nothing is an error naming the row, or a counted, reported drop or cut that the recipe
asked for. A cut from the right may take the terminator with it; a cut from the left keeps a leading BOS.
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
from ladder.data.kinds import Kind, Labelled, Preference
from ladder.data.source import Data, Report

Encoded = tuple[Tokens, Mask]


class Encoding(Config):
    """How rows become samples.

    max_tokens: of one row; None is no bound. over_long: "error", "drop", "left" or "right" (cut there).
    untrained: what to do with a row in which nothing is trained: "error" or "drop".
    turns, rewritten, chat_template: see `chat.Encoder`.
    """

    max_tokens: int | None = Field(default=None, ge=2)
    over_long: Literal["error", "drop", "left", "right"] = "error"
    untrained: Literal["error", "drop"] = "error"
    turns: Literal["all", "last"] = "all"
    rewritten: Literal["error", "skip"] = "error"
    chat_template: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Encoding:
        if self.max_tokens is None and self.over_long != "error":
            raise ValueError(f"over_long: {self.over_long} needs max_tokens")
        return self

    def encoder(self, tokenizer: Any) -> Encoder:
        return Encoder(tokenizer, self.turns, self.rewritten, self.chat_template)


def load(data: Data, tokenizer: Any, encoding: Encoding | None = None) -> tuple[list[Sample], Report]:
    """All rows of a source as samples, in order. Raises UserError; see `to_samples`."""
    report = Report()
    samples = to_samples(data.examples(report), tokenizer, encoding, report)
    if not samples:
        raise UserError(f"no row is left ({'; '.join(report.lines())})", file=data.path)
    return samples, report


def to_samples(
    examples: Iterable[Kind], tokenizer: Any, encoding: Encoding | None = None, report: Report | None = None
) -> list[Sample]:
    """One sample for each document, conversation or answer (of a labelled one too: its label is `meta["label"]`).

    `meta["origin"]` says where a sample came from. Raises UserError naming the first row that is over-long or trains
    nothing, unless `encoding` says otherwise, and for preferences, which are pairs (`to_pairs`).
    """
    encoding, report = encoding or Encoding(), Report() if report is None else report
    encoder, made = encoding.encoder(tokenizer), []
    for example in examples:
        if isinstance(example, Preference):
            raise example.error("is a preference, which is not an example to imitate", hint="use its chosen answers")
        fitted = _fit(example, encoder.example(example), encoding, report, tokenizer.bos_token_id)
        if fitted is not None:
            made.append(_sample(example, fitted))
    for what, n in encoder.counts.items():
        report.add(what, n=n)
    return made


def to_pairs(
    examples: Iterable[Kind], tokenizer: Any, encoding: Encoding | None = None, report: Report | None = None
) -> list[Pair]:
    """One pair for each preference; both answers follow the same prompt tokens. A pair stays or goes as a whole.

    Raises UserError as `to_samples` does, and when over-long pairs are to be cut from the left (the two prompts would
    be cut differently).
    """
    encoding, report = encoding or Encoding(), Report() if report is None else report
    if encoding.over_long == "left":
        raise UserError("pairs cannot be cut from the left", field="over_long", hint="use error, drop or right")
    encoder, made = encoding.encoder(tokenizer), []
    for example in examples:
        if not isinstance(example, Preference):
            raise example.error(f"is no preference ({type(example).__name__})", hint="give chosen and rejected")
        fitted = [_fit(example, side, encoding, report, tokenizer.bos_token_id) for side in encoder.pair(example)]
        if fitted[0] is not None and fitted[1] is not None:
            made.append(Pair(_sample(example, fitted[0]), _sample(example, fitted[1])))
    for what, n in encoder.counts.items():
        report.add(what, n=n)
    return made


def _fit(example: Kind, encoded: Encoded, encoding: Encoding, report: Report, bos: int | None) -> Encoded | None:
    """The row within its bounds; None when it is dropped."""
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
                "nothing in it is trained", hint="give it an answer, or set untrained: drop to leave such rows out"
            )
        report.add("nothing to train, dropped", example.origin)
        return None
    return tokens, mask


def _cut(tokens: Tokens, mask: Mask, most: int, *, left: bool, bos: int | None) -> Encoded:
    """The first `most` tokens, or the last; a BOS in front stays there."""
    if not left:
        return tokens[:most], mask[:most]
    kept = 1 if tokens[0] == bos else 0
    at = len(tokens) - most + kept
    mask = mask[:kept] + mask[at:]
    return tokens[:kept] + tokens[at:], [False, *mask[1:]]


def _sample(example: Kind, encoded: Encoded) -> Sample:
    tokens, mask = encoded
    meta: dict[str, Any] = {} if example.origin is None else {"origin": str(example.origin)}
    if isinstance(example, Labelled):
        meta["label"] = example.label
    return Sample(torch.tensor(tokens, dtype=torch.int64), torch.tensor(mask, dtype=torch.bool), {}, meta)
