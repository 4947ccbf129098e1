"""The scheduler: the queue of waiting requests, the sample in each slot, its tokens, and when it ends.

The state of running samples is held in arrays over slots, so a decode step of hundreds of rows takes a handful of numpy
calls. Their tokens are held in lines, which do not move when samples change slots. Text is decoded during sampling only
for requests with stop strings or thinking budgets.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ladder.contract.rollouts import Completion, Sampling, Stop
from ladder.decoding.draw import streams
from ladder.decoding.key_values import KeyValues, length
from ladder.decoding.thinking import Thinking

TAIL = 8
"""Tokens decoded beyond a stop string's bytes (a token is at least one): the oldest may be cut within a character."""


@dataclass(slots=True, eq=False)
class Job:
    """A request in flight: n samples of a prompt. cache: known keys and values of the prompt's first tokens.

    limit: most tokens of a sample. key, sample, drawn: state of the first sample's random stream (`draw.stream`). keep:
    whether the samples can be continued. next: the first sample that has had no slot yet. left: samples not ended. Set
    when the first sample gets a slot: streams, the states of all samples' random streams, and way, the index in the
    scheduler's samplings.
    """

    number: int
    prompt: list[int]
    sampling: Sampling
    n: int
    limit: int
    key: int
    sample: int = 0
    drawn: int = 0
    priority: int = 0
    keep: bool = False
    cache: KeyValues | None = None
    thinking: Thinking | None = None
    way: int = 0
    streams: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    next: int = 0
    left: int = 0
    completions: list[Completion | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.completions, self.left = [None] * self.n, self.n

    @property
    def longest(self) -> int:
        """Most tokens of a sequence, prompt included."""
        return len(self.prompt) + self.limit

    @property
    def watched(self) -> bool:
        return bool(self.sampling.stop) or self.thinking is not None

    @property
    def read(self) -> int:
        """Prompt tokens without known keys and values."""
        return len(self.prompt) - (length(self.cache) if self.cache is not None else 0)


@dataclass(slots=True)
class Ended:
    """A sample that has just ended; its keys and values stay in the slot until `drop`. last: it is the last of its job
    to end. place: its index in the job."""

    slot: int
    job: Job
    place: int
    last: bool


@dataclass(slots=True)
class _Row:
    """A running sample. place: its index in the job. forced: tokens still to be forced. thought: tokens drawn in the
    open thinking block (`Thinking.thought`). cut: where a stop string begins in the text."""

    job: Job
    place: int
    forced: list[int] | None = None
    thought: int | None = None
    stop: Stop | None = None
    cut: int | None = None


class Scheduler:
    """Waiting jobs and running samples; the running ones are in slots 0 .. active-1."""

    def __init__(self, tokenizer: Any, eos: Sequence[int]) -> None:
        self.tokenizer, self.eos = tokenizer, np.array(eos)
        self.version = 0  # of the weights, written to completions
        self.queue: list[tuple[int, int, int, Job]] = []  # a heap
        self.waiting = 0  # samples without a slot
        self.active = 0
        self.total, self.done_count = 0, 0  # submitted and ended samples since the last reset
        self.longest = 0  # most tokens of a slot
        self.must_drop = False
        self.idle = 0  # steps of finished rows since the last were dropped
        self.rows: dict[int, _Row] = {}  # running samples by line
        self.watched: set[int] = set()  # lines of samples with stop strings or thinking budgets
        self.pending: set[int] = set()  # lines with tokens to be forced
        self.samplings: dict[Sampling, int] = {}
        self._slots()
        self._lines()

    def _slots(self) -> None:
        """Empty arrays over slots."""
        self.line = np.zeros(0, np.int64)  # the line of the slot's sample; -1 once it has ended
        self.position = np.zeros(0, np.int64)  # where the last token of each slot stands
        self.last = np.zeros(0, np.int64)  # the last token of each slot
        self.drawn = np.zeros(0, np.int64)  # tokens the slot's sample has
        self.limit = np.zeros(0, np.int64)  # most tokens of the slot's sample
        self.stream = np.zeros(0, np.uint64)
        self.way = np.zeros(0, np.int64)  # index in `samplings`
        self.over = np.zeros(0, np.bool_)

    def _lines(self) -> None:
        """Empty arrays over lines."""
        self.tokens: np.ndarray = np.zeros((0, 0), np.int64)
        self.logps: np.ndarray = np.zeros((0, 0), np.float32)
        self.forced: np.ndarray = np.zeros((0, 0), np.bool_)
        self.free: list[int] = []
        self.stained = False  # whether any token has been forced

    @property
    def busy(self) -> bool:
        return self.active > 0 or self.waiting > 0

    def reset(self) -> None:
        """Frees the arrays when no job is left."""
        assert not self.busy
        self.total, self.done_count, self.longest, self.idle = 0, 0, 0, 0
        self.samplings.clear()
        self._slots()
        self._lines()

    # ------------------------------------------------------------ jobs that wait

    def add(self, job: Job) -> None:
        """Queues a job, ordered by priority, then longer limits first, then arrival."""
        heapq.heappush(self.queue, (-job.priority, -job.sampling.max_tokens, job.number, job))
        self.waiting += job.left
        self.total += job.left

    def head(self) -> Job:
        """The first job of the queue."""
        return self.queue[0][-1]

    def longest_waiting(self) -> int:
        """Most tokens of a sequence of the waiting jobs."""
        return max(job.longest for *_, job in self.queue)

    def cancel(self, number: int) -> bool:
        """Ends a job without completions. Returns whether it was in flight."""
        jobs = {id(row.job): row.job for row in self.rows.values() if row.job.number == number}
        jobs |= {id(job): job for *_, job in self.queue if job.number == number}
        for job in jobs.values():
            self.total -= job.left
            self.waiting -= job.n - job.next
            job.next = job.n
        self.queue = [entry for entry in self.queue if entry[-1].number != number]
        heapq.heapify(self.queue)
        lines = [line for line, row in self.rows.items() if row.job.number == number]
        for slot in np.flatnonzero(np.isin(self.line[: self.active], lines)):
            self._release(int(slot))
            self.must_drop = True
        return bool(jobs)

    def resize(self, slots: int) -> None:
        """Enlarges the arrays over slots to at least `slots`."""
        more = slots - len(self.line)
        if more > 0:
            for name in ("line", "position", "last", "drawn", "limit", "stream", "way", "over"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros(more, array.dtype)]))

    def admit(self, free: int, budget: int) -> tuple[list[Job], np.ndarray]:
        """Assigns slots to the next samples: their jobs, and the index of each new row's job [R]. budget: most tokens
        to read (one prompt may exceed it). Jobs with and without known keys and values are admitted in separate
        calls."""
        jobs: list[Job] = []
        owner: list[int] = []
        tokens = 0
        while free and self.queue:
            job = self.head()
            if not jobs or job is not jobs[-1]:
                apart = bool(jobs) and (job.cache is None) != (jobs[0].cache is None)
                if jobs and (apart or tokens + job.read > budget):
                    break
                jobs.append(job)
                tokens += job.read
            self._place(job)
            owner.append(len(jobs) - 1)
            free -= 1
        self.position[self.active - len(owner) : self.active] += 1  # of the token about to be drawn
        return jobs, np.array(owner)

    def _place(self, job: Job) -> None:
        """Assigns the next slot to the next sample of the first job in the queue."""
        slot, place, line = self.active, job.next, self._line(job.limit)
        if place == 0:
            job.streams = streams(job.key, job.sample, job.n, job.drawn)
            job.way = self.samplings.setdefault(job.sampling, len(self.samplings))
        self.rows[line] = _Row(job, place)
        if job.watched:
            self.watched.add(line)
        self.line[slot], self.stream[slot] = line, job.streams[place]
        self.position[slot], self.limit[slot] = len(job.prompt) - 1, job.limit
        self.way[slot] = job.way
        self.drawn[slot], self.over[slot] = 0, False
        self.active, self.waiting, job.next = self.active + 1, self.waiting - 1, job.next + 1
        if job.next == job.n:
            heapq.heappop(self.queue)

    def _line(self, limit: int) -> int:
        """A free line with room for `limit` tokens."""
        lines, width = self.tokens.shape
        if not self.free or limit > width:
            more = 0 if self.free else max(len(self.line), lines)
            self.free += range(lines + more - 1, lines - 1, -1)
            shape = (0, more), (0, max(0, limit - width))
            self.tokens, self.logps, self.forced = (np.pad(x, shape) for x in (self.tokens, self.logps, self.forced))
        line = self.free.pop()
        if self.stained:
            self.forced[line] = False
        return line

    # ------------------------------------------------------------ samples that run

    def by_sampling(self, part: slice) -> Iterator[tuple[Sampling, np.ndarray | None]]:
        """The distinct samplings of the slots in `part`, each with its rows (counted from part.start); None: all."""
        ways = self.way[part]
        samplings = list(self.samplings)
        if len(samplings) == 1 or (ways == ways[0]).all():
            yield samplings[ways[0]], None
            return
        for way in np.unique(ways):
            yield samplings[way], np.flatnonzero(ways == way)

    def accept(self, slots: np.ndarray, tokens: np.ndarray, logps: np.ndarray) -> list[Ended]:
        """Appends the drawn tokens (or forced ones, where a thinking budget is spent); returns the samples that end."""
        lines = self.line[slots]
        if self.pending:
            tokens, logps = tokens.copy(), logps.copy()
            for i in np.flatnonzero(np.isin(lines, list(self.pending))):
                tokens[i], logps[i] = self._force(int(slots[i]), int(lines[i])), 0.0
        at = self.drawn[slots]
        live = ~self.over[slots]
        line, a = lines[live], at[live]
        self.tokens[line, a], self.logps[line, a] = tokens[live], logps[live]
        self.last[slots] = tokens
        self.drawn[slots] += live
        terminated = np.isin(tokens, self.eos) & live & ~self.forced[lines, at.clip(max=self.forced.shape[1] - 1)]
        full = live & (at + 1 >= self.limit[slots])
        for i in np.flatnonzero(terminated | full):
            self._end(int(slots[i]), "eos" if terminated[i] else "length")
        if self.watched:
            for i in np.flatnonzero(live & np.isin(lines, list(self.watched))):
                self._watch(int(slots[i]), int(lines[i]))
        ended = self._close(slots[live & self.over[slots]])
        # a finished row may keep its slot for some steps, but must not write past its end
        self.must_drop |= bool((self.over[slots] & (self.position[slots] + 1 >= self.longest - 1)).any())
        return ended

    def _end(self, slot: int, stop: Stop) -> None:
        row = self.rows[int(self.line[slot])]
        if row.stop is None:
            row.stop = stop
            self.over[slot] = True
            self.pending.discard(int(self.line[slot]))  # nothing more is forced on it

    def _force(self, slot: int, line: int) -> int:
        """The next forced token of a sample."""
        tokens = self.rows[line].forced
        assert tokens, "only pending lines are forced"
        self.forced[line, self.drawn[slot]] = self.stained = True
        if len(tokens) == 1:
            self.pending.discard(line)
        return tokens.pop(0)

    def _watch(self, slot: int, line: int) -> None:
        """Checks the text of one row for stop strings and the thinking budget."""
        row, ids = self.rows[line], self.tokens[line, : self.drawn[slot]].tolist()
        stops, thinking = row.job.sampling.stop, row.job.thinking
        if stops and row.stop != "eos":
            tail = max(len(stop.encode()) for stop in stops) + TAIL
            text = self.tokenizer.decode(ids[-tail:])
            whole = self.tokenizer.decode(ids) if any(stop in text for stop in stops) else ""
            found = [whole.find(stop) for stop in stops if stop in whole]
            if found:
                row.cut = min(found)
                if row.stop == "length":
                    row.stop = "stop"
                self._end(slot, "stop")
        if thinking is not None and line not in self.pending and row.stop is None:
            row.thought = thinking.thought(row.thought, ids)
            if row.thought >= thinking.budget:
                row.forced = list(thinking.closing)
                self.pending.add(line)

    def _close(self, slots: np.ndarray) -> list[Ended]:
        """Writes the completions of the samples that ended in `slots` and frees their lines."""
        if not len(slots):
            return []
        lines = self.line[slots]
        rows = [self.rows[line] for line in lines.tolist()]
        lengths = self.drawn[slots].tolist()
        part = lines, slice(max(lengths))
        tokens = [t[:n] for t, n in zip(self.tokens[part].tolist(), lengths, strict=True)]
        logps, forced = self.logps[part].tolist(), self.forced[part].tolist()
        texts = self.tokenizer.batch_decode(
            [t[:-1] if row.stop == "eos" else t for row, t in zip(rows, tokens, strict=True)]
        )
        ended: list[Ended] = []
        for i, (slot, row, n, text) in enumerate(zip(slots.tolist(), rows, lengths, texts, strict=True)):
            job = row.job
            assert row.stop is not None
            shown = text[: row.cut] if row.cut is not None and row.stop == "stop" else text
            completion = Completion(tokens[i], logps[i][:n], forced[i][:n], row.stop, shown, self.version)
            job.completions[row.place] = completion
            job.left -= 1
            ended.append(Ended(slot, job, row.place, job.left == 0))
            self._release(slot)
        self.done_count += len(ended)
        return ended

    def _release(self, slot: int) -> None:
        """Frees the line of a slot whose sample has ended."""
        line = int(self.line[slot])
        del self.rows[line]
        self.watched.discard(line)
        self.pending.discard(line)
        self.free.append(line)
        self.line[slot], self.over[slot] = -1, True

    @property
    def alike(self) -> bool:
        """Whether all active rows have drawn equally many tokens, so that their order does not matter."""
        live = self.drawn[: self.active][~self.over[: self.active]]
        return bool((live == live[:1]).all())

    def drop(self, ordered: bool) -> tuple[np.ndarray, np.ndarray]:
        """Removes finished rows. Returns the old slots of the remaining rows (none below its new slot) and their
        positions. ordered: rows keep their order, the longest first; else the last rows fill the holes."""
        kept = np.flatnonzero(~self.over[: self.active])
        n = len(kept)
        if not ordered:
            holes, behind = np.flatnonzero(self.over[:n]), kept[kept >= n]
            kept = np.arange(n)
            kept[holes] = behind
        arrays = self.line, self.position, self.last, self.drawn, self.limit, self.stream, self.way, self.over
        for array in arrays:
            array[:n] = array[kept]
        self.active, self.idle, self.must_drop = n, 0, False
        return kept, self.position[:n]
