"""The back ends of the native sampler and the choice between them: a model's own modules, or packed weights of the
Llama layout, computed in torch's operators, in C on a CPU, or in captured steps on CUDA.

Weights are packed when a sampler begins to decode and freed when no request is in flight any more, so they are never
stale. On CUDA the graphs and their memory are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import nn

from ladder.base.errors import UserError
from ladder.decoding import llama_cpu, llama_cuda
from ladder.decoding.key_values import KeyValues, Layout
from ladder.decoding.llama import Decoder, Llama, fits
from ladder.decoding.modules import Modules
from ladder.decoding.prefill import Prompts
from ladder.kernels.decode import DecodeWeights
from ladder.models.head import Head

PACK_ROWS = 4
"""Fewest rows for which packing weights pays, however few decode steps there are."""
PACK_TOKENS = 8
"""Fewest rows x decode steps for which packing weights for the C kernels pays: a model of 64 thousand
parameters gains from 4 on (1.3 times as fast), one of 135 million from 8 on (1.1 times; 2.5 times from 96 on)."""
ROPE = 1024
"""Fewest positions that rotations are computed for: later requests may be longer."""

_captured: WeakKeyDictionary[nn.Module, ref[llama_cuda.Graphed]] = WeakKeyDictionary()
"""On CUDA: the captured state of a model while a sampler holds it; samplers of one model use it in turns."""


class Decoding(Protocol):
    """From tokens to the logits of the next one, for rows in slots 0 .. A-1, with their keys and values.

    ordered: a step is faster if the longest rows come first. slots: most rows. length: most tokens of a row."""

    ordered: bool
    slots: int
    length: int

    def read(self, prompts: Prompts, first: int) -> torch.Tensor:
        """Reads prompts, whose rows take the slots first, first + 1, ...: logits [p, V] behind each prompt."""
        ...

    def fill(self, cache: KeyValues, layout: Layout, first: int) -> None:
        """Writes known keys and values of rows to the slots first, first + 1, ..."""
        ...

    def extract(self, slot: int, length: int) -> KeyValues:
        """A copy of the keys and values of a row's first `length` tokens."""
        ...

    def step(self, tokens_A: np.ndarray, positions_A: np.ndarray) -> torch.Tensor:
        """Appends each row's newest token, at its position: logits [A, V]."""
        ...

    def keep(self, kept: np.ndarray, positions_A: np.ndarray) -> None:
        """Moves the rows `kept` (none below its new slot), at positions_A, to slots 0, 1, ...; drops the others."""
        ...


@dataclass(frozen=True, slots=True)
class Laid:
    """Weights of the Llama layout on a CPU. compiled: packed for the C kernels. packed: by C or oneDNN at all."""

    model: Llama
    compiled: DecodeWeights | None
    packed: bool

    @property
    def length(self) -> int:
        """Most tokens of a sequence."""
        return len(self.model.cos)

    def begin(self, slots: int) -> Decoding:
        if self.compiled is None:
            return Decoder(self.model, slots)
        return llama_cpu.Compiled(self.model, self.compiled, slots)


class Opener(Protocol):
    """Makes the `Decoding`s of a stepper."""

    def open(self, slots: int, length: int, steps: int) -> Decoding:
        """A decoding for `slots` rows of `length` tokens; `steps`: most decode steps of the requests that wait."""
        ...

    def close(self) -> None:
        """Ends the use of the decoding that was opened last."""
        ...


class Backend:
    """The decodings of one model (`Opener`). The fields are those of `NativeSampler`."""

    def __init__(
        self,
        base: nn.Module,
        head: Head,
        *,
        context: int,
        cache_tokens: int,
        packed: bool,
        dtype: torch.dtype,
        workers: int,
        frozen: bool,
    ) -> None:
        self.base, self.head, self.packed, self.dtype = base, head, packed, dtype
        self.context, self.cache_tokens, self.workers, self.frozen = context, cache_tokens, workers, frozen
        self.state: llama_cuda.Graphed | None = None  # on CUDA: graphs and their memory, from call to call
        self.laid: Laid | None = None
        if dtype != torch.float32:
            self._check_half()

    def open(self, slots: int, length: int, steps: int) -> Decoding:
        way = self._way()
        if way == "captured":
            return self._graphed(slots, length)
        if way == "modules":
            return Modules(self.base, self.head, slots, length)
        return self.lay_out(slots, length, steps).begin(slots)

    def prepare(self, rows: int, length: int, steps: int) -> None:
        """Packs the weights once for several steppers, if this back end packs weights."""
        if self._way() == "laid out":
            self.lay_out(rows, length, steps)

    def _way(self) -> Literal["modules", "captured", "laid out"]:
        """The back end of the model on this device. Raises UserError for several workers on a GPU."""
        knows = self.packed and fits(self.base, self.head, self.context)
        if knows and llama_cuda.fits(self.head.weight.device):
            if self.workers > 1:
                raise UserError("a GPU decodes with one worker", field="sampler.workers", hint="leave it at 1")
            return "captured"
        plain = self.head.weight.dtype == torch.float32  # not halves of a GPU that steps cannot be captured on
        return "laid out" if knows and plain else "modules"

    def close(self) -> None:
        if not self.frozen:
            self.laid = None
        if self.state is not None:
            self.state.taken = False

    def reweighted(self) -> None:
        """Frees packed weights: the model's have changed."""
        self.laid = None

    def lay_out(self, rows: int, length: int, steps: int) -> Laid:
        """The model's present weights, packed; those in use if a decoding is open and they serve this one, too."""
        laid = self.laid
        if laid is not None and laid.length >= length and (laid.packed or rows < PACK_ROWS):
            return laid
        compiles = llama_cpu.obstacle(self.base) is None
        packed = rows >= PACK_ROWS or (compiles and rows * steps >= PACK_TOKENS)
        in_c = self.dtype != torch.float32 or (packed and compiles)
        reach = max(length, min(self.context, ROPE))
        model = Llama.of(self.base, self.head, reach, pack=packed and not in_c)
        self.laid = Laid(model, llama_cpu.pack(model, self.dtype) if in_c else None, packed)
        return self.laid

    def _graphed(self, slots: int, length: int) -> llama_cuda.Graphed:
        """The model's captured state, with its present weights; a new one if that is too small or in use elsewhere."""
        captured = _captured.get(self.base)
        state = captured() if captured else None
        free = state is not None and (state is self.state or not state.taken)
        self.state = None  # an opening that fails leaves none behind
        if state is None or not (free and state.serves(slots, length) and self._refreshed(state)):
            del state  # before there is another
            roomy = max(length, min(llama_cuda.roomy(length), self.cache_tokens // slots))
            state = llama_cuda.Graphed(self._weights(roomy), slots, roomy)
            _captured[self.base] = ref(state)
        self.state = state
        state.taken = True
        return state

    def _refreshed(self, state: llama_cuda.Graphed) -> bool:
        return state.model.refresh(self._weights(state.length))

    def _weights(self, length: int) -> Llama:
        return Llama.of(self.base, self.head, length, pack=False)

    def _check_half(self) -> None:
        """Raises UserError where the kernels cannot decode in bfloat16."""
        assert self.dtype == torch.bfloat16, "the kernels know no other short type"
        if not (self.packed and fits(self.base, self.head, self.context)):
            reason = f"{type(self.base).__name__} is decoded through its own modules"
        else:
            reason = llama_cpu.obstacle(self.base)
        if reason is not None:
            hint = "leave it out, or load the model itself in a shorter type (model.dtype)"
            raise UserError(f"bfloat16 needs the compiled kernels: {reason}", field="sampler.dtype", hint=hint)


class Lent:
    """A backend for several steppers at a time, none of which closes it (`Opener`)."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def open(self, slots: int, length: int, steps: int) -> Decoding:
        return self.backend.open(slots, length, steps)

    def close(self) -> None:
        pass
