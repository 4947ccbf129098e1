"""Attention over a pack of segments: each sees itself causally and, whole, the segments it continues (`forest.py`).

On paper this is one block-sparse mask over the packed row. Computed so, it would cost the square of the pack;
here segments of like size are gathered into small padded batches ("buckets"), each one call of SDPA. Only
attention ever meets those pads, the rest of the model runs over the packed row. Segments that continue nothing
need no mask at all: padded on the right, the causal rule hides the pads. The kernel for the CPU (`kernels/attend.c`)
reads the packed row as it lies, family by family; so do `flash.py` (halves) and `flex.py` on CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ladder.attention import flash, flex
from ladder.attention.sdpa import masked_attention
from ladder.kernels.attend import Families
from ladder.packing import prefix_tree
from ladder.packing.prefix_tree import Segment

BUCKET_COST = 40_000
"""What one more SDPA call costs, in score-matrix entries (measured on a CPU; only speed depends on it)."""


@dataclass(slots=True)
class _Bucket:
    """n segments padded to Lq queries and Lk keys."""

    n: int
    Lq: int
    Lk: int
    qpos: Tensor | None  # [n, Lq] position in the sequence; None: plain causal, no mask needed
    kpos: Tensor | None  # [n, Lk]; -1 marks a pad
    masks: dict[int, Tensor] = field(default_factory=dict)

    def visible(self, window: int) -> Tensor:
        """bool [n, 1, Lq, Lk]; every query sees at least the key at position 0 of its row or itself."""
        if window not in self.masks:
            assert self.qpos is not None and self.kpos is not None
            distance = self.qpos[:, :, None] - self.kpos[:, None, :]
            seen = (distance >= 0) & (self.kpos >= 0)[:, None, :]
            if window:
                seen &= distance < window
            self.masks[window] = seen[:, None]
        return self.masks[window]


class _Gather(torch.autograd.Function):
    """rows_R = x_T[index_R], where inverse_T names a row that holds each x: backward is a gather, not a scatter.

    Correct because the gradient of every other row (a pad) is zero by construction and rows are not repeated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class _Return(torch.autograd.Function):
    """x_T = rows_R[inverse_T]; every row is taken at most once, so backward copies instead of adding."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.n_rows = rows.shape[0]
        return rows.index_select(0, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inverse,) = ctx.saved_tensors
        return grad.new_zeros(ctx.n_rows, *grad.shape[1:]).index_copy_(0, inverse, grad), None


@dataclass(slots=True)
class _Rows:
    """Segments laid out as buckets. Rows of all buckets stand one after another.

    q_index [R]: the packed token of each padded query row. inverse [T]: the query row of each packed token.
    k_index [K]: the packed token of each padded key row.
    """

    buckets: list[_Bucket]
    q_index: Tensor
    inverse: Tensor
    k_index: Tensor

    @classmethod
    def of(cls, segments: Sequence[Segment], tokens: int) -> _Rows:
        buckets, q_rows, k_rows = [], [], []
        inverse = np.empty(tokens, dtype=np.int64)
        row = 0
        for group in _bucketed(segments):
            bucket, q_index, own, k_index = _lay(group)
            buckets.append(bucket)
            inverse[q_index[own]] = np.flatnonzero(own) + row
            q_rows.append(q_index.ravel())
            k_rows.append(k_index.ravel())
            row += bucket.n * bucket.Lq
        return cls(
            buckets,
            torch.from_numpy(np.concatenate(q_rows)),
            torch.from_numpy(inverse),
            torch.from_numpy(np.concatenate(k_rows)),
        )

    def to(self, device: torch.device) -> _Rows:
        moved = [
            _Bucket(
                b.n,
                b.Lq,
                b.Lk,
                None if b.qpos is None else b.qpos.to(device),
                None if b.kpos is None else b.kpos.to(device),
            )
            for b in self.buckets
        ]
        return _Rows(moved, self.q_index.to(device), self.inverse.to(device), self.k_index.to(device))


@dataclass(slots=True)
class PackedPlan:
    """The plan (`attention.Plan`) of one packed row of T tokens.

    segments: as they lie. shared: some token is a key of several segments. What attention reads is laid out when it
    first asks: `rows` for torch's operators on any device, `families` for the kernel, `lines` and `flexed` for CUDA.
    """

    segments: Sequence[Segment]
    shared: bool
    single: bool  # one plain segment: no gathering at all
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _rows: _Rows | None = None
    _families: Families | None = None
    _flexed: flex.Row | None = None
    _lines: flash.Lines | None = None

    @classmethod
    def of(cls, segments: Sequence[Segment], tokens: int) -> PackedPlan:
        """The plan of segments that tile a packed row of `tokens` tokens."""
        return cls(
            prefix_tree.laid(segments, tokens),
            shared=any(s.parent is not None for s in segments),
            single=len(segments) == 1 and segments[0].parent is None,
        )

    def to(self, device: torch.device) -> PackedPlan:
        return PackedPlan(self.segments, self.shared, self.single, device)

    @property
    def rows(self) -> _Rows:
        if self._rows is None:
            self._rows = _Rows.of(self.segments, self.segments[-1].end).to(self.device)
        return self._rows

    @property
    def families(self) -> Families:
        if self._families is None:
            self._families = Families(prefix_tree.families(self.segments))
        return self._families

    @property
    def flexed(self) -> flex.Row:
        if self._flexed is None:
            self._flexed = flex.Row(self.segments, self.device)
        return self._flexed

    @property
    def lines(self) -> flash.Lines:
        if self._lines is None:
            self._lines = flash.Lines.of(self.segments, self.device)
        return self._lines

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, window: int, softcap: float
    ) -> Tensor:
        """See `attention.Plan`; here B is 1 and L is the packed length T."""
        if flash.fits(q, v) or flex.fits(q, v):
            return self._as_it_lies(q, k, v, scaling, window, softcap)
        return self._by_buckets(q, k, v, scaling, window, softcap)

    def _as_it_lies(
        self, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int, softcap: float
    ) -> Tensor:
        longest = max(s.keys for s in self.segments)
        window = window if window < longest else 0
        bare = not (window or softcap)
        if bare and flash.fits(q, v):
            return flash.attention(q, k, v, self.lines, scaling)
        if flex.fits(q, v) and not (bare and self.single):
            return flex.attend(self.flexed, q, k, v, scaling=scaling, window=window, softcap=softcap)
        return self._by_buckets(q, k, v, scaling, window, softcap)

    def _by_buckets(
        self, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int, softcap: float
    ) -> Tensor:
        T, H, D = q.shape[2], q.shape[1], q.shape[3]
        laid = self.rows
        if self.single:
            return _attend(laid.buckets[0], q, k, v, scaling, window, softcap).transpose(1, 2)
        q_R = _Gather.apply(q[0].transpose(0, 1), laid.q_index, laid.inverse)
        k_K, v_K = self._keys(k[0].transpose(0, 1)), self._keys(v[0].transpose(0, 1))
        rows, q_at, k_at = [], 0, 0
        for b in laid.buckets:
            q_to, k_to = q_at + b.n * b.Lq, k_at + b.n * b.Lk
            q_b = q_R[q_at:q_to].view(b.n, b.Lq, H, D).transpose(1, 2)
            k_b = k_K[k_at:k_to].view(b.n, b.Lk, -1, D).transpose(1, 2)
            v_b = v_K[k_at:k_to].view(b.n, b.Lk, -1, v.shape[3]).transpose(1, 2)
            out = _attend(b, q_b, k_b, v_b, scaling, window, softcap)
            rows.append(out.transpose(1, 2).reshape(b.n * b.Lq, H, v.shape[3]))
            q_at, k_at = q_to, k_to
        out_R = rows[0] if len(rows) == 1 else torch.cat(rows)
        return _Return.apply(out_R, laid.inverse).view(1, T, H, v.shape[3])  # pyright: ignore

    def _keys(self, x: Tensor) -> Tensor:
        """[T, H_kv, D] -> [K, H_kv, D]."""
        if self.shared:
            return x.index_select(0, self.rows.k_index)
        return _Gather.apply(x, self.rows.k_index, self.rows.inverse)  # pyright: ignore[reportReturnType]


def _attend(b: _Bucket, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int, softcap: float) -> Tensor:
    """One bucket: q [n, H, Lq, D] -> [n, H, Lq, D]."""
    plain = b.qpos is None and not softcap and not (window and window < b.Lk)
    if plain:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    if b.qpos is None:
        line = torch.arange(b.Lq, device=q.device).expand(b.n, -1)
        b = _Bucket(b.n, b.Lq, b.Lk, line, line)
    return masked_attention(q, k, v, b.visible(window), scaling=scaling, softcap=softcap)


def _bucketed(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments of like size together: a new bucket when the padding it saves costs more than the call."""
    groups: list[list[Segment]] = []
    for continues in (False, True):
        some = [s for s in segments if (s.parent is not None) == continues]
        some.sort(key=lambda s: (-s.keys, -s.length, s.start))
        at = 0
        while at < len(some):
            end = _bucket_end(some, at)
            groups.append(some[at:end])
            at = end
    return groups


def _bucket_end(some: Sequence[Segment], at: int) -> int:
    """Where the bucket that opens at `at` (the largest) ends: as soon as a shorter one pays for its own call."""
    Lk, Lq = some[at].keys, max(s.length for s in some[at:])
    for i in range(at + 1, len(some)):
        keys = some[i].keys
        if keys < 0.8 * Lk and (len(some) - i) * (Lk * Lq - keys * min(Lq, keys)) > BUCKET_COST:
            return i
    return len(some)


def _lay(group: Sequence[Segment]) -> tuple[_Bucket, np.ndarray, np.ndarray, np.ndarray]:
    """A group's bucket and its rows' packed tokens: (bucket, q_index [n, Lq], which are no pads, k_index [n, Lk])."""
    n, Lq, Lk = len(group), max(s.length for s in group), max(s.keys for s in group)
    starts = np.array([[s.start] for s in group])
    lengths = np.array([[s.length] for s in group])
    line = np.arange(Lq)[None]
    own = line < lengths
    q_index = np.where(own, starts + line, starts)
    if group[0].parent is None:
        return _Bucket(n, Lq, Lk, None, None), q_index, own, q_index
    k_index, kpos = np.repeat(starts, Lk, 1), np.full((n, Lk), -1)
    for i, s in enumerate(group):
        k_index[i, : s.keys], kpos[i, : s.keys] = s.line(), np.arange(s.keys)
    qpos = np.array([[s.above] for s in group]) + np.where(own, line, 0)
    return _Bucket(n, Lq, Lk, torch.from_numpy(qpos), torch.from_numpy(kpos)), q_index, own, k_index
