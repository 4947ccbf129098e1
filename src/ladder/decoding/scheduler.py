"""The sampler's bookkeeping: which sample sits in which slot, what it has drawn, and when it ends.

Plain arrays over slots, so that one decoding step of hundreds of rows is a handful of numpy calls. Stop strings
and thinking budgets need the text; only requests that ask for them pay for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ladder.base.errors import UserError
from ladder.contract.rollouts import Completion, Request, Sampling, Stop
from ladder.decoding.draw import stream

TAIL = 8
"""Tokens decoded beyond a stop string's bytes (a token is at least one): the oldest may be cut within a character."""


class Scheduler:
    """All samples of some requests. Active ones hold slots 0 .. active-1."""

    def __init__(self, requests: Sequence[Request], tokenizer: Any, eos: Sequence[int], context: int) -> None:
        self.requests, self.tokenizer, self.eos = requests, tokenizer, np.array(eos)
        self.owner = np.repeat(np.arange(len(requests)), [r.n for r in requests])  # request of each sample
        self.total = len(self.owner)
        room = np.array([min(r.sampling.max_tokens, context - len(r.prompt)) for r in requests])
        self.limit_of = room[self.owner]
        self.longest = max(len(r.prompt) + int(n) for r, n in zip(requests, room, strict=True))
        self.tokens = np.zeros((self.total, int(room.max())), np.int64)
        self.logps = np.zeros((self.total, int(room.max())), np.float32)
        self.forced = np.zeros((self.total, int(room.max())), np.bool_)
        self.lengths = np.zeros(self.total, np.int64)
        self.stops: list[Stop | None] = [None] * self.total
        self.cut: dict[int, int] = {}  # where a stop string begins in the text
        self.streams = np.array(
            [stream(r.key, j) for r in requests for j in range(r.n)], np.uint64
        )
        self.watched = {i for i, r in enumerate(requests) if r.sampling.stop or r.sampling.think_budget}
        self.thinking = {i: _Thinking(r, tokenizer) for i, r in enumerate(requests) if r.sampling.think_budget}
        self.pending: dict[int, list[int]] = {}  # tokens to force, by sample
        self.thought: dict[int, int] = {}  # tokens drawn inside the open thinking block, by sample
        self.samplings = list(dict.fromkeys(r.sampling for r in requests))
        which = [self.samplings.index(r.sampling) for r in requests]
        self.sampling_of = np.array(which)[self.owner]
        self.next = 0  # the next sample to admit
        self.active = 0
        self.done_count = 0
        self.must_drop = False
        self.idle = 0  # steps of finished rows since the last were dropped
        n = self.total
        self.sample = np.zeros(n, np.int64)  # sample in each slot
        self.position = np.zeros(n, np.int64)  # where the last token of each slot stands
        self.last = np.zeros(n, np.int64)  # the last token of each slot
        self.drawn = np.zeros(n, np.int64)  # tokens the slot's sample has
        self.stream = np.zeros(n, np.uint64)
        self.over = np.zeros(n, np.bool_)

    @property
    def waiting(self) -> bool:
        return self.next < self.total

    @property
    def finished(self) -> bool:
        return self.active == 0 and not self.waiting

    def admit(self, free: int, budget: int) -> tuple[list[list[int]], np.ndarray]:
        """Gives slots to the next samples: their distinct prompts, and each new row's prompt index [R]."""
        prompts: list[list[int]] = []
        owner: list[int] = []
        request, used = -1, 0
        while free and self.waiting:
            r = int(self.owner[self.next])
            if r != request:
                prompt = self.requests[r].prompt
                if prompts and used + len(prompt) > budget:
                    break
                prompts.append(prompt)
                request, used = r, used + len(prompt)
            slot, s = self.active, self.next
            self.sample[slot], self.stream[slot] = s, self.streams[s]
            self.position[slot] = len(self.requests[r].prompt) - 1
            self.drawn[slot], self.over[slot] = 0, False
            owner.append(len(prompts) - 1)
            self.active, self.next, free = self.active + 1, self.next + 1, free - 1
        self.position[self.active - len(owner) : self.active] += 1  # of the token about to be drawn
        return prompts, np.array(owner)

    def by_sampling(self, part: slice) -> Iterator[tuple[Sampling, np.ndarray | None]]:
        """The different ways to draw among slots in `part`, with the rows (from part.start) of each; None: all."""
        if len(self.samplings) == 1:
            yield self.samplings[0], None
            return
        which = self.sampling_of[self.sample[part]]
        for i in np.unique(which):
            yield self.samplings[i], np.flatnonzero(which == i)

    def accept(self, slots: np.ndarray, tokens: np.ndarray, logps: np.ndarray) -> None:
        """Takes the drawn tokens in (or, where a thinking budget is spent, the forced ones) and ends what ends."""
        samples = self.sample[slots]
        if self.pending:
            tokens, logps = tokens.copy(), logps.copy()
            for i in np.flatnonzero(np.isin(samples, list(self.pending))):
                self._force(int(samples[i]), int(i), tokens, logps)
        at = self.drawn[slots]
        live = ~self.over[slots]
        s, a = samples[live], at[live]
        self.tokens[s, a], self.logps[s, a] = tokens[live], logps[live]
        self.lengths[s] = a + 1
        self.last[slots] = tokens
        self.drawn[slots] += live
        ended = np.isin(tokens, self.eos) & live & ~self.forced[samples, at.clip(max=self.forced.shape[1] - 1)]
        full = live & (at + 1 >= self.limit_of[samples])
        for i in np.flatnonzero(ended | full):
            self._end(int(slots[i]), "eos" if ended[i] else "length")
        if self.watched:
            for i in np.flatnonzero(live):
                if int(self.owner[samples[i]]) in self.watched:
                    self._watch(int(slots[i]))
        # a finished row that stays a while must not run past its slot
        self.must_drop |= bool((self.over[slots] & (self.position[slots] + 1 >= self.longest - 1)).any())

    def _end(self, slot: int, stop: Stop) -> None:
        s = int(self.sample[slot])
        if self.stops[s] is None:
            self.stops[s] = stop
            self.over[slot] = True
            self.done_count += 1
            self.pending.pop(s, None)  # nothing more is forced on it

    def _force(self, s: int, i: int, tokens: np.ndarray, logps: np.ndarray) -> None:
        queue = self.pending[s]
        tokens[i], logps[i] = queue.pop(0), 0.0
        self.forced[s, self.lengths[s]] = True
        if not queue:
            del self.pending[s]

    def _watch(self, slot: int) -> None:
        """Looks at the text of one row: stop strings, and the thinking budget."""
        s = int(self.sample[slot])
        request = int(self.owner[s])
        sampling = self.requests[request].sampling
        ids = self.tokens[s, : self.lengths[s]]
        if sampling.stop and self.stops[s] != "eos":
            tail = max(len(stop.encode()) for stop in sampling.stop) + TAIL
            text = self.tokenizer.decode(ids[-tail:].tolist())
            if any(stop in text for stop in sampling.stop):
                whole = self.tokenizer.decode(ids.tolist())
                found = [whole.find(stop) for stop in sampling.stop if stop in whole]
                if found:
                    self.cut[s] = min(found)
                    if self.stops[s] == "length":
                        self.stops[s] = "stop"
                    self._end(slot, "stop")
        if request in self.thinking and s not in self.pending and self.stops[s] is None:
            self.thinking[request].watch(s, ids, self.pending, self.thought)

    @property
    def alike(self) -> bool:
        """Whether all active rows have drawn as many tokens, so that their order means nothing."""
        live = self.drawn[: self.active][~self.over[: self.active]]
        return bool((live == live[:1]).all())

    def drop(self, ordered: bool) -> tuple[np.ndarray, np.ndarray]:
        """Frees finished slots: the rows that stay (their old slots, none of which is below the new) and their
        positions. ordered: they stay in their order, the longest first; else the last fill the holes."""
        kept = np.flatnonzero(~self.over[: self.active])
        n = len(kept)
        if not ordered:
            holes, behind = np.flatnonzero(self.over[:n]), kept[kept >= n]
            kept = np.arange(n)
            kept[holes] = behind
        for array in (self.sample, self.position, self.last, self.drawn, self.stream, self.over):
            array[:n] = array[kept]
        self.active, self.idle, self.must_drop = n, 0, False
        return kept, self.position[:n]

    def completions(self) -> list[list[Completion]]:
        """Everything drawn, grouped by request."""
        texts = self._texts()
        groups: list[list[Completion]] = [[] for _ in self.requests]
        for s, text in enumerate(texts):
            n = int(self.lengths[s])
            stop = self.stops[s]
            assert stop is not None
            done = Completion(
                self.tokens[s, :n].tolist(), self.logps[s, :n].tolist(), self.forced[s, :n].tolist(), stop, text
            )
            groups[int(self.owner[s])].append(done)
        return groups

    def _texts(self) -> list[str]:
        """The answers without their terminators, cut where a stop string begins."""
        ids = [self.tokens[s, : int(self.lengths[s]) - (self.stops[s] == "eos")].tolist() for s in range(self.total)]
        texts: list[str] = self.tokenizer.batch_decode(ids)
        return [t[: self.cut[s]] if s in self.cut and self.stops[s] == "stop" else t for s, t in enumerate(texts)]


class _Thinking:
    """One request's thinking budget: watches for an open block and closes it when the budget is spent."""

    def __init__(self, request: Request, tokenizer: Any) -> None:
        s = request.sampling
        self.open, self.close, self.budget, self.tokenizer = s.think_open, s.think_close, s.think_budget, tokenizer
        self.prompt = tokenizer.decode(request.prompt)
        self.closing: list[int] = tokenizer.encode(s.think_close, add_special_tokens=False)
        if not s.think_open:
            raise UserError("a thinking budget needs a tag that opens the block", field="think_open")
        if not s.think_close or s.think_close not in tokenizer.decode(self.closing):
            raise UserError(
                f"the tokenizer cannot write {s.think_close!r}, so a thinking block could not be closed",
                field="think_close",
                hint="give a closing tag that the tokenizer knows, or set think_budget to 0",
            )
        self.opened = self.prompt.rfind(self.open) > self.prompt.rfind(self.close)

    def watch(self, s: int, ids: np.ndarray, pending: dict[int, list[int]], thought: dict[int, int]) -> None:
        text = self.prompt + self.tokenizer.decode(ids.tolist())
        if text.rfind(self.open) <= text.rfind(self.close):  # -1 <= -1: no block at all
            thought[s] = -1
            return
        # the token that completes a drawn opening tag is not yet inside the block
        thought[s] = thought.get(s, 0 if self.opened else -1) + 1
        if thought[s] >= self.budget:
            pending[s] = list(self.closing)
