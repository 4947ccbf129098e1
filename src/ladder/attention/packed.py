"""Attention over a packed row: a segment sees itself causally and the whole of its ancestors (`prefix_tree.py`).

Mathematically this is one block-sparse mask over the packed row. Computed with a dense mask it would cost the square of
the row's length; here segments of similar size are gathered into small padded batches ("buckets"), one SDPA call each.
Only attention sees this padding, the rest of the model runs over the packed row. Root segments need no mask: they are
padded on the right, and the causal mask hides the padding. The other implementations need no buckets: the kernel for
the CPU (`kernels/attend.c`) works through the packed row tree by tree, and on CUDA there are `flash.py` (float16 and
bfloat16) and `flex.py`.
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
"""Cost of one more SDPA call, in entries of the score matrix (measured on a CPU; it affects speed only)."""


@dataclass(slots=True)
class _Bucket:
    """n segments padded to Lq queries and Lk keys."""

    n: int
    Lq: int
    Lk: int
    qpos: Tensor | None  # [n, Lq] position in the sequence; None: causal attention, no mask needed
    kpos: Tensor | None  # [n, Lk]; -1 marks a pad
    masks: dict[int, Tensor] = field(default_factory=dict)

    def visible(self, window: int) -> Tensor:
        """bool [n, 1, Lq, Lk]; every query sees at least the key at position 0 of its row or itself."""
        if window not in self.masks:
            assert self.qpos is not None and self.kpos is not None
            distance = self.qpos[:, :, None] - self.kpos[:, None, :]
            visible = (distance >= 0) & (self.kpos >= 0)[:, None, :]
            if window:
                visible &= distance < window
            self.masks[window] = visible[:, None]
        return self.masks[window]


class _Gather(torch.autograd.Function):
    """rows_R = x_T[index_R], where rows_R[inverse_T] = x_T: backward is a gather, not a scatter.

    This is correct because every row outside inverse_T is padding, whose gradient is zero by construction, and no token
    has a second row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class _Scatter(torch.autograd.Function):
    """x_T = rows_R[inverse_T], the inverse of `_Gather`; no row is used twice, so backward copies instead of adding."""

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
class _BucketLayout:
    """The segments of a packed row as buckets, whose padded rows are concatenated.

    q_index [R]: packed position of each padded query row. inverse [T]: the query row of each packed position.
    k_index [K]: packed position of each padded key row.
    """

    buckets: list[_Bucket]
    q_index: Tensor
    inverse: Tensor
    k_index: Tensor

    @classmethod
    def of(cls, segments: Sequence[Segment], tokens: int) -> _BucketLayout:
        buckets, q_rows, k_rows = [], [], []
        inverse = np.empty(tokens, dtype=np.int64)
        row = 0
        for group in _group_by_size(segments):
            bucket, q_index, valid, k_index = _bucket_of(group)
            buckets.append(bucket)
            inverse[q_index[valid]] = np.flatnonzero(valid) + row
            q_rows.append(q_index.ravel())
            k_rows.append(k_index.ravel())
            row += bucket.n * bucket.Lq
        return cls(
            buckets,
            torch.from_numpy(np.concatenate(q_rows)),
            torch.from_numpy(inverse),
            torch.from_numpy(np.concatenate(k_rows)),
        )

    def to(self, device: torch.device) -> _BucketLayout:
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
        return _BucketLayout(moved, self.q_index.to(device), self.inverse.to(device), self.k_index.to(device))


@dataclass(slots=True)
class PackedPlan:
    """The plan (`plan.Plan`) of one packed row of T tokens.

    segments: sorted by start. shared: whether some segment has a parent, so that its keys belong to several segments.
    single: whether there is only one segment, which needs no gathering. The layout that an implementation reads is
    built on first use: `rows` for SDPA on any device, `families` for the C kernel, `lines` for flash attention,
    `flexed` for flex attention.
    """

    segments: Sequence[Segment]
    shared: bool
    single: bool
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _rows: _BucketLayout | None = None
    _families: Families | None = None
    _flexed: flex.FlexLayout | None = None
    _lines: flash.FlashLayout | None = None

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
    def rows(self) -> _BucketLayout:
        if self._rows is None:
            self._rows = _BucketLayout.of(self.segments, self.segments[-1].end).to(self.device)
        return self._rows

    @property
    def families(self) -> Families:
        if self._families is None:
            self._families = Families(prefix_tree.families(self.segments))
        return self._families

    @property
    def flexed(self) -> flex.FlexLayout:
        if self._flexed is None:
            self._flexed = flex.FlexLayout(self.segments, self.device)
        return self._flexed

    @property
    def lines(self) -> flash.FlashLayout:
        if self._lines is None:
            self._lines = flash.FlashLayout.of(self.segments, self.device)
        return self._lines

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scaling: float, window: int, softcap: float
    ) -> Tensor:
        """See `plan.Plan.attend`; here B is 1 and L is the packed length T."""
        if flash.fits(q, v) or flex.fits(q, v):
            return self._attend_on_cuda(q, k, v, scaling, window, softcap)
        return self._attend_by_buckets(q, k, v, scaling, window, softcap)

    def _attend_on_cuda(
        self, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int, softcap: float
    ) -> Tensor:
        """Flash attention where it can, else flex attention; SDPA for one segment that needs no mask."""
        longest = max(s.keys for s in self.segments)
        window = window if window < longest else 0
        causal_only = not (window or softcap)
        if causal_only and flash.fits(q, v):
            return flash.attention(q, k, v, self.lines, scaling)
        if flex.fits(q, v) and not (causal_only and self.single):
            return flex.attend(self.flexed, q, k, v, scaling=scaling, window=window, softcap=softcap)
        return self._attend_by_buckets(q, k, v, scaling, window, softcap)

    def _attend_by_buckets(
        self, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int, softcap: float
    ) -> Tensor:
        T, H, D = q.shape[2], q.shape[1], q.shape[3]
        layout = self.rows
        if self.single:
            return _attend(layout.buckets[0], q, k, v, scaling, window, softcap).transpose(1, 2)
        q_R = _Gather.apply(q[0].transpose(0, 1), layout.q_index, layout.inverse)
        k_K, v_K = self._gather_keys(k[0].transpose(0, 1)), self._gather_keys(v[0].transpose(0, 1))
        outputs, q_start, k_start = [], 0, 0
        for b in layout.buckets:
            q_end, k_end = q_start + b.n * b.Lq, k_start + b.n * b.Lk
            q_b = q_R[q_start:q_end].view(b.n, b.Lq, H, D).transpose(1, 2)
            k_b = k_K[k_start:k_end].view(b.n, b.Lk, -1, D).transpose(1, 2)
            v_b = v_K[k_start:k_end].view(b.n, b.Lk, -1, v.shape[3]).transpose(1, 2)
            out = _attend(b, q_b, k_b, v_b, scaling, window, softcap)
            outputs.append(out.transpose(1, 2).reshape(b.n * b.Lq, H, v.shape[3]))
            q_start, k_start = q_end, k_end
        out_R = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return _Scatter.apply(out_R, layout.inverse).view(1, T, H, v.shape[3])  # pyright: ignore

    def _gather_keys(self, x: Tensor) -> Tensor:
        """Keys or values in bucket rows: [T, H_kv, D] -> [K, H_kv, D]."""
        if self.shared:
            return x.index_select(0, self.rows.k_index)
        return _Gather.apply(x, self.rows.k_index, self.rows.inverse)  # pyright: ignore[reportReturnType]


def _attend(b: _Bucket, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int, softcap: float) -> Tensor:
    """Attention of one bucket: q [n, H, Lq, D] -> [n, H, Lq, D]."""
    causal_only = b.qpos is None and not softcap and not (window and window < b.Lk)
    if causal_only:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    if b.qpos is None:
        positions = torch.arange(b.Lq, device=q.device).expand(b.n, -1)
        b = _Bucket(b.n, b.Lq, b.Lk, positions, positions)
    return masked_attention(q, k, v, b.visible(window), scaling=scaling, softcap=softcap)


def _group_by_size(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Groups of segments of similar size, one for each bucket. A group ends where the padding that another bucket saves
    outweighs the cost of its call. Root segments, which need no mask, are grouped apart from the others."""
    groups: list[list[Segment]] = []
    for has_parent in (False, True):
        candidates = [s for s in segments if (s.parent is not None) == has_parent]
        candidates.sort(key=lambda s: (-s.keys, -s.length, s.start))
        start = 0
        while start < len(candidates):
            end = _group_end(candidates, start)
            groups.append(candidates[start:end])
            start = end
    return groups


def _group_end(candidates: Sequence[Segment], start: int) -> int:
    """End of the group that begins at index `start`, of segments sorted by keys, the longest first."""
    Lk, Lq = candidates[start].keys, max(s.length for s in candidates[start:])
    for i in range(start + 1, len(candidates)):
        keys = candidates[i].keys
        if keys < 0.8 * Lk and (len(candidates) - i) * (Lk * Lq - keys * min(Lq, keys)) > BUCKET_COST:
            return i
    return len(candidates)


def _bucket_of(group: Sequence[Segment]) -> tuple[_Bucket, np.ndarray, np.ndarray, np.ndarray]:
    """A group as a bucket: (bucket, packed positions of the queries [n, Lq], which of them are not padding [n, Lq],
    packed positions of the keys [n, Lk])."""
    n, Lq, Lk = len(group), max(s.length for s in group), max(s.keys for s in group)
    starts = np.array([[s.start] for s in group])
    lengths = np.array([[s.length] for s in group])
    offsets = np.arange(Lq)[None]
    valid = offsets < lengths
    q_index = np.where(valid, starts + offsets, starts)
    if group[0].parent is None:
        return _Bucket(n, Lq, Lk, None, None), q_index, valid, q_index
    k_index, kpos = np.repeat(starts, Lk, 1), np.full((n, Lk), -1)
    for i, s in enumerate(group):
        k_index[i, : s.keys], kpos[i, : s.keys] = s.line(), np.arange(s.keys)
    qpos = np.array([[s.prefix_length] for s in group]) + np.where(valid, offsets, 0)
    return _Bucket(n, Lq, Lk, torch.from_numpy(qpos), torch.from_numpy(kpos)), q_index, valid, k_index
