"""The scheduler: which requests wait, which sample holds which slot, what it has drawn, and when it ends.

The state of running samples is arrays over slots, so that one decode step of hundreds of rows is a handful of numpy
calls. Their tokens lie in lines that do not move when slots do. Only requests with stop strings or thinking budgets
pay for looking at the text.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ladder.contract.rollouts import Completion, Sampling, Stop
from ladder.decoding.draw import stream
from ladder.decoding.key_values import KeyValues, length
from ladder.decoding.thinking import Thinking

TAIL = 8
"""Tokens decoded beyond a stop string's bytes (a token is at least one): the oldest may be cut within a character."""


@dataclass(slots=True, eq=False)
class Job:
    """n samples of a prompt, under way. cache: keys and values of the prompt's first tokens, of a further turn.

    limit: most tokens of a sample. key, sample, drawn: where the first sample's stream of draws stands (`draw.stream`).
    keep: whether the samples can be continued. next: the first sample that had no slot yet. left: samples that have
    not ended.
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
    next: int = 0
    left: int = 0
    completions: list[Completion | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.completions, self.left = [None] * self.n, self.n

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that a sample can become."""
        return len(self.prompt) + self.limit

    @property
    def watched(self) -> bool:
        return bool(self.sampling.stop) or self.thinking is not None

    @property
    def read(self) -> int:
        """Prompt tokens that a prefill has to read."""
        return len(self.prompt) - (length(self.cache) if self.cache is not None else 0)


@dataclass(frozen=True, slots=True)
class Ended:
    """A sample that has just ended in a slot, whose keys and values lie there until slots are dropped. last: the job's
    other samples have all ended before."""

    slot: int
    job: Job
    place: int
    last: bool


@dataclass(slots=True)
class _Row:
    """A running sample. forced: tokens still to be forced on it. thought: tokens drawn inside the open thinking block.
    cut: where a stop string begins in the text."""

    job: Job
    place: int
    forced: list[int] = field(default_factory=list)
    thought: int | None = None
    stop: Stop | None = None
    cut: int | None = None


class Scheduler:
    """Jobs that wait and samples that run; the running ones hold slots 0 .. active-1."""

    def __init__(self, tokenizer: Any, eos: Sequence[int]) -> None:
        self.tokenizer, self.eos = tokenizer, np.array(eos)
        self.version = 0  # of the weights, for the completions
        self.queue: list[tuple[int, int, int, Job]] = []  # a heap
        self.waiting = 0  # samples without a slot
        self.active = 0
        self.total, self.done_count = 0, 0  # samples since there last were none
        self.longest = 0  # tokens that a slot has room for
        self.must_drop = False
        self.idle = 0  # steps of finished rows since the last were dropped
        self.rows: dict[int, _Row] = {}  # running samples by line
        self.watched: set[int] = set()  # lines whose text matters
        self.pending: set[int] = set()  # lines with tokens to be forced
        self.samplings: dict[Sampling, int] = {}
        self._slots()
        self._lines()

    def _slots(self) -> None:
        """The arrays over slots, for none."""
        self.line = np.zeros(0, np.int64)  # where the slot's sample keeps its tokens; -1 once it has ended
        self.position = np.zeros(0, np.int64)  # where the last token of each slot stands
        self.last = np.zeros(0, np.int64)  # the last token of each slot
        self.drawn = np.zeros(0, np.int64)  # tokens the slot's sample has
        self.limit = np.zeros(0, np.int64)  # most tokens of the slot's sample
        self.stream = np.zeros(0, np.uint64)
        self.way = np.zeros(0, np.int64)  # how the slot's sample is drawn: a number of `samplings`
        self.over = np.zeros(0, np.bool_)

    def _lines(self) -> None:
        """The arrays over lines, for none."""
        self.tokens: np.ndarray = np.zeros((0, 0), np.int64)
        self.logps: np.ndarray = np.zeros((0, 0), np.float32)
        self.forced: np.ndarray = np.zeros((0, 0), np.bool_)
        self.free: list[int] = []

    @property
    def busy(self) -> bool:
        return self.active > 0 or self.waiting > 0

    def reset(self) -> None:
        """Lets the memory go. For a scheduler with nothing to do."""
        assert not self.busy
        self.total, self.done_count, self.longest, self.idle = 0, 0, 0, 0
        self.samplings.clear()
        self._slots()
        self._lines()

    # ------------------------------------------------------------ jobs that wait

    def add(self, job: Job) -> None:
        """Puts a job into the queue: by priority, then longer limits first, then as they came."""
        heapq.heappush(self.queue, (-job.priority, -job.sampling.max_tokens, job.number, job))
        self.waiting += job.left
        self.total += job.left

    def head(self) -> Job:
        """The job whose samples get the next slots."""
        return self.queue[0][-1]

    def longest_waiting(self) -> int:
        """Tokens of the longest sequence that a waiting job can become."""
        return max(job.longest for *_, job in self.queue)

    def cancel(self, number: int) -> bool:
        """Ends a job without completions. Whether there was one."""
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
        """Room for at least so many slots."""
        more = slots - len(self.line)
        if more > 0:
            for name in ("line", "position", "last", "drawn", "limit", "stream", "way", "over"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros(more, array.dtype)]))

    def admit(self, free: int, budget: int) -> tuple[list[Job], np.ndarray]:
        """Gives slots to the next samples: their jobs, and each new row's job [R]. budget: most tokens to read, unless
        the first prompt has more. Jobs that continue a cache are admitted apart from the others."""
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
        """Gives the next slot to the next sample of the first job in the queue."""
        slot, place, line = self.active, job.next, self._line(job.limit)
        self.rows[line] = _Row(job, place)
        if job.watched:
            self.watched.add(line)
        self.line[slot], self.stream[slot] = line, stream(job.key, job.sample + place, job.drawn)
        self.position[slot], self.limit[slot] = len(job.prompt) - 1, job.limit
        self.way[slot] = self.samplings.setdefault(job.sampling, len(self.samplings))
        self.drawn[slot], self.over[slot] = 0, False
        self.active, self.waiting, job.next = self.active + 1, self.waiting - 1, job.next + 1
        if job.next == job.n:
            heapq.heappop(self.queue)

    def _line(self, limit: int) -> int:
        """A line with room for so many tokens."""
        lines, width = self.tokens.shape
        if not self.free or limit > width:
            more = 0 if self.free else max(len(self.line), lines)
            self.free += range(lines + more - 1, lines - 1, -1)
            shape = (0, more), (0, max(0, limit - width))
            self.tokens, self.logps, self.forced = (np.pad(x, shape) for x in (self.tokens, self.logps, self.forced))
        line = self.free.pop()
        self.forced[line] = False
        return line

    # ------------------------------------------------------------ samples that run

    def by_sampling(self, part: slice) -> Iterator[tuple[Sampling, np.ndarray | None]]:
        """The different ways to draw among slots in `part`, with the rows (from part.start) of each; None: all."""
        ways = self.way[part]
        samplings = list(self.samplings)
        if len(samplings) == 1 or (ways == ways[0]).all():
            yield samplings[ways[0]], None
            return
        for way in np.unique(ways):
            yield samplings[way], np.flatnonzero(ways == way)

    def accept(self, slots: np.ndarray, tokens: np.ndarray, logps: np.ndarray) -> list[Ended]:
        """Takes the drawn tokens in (or, where a thinking budget is spent, the forced ones); the samples that end."""
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
        # a finished row that stays a while must not run past its slot
        self.must_drop |= bool((self.over[slots] & (self.position[slots] + 1 >= self.longest - 1)).any())
        return ended

    def _end(self, slot: int, stop: Stop) -> None:
        row = self.rows[int(self.line[slot])]
        if row.stop is None:
            row.stop = stop
            self.over[slot] = True
            self.pending.discard(int(self.line[slot]))  # nothing more is forced on it

    def _force(self, slot: int, line: int) -> int:
        """The next token that is forced on a sample."""
        row = self.rows[line]
        self.forced[line, self.drawn[slot]] = True
        if len(row.forced) == 1:
            self.pending.discard(line)
        return row.forced.pop(0)

    def _watch(self, slot: int, line: int) -> None:
        """Looks at the text of one row: stop strings, and the thinking budget."""
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
        """Writes the completions of samples that ended in some slots; their lines are free again."""
        if not len(slots):
            return []
        rows = [self.rows[int(line)] for line in self.line[slots]]
        lengths = self.drawn[slots].tolist()
        drawn = [self.tokens[line, :n].tolist() for line, n in zip(self.line[slots], lengths, strict=True)]
        texts = self.tokenizer.batch_decode(
            [t[:-1] if row.stop == "eos" else t for row, t in zip(rows, drawn, strict=True)]
        )
        ended: list[Ended] = []
        for slot, row, tokens, text in zip(slots.tolist(), rows, drawn, texts, strict=True):
            line, n = int(self.line[slot]), len(tokens)
            assert row.stop is not None
            logps, forced = self.logps[line, :n].tolist(), self.forced[line, :n].tolist()
            shown = text[: row.cut] if row.cut is not None and row.stop == "stop" else text
            row.job.completions[row.place] = Completion(tokens, logps, forced, row.stop, shown, self.version)
            row.job.left -= 1
            self.done_count += 1
            ended.append(Ended(slot, row.job, row.place, row.job.left == 0))
            self._release(slot)
        return ended

    def _release(self, slot: int) -> None:
        """Frees the line of a slot whose sample is over."""
        line = int(self.line[slot])
        del self.rows[line]
        self.watched.discard(line)
        self.pending.discard(line)
        self.free.append(line)
        self.line[slot], self.over[slot] = -1, True

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
        arrays = self.line, self.position, self.last, self.drawn, self.limit, self.stream, self.way, self.over
        for array in arrays:
            array[:n] = array[kept]
        self.active, self.idle, self.must_drop = n, 0, False
        return kept, self.position[:n]
