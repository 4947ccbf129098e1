"""Attention of one decode step over rows that share prompts (`shared_cache.py`), in torch's operators.

A step computes two sets of scores and one softmax over both: the queries of all samples of a prompt against the
prompt's keys, as one matrix product for the group; and each row's queries against the row's own tokens. Rows are in the
order in which they were admitted, so the longest come first: attention over own tokens is computed in spans of rows,
each span padded to its longest row.

Left out: sliding windows and soft caps (`modules.py` has them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ladder.decoding.shared_cache import ROOM, Store

SPAN_COST = 20_000
"""Cost of one more span, in entries of the score matrix (measured on a CPU; affects speed only)."""
TINY = 400
"""Multiply-adds per product of a batch below which torch chooses a kernel that is three times slower."""


@dataclass(slots=True)
class _Span:
    """Rows start .. end-1, each with at most `length` own tokens (the new one included). bias: None if all have
    `length`."""

    start: int
    end: int
    length: int
    bias: Tensor | None  # [(end - start) * H_kv, 1, length]


@dataclass(slots=True)
class Turn:
    """The layout of one step's attention. rows [p * H_kv * R]: the row and head at each place of the groups, R places
    per prompt; back [A * H_kv]: the place of each row and head; both None if no two rows share a prompt."""

    A: int
    rows: Tensor | None
    back: Tensor | None
    prompt_bias: Tensor | None  # [p * H_kv, 1, P]
    spans: list[_Span]
    at: int | None  # the place of the new token, if it is the same in all rows
    key_at: Tensor | None  # [A * H_kv * D, 1]
    value_at: Tensor | None  # [A * H_kv]


class Shared(Store):
    """A store, and attention over it in torch's operators."""

    def __init__(self, layers: int, heads: int, group: int, width: int, slots: int, like: Tensor) -> None:
        """group: query heads per key head (`heads` counts key heads)."""
        super().__init__(layers, heads, width, slots, like)
        self.least = min(ROOM, math.ceil(TINY / (group * width)))  # fewest keys that a product reads
        self.turn: Turn | None = None

    def changed(self) -> None:
        self.turn = None

    # ------------------------------------------------------------ one step

    def begin(self, positions_A: np.ndarray) -> None:
        """Prepares a step that writes one token for every row."""
        own = self.places(positions_A)
        if self.turn is None:
            self.turn = Turn(len(own), *self._groups(), self._prompt_bias(), [], None, None, None)
        turn = self.turn
        turn.spans = self._spans(own + 1)
        first = int(own[0])
        turn.at = first if (own == first).all() else None
        if turn.at is None:
            at = torch.from_numpy(own.repeat(self.heads)).to(self.like.device)
            turn.key_at = at.repeat_interleave(self.width)[:, None]
            turn.value_at = at + torch.arange(len(at), device=at.device) * self.room

    def _groups(self) -> tuple[Tensor | None, Tensor | None]:
        A, p, H = len(self.owner), len(self.prompt_lengths), self.heads
        if p == A and (self.owner == np.arange(A)).all():
            return None, None
        order = np.argsort(self.owner, kind="stable")
        counts = np.bincount(self.owner, minlength=p)
        within = np.empty(A, np.int64)
        within[order] = np.arange(A) - np.repeat(counts.cumsum() - counts, counts)
        R, head = int(counts.max()), np.arange(H)
        back = (self.owner[:, None] * H + head) * R + within[:, None]  # [A, H]
        rows = np.zeros(p * H * R, np.int64)  # the results at places without a row are not used
        rows[back] = np.arange(A)[:, None] * H + head
        device = self.like.device
        return torch.from_numpy(rows).to(device), torch.from_numpy(back.ravel()).to(device)

    def _prompt_bias(self) -> Tensor | None:
        P = int(self.prompt_lengths.max())
        if (self.prompt_lengths == P).all():
            return None
        return self._bias(self.prompt_lengths, P)

    def _bias(self, lengths: np.ndarray, longest: int) -> Tensor:
        """[n * H, 1, longest]: 0 before each length, -inf from there."""
        hidden = np.arange(longest)[None] >= lengths.repeat(self.heads)[:, None]
        bias = torch.zeros(hidden.shape, dtype=self.like.dtype).masked_fill_(torch.from_numpy(hidden), float("-inf"))
        return bias[:, None].to(self.like.device)

    def _spans(self, lengths: np.ndarray) -> list[_Span]:
        """Rows in spans of similar length: a new span begins where it saves more score entries than its calls cost."""
        spans, start, A = [], 0, len(lengths)
        while start < A:
            longest = np.maximum.accumulate(lengths[start:][::-1])[::-1]  # of this row and all behind it
            saved = (int(longest[0]) - longest) * np.arange(len(longest), 0, -1) * self.heads
            pays = np.flatnonzero(saved > SPAN_COST)
            end = start + int(pays[0]) if len(pays) else A
            some, length = lengths[start:end], max(self.least, int(lengths[start:end].max()))
            same = bool((some == length).all())
            spans.append(_Span(start, end, length, None if same else self._bias(some, length)))
            start = end
        return spans

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [A * H, g, D] (g query heads per key head; scaled), k and v [A * H, D] of the new tokens -> q's shape."""
        turn = self.turn
        assert turn is not None
        n, g, D = q.shape
        keys, values = self.own[layer]
        if turn.at is not None:
            keys[:n, :, turn.at] = k
            values[:n, turn.at] = v
        else:
            assert turn.key_at is not None and turn.value_at is not None
            keys.view(-1, self.room)[: n * D].scatter_(1, turn.key_at, k.reshape(-1, 1))
            values.view(-1, D).index_copy_(0, turn.value_at, v)
        prompt_keys, prompt_values = self.prompts[layer]
        P = prompt_keys.shape[2]
        scores = torch.bmm(_regroup(q, turn.rows, len(prompt_keys)), prompt_keys)
        if turn.prompt_bias is not None:
            scores += turn.prompt_bias
        scores = _regroup(scores.view(-1, g, P), turn.back, n)
        shares, outs = [], []
        for span in turn.spans:
            a, b = span.start * self.heads, span.end * self.heads
            own = torch.bmm(q[a:b], keys[a:b, :, : span.length])
            if span.bias is not None:
                own += span.bias
            share = torch.cat([scores[a:b], own], -1).softmax(-1)
            outs.append(torch.bmm(share[:, :, P:], values[a:b, : span.length]))
            shares.append(share[:, :, :P])
        share = shares[0] if len(shares) == 1 else torch.cat(shares)
        out = torch.bmm(_regroup(share, turn.rows, len(prompt_keys)), prompt_values)
        own = outs[0] if len(outs) == 1 else torch.cat(outs)
        return own.add_(_regroup(out.view(-1, g, D), turn.back, n))


def _regroup(x: Tensor, index: Tensor | None, n: int) -> Tensor:
    """Rows [m, g, ...] at `index` (None: all of them), reshaped to [n, rest * g, ...]."""
    return (x if index is None else x.index_select(0, index)).reshape(n, -1, x.shape[2])

