"""The decoding loop, one step at a time: continuous batching of requests that may arrive while others are decoded.

A prompt is read once for all its samples; a finished sequence leaves its slot and a waiting one takes it. The cache is
allocated (slots, and tokens per slot) for the requests that wait at the first step. If later ones need more, all keys
and values move to a larger cache; if that would exceed the bounds, those requests wait until sequences have ended.

Left out: paging; sharing a prefix with a sequence that is being decoded; shrinking the cache once the longest sequence
has ended (it is allocated anew after no request was in flight).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch

from ladder.base.errors import UserError
from ladder.contract.rollouts import Finished, Progress, Request, Sampling
from ladder.decoding.backend import Decoding, Opener
from ladder.decoding.draw import draw, uniforms
from ladder.decoding.kept import KeptSample, KeptSamples
from ladder.decoding.key_values import Layout, joined
from ladder.decoding.prefill import Prompts
from ladder.decoding.scheduler import Ended, Job, Scheduler
from ladder.decoding.thinking import Thinking

PREFILL_TOKENS = 8192
"""Most prompt tokens read in one prefill."""


class Stepper:
    """The requests in flight, decoded by the decodings of one opener. The other fields are those of `NativeSampler`."""

    def __init__(
        self,
        opener: Opener,
        tokenizer: Any,
        eos: Sequence[int],
        *,
        slots: int,
        cache_tokens: int,
        context: int,
        device: torch.device,
    ) -> None:
        self.opener, self.tokenizer, self.device = opener, tokenizer, device
        self.most, self.cache_tokens, self.context = slots, cache_tokens, context
        self.scheduler = Scheduler(tokenizer, eos)
        self.kept = KeptSamples()
        self.state: Decoding | None = None
        self.slots = 0  # slots in use, at most those of the state
        self.progress: Progress | None = None
        self.numbers = count()
        self.finished: list[Finished] = []  # not returned by `step` yet
        self.occupied = False  # whether the weights are in use by other steppers
        self.due: list[Callable[[], None]] = []  # to be done when no request is in flight
        self.held: list[Job] = []  # jobs that wait until that is done

    @property
    def busy(self) -> bool:
        return self.scheduler.busy or bool(self.finished or self.held)

    # ------------------------------------------------------------ requests

    def submit(self, request: Request) -> int:
        """See `contract.rollouts.Sampler`."""
        prompt, sampling = request.prompt, request.sampling
        check_request(request, self.context)
        job = self._job(prompt, sampling, request.n, request.key)
        job.priority, job.keep = request.priority, request.keep
        self._add(job)
        return job.number

    def continue_from(
        self, number: int, sample: int, tokens: Sequence[int], *, sampling: Sampling | None = None, keep: bool = True
    ) -> int:
        """See `contract.rollouts.Sampler`."""
        kept = self.kept.find(number, sample, tokens)
        prompt, sampling = [*kept.sequence, *tokens], sampling or kept.sampling
        check_request(Request(prompt, 1, sampling), self.context)
        job = self._job(prompt, sampling, 1, kept.key)
        job.sample, job.drawn, job.priority, job.keep, job.cache = (
            kept.sample, kept.drawn, kept.priority, keep, kept.cache,
        )  # fmt: skip
        self.kept.remove(number, sample)
        self._add(job)
        return job.number

    def _job(self, prompt: list[int], sampling: Sampling, n: int, key: int) -> Job:
        limit = min(sampling.max_tokens, self.context - len(prompt))
        thinking = Thinking(prompt, sampling, self.tokenizer) if sampling.think_budget else None
        return Job(next(self.numbers), prompt, sampling, n, limit, key, thinking=thinking)

    def _add(self, job: Job) -> None:
        if self.due:
            self.held.append(job)
        else:
            self.scheduler.add(job)

    def cancel(self, number: int) -> None:
        """See `contract.rollouts.Sampler`."""
        self.kept.drop(number)
        self.finished = [done for done in self.finished if done.number != number]
        self.held = [job for job in self.held if job.number != number]
        if self.scheduler.cancel(number):
            self._compact()
            if not self.scheduler.busy:
                self._close()

    # ------------------------------------------------------------ a step

    @torch.no_grad()
    def step(self) -> list[Finished]:
        """See `contract.rollouts.Sampler`. A prefill if slots are free for waiting requests, else a decode step."""
        scheduler = self.scheduler
        if scheduler.busy:
            free = self._room()
            if scheduler.waiting and (scheduler.active == 0 or free >= max(1, self.slots // 8)):
                self._admit(free)
            else:
                self._decode()
            self._compact()
            done, total = scheduler.done_count, scheduler.total
            if not scheduler.busy:
                self._close()
            if self.progress is not None:
                self.progress(done, total)
        finished, self.finished = self.finished, []
        return finished

    def _admit(self, free: int) -> None:
        """Prefill: reads the next prompts once each and draws the first token of their samples."""
        state, scheduler = self._state, self.scheduler
        jobs, owner = scheduler.admit(free, PREFILL_TOKENS)  # owner [R]: each new row's job
        first = scheduler.active - len(owner)
        prompts, caches = [job.prompt for job in jobs], [job.cache for job in jobs if job.cache is not None]
        logits = state.read(Prompts.behind(prompts, caches, owner) if caches else Prompts.of(prompts, owner), first)
        self._draw(first, logits.index_select(0, torch.from_numpy(owner).to(self.device)))

    def _decode(self) -> None:
        """One more token for every active row."""
        scheduler = self.scheduler
        A = scheduler.active
        logits = self._state.step(scheduler.last[:A], scheduler.position[:A])
        scheduler.position[:A] += 1
        self._draw(0, logits)

    def _draw(self, first: int, logits_RV: torch.Tensor) -> None:
        """Draws a token for active rows first, first + 1, ..."""
        scheduler = self.scheduler
        part = slice(first, scheduler.active)
        for sampling, index in scheduler.by_sampling(part):
            some = logits_RV if index is None else logits_RV[torch.from_numpy(index).to(self.device)]
            here = np.arange(part.start, part.stop) if index is None else index + first
            tokens, logps = draw(some, uniforms(scheduler.stream[here], scheduler.drawn[here]), sampling)
            for ended in scheduler.accept(here, tokens.cpu().numpy(), logps.cpu().numpy()):
                self._end(ended)

    def _end(self, ended: Ended) -> None:
        """Stores a kept sample with its keys and values; notes the request if all its samples have ended."""
        job, completion = ended.job, ended.job.completions[ended.place]
        assert completion is not None
        if job.keep:
            cache = self._state.extract(ended.slot, int(self.scheduler.position[ended.slot]))
            sequence, drawn = [*job.prompt, *completion.tokens], job.drawn + len(completion.tokens)
            place = job.sample + ended.place
            kept = KeptSample(sequence, drawn, job.sampling, job.key, place, job.priority, cache)
            self.kept.put(job.number, ended.place, kept)
        if ended.last:
            self.finished.append(Finished(job.number, [c for c in job.completions if c is not None]))

    def _compact(self) -> None:
        """Drops finished rows once decoding them has cost as much as the copies to drop them, or no other is left.

        If the order matters and rows differ in length, half of the rows move; else a few."""
        scheduler = self.scheduler
        gone = int(scheduler.over[: scheduler.active].sum())
        scheduler.idle += gone
        if not gone:
            return
        ordered = self._state.ordered and not scheduler.alike
        costly = scheduler.idle * (3 if ordered else 16) >= scheduler.active
        if costly or gone == scheduler.active or scheduler.must_drop:
            self._state.keep(*scheduler.drop(ordered))

    # ------------------------------------------------------------ room

    @property
    def _state(self) -> Decoding:
        assert self.state is not None, "rows are active in a state"
        return self.state

    def _room(self) -> int:
        """Free slots for the waiting samples; opens or enlarges the state for them. 0 or less: they have to wait."""
        scheduler, state = self.scheduler, self.state
        if not scheduler.waiting:
            return 0
        length = scheduler.longest_waiting() if state is None else max(scheduler.longest, scheduler.head().longest)
        most = max(1, min(self.most, self.cache_tokens // length))
        slots = min(most, scheduler.active + scheduler.waiting)
        if state is not None and length <= state.length and slots <= self.slots:
            scheduler.longest, self.slots = length, min(self.slots, most)
        elif state is None:
            self._open(slots, length, length)
        elif scheduler.active <= most:
            wanted = max(slots, 2 * self.slots) if slots > self.slots else self.slots
            self._enlarge(min(most, wanted), length)
        else:
            return 0
        return self.slots - scheduler.active

    def _open(self, slots: int, length: int, room: int) -> None:
        """Opens a state with `slots` slots of `room` tokens for sequences of at most `length` tokens."""
        steps = max(job.limit for *_, job in self.scheduler.queue)
        self.state = self.opener.open(slots, room, steps)
        self.scheduler.resize(slots)
        self.scheduler.longest, self.slots = length, slots

    def _enlarge(self, slots: int, length: int) -> None:
        """Moves the running sequences, with their keys and values, to a larger state."""
        state, scheduler = self._state, self.scheduler
        if scheduler.over[: scheduler.active].any():
            state.keep(*scheduler.drop(False))
        lengths = [int(n) for n in scheduler.position[: scheduler.active]]
        caches = [state.extract(slot, n) for slot, n in enumerate(lengths)]
        self.state = None  # before there is another
        room = length if length <= state.length else min(self.context, 2 * length, self.cache_tokens // slots)
        del state
        self._open(slots, length, max(length, room))
        if caches:
            self._state.fill(joined(caches), Layout.end_to_end(lengths, np.arange(len(caches))), 0)

    def _close(self) -> None:
        """Frees the state when no request is in flight, and runs the actions that waited for that."""
        self.state = None
        self.opener.close()
        self.scheduler.reset()
        self.settle()

    # ------------------------------------------------------------ new weights

    def when_idle(self, action: Callable[[], None]) -> None:
        """Runs `action` between steps once the requests in flight have ended; later requests wait for it."""
        self.due.append(action)
        self.settle()

    def settle(self) -> None:
        """Runs the waiting actions if no request is in flight, then queues the requests that waited for them."""
        if self.scheduler.busy or self.occupied:
            return
        due, self.due = self.due, []
        for action in due:
            action()
        held, self.held = self.held, []
        for job in held:
            self.scheduler.add(job)

    def reweighted(self, version: int) -> None:
        """Notes that the weights have changed: known keys and values of kept samples are discarded."""
        assert not self.scheduler.busy, "sequences of two models"
        self.scheduler.version = version
        self.kept.forget_caches()
        for job in self.held:
            job.cache = None


def check_request(request: Request, context: int) -> None:
    """Raises UserError for a request that no sampler with this context can serve."""
    if not request.prompt:
        raise UserError("a prompt has no tokens")
    if request.n < 1 or request.sampling.max_tokens < 1:
        raise UserError(f"asked for {request.n} samples of at most {request.sampling.max_tokens} tokens")
    if "" in request.sampling.stop:
        raise UserError("a stop string is empty", field="stop", hint="drop it")
    if len(request.prompt) >= context:
        raise UserError(
            f"a prompt of {len(request.prompt)} tokens leaves no room in a context of {context}",
            hint="shorten it, or drop over-long prompts when loading the data",
        )
