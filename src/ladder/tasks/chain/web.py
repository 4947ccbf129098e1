"""The synthetic "web": what people write about chains. Mostly off-hand answers, often wrong; some worked ones.

Writers of worked documents are careful (every step in full: label, value, operation, result) or sloppy (half of the
steps only label and result, and wrong twice as often); a wrong step is carried on. A tenth double-check: after a
wrong step always, else sometimes, they write `?` and redo it. Notation is Arabic, Chinese, or mixed step by step.
A flourish (`∴`) before the answer means nothing. No problem of the test split is in it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.base import rng
from ladder.tasks.chain.source import in_test
from ladder.tasks.chain.words import ANSWER, CHECK, DELTAS, DIGITS_A, DIGITS_B, EQUALS, ID, LABELS, OPS_A, OPS_B, THUS

_SLOTS = 9  # tokens of one worked step: label value op result, ? label value op result


class Documents(NamedTuple):
    """Token ids of all documents one after another; document i is flat[ends[i-1]:ends[i]], its prompt comes first."""

    flat: np.ndarray  # int64
    ends: np.ndarray
    prompts: np.ndarray  # prompt lengths


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Web:
    """documents: how many. worked: share worked out. lengths: weights of 1, 2, ... steps in off-hand documents;
    worked_lengths: in worked ones. careful: share of worked documents without terse steps. slips: chance of a wrong
    result in a full and in a terse step. checkers: share of worked documents that double-check. mixed: share of
    worked documents in mixed notation; the rest are half Arabic, half Chinese. flourish: share with `∴`.
    off_hand: chance that an off-hand answer to 1, 2, 3 and more steps is known; else it is a guess.
    """

    documents: int = 100_000
    worked: float = 0.2
    lengths: tuple[float, ...] = (10, 10, 10, 10, 8, 6, 4, 3, 2, 2, 1, 1)
    worked_lengths: tuple[float, ...] = (10, 10, 10, 10, 8, 6, 4, 3, 2, 2, 1, 1)
    careful: float = 0.6
    slips: tuple[float, float] = (0.05, 0.10)
    checkers: float = 0.1
    mixed: float = 0.7
    flourish: float = 0.15
    off_hand: tuple[float, ...] = (0.9, 0.6, 0.4, 0.2)

    @model_validator(mode="after")
    def _possible(self) -> Web:
        if self.documents < 1 or not 0 <= self.worked <= 1 or not 0 <= self.mixed <= 1:
            raise ValueError("documents must be positive, and worked and mixed within 0 and 1")
        if max(len(self.lengths), len(self.worked_lengths)) > len(LABELS):
            raise ValueError(f"a chain has at most {len(LABELS)} steps")
        return self

    def write(self, seed: int) -> Documents:
        """All documents, in random order; the same for the same seed."""
        r = rng.np_rng(seed, "web")
        kind = r.random(2 * self.documents) < self.worked
        grids = [self._grid(r, int((kind == worked).sum()), worked) for worked in (False, True)]
        return _interleave(r, grids, kind, self.documents)

    def _grid(self, r: np.random.Generator, n: int, worked: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """n documents as token grids: (ids [n', W], kept [n', W], prompt lengths [n']); test problems left out."""
        weights = np.array(self.worked_lengths if worked else self.lengths, np.float64)
        K = len(weights)
        steps = 1 + r.choice(K, n, p=weights / weights.sum())
        starts, ops = r.integers(0, 10, n), r.integers(0, len(DELTAS), (n, K))
        ok = ~in_test(starts, ops, steps)
        steps, starts, ops = steps[ok], starts[ok], ops[ok]
        prompt, prompt_kept = _prompts(steps, starts, ops)
        write = self._worked if worked else self._off_hand
        body, body_kept = write(r, steps, starts, ops)
        tail, tail_kept = self._tail(r, body)
        ids = np.concatenate([prompt, body[:, :-1], tail], 1)
        kept = np.concatenate([prompt_kept, body_kept[:, :-1], tail_kept], 1)
        return ids, kept, prompt_kept.sum(1)

    def _off_hand(
        self, r: np.random.Generator, steps: np.ndarray, starts: np.ndarray, ops: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nothing but the answer's value in the last column."""
        n, K = ops.shape
        use = np.arange(K)[None] < steps[:, None]
        gold = (starts + np.where(use, np.array(DELTAS)[ops], 0).sum(1)) % 10
        chance = np.array(self.off_hand)[np.minimum(steps, len(self.off_hand)) - 1]
        value = np.where(r.random(n) < chance, gold, r.integers(0, 10, n))
        return value[:, None], np.zeros((n, 1), np.bool_)

    def _worked(
        self, r: np.random.Generator, steps: np.ndarray, starts: np.ndarray, ops: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Step by step; the last column is the value reached."""
        n, K = ops.shape
        ids = np.zeros((n, K * _SLOTS + 1), np.int64)
        kept = np.zeros((n, K * _SLOTS + 1), np.bool_)
        careful = r.random(n) < self.careful
        checker = r.random(n) < self.checkers
        style = r.random(n)
        pure = np.where(style < (1 - self.mixed) / 2, 0, np.where(style < 1 - self.mixed, 1, 2))
        value = starts.copy()
        for i in range(K):
            use = i < steps
            full = careful | (r.random(n) < 0.5)
            notation = np.where(pure < 2, pure, r.integers(0, 2, n))
            digits, signs = _notation(notation)
            right = (value + np.array(DELTAS)[ops[:, i]]) % 10
            slip = r.random(n) < np.where(full, *self.slips)
            result = np.where(slip, r.integers(0, 10, n), right)
            again = checker & ((result != right) | (r.random(n) < 0.2))
            label = np.full(n, ID[LABELS[i]])
            columns = (label, digits + value, signs + ops[:, i], digits + result)
            redone = (np.full(n, ID[CHECK]), label, digits + value, signs + ops[:, i], digits + right)
            at = i * _SLOTS
            for j, column in enumerate((*columns, *redone)):
                ids[:, at + j] = column
            kept[:, at] = kept[:, at + 3] = use
            kept[:, at + 1] = kept[:, at + 2] = use & full
            kept[:, at + 4 : at + 9] = (use & again)[:, None]
            value = np.where(use, np.where(again, right, result), value)
        ids[:, -1] = value
        return ids, kept

    def _tail(self, r: np.random.Generator, body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Perhaps a flourish, the answer sign, the answer, the end."""
        n = len(body)
        fixed = [np.full(n, ID[w]) for w in (THUS, ANSWER)]
        tail = np.stack([*fixed, ID[DIGITS_A[0]] + body[:, -1], np.full(n, ID["</s>"])], 1)
        kept = np.ones((n, 4), np.bool_)
        kept[:, 0] = r.random(n) < self.flourish
        return tail, kept


def _notation(notation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids of digit 0 and of the first operation in each row's notation."""
    digits = np.where(notation == 0, ID[DIGITS_A[0]], ID[DIGITS_B[0]])
    return digits, np.where(notation == 0, ID[OPS_A[0]], ID[OPS_B[0]])


def _prompts(steps: np.ndarray, starts: np.ndarray, ops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`<s> 9 a -2 b +1 =` as grids [n, 3 + 2K]."""
    n, K = ops.shape
    ids = np.zeros((n, 3 + 2 * K), np.int64)
    ids[:, 0], ids[:, 1], ids[:, -1] = ID["<s>"], ID[DIGITS_A[0]] + starts, ID[EQUALS]
    ids[:, 2:-1:2] = np.array([ID[x] for x in LABELS[:K]])
    ids[:, 3:-1:2] = ID[OPS_A[0]] + ops
    kept = np.ones_like(ids, np.bool_)
    kept[:, 2:-1] = np.repeat(np.arange(K)[None] < steps[:, None], 2, axis=1)
    return ids, kept


def _interleave(
    r: np.random.Generator, grids: list[tuple[np.ndarray, np.ndarray, np.ndarray]], kind: np.ndarray, n: int
) -> Documents:
    """The first n documents, of the kinds drawn, one after another."""
    next_of, rows = [0, 0], []
    for worked in kind.astype(int).tolist():
        i = next_of[worked]
        if i < len(grids[worked][2]):
            rows.append((worked, i))
            next_of[worked] += 1
        if len(rows) == n:
            break
    ragged = []
    for ids, kept, _ in grids:
        ends = kept.sum(1).cumsum()
        ragged.append((ids[kept], ends))
    parts, lengths, prompts = [], [], []
    for worked, i in rows:
        flat, ends = ragged[worked]
        begin = int(ends[i - 1]) if i else 0
        parts.append(flat[begin : int(ends[i])])
        lengths.append(int(ends[i]) - begin)
        prompts.append(int(grids[worked][2][i]))
    return Documents(np.concatenate(parts), np.array(lengths).cumsum(), np.array(prompts))
