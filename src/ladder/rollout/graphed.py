"""The Llama layout's decoding path on CUDA: a step has static shapes, is captured once and replayed as one graph.

A step of a small batch is about a thousand short operators, and launching them costs a GPU more than computing them.
Here everything that a step reads or writes lies where it lay at the capture: its inputs, the keys and values, the
logits. Steps are captured for a few numbers of rows, smallest first when they are met, so rows that finish leave the
graph soon; where the rows' room grows, everything moves and is captured anew. On any other device the very same
function runs as it stands, which is how it is tested: nothing here has run on CUDA yet.

A row's stretch of the store is [its prompt | its own tokens], so a token's position is its place, and attention is one
call of SDPA under a mask from the positions. The queries that read one key head stand as several queries of it: with
`enable_gqa` a masked call would go to the kernel that repeats the keys.

Left out: prompts kept once for all their rows (SDPA wants each row's keys in one piece, and gathering them for each
step reads and writes what it saves), graphs kept from one call of the sampler to the next (weights are packed anew),
and several workers, since only one graph of a process may be captured at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ladder.kernels.library import wanted
from ladder.rollout.llama import Llama, read
from ladder.rollout.prompts import Prompts

ROOM = 64
"""Rows have room for a multiple of this; SDPA's kernels want the mask of a key row aligned."""
GROWTH = 1.5
"""By how much room grows: attention reads all of it, masked or not, and each growth costs a capture."""
WARM_UP = 3
"""Steps run before a capture, in which libraries choose their kernels and take their workspaces."""


def fits(device: torch.device) -> bool:
    """Whether steps are captured there; elsewhere nothing chooses this path."""
    return device.type == "cuda" and wanted()


def bucket(rows: int, slots: int) -> int:
    """For how many rows a step of `rows` is captured: powers of two, and from 8 on what lies halfway, up to slots."""
    power = 1 << (rows - 1).bit_length()
    half = 3 * power // 4
    return min(slots, half if rows <= half and power > 8 else power)


def capture(step: Callable[[], None], others: Iterable[torch.cuda.CUDAGraph]) -> torch.cuda.CUDAGraph:
    """A graph of what `step` launches. It must change nothing when run again.

    The graphs share one pool of memory: one runs at a time, and leaves nothing there that another has to find."""
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=next((g.pool() for g in others), None)):
        step()
    return graph


class Graphed:
    """One call's decoding state (`native.Decoding`). slots, length: the most rows, and tokens of one.

    inputs [2, slots]: each row's newest token and its position. stores: keys and values [slots, key heads, room, D] by
    layer. logits [slots, V].
    """

    ordered = False

    def __init__(self, model: Llama, slots: int, length: int) -> None:
        self.model, self.slots, self.length = model, slots, length
        self.device = model.embedding.device
        self.inputs = torch.zeros(2, slots, dtype=torch.int64, device=self.device)
        self.logits = model.embedding.new_zeros(slots, len(model.head.weight))
        self.room = 0
        self.stores = [self._store() for _ in model.layers]
        self.captures = self.device.type == "cuda"
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by rows

    # ------------------------------------------------------------ native.Decoding

    def read(self, prompts: Prompts, first: int) -> Tensor:
        self._make_room(int(prompts.lengths.max()) + 1)
        logits, kept = read(self.model, prompts)
        places = torch.from_numpy(prompts.line[prompts.owner]).to(self.device)  # [R, P]
        R, P = places.shape
        for stores, fresh in zip(self.stores, kept, strict=True):
            for store, x in zip(stores, fresh, strict=True):
                store[first : first + R, :, :P] = x[places].transpose(1, 2)
        return logits

    def step(self, tokens_A: np.ndarray, positions_A: np.ndarray) -> Tensor:
        A = len(tokens_A)
        self._make_room(int(positions_A.max()) + 1)
        rows = bucket(A, self.slots)
        inputs = np.zeros((2, rows), np.int64)  # a pad writes at position 0 of a slot that no row holds
        inputs[:, :A] = tokens_A, positions_A
        self.inputs[:, :rows] = torch.from_numpy(inputs).to(self.device)
        self._run(rows)
        return self.logits[:A]

    def keep(self, kept: np.ndarray, positions_A: np.ndarray) -> None:
        to = np.flatnonzero(kept != np.arange(len(kept)))
        if not len(to):
            return
        length = int(positions_A.max())  # the newest token's keys are still to be written
        origin, to_ = torch.from_numpy(kept[to]).to(self.device), torch.from_numpy(to).to(self.device)
        for stores in self.stores:
            for store in stores:
                store[to_, :, :length] = store[origin, :, :length]

    # ------------------------------------------------------------ one step

    def _run(self, rows: int) -> None:
        if not self.captures:
            self._compute(rows)
            return
        if rows not in self.graphs:
            with torch.cuda.device(self.device):
                self.graphs[rows] = capture(partial(self._compute, rows), self.graphs.values())
        self.graphs[rows].replay()

    def _compute(self, rows: int) -> None:
        """From `inputs` to `logits`, nothing of it decided by the host but the number of rows and the room."""
        m = self.model
        tokens, positions = self.inputs[:, :rows]
        cos, sin = m.cos.index_select(0, positions)[:, None], m.sin.index_select(0, positions)[:, None]
        bias, at = self._bias(positions), self._at(positions)
        x = m.embedding.index_select(0, tokens)
        for layer, stores in zip(m.layers, self.stores, strict=True):
            q, k, v = m.qkv(layer, x, cos, sin)
            for store, fresh in zip(stores, (k, v), strict=True):
                store.view(-1, m.width).index_copy_(0, at, fresh.reshape(-1, m.width))
            keys, values = (store[:rows] for store in stores)
            q = q.unflatten(1, (m.key_heads, -1))
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias, scale=m.scaling)
            x = m.finish(layer, x, out.reshape(rows, -1))
        self.logits[:rows] = m.head(m.rms(x, m.norm))

    def _bias(self, positions: Tensor) -> Tensor:
        """[rows, 1, 1, room]: 0 up to each row's position, -inf behind it."""
        hidden = torch.arange(self.room, device=self.device) > positions[:, None]
        return self.logits.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None, None]

    def _at(self, positions: Tensor) -> Tensor:
        """[rows * key heads]: where each new key lies among all keys of a store."""
        heads = self.model.key_heads
        stretches = torch.arange(len(positions) * heads, device=self.device).view(-1, heads) * self.room
        return (stretches + positions[:, None]).view(-1)

    # ------------------------------------------------------------ room

    def _store(self) -> tuple[Tensor, Tensor]:
        shape = self.slots, self.model.key_heads, self.room, self.model.width
        return self.model.embedding.new_zeros(shape), self.model.embedding.new_zeros(shape)

    def _make_room(self, needed: int) -> None:
        """Room for `needed` tokens a row; the graphs know the old places only."""
        if needed <= self.room:
            return
        old = self.room
        self.graphs.clear()
        self.room = max(_aligned(needed), min(_aligned(int(old * GROWTH)), _aligned(self.length)))
        for i, before in enumerate(self.stores):  # one after another, so that only one layer is there twice
            self.stores[i] = self._store()
            for store, x in zip(self.stores[i], before, strict=True):
                store[:, :, :old] = x


def _aligned(n: int) -> int:
    return -(-n // ROOM) * ROOM
