"""The native sampler: continuous batching over the modules that train.

Tokens depend on the request's key, the sample's index and the position alone (`draw.py`), so scheduling affects only
speed, and log-probabilities agree with the engine's to rounding because the model is the same. `stepper.py` is the
loop, `scheduler.py` its bookkeeping, and `backend.py` chooses the back end that computes the logits.

Left out: paging, and starting with the longest completions: their lengths are unknown, so longer limits go first.
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

    eos: token ids that end a completion (kept as its last token). slots: most sequences decoded in one step.
    cache_tokens: bound on slots x length of the key-value cache. workers: threads that share the requests of
    `generate`, for models too small to use all cores. context: most tokens of prompt and completion (None: the model's
    own). packed: use packed weights for the families that support it; False: always the modules. dtype: bfloat16
    decodes a float32 model in half of the memory (`llama_cpu.py`). frozen: the weights change at `load` only, so packed
    weights are kept from call to call.
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
        """The version of the weights that are sampled from now."""
        return self.stepper.scheduler.version

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """Notes the version. The modules are shared with the engine, so no weights are copied. Keys and values of kept
        samples are discarded. Raises UserError while requests are in flight."""
        if self.busy:
            raise UserError(
                "new weights were loaded while requests are in flight, which would draw from two models",
                hint="step until they have finished, or cancel them",
            )
        self.reweighted(version)

    def reweighted(self, version: int) -> None:
        """Notes that the modules' weights have been changed while no request was in flight."""
        self.backend.reweighted()
        self.stepper.reweighted(version)

    def when_idle(self, action: Callable[[], None]) -> None:
        """Runs `action` between steps once the requests in flight have ended; later requests wait for it."""
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
        """`generate` in several threads over the same weights, each with a share of the requests."""
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
    """Sums the progress of several workers. total: samples of all requests."""

    def __init__(self, sampler: NativeSampler, total: int, workers: int) -> None:
        self.sampler, self.total, self.lock = sampler, total, Lock()
        self.done = [0] * workers

    def of(self, worker: int) -> Progress | None:
        """The progress callback of one worker."""

        def tell(done: int, _: int) -> None:
            with self.lock:
                self.done[worker] = done
                if self.sampler.progress is not None:
                    self.sampler.progress(sum(self.done), self.total)

        return tell if self.sampler.progress is not None else None
