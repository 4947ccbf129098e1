"""The native sampler: continuous batching over the very modules that train.

A prompt is read once for all its samples; a finished sequence leaves at once and a waiting one enters. Draws
depend on the request's key, the sample's index and the position alone (`sampling.py`), so scheduling changes
nothing but speed, and the log-probabilities agree with the engine's to rounding because it is the same model.
How the next logits come about is a `Decoding`: the modules themselves (`modules.py`), or for the families that it
knows the same computation over packed weights (`llama.py`; `compiled.py` on a processor, `graphed.py` on CUDA).

Left out: paging, and beginning with the answers that will be longest: nobody knows them; longer limits go first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import nn

from ladder.base.errors import UserError
from ladder.contract.rollouts import Completion, Request
from ladder.contract.training import Weights
from ladder.decoding import llama_cpu, llama_cuda
from ladder.decoding.draw import draw, uniforms
from ladder.decoding.llama import Decoder, Llama, fits
from ladder.decoding.modules import Modules
from ladder.decoding.prefill import Prompts
from ladder.decoding.scheduler import Scheduler
from ladder.models.head import Head

Progress = Callable[[int, int], None]
"""Told of (finished samples, all samples) now and then."""

PREFILL_TOKENS = 8192
"""Most prompt tokens read in one pass."""
PACK_FROM = 4
"""Rows from which laying the weights out anew pays for itself."""
_captured: WeakKeyDictionary[nn.Module, ref[llama_cuda.Graphed]] = WeakKeyDictionary()
"""On CUDA: what decodes a model, for as long as a sampler holds it; drawing and measuring share one."""


class Decoding(Protocol):
    """From tokens to the logits of the next one, for rows in slots 0 .. A-1, with all that must be remembered.

    ordered: a step is faster where the rows that have drawn most come first."""

    ordered: bool

    def read(self, prompts: Prompts, first: int) -> torch.Tensor:
        """Reads prompts, whose rows take the slots first, first + 1, ...: logits [p, V] behind each prompt."""
        ...

    def step(self, tokens_A: np.ndarray, positions_A: np.ndarray) -> torch.Tensor:
        """Appends each row's newest token, at its position: logits [A, V]."""
        ...

    def keep(self, kept: np.ndarray, positions_A: np.ndarray) -> None:
        """Rows `kept` (none below its new slot), at positions_A, move to slots 0, 1, ...; others are forgotten."""
        ...


class NativeSampler:
    """Samples from a transformers causal language model (`types.Sampler`).

    slots: most sequences decoded side by side. cache_tokens: bound on slots x length, and so on memory. eos:
    token ids that end an answer (kept as its last token). workers: threads with a share of the requests each, for
    models too small to fill a processor's cores. context: most tokens of prompt and answer (default: the model's own).
    packed: decode over packed weights where the family is known; False: through the modules, whatever it is.
    dtype: bfloat16 decodes a float32 model in half of the memory (`compiled.py`), where the kernels know it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        eos: Sequence[int],
        slots: int = 256,
        cache_tokens: int = 1 << 20,
        workers: int = 1,
        context: int | None = None,
        packed: bool = True,
        dtype: torch.dtype = torch.float32,
        progress: Progress | None = None,
    ) -> None:
        if not eos:
            raise UserError("the sampler needs at least one token that ends an answer", field="eos")
        self.model, self.tokenizer = model, tokenizer
        self.base: nn.Module = model.get_decoder()  # pyright: ignore[reportCallIssue]
        self.head = Head.of(model)
        self.eos = tuple(sorted(set(eos)))
        self.slots, self.cache_tokens, self.workers = slots, cache_tokens, workers
        self.context = context or int(model.config.max_position_embeddings)  # pyright: ignore
        self.packed, self.progress, self.dtype = packed, progress, dtype
        if dtype != torch.float32:
            self._check_half()
        self.version = 0
        self.state: llama_cuda.Graphed | None = None  # on CUDA: graphs and their memory, from call to call
        self.device = self.head.weight.device

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """The modules are shared with the engine, so there is nothing to copy; what is packed, is for one call."""
        self.version = version

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """See `types.Sampler`. Raises UserError for a prompt that does not fit the context."""
        order = sorted(range(len(requests)), key=lambda i: -requests[i].sampling.max_tokens)
        groups = self._generate([requests[i] for i in order])
        place = {i: at for at, i in enumerate(order)}
        return [groups[place[i]] for i in range(len(requests))]

    def _generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        for r in requests:
            self._check(r)
        if not requests:
            return []
        workers = min(self.workers, len(requests))
        with torch.no_grad():
            begin = self._decoding(requests)
            if workers == 1:
                return self._run(requests, begin)
            with ThreadPoolExecutor(workers) as pool:
                parts = pool.map(lambda i: self._run(requests[i::workers], begin), range(workers))
            groups: list[list[Completion]] = [[]] * len(requests)
            for i, part in enumerate(parts):
                groups[i::workers] = part
            return groups

    def _decoding(self, requests: Sequence[Request]) -> Callable[[int, int], Decoding]:
        """How a worker begins to decode, given its slots and their length; weights are as they are now."""
        if not (self.packed and fits(self.base, self.head, self.context)):
            return lambda slots, length: Modules(self.base, self.head, slots, length)
        rows = min(self.slots, sum(r.n for r in requests))
        length = max(min(len(r.prompt) + r.sampling.max_tokens, self.context) for r in requests)
        if llama_cuda.fits(self.device):
            if self.workers > 1:
                raise UserError("a GPU decodes with one worker", field="sampler.workers", hint="leave it at 1")
            return self._state
        if self.head.weight.dtype != torch.float32:  # of a GPU that steps cannot be captured on
            return lambda slots, length: Modules(self.base, self.head, slots, length)
        many = rows >= PACK_FROM
        in_c = self.dtype != torch.float32 or (many and llama_cpu.obstacle(self.base) is None)
        model = Llama.of(self.base, self.head, length, pack=many and not in_c)
        if in_c:
            weights = llama_cpu.pack(model, self.dtype)
            return lambda slots, length: llama_cpu.Compiled(model, weights, slots)
        return lambda slots, length: Decoder(model, slots)

    def _state(self, slots: int, length: int) -> llama_cuda.Graphed:
        """The model's state of the last call with the weights as they are now; a new one where it has not the room."""
        known = _captured.get(self.base)
        state = known() if known else None
        self.state = None  # a call that fails leaves none behind
        if state is not None and state.serves(slots, length) and state.model.refresh(self._weights(state.length)):
            self.state = state
            return state
        del state  # before there is another
        length = max(length, min(llama_cuda.roomy(length), self.cache_tokens // slots))
        self.state = llama_cuda.Graphed(self._weights(length), slots, length)
        _captured[self.base] = ref(self.state)
        return self.state

    def _weights(self, length: int) -> Llama:
        return Llama.of(self.base, self.head, length, pack=False)

    def _check_half(self) -> None:
        """Raises UserError where bfloat16 can't be had."""
        assert self.dtype == torch.bfloat16, "the kernels know no other short type"
        if not (self.packed and fits(self.base, self.head, self.context)):
            reason = f"{type(self.base).__name__} is decoded through its own modules"
        else:
            reason = llama_cpu.obstacle(self.base)
        if reason is not None:
            hint = "leave it out, or load the model itself in a shorter type (model.dtype)"
            raise UserError(f"bfloat16 needs the compiled kernels: {reason}", field="sampler.dtype", hint=hint)

    def _check(self, r: Request) -> None:
        if not r.prompt:
            raise UserError("a prompt has no tokens")
        if r.n < 1 or r.sampling.max_tokens < 1:
            raise UserError(f"asked for {r.n} samples of at most {r.sampling.max_tokens} tokens")
        if "" in r.sampling.stop:
            raise UserError("a stop string is empty", field="stop", hint="drop it")
        if len(r.prompt) >= self.context:
            raise UserError(
                f"a prompt of {len(r.prompt)} tokens leaves no room in a context of {self.context}",
                hint="shorten it, or drop over-long prompts when loading the data",
            )

    # ------------------------------------------------------------ the loop

    def _run(self, requests: Sequence[Request], begin: Callable[[int, int], Decoding]) -> list[list[Completion]]:
        rows = Scheduler(requests, self.tokenizer, self.eos, self.context)
        slots = max(1, min(self.slots, rows.total, self.cache_tokens // rows.longest))
        with torch.no_grad():  # holds in this thread only
            state = begin(slots, rows.longest)
            while not rows.finished:
                free = slots - rows.active
                if rows.waiting and (rows.active == 0 or free >= max(1, slots // 8)):
                    self._admit(rows, state, free)
                else:
                    self._step(rows, state)
                self._compact(rows, state)
                if self.progress is not None:
                    self.progress(rows.done_count, rows.total)
        return rows.completions()

    def _admit(self, rows: Scheduler, state: Decoding, free: int) -> None:
        """Reads the next prompts once each and gives their samples slots and first tokens."""
        prompts, owner = rows.admit(free, PREFILL_TOKENS)  # owner [R]: each new row's prompt
        first = rows.active - len(owner)
        logits = state.read(Prompts.of(prompts, owner), first)
        self._draw(rows, first, logits.index_select(0, torch.from_numpy(owner).to(self.device)))

    def _step(self, rows: Scheduler, state: Decoding) -> None:
        """One more token for every active row."""
        A = rows.active
        logits = state.step(rows.last[:A], rows.position[:A])
        rows.position[:A] += 1
        self._draw(rows, 0, logits)

    def _draw(self, rows: Scheduler, first: int, logits: torch.Tensor) -> None:
        """Draws a token for active rows first, first + 1, ... from their logits [R, V]."""
        part = slice(first, rows.active)
        for sampling, index in rows.by_sampling(part):
            some = logits if index is None else logits[torch.from_numpy(index).to(self.device)]
            here = np.arange(part.start, part.stop) if index is None else index + first
            tokens, logps = draw(some, uniforms(rows.stream[here], rows.drawn[here]), sampling)
            rows.accept(here, tokens.cpu().numpy(), logps.cpu().numpy())

    def _compact(self, rows: Scheduler, state: Decoding) -> None:
        """Drops finished rows once what they cost has grown to what the copies do, or nothing else is left.

        Where their order means something and they are not alike, half of the rows move; else a few."""
        gone = int(rows.over[: rows.active].sum())
        rows.idle += gone
        if not gone:
            return
        ordered = state.ordered and not rows.alike
        if rows.idle * (3 if ordered else 16) >= rows.active or gone == rows.active or rows.must_drop:
            state.keep(*rows.drop(ordered))
