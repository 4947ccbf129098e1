"""The decoding kernels (`decode.c`) as functions of tensors: packed matrices, one decoding step, token sampling."""

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
    """`Model` in decode.c."""

    _fields_ = (
        *((n, Int) for n in ("layers", "D", "H", "KH", "W", "I", "V", "threads", "half")),
        ("eps", Float),
        *((n, Address) for n in ("embedding", "norm", "head_bias", "cos", "sin")),
        *((n, Address) for n in ("head", "qkv", "out", "gate", "up", "down")),
        *((n, Address) for n in ("norm1", "qkv_bias", "q_norm", "k_norm", "out_bias")),
        *((n, Address) for n in ("norm2", "gate_bias", "up_bias", "down_bias")),
    )


class _Turn(ctypes.Structure):
    """`Turn` in decode.c: the input of one step."""

    _fields_ = (
        *((n, Int) for n in ("A", "room", "P", "units")),
        *((n, Address) for n in ("tokens", "positions", "own")),
        *((n, Address) for n in ("rows", "unit_first", "unit_rows", "unit_prompt", "prompt_lengths")),
        *((n, Address) for n in ("own_keys", "own_values", "prompt_keys", "prompt_values")),
    )


def kernels() -> Any:
    """The compiled library, or None (`library.why` gives the reason)."""
    return declared(library("decode"), ARGUMENTS, {name: Int for name in ARGUMENTS if name.endswith("_width")})


def vector() -> int:
    """Floats in one SIMD vector; widths must be multiples of it."""
    return kernels().vector_width()


def wide(n: int) -> int:
    """A number of columns, rounded up to whole panels."""
    return _round_up(n, kernels().panel_width())


def tall(n: int) -> int:
    """A number of rows, rounded up to whole tiles."""
    return _round_up(n, kernels().tall_width())


def deep(n: int) -> int:
    """An inner dimension, rounded up to whole tiles."""
    return _round_up(n, kernels().deep_width())


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """Weights [N, K] in the kernels' layout (panels of columns), float32 or bfloat16."""

    memory: Tensor
    N: int
    K: int

    @property
    def half(self) -> bool:
        return self.memory.dtype == torch.bfloat16

    def multiply(self, x_AK: Tensor, bias: Tensor | None) -> Tensor:
        """x W' + b, [A, N]; with bfloat16 weights, x is rounded to bfloat16 too."""
        A, x, threads = len(x_AK), x_AK.contiguous(), torch.get_num_threads()
        out = torch.empty(tall(A), wide(self.N))
        low = torch.zeros(tall(A) if self.half else 0, deep(self.K), dtype=torch.bfloat16)
        kernels().multiply(
            address(x), A, self.K, self.N, address(self.memory), address(bias), address(out), out.shape[1],
            address(low), self.half, threads,
        )  # fmt: skip
        return out[:A, : self.N]


class Arena:
    """One block of memory for many packed matrices, in the order in which a step reads them."""

    def __init__(self, shapes: Sequence[torch.Size], dtype: torch.dtype) -> None:
        """shapes: [N, K] of every matrix that will be packed. dtype: float32 or bfloat16."""
        self.half = dtype == torch.bfloat16
        self.memory = memory.empty(sum(self._packed_size(*shape) for shape in shapes), dtype)
        self.used = 0

    def _packed_size(self, N: int, K: int) -> int:
        return wide(N) * (deep(K) if self.half else K)

    def pack(self, weight_NK: Tensor) -> PackedMatrix:
        """Packs float32 weights [N, K] into the next free part of the memory."""
        N, K = weight_NK.shape
        weight = weight_NK.contiguous()
        out = self.memory[self.used : self.used + self._packed_size(N, K)]
        self.used += out.numel()
        pack = kernels().pack_half if self.half else kernels().pack
        pack(address(weight), N, K, address(out), torch.get_num_threads())
        return PackedMatrix(out, N, K)


@dataclass(slots=True)
class LayerWeights:
    """The weights of one layer. The attention scale is multiplied into the query weights (or into q_norm)."""

    norm1: Tensor
    qkv: PackedMatrix
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: PackedMatrix
    out_bias: Tensor | None
    norm2: Tensor
    gate: PackedMatrix
    gate_bias: Tensor | None
    up: PackedMatrix
    up_bias: Tensor | None
    down: PackedMatrix
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Sizes:
    """D: hidden size; H query heads and KH key heads of width W; I: hidden size of the MLP; V: vocabulary size."""

    D: int
    H: int
    KH: int
    W: int
    I: int
    V: int


class DecodeWeights:
    """A model's weights as the C struct that the kernels read. This object keeps alive the memory that it points to."""

    def __init__(
        self,
        sizes: Sizes,
        layers: Sequence[LayerWeights],
        *,
        eps: float,
        embedding: Tensor,
        norm: Tensor,
        head: PackedMatrix,
        head_bias: Tensor | None,
        cos: Tensor,
        sin: Tensor,
    ) -> None:
        """cos, sin [length, W]: rotary tables; the first half of sin is negated."""
        self.sizes, self.keep_alive = sizes, [layers, embedding, norm, head, head_bias, cos, sin]
        self.threads, self.half, self.dtype = torch.get_num_threads(), head.half, head.memory.dtype
        widths = (sizes.D, sizes.H, sizes.KH, sizes.W, sizes.I, sizes.V)
        struct = _Model(len(layers), *widths, self.threads, self.half, eps)
        single = {"embedding": embedding, "norm": norm, "head": head, "head_bias": head_bias, "cos": cos, "sin": sin}
        for name, x in single.items():
            setattr(struct, name, _address(x))
        for name in LayerWeights.__slots__:  # pyright: ignore[reportGeneralTypeIssues]
            table = addresses([getattr(layer, name) for layer in layers])
            self.keep_alive.append(table)
            setattr(struct, name, ctypes.addressof(table))
        self.struct = struct


def addresses(tensors: Sequence[Tensor | PackedMatrix | None]) -> Any:
    """A C array of the tensors' addresses."""
    return (Address * len(tensors))(*map(_address, tensors))


def _address(x: Tensor | PackedMatrix | None) -> ctypes.c_void_p:
    return address(x.memory if isinstance(x, PackedMatrix) else x)


ROWS = 16
"""Most rows of one prompt in one unit of attention: their scores fit into the second-level cache, and units are
distributed over threads."""
DEALT = 4
"""Pieces of work per thread (a unit and one key head each) if there are enough rows, so that no thread waits long for
the last one."""
TALL = 8
"""Fewest queries in a piece of work: the number of rows that a matrix product computes at a time."""


def piece(A: int, heads: int, key_heads: int, threads: int) -> int:
    """Most rows of one unit of attention when A rows are decoded."""
    units = -(-DEALT * threads // key_heads) if threads > 1 else 1
    return min(ROWS, max(-(-TALL * key_heads // heads), -(-A // units)))


class Units:
    """Rows grouped by prompt, in units of at most `most` rows whose queries meet the prompt's keys in one product.

    owner [A]: the prompt of each row. lengths [p]: tokens of each prompt. rows [A]: the rows sorted by prompt. first,
    many, prompt [units]: index of a unit's first entry in `rows`, its number of rows, its prompt.
    """

    def __init__(self, owner: np.ndarray, lengths: np.ndarray, most: int = ROWS) -> None:
        self.rows = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=len(lengths))
        first, many, prompt, start = [], [], [], 0
        for p in np.flatnonzero(counts):
            end = start + int(counts[p])
            while start < end:
                n = min(most, end - start)
                first.append(start)
                many.append(n)
                prompt.append(int(p))
                start += n
        self.first, self.many, self.prompt = (np.array(x, np.int64) for x in (first, many, prompt))
        self.lengths = lengths.astype(np.int64)
        self.most = max(many)


class Step:
    """A decoding step, to be called repeatedly as long as rows and the memory of the key-value caches do not change.

    After a change a new `Step` is needed.
    """

    def __init__(
        self,
        weights: DecodeWeights,
        units: Units,
        A: int,
        room: int,
        own: Sequence[tuple[Tensor, Tensor]],
        prompts: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """A: number of rows. room: tokens that each row's own cache has room for. own: the cache of the tokens after
        the prompt, for each layer keys [slots * KH, W, room] and values [slots * KH, room, W]. prompts: the prompts'
        cache, for each layer keys [p * KH, W, P] and values [p * KH, P, W]. room and P are multiples of `vector()`."""
        s, self.weights, self.units, self.A = weights.sizes, weights, units, A
        P = prompts[0][0].shape[2]
        tables = [addresses([pair[i] for pair in cache]) for cache in (own, prompts) for i in (0, 1)]
        arrays = (units.rows, units.first, units.many, units.prompt, units.lengths)
        self.keep_alive = [tables, arrays, own, prompts]
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
        """Logits [A, V] of the next tokens (rows need not be adjacent in memory). int64 arrays: each row's last token,
        its position in the sequence, and own_A, its index in the row's own cache."""
        arrays = [np.ascontiguousarray(x, np.int64) for x in (tokens_A, positions_A, own_A)]
        turn = self.struct
        turn.tokens, turn.positions, turn.own = (x.ctypes.data for x in arrays)
        V = self.weights.sizes.V
        logits = torch.empty(self.rows, wide(V))
        kernels().step(
            ctypes.addressof(self.weights.struct), ctypes.addressof(turn), address(self.work), address(self.scratch),
            self.per_thread, address(self.low), address(logits),
        )  # fmt: skip
        return logits[: self.A, :V]


def draw(logits_AV: Tensor, uniform_A: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens int64 [A] from softmax(logits / temperature) and their log-probabilities, float32 [A].

    logits: float32 on the CPU, each row contiguous. uniform_A: uniform random numbers, float64 in [0, 1).
    """
    A, V = logits_AV.shape
    assert logits_AV.stride(1) == 1 and logits_AV.dtype == torch.float32 and uniform_A.dtype == torch.float64
    tokens, logps, uniform = torch.empty(A, dtype=torch.int64), torch.empty(A), uniform_A.contiguous()
    kernels().draw(
        logits_AV.data_ptr(), A, V, logits_AV.stride(0), temperature, address(uniform), address(tokens),
        address(logps), torch.get_num_threads(),
    )  # fmt: skip
    return tokens, logps
