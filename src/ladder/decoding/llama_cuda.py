"""The Llama layout's decoding path on CUDA: a decode step has static shapes, is captured once and replayed as a graph.

A step of a small batch is hundreds of short operators, and launching them costs a GPU more than computing them. A
captured step reads and writes fixed addresses: inputs, weights, keys and values, logits. A step is captured for each of
a few batch sizes when that size first occurs, so finished rows soon cost nothing. The graphs are kept from call to
call: weights that are not the model's own tensors are copied to the captured addresses. The operators between two
matrix products are one kernel (`kernels/triton_layers.py`, `kernels/triton_decode.py`), and a row reads its keys up to
its position.

A slot of the cache holds [prompt | own tokens], so a token's position is its place in the slot.

Left out: storing a shared prompt once, and several workers, since a process can capture only one graph at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.decoding.key_values import KeyValues, Layout
from ladder.decoding.llama import Llama, read
from ladder.decoding.prefill import Prompts
from ladder.kernels import dispatch

ROOM = 64
"""Slots are as long as a multiple of this,"""
SPARE = 1.125
"""and longer than requested by this factor."""
COPIED = 1 << 26
"""Most numbers of prompts' keys or values copied to slots at a time."""
WARM_UP = 2
"""Steps run before a capture, in which libraries choose kernels and allocate workspaces."""


def fits(device: torch.device) -> bool:
    """Whether decode steps are captured on that device; this path is not used elsewhere."""
    return dispatch.on(device)


def roomy(length: int) -> int:
    """Tokens per slot to allocate for sequences of `length`: the next call's prompts may be a little longer."""
    return -(-int(length * SPARE) // ROOM) * ROOM


def bucket(rows: int, slots: int) -> int:
    """The captured batch size for `rows` rows: powers of two, from 8 on also the values halfway, at most `slots`."""
    power = 1 << (rows - 1).bit_length()
    half = 3 * power // 4
    return min(slots, half if rows <= half and power > 8 else power)


def capture(step: Callable[[], None], others: Iterable[torch.cuda.CUDAGraph]) -> torch.cuda.CUDAGraph:
    """A graph of the kernels that `step` launches. Running `step` again must change nothing.

    The graphs share a memory pool: one runs at a time, and no graph reads what another left there."""
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
    """A `backend.Decoding`. slots, length: the most rows, and tokens of one. taken: whether a sampler uses it now.

    inputs [2, slots]: each row's newest token and its position. stores: keys and values [slots, key heads, length, D]
    by layer. logits [slots, V]. by: the kernels, for layers and for decoding.
    """

    ordered = False

    def __init__(self, model: Llama, slots: int, length: int) -> None:
        self.model, self.slots, self.length, self.taken = model, slots, length, False
        self.device = model.embedding.device
        self.by: Any = dispatch.tiled()
        self.inputs = torch.zeros(2, slots, dtype=torch.int64, device=self.device)
        self.logits = model.embedding.new_zeros(slots, len(model.head.weight))
        self.stores = [self._store() for _ in model.layers]
        self.captures = self.device.type == "cuda"
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by rows

    def serves(self, slots: int, length: int) -> bool:
        """Whether so many rows of so many tokens fit."""
        return slots <= self.slots and length <= self.length

    # ------------------------------------------------------------ backend.Decoding

    def read(self, prompts: Prompts, first: int) -> Tensor:
        logits, kept = read(self.model, prompts)
        self.fill(kept, prompts, first)
        return logits

    def fill(self, cache: KeyValues, layout: Layout, first: int) -> None:
        places = torch.from_numpy(layout.line[layout.owner]).to(self.device)  # [R, P]
        R, P = places.shape
        some = max(1, COPIED // (P * self.model.key_heads * self.model.width))
        for stores, fresh in zip(self.stores, cache.values(), strict=True):
            for store, x in zip(stores, fresh, strict=True):
                for at in range(0, R, some):
                    to = min(R, at + some)
                    store[first + at : first + to, :, :P] = x[places[at:to]].transpose(1, 2)

    def extract(self, slot: int, length: int) -> KeyValues:
        def tokens(store: Tensor) -> Tensor:
            return store[slot, :, :length].transpose(0, 1).clone()

        return {layer: (tokens(keys), tokens(values)) for layer, (keys, values) in enumerate(self.stores)}

    def step(self, tokens_A: np.ndarray, positions_A: np.ndarray) -> Tensor:
        A = len(tokens_A)
        rows = bucket(A, self.slots)
        inputs = np.zeros((2, rows), np.int64)  # padding rows write at position 0 of slots that are free
        inputs[:, :A] = tokens_A, positions_A
        self.inputs[:, :rows] = torch.from_numpy(inputs).to(self.device)
        self._run(rows)
        return self.logits[:A]

    def keep(self, kept: np.ndarray, positions_A: np.ndarray) -> None:
        to = np.flatnonzero(kept != np.arange(len(kept)))
        if not len(to):
            return
        length = int(positions_A.max())  # the newest token's keys are not written yet
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
        """From `inputs` to `logits`; the host decides nothing but the number of rows."""
        m, by = self.model, self.by
        tokens, positions = self.inputs[:, :rows]
        x, delta = m.embedding.index_select(0, tokens), None
        for layer, stores in zip(m.layers, self.stores, strict=True):
            x, h, _ = by.norm(x, delta, layer.norm, m.eps, None)
            norms = None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
            q = by.enter(layer.qkv(h), positions, (m.cos, m.sin), norms, m.eps, stores)
            attended = by.attend(q, stores, positions, m.scaling)
            x, h, _ = by.norm(x, layer.out(attended.view(rows, -1)), layer.mlp_norm, m.eps, None)
            delta = layer.down(by.gate(layer.gate(h), layer.up(h)))
        _, h, _ = by.norm(x, delta, m.norm, m.eps, None)
        self.logits[:rows] = m.head(h)

    def _store(self) -> tuple[Tensor, Tensor]:
        shape = self.slots, self.model.key_heads, self.length, self.model.width
        return self.model.embedding.new_zeros(shape), self.model.embedding.new_zeros(shape)
