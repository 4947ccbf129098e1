"""The native sampler: continuous batching over the very modules that train.

Draws depend on the request's key, the sample's index and the position alone (`draw.py`), so scheduling changes nothing
but speed, and the log-probabilities agree with the engine's to rounding because it is the same model. The loop is
`stepper.py`, with the bookkeeping of `scheduler.py`; which back end computes the logits, `backend.py` decides.

Left out: paging, and beginning with the answers that will be longest: nobody knows them; longer limits go first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import torch
from torch import nn

from ladder.base.errors import UserError
from ladder.contract.rollouts import Completion, Finished, Progress, Request, Sampling
from ladder.contract.training import Weights
from ladder.decoding.backend import Backend, Lent, Opener
from ladder.decoding.generate import generate
from ladder.decoding.stepper import Stepper, check_request
from ladder.models.head import Head


class NativeSampler:
    """Samples from a transformers causal language model (`contract.rollouts.Sampler`).

    slots: most sequences decoded side by side. cache_tokens: bound on slots x length, and so on memory. eos:
    token ids that end an answer (kept as its last token). workers: threads with a share of the requests of `generate`
    each, for models too small to fill a processor's cores. context: most tokens of prompt and answer (default: the
    model's own). packed: decode over packed weights where the family is known; False: through the modules, whatever it
    is. dtype: bfloat16 decodes a float32 model in half of the memory (`llama_cpu.py`), where the kernels know it.
    frozen: the weights change only where `load` says so, so packed ones are held from call to call.
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
        frozen: bool = False,
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
        self.device = self.head.weight.device
        self.progress = progress
        self.backend = Backend(
            self.base,
            self.head,
            context=self.context,
            cache_tokens=cache_tokens,
            packed=packed,
            dtype=dtype,
            workers=workers,
            frozen=frozen,
        )
        self.stepper = self._stepper(self.backend)

    def _stepper(self, opener: Opener) -> Stepper:
        return Stepper(
            opener,
            self.tokenizer,
            self.eos,
            slots=self.slots,
            cache_tokens=self.cache_tokens,
            context=self.context,
            device=self.device,
        )

    @property
    def busy(self) -> bool:
        return self.stepper.busy or self.stepper.occupied

    @property
    def version(self) -> int:
        """Of the weights."""
        return self.stepper.scheduler.version

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """The modules are shared with the engine, so there is nothing to copy, and what is packed is packed anew.
        Raises UserError while requests are in flight; keys and values of kept samples are computed anew."""
        if self.busy:
            raise UserError(
                "new weights were loaded while requests are in flight, which would draw from two models",
                hint="step until they have finished, or cancel them",
            )
        self.reweighted(version)

    def reweighted(self, version: int) -> None:
        """The modules' weights are others than before. For whoever changes them while nothing is in flight."""
        self.backend.reweighted()
        self.stepper.reweighted(version)

    def when_idle(self, action: Callable[[], None]) -> None:
        """Does it between steps, once the requests in flight have ended; those submitted from now on wait for it."""
        self.stepper.when_idle(action)

    def submit(self, request: Request) -> int:
        """See `contract.rollouts.Sampler`."""
        return self.stepper.submit(request)

    def continue_from(
        self, number: int, sample: int, tokens: Sequence[int], *, sampling: Sampling | None = None, keep: bool = True
    ) -> int:
        """See `contract.rollouts.Sampler`."""
        return self.stepper.continue_from(number, sample, tokens, sampling=sampling, keep=keep)

    def step(self) -> list[Finished]:
        """See `contract.rollouts.Sampler`."""
        self.stepper.progress = self.progress
        return self.stepper.step()

    def cancel(self, number: int) -> None:
        """See `contract.rollouts.Sampler`."""
        self.stepper.cancel(number)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """See `contract.rollouts.Sampler`. Raises UserError for a prompt that does not fit the context."""
        workers = min(self.workers, len(requests))
        if workers <= 1 or self.busy:
            return generate(self, requests)
        for request in requests:
            check_request(request, self.context)
        return self._by_workers(requests, workers)

    def _by_workers(self, requests: Sequence[Request], workers: int) -> list[list[Completion]]:
        """`generate` with a share of the requests for each of several threads, over the same weights."""
        order = sorted(range(len(requests)), key=lambda i: (-requests[i].priority, -requests[i].sampling.max_tokens))
        shares = [order[i::workers] for i in range(workers)]
        progress = _Together(self, sum(r.n for r in requests), workers)

        def run(worker: int) -> list[list[Completion]]:
            stepper = self._stepper(Lent(self.backend))
            stepper.reweighted(self.version)
            stepper.progress = progress.of(worker)
            return generate(stepper, [requests[i] for i in shares[worker]])

        length = max(min(len(r.prompt) + r.sampling.max_tokens, self.context) for r in requests)
        rows = min(self.slots, sum(r.n for r in requests))
        with torch.no_grad():
            self.backend.prepare(rows, length, max(r.sampling.max_tokens for r in requests))
        groups: list[list[Completion]] = [[]] * len(requests)
        self.stepper.occupied = True
        try:
            with ThreadPoolExecutor(workers) as pool:
                for share, part in zip(shares, pool.map(run, range(workers)), strict=True):
                    for i, group in zip(share, part, strict=True):
                        groups[i] = group
        finally:
            self.stepper.occupied = False
            self.backend.close()
            self.stepper.settle()
        return groups


class _Together:
    """The progress of several workers as one. total: samples of all requests."""

    def __init__(self, sampler: NativeSampler, total: int, workers: int) -> None:
        self.sampler, self.total, self.lock = sampler, total, Lock()
        self.done = [0] * workers

    def of(self, worker: int) -> Progress | None:
        """What one worker tells."""

        def tell(done: int, _: int) -> None:
            with self.lock:
                self.done[worker] = done
                if self.sampler.progress is not None:
                    self.sampler.progress(sum(self.done), self.total)

        return tell if self.sampler.progress is not None else None
