"""The decoding kernels (`decode.c`) as functions of tensors: packed matrices, one step of a model, drawing tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.kernels import memory
from ladder.kernels.library import Address, Double, Float, Int, address, declared, library

ARGUMENTS = {
    "panel_width": [],
    "vector_width": [],
    "deep_width": [],
    "tall_width": [],
    "pack": [Address, Int, Int, Address, Int],
    "pack_half": [Address, Int, Int, Address, Int],
    "multiply": [Address, Int, Int, Int, Address, Address, Address, Int, Address, Int, Int],
    "step": [Address, Address, Address, Address, Int, Address, Address],
    "draw": [Address, Int, Int, Int, Double, Address, Address, Address, Int],
}


class _Model(ctypes.Structure):
    _fields_ = (
        *((n, Int) for n in ("layers", "D", "H", "KH", "W", "I", "V", "threads", "half")),
        ("eps", Float),
        *((n, Address) for n in ("embedding", "norm", "head_bias", "cos", "sin")),
        *((n, Address) for n in ("head", "qkv", "out", "gate", "up", "down")),
        *((n, Address) for n in ("norm1", "qkv_bias", "q_norm", "k_norm", "out_bias")),
        *((n, Address) for n in ("norm2", "gate_bias", "up_bias", "down_bias")),
    )


class _Turn(ctypes.Structure):
    _fields_ = (
        *((n, Int) for n in ("A", "room", "P", "units")),
        *((n, Address) for n in ("tokens", "positions", "own")),
        *((n, Address) for n in ("rows", "unit_first", "unit_rows", "unit_prompt", "prompt_lengths")),
        *((n, Address) for n in ("own_keys", "own_values", "prompt_keys", "prompt_values")),
    )


def kernels() -> Any:
    """The library, or None (`library.why` says why)."""
    return declared(library("decode"), ARGUMENTS, {name: Int for name in ARGUMENTS if name.endswith("_width")})


def vector() -> int:
    """Floats in one vector: what widths have to be multiples of."""
    return kernels().vector_width()


def wide(n: int) -> int:
    """Columns in whole panels."""
    return _whole(n, kernels().panel_width())


def tall(n: int) -> int:
    """Rows in whole tiles."""
    return _whole(n, kernels().tall_width())


def deep(n: int) -> int:
    """An inner dimension in whole tiles."""
    return _whole(n, kernels().deep_width())


def _whole(n: int, width: int) -> int:
    return -(-n // width) * width


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights [N, K] laid out for the kernels, in float32 or bfloat16."""

    memory: Tensor
    N: int
    K: int

    @property
    def half(self) -> bool:
        return self.memory.dtype == torch.bfloat16

    def multiply(self, x_AK: Tensor, bias: Tensor | None) -> Tensor:
        """x W' + b, [A, N]; bfloat16 weights round x too."""
        A, x, threads = len(x_AK), x_AK.contiguous(), torch.get_num_threads()
        out = torch.empty(tall(A), wide(self.N))
        low = torch.zeros(tall(A) if self.half else 0, deep(self.K), dtype=torch.bfloat16)
        kernels().multiply(
            address(x), A, self.K, self.N, address(self.memory), address(bias), address(out), out.shape[1],
            address(low), self.half, threads,
        )  # fmt: skip
        return out[:A, : self.N]


class Arena:
    """Room for many matrices in one piece of memory, in the order in which a step reads them."""

    def __init__(self, shapes: Sequence[torch.Size], dtype: torch.dtype) -> None:
        """shapes: [N, K] of all that will be packed. dtype: float32 or bfloat16."""
        self.half = dtype == torch.bfloat16
        self.memory = memory.empty(sum(self._numbers(*shape) for shape in shapes), dtype)
        self.used = 0

    def _numbers(self, N: int, K: int) -> int:
        return wide(N) * (deep(K) if self.half else K)

    def pack(self, weight_NK: Tensor) -> Packed:
        """Weights [N, K], float32, laid out for `step`."""
        N, K = weight_NK.shape
        weight = weight_NK.contiguous()
        out = self.memory[self.used : self.used + self._numbers(N, K)]
        self.used += out.numel()
        pack = kernels().pack_half if self.half else kernels().pack
        pack(address(weight), N, K, address(out), torch.get_num_threads())
        return Packed(out, N, K)


@dataclass(slots=True)
class LayerWeights:
    """One layer's. The queries' scale is in their weights (or in q_norm)."""

    norm1: Tensor
    qkv: Packed
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Packed
    out_bias: Tensor | None
    norm2: Tensor
    gate: Packed
    gate_bias: Tensor | None
    up: Packed
    up_bias: Tensor | None
    down: Packed
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Sizes:
    """D: of the hidden state; H query heads and KH key heads of width W; I: of the MLP; V: of the vocabulary."""

    D: int
    H: int
    KH: int
    W: int
    I: int
    V: int


class Weights:
    """A model's weights as the kernels read them; what they point to is kept alive here."""

    def __init__(
        self,
        sizes: Sizes,
        layers: Sequence[LayerWeights],
        *,
        eps: float,
        embedding: Tensor,
        norm: Tensor,
        head: Packed,
        head_bias: Tensor | None,
        cos: Tensor,
        sin: Tensor,
    ) -> None:
        """cos, sin [length, W], sin with the sign that its half of the pair has."""
        self.sizes, self.kept = sizes, [layers, embedding, norm, head, head_bias, cos, sin]
        self.threads, self.half, self.dtype = torch.get_num_threads(), head.half, head.memory.dtype
        widths = (sizes.D, sizes.H, sizes.KH, sizes.W, sizes.I, sizes.V)
        m = _Model(len(layers), *widths, self.threads, self.half, eps)
        whole = {"embedding": embedding, "norm": norm, "head": head, "head_bias": head_bias, "cos": cos, "sin": sin}
        for name, x in whole.items():
            setattr(m, name, _address(x))
        for name in LayerWeights.__slots__:  # pyright: ignore[reportGeneralTypeIssues]
            table = addresses([getattr(layer, name) for layer in layers])
            self.kept.append(table)
            setattr(m, name, ctypes.addressof(table))
        self.struct = m


def addresses(tensors: Sequence[Tensor | Packed | None]) -> Any:
    """A table of where tensors lie."""
    return (Address * len(tensors))(*map(_address, tensors))


def _address(x: Tensor | Packed | None) -> ctypes.c_void_p:
    return address(x.memory if isinstance(x, Packed) else x)


ROWS = 16
"""Most rows of one prompt that attend in one piece: their scores stay in the second cache, and pieces are dealt out."""
DEALT = 4
"""Pieces for each thread, one key head each, if there are so many rows: the last of them should not be waited for."""
TALL = 8
"""Fewest queries that a piece is cut down to: as many rows as a product takes at a time."""


def piece(A: int, heads: int, key_heads: int, threads: int) -> int:
    """Most rows that attend in one piece, of A."""
    pieces = -(-DEALT * threads // key_heads) if threads > 1 else 1
    return min(ROWS, max(-(-TALL * key_heads // heads), -(-A // pieces)))


class Units:
    """Rows by the prompt that they continue, in pieces of at most `most`. owner [A], lengths [p]."""

    def __init__(self, owner: np.ndarray, lengths: np.ndarray, most: int = ROWS) -> None:
        self.rows = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=len(lengths))
        first, many, prompt, at = [], [], [], 0
        for p in np.flatnonzero(counts):
            end = at + int(counts[p])
            while at < end:
                n = min(most, end - at)
                first.append(at)
                many.append(n)
                prompt.append(int(p))
                at += n
        self.first, self.many, self.prompt = (np.array(x, np.int64) for x in (first, many, prompt))
        self.lengths = lengths.astype(np.int64)
        self.most = max(many)


class Step:
    """One decoding step after another over stores that stay where they are; made anew when rows or stores change."""

    def __init__(
        self,
        weights: Weights,
        units: Units,
        A: int,
        room: int,
        own: Sequence[tuple[Tensor, Tensor]],
        prompts: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """own: keys [slots * KH, W, room] and values [slots * KH, room, W] a layer; prompts: keys [p * KH, W, P] and
        values [p * KH, P, W]; room and P multiples of `vector()`."""
        s, self.weights, self.units, self.A = weights.sizes, weights, units, A
        P = prompts[0][0].shape[2]
        tables = [addresses([pair[i] for pair in some]) for some in (own, prompts) for i in (0, 1)]
        arrays = (units.rows, units.first, units.many, units.prompt, units.lengths)
        self.kept = [tables, arrays, own, prompts]
        self.struct = _Turn(A, room, P, len(units.first), 0, 0, 0, *(x.ctypes.data for x in arrays))
        for name, table in zip(("own_keys", "own_values", "prompt_keys", "prompt_values"), tables, strict=True):
            setattr(self.struct, name, ctypes.addressof(table))
        qkv, heads = wide((s.H + 2 * s.KH) * s.W), wide(s.H * s.W)
        self.rows = tall(A) if weights.half else A
        self.work = torch.zeros(self.rows * (2 * wide(s.D) + qkv + heads + wide(s.I)))
        deepest = deep(max(s.D, s.H * s.W, s.I)) if weights.half else 0
        self.low = torch.zeros(self.rows * deepest, dtype=torch.bfloat16)
        g = s.H // s.KH
        self.per_thread = -(-(units.most * g * (P + room + 2 * s.W)) // 16) * 16
        self.scratch = torch.empty(weights.threads * self.per_thread)

    def __call__(self, tokens_A: np.ndarray, positions_A: np.ndarray, own_A: np.ndarray) -> Tensor:
        """Logits [A, V] (rows may lie apart). own_A: where each row's new token goes among its own. int64 arrays."""
        arrays = [np.ascontiguousarray(x, np.int64) for x in (tokens_A, positions_A, own_A)]
        t = self.struct
        t.tokens, t.positions, t.own = (x.ctypes.data for x in arrays)
        V = self.weights.sizes.V
        logits = torch.empty(self.rows, wide(V))
        kernels().step(
            ctypes.addressof(self.weights.struct), ctypes.addressof(t), address(self.work), address(self.scratch),
            self.per_thread, address(self.low), address(logits),
        )  # fmt: skip
        return logits[: self.A, :V]


def draw(logits_AV: Tensor, uniform_A: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens int64 [A] from softmax(logits / temperature) and their log-probabilities, float32 [A].

    logits: float32 on the CPU, each row in one piece. uniform_A: float64 in [0, 1)."""
    A, V = logits_AV.shape
    assert logits_AV.stride(1) == 1 and logits_AV.dtype == torch.float32 and uniform_A.dtype == torch.float64
    tokens, logps, u = torch.empty(A, dtype=torch.int64), torch.empty(A), uniform_A.contiguous()
    kernels().draw(
        logits_AV.data_ptr(), A, V, logits_AV.stride(0), temperature, address(u), address(tokens), address(logps),
        torch.get_num_threads(),
    )  # fmt: skip
    return tokens, logps
