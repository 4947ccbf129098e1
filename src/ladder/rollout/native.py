"""The native sampler: continuous batching over the very modules that train.

A prompt is read once for all its samples; a finished sequence leaves at once and a waiting one enters. Draws
depend on the request's key, the sample's index and the position alone (`sampling.py`), so scheduling changes
nothing but speed, and the log-probabilities agree with the engine's to rounding because it is the same model.

Left out: paging (a slot is a contiguous stretch) and sharing a prompt's keys between slots (they are copied).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

from ladder.errors import UserError
from ladder.head import Head
from ladder.rollout.cache import Cache, PromptPlan, TokenPlan
from ladder.rollout.rows import Rows
from ladder.rollout.sampling import draw, uniforms
from ladder.segments import PackedPlan, Segment
from ladder.types import Completion, Request, Weights

Progress = Callable[[int, int], None]
"""Told of (finished samples, all samples) now and then."""

PREFILL_TOKENS = 8192
"""Most prompt tokens read in one pass."""


class NativeSampler:
    """Samples from a transformers causal language model (`types.Sampler`).

    slots: most sequences decoded side by side. cache_tokens: bound on slots x length, and so on memory. eos:
    token ids that end an answer (kept as its last token). workers: threads with a share of the requests each, for
    models too small to fill the cores. context: most tokens of prompt and answer (default: the model's own limit).
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
        self.progress = progress
        self.version = 0
        self.device = self.head.weight.device

    def load(self, weights: Callable[[], Weights], version: int) -> None:
        """The modules are shared with the engine, so there is nothing to copy; no key outlives a call either."""
        self.version = version

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """See `types.Sampler`. Raises UserError for a prompt that does not fit the context."""
        for r in requests:
            self._check(r)
        if self.workers == 1 or len(requests) < self.workers:
            return self._run(requests)
        size = math.ceil(len(requests) / self.workers)
        parts = [requests[i : i + size] for i in range(0, len(requests), size)]
        with ThreadPoolExecutor(self.workers) as pool:
            return [group for part in pool.map(self._run, parts) for group in part]

    def _check(self, r: Request) -> None:
        if not r.prompt:
            raise UserError("a prompt has no tokens")
        if r.n < 1 or r.sampling.max_tokens < 1:
            raise UserError(f"asked for {r.n} samples of at most {r.sampling.max_tokens} tokens")
        if "" in r.sampling.stop:
            raise UserError("a stop string is empty", field="stop", mend="drop it")
        if len(r.prompt) >= self.context:
            raise UserError(
                f"a prompt of {len(r.prompt)} tokens leaves no room in a context of {self.context}",
                mend="shorten it, or drop over-long prompts when loading the data",
            )

    # ------------------------------------------------------------ the loop

    def _run(self, requests: Sequence[Request]) -> list[list[Completion]]:
        if not requests:
            return []
        rows = Rows(requests, self.tokenizer, self.eos, self.context)
        longest = rows.longest
        slots = max(1, min(self.slots, rows.total, self.cache_tokens // longest))
        cache = Cache(slots, longest)
        with torch.no_grad():
            while not rows.finished:
                free = slots - rows.active
                if rows.waiting and (rows.active == 0 or free >= max(1, slots // 8)):
                    self._admit(rows, cache, free)
                else:
                    self._step(rows, cache)
                self._compact(rows, cache)
                if self.progress is not None:
                    self.progress(rows.done_count, rows.total)
        return rows.completions()

    def _admit(self, rows: Rows, cache: Cache, free: int) -> None:
        """Reads the next prompts once each and gives their samples slots and first tokens."""
        prompts, owner = rows.admit(free, PREFILL_TOKENS)  # owner [R]: each new row's prompt
        lengths = np.array([len(p) for p in prompts])
        starts = np.concatenate([[0], lengths.cumsum()[:-1]])
        total = int(lengths.sum())
        plan = PackedPlan.of([Segment(int(s), int(n)) for s, n in zip(starts, lengths, strict=True)], total)
        reader = PromptPlan(plan.to(self.device))
        tokens = torch.tensor([t for p in prompts for t in p], device=self.device)
        positions = torch.from_numpy(np.arange(total) - np.repeat(starts, lengths)).to(self.device)
        hidden = self.base(input_ids=tokens[None], position_ids=positions[None], use_cache=False, plan=reader)[0][0]
        last = torch.from_numpy(starts + lengths - 1).to(self.device)
        logits = self.head.logits(hidden.index_select(0, last))
        line = np.minimum(np.arange(lengths.max())[None], lengths[:, None] - 1) + starts[:, None]
        R = len(owner)
        cache.fill(reader, torch.from_numpy(line[owner]).to(self.device), rows.active - R)
        self._draw(rows, rows.active - R, logits.index_select(0, torch.from_numpy(owner).to(self.device)))

    def _step(self, rows: Rows, cache: Cache) -> None:
        """One more token for every active row."""
        A = rows.active
        positions = torch.from_numpy(rows.position[:A]).to(self.device)
        plan = TokenPlan(cache, positions, int(rows.position[:A].max()) + 1)
        tokens = torch.from_numpy(rows.last[:A]).to(self.device)
        hidden = self.base(
            input_ids=tokens[:, None], position_ids=positions[:, None], use_cache=False, plan=plan
        )[0]
        rows.position[:A] += 1
        self._draw(rows, 0, self.head.logits(hidden[:, 0]))

    def _draw(self, rows: Rows, first: int, logits: torch.Tensor) -> None:
        """Draws a token for active rows first, first + 1, ... from their logits [R, V]."""
        part = slice(first, rows.active)
        for sampling, index in rows.by_sampling(part):
            some = logits if index is None else logits[torch.from_numpy(index).to(self.device)]
            here = np.arange(part.start, part.stop) if index is None else index + first
            tokens, logps = draw(some, uniforms(rows.stream[here], rows.drawn[here]), sampling)
            rows.accept(here, tokens.cpu().numpy(), logps.cpu().numpy())

    def _compact(self, rows: Rows, cache: Cache) -> None:
        """Drops finished rows once enough have gathered for the copies to pay, or nothing else is left."""
        gone = int(rows.over[: rows.active].sum())
        if gone and (gone == rows.active or gone >= max(1, rows.active // 8) or rows.must_drop):
            to, origin, length = rows.drop()
            if len(to):
                cache.move(torch.from_numpy(to), torch.from_numpy(origin), length)
