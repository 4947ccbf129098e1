"""The synthetic pretraining corpus of the chain world: mostly direct answers, often wrong; some worked solutions.

A worked document is careful (every step in full: label, value, operation, result) or sloppy (half of its steps have
only label and result, and these are wrong twice as often); a wrong result is carried into the next step. A tenth of
the worked documents double-check: after a wrong step always, otherwise with probability 0.2, they write `?` and redo
the step. The notation is Arabic, Chinese, or chosen anew at each step. A flourish (`∴`) before the answer has no
meaning. No problem of the test split is in the corpus.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from ladder.base import rng
from ladder.tasks.chain.source import in_test
from ladder.tasks.chain.words import ANSWER, CHECK, DELTAS, DIGITS_A, DIGITS_B, EQUALS, ID, LABELS, OPS_A, OPS_B, THUS

_STEP_TOKENS = 9  # most tokens of a worked step: label value op result, then ? label value op result


class Documents(NamedTuple):
    """The token ids of all documents, concatenated; document i is flat[ends[i-1]:ends[i]], its prompt first."""

    flat: np.ndarray  # token ids, int64 [tokens]
    ends: np.ndarray  # [documents]
    prompts: np.ndarray  # prompt lengths in tokens [documents]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Web:
    """The generator of the corpus.

    documents: number of documents. worked: share of worked documents. lengths: weights of 1, 2, ... steps in documents
    with a direct answer; worked_lengths: in worked ones. careful: share of worked documents without short steps.
    slips: probability of a random result in a full and in a short step. checkers: share of worked documents that
    double-check. mixed: share of worked documents in mixed notation; the rest are half Arabic, half Chinese. flourish:
    share of documents with `∴`. off_hand: probability that a direct answer to 1, 2, 3, ... steps is correct (the last
    value holds for all longer ones); otherwise the answer is a random digit.
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
    def _check_options(self) -> Web:
        if self.documents < 1 or not 0 <= self.worked <= 1 or not 0 <= self.mixed <= 1:
            raise ValueError("documents must be at least 1, and worked and mixed must be from 0 to 1")
        if max(len(self.lengths), len(self.worked_lengths)) > len(LABELS):
            raise ValueError(f"lengths and worked_lengths must have at most {len(LABELS)} weights each")
        return self

    def write(self, seed: int) -> Documents:
        """All documents, in random order, as a function of the seed."""
        r = rng.np_rng(seed, "web")
        is_worked = r.random(2 * self.documents) < self.worked
        grids = [self._grid(r, int((is_worked == worked).sum()), worked) for worked in (False, True)]
        return _interleave(r, grids, is_worked, self.documents)

    def _grid(self, r: np.random.Generator, n: int, worked: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Documents of one kind as (ids [n', W], mask [n', W], prompt lengths [n']): W slots, of which `mask` are used.
        n problems are drawn and those of the test split left out, so n' <= n."""
        weights = np.array(self.worked_lengths if worked else self.lengths, np.float64)
        K = len(weights)
        steps = 1 + r.choice(K, n, p=weights / weights.sum())
        starts, ops = r.integers(0, 10, n), r.integers(0, len(DELTAS), (n, K))
        in_train = ~in_test(starts, ops, steps)
        steps, starts, ops = steps[in_train], starts[in_train], ops[in_train]
        prompt, prompt_mask = _prompts(steps, starts, ops)
        write = self._worked if worked else self._off_hand
        body, body_mask = write(r, steps, starts, ops)
        tail, tail_mask = self._tail(r, body)
        ids = np.concatenate([prompt, body[:, :-1], tail], 1)
        mask = np.concatenate([prompt_mask, body_mask[:, :-1], tail_mask], 1)
        return ids, mask, prompt_mask.sum(1)

    def _off_hand(
        self, r: np.random.Generator, steps: np.ndarray, starts: np.ndarray, ops: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The body of documents with a direct answer: no tokens; ids and mask [n, 1] with the answer's digit in the one
        column."""
        n, K = ops.shape
        is_step = np.arange(K)[None] < steps[:, None]
        gold = (starts + np.where(is_step, np.array(DELTAS)[ops], 0).sum(1)) % 10
        p_correct = np.array(self.off_hand)[np.minimum(steps, len(self.off_hand)) - 1]
        value = np.where(r.random(n) < p_correct, gold, r.integers(0, 10, n))
        return value[:, None], np.zeros((n, 1), np.bool_)

    def _worked(
        self, r: np.random.Generator, steps: np.ndarray, starts: np.ndarray, ops: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The body of worked documents: ids and mask [n, K * 9 + 1]; the last column is the digit reached."""
        n, K = ops.shape
        ids = np.zeros((n, K * _STEP_TOKENS + 1), np.int64)
        mask = np.zeros((n, K * _STEP_TOKENS + 1), np.bool_)
        careful = r.random(n) < self.careful
        double_checks = r.random(n) < self.checkers
        u = r.random(n)
        style = np.where(u < (1 - self.mixed) / 2, 0, np.where(u < 1 - self.mixed, 1, 2))  # Arabic, Chinese, mixed
        value = starts.copy()
        for i in range(K):
            is_step = i < steps
            full = careful | (r.random(n) < 0.5)
            notation = np.where(style < 2, style, r.integers(0, 2, n))
            digits, signs = _first_ids(notation)
            correct = (value + np.array(DELTAS)[ops[:, i]]) % 10
            slip = r.random(n) < np.where(full, *self.slips)
            result = np.where(slip, r.integers(0, 10, n), correct)
            redo = double_checks & ((result != correct) | (r.random(n) < 0.2))
            label = np.full(n, ID[LABELS[i]])
            columns = (label, digits + value, signs + ops[:, i], digits + result)
            redone = (np.full(n, ID[CHECK]), label, digits + value, signs + ops[:, i], digits + correct)
            first = i * _STEP_TOKENS
            for j, column in enumerate((*columns, *redone)):
                ids[:, first + j] = column
            mask[:, first] = mask[:, first + 3] = is_step
            mask[:, first + 1] = mask[:, first + 2] = is_step & full
            mask[:, first + 4 : first + 9] = (is_step & redo)[:, None]
            value = np.where(is_step, np.where(redo, correct, result), value)
        ids[:, -1] = value
        return ids, mask

    def _tail(self, r: np.random.Generator, body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The end of documents, ids and mask [n, 4]: flourish (where used), answer sign, answer, EOS."""
        n = len(body)
        signs = [np.full(n, ID[w]) for w in (THUS, ANSWER)]
        tail = np.stack([*signs, ID[DIGITS_A[0]] + body[:, -1], np.full(n, ID["</s>"])], 1)
        mask = np.ones((n, 4), np.bool_)
        mask[:, 0] = r.random(n) < self.flourish
        return tail, mask


def _first_ids(notation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [n] of digit 0 and of the first operation in each document's notation (0: Arabic, 1: Chinese)."""
    digits = np.where(notation == 0, ID[DIGITS_A[0]], ID[DIGITS_B[0]])
    return digits, np.where(notation == 0, ID[OPS_A[0]], ID[OPS_B[0]])


def _prompts(steps: np.ndarray, starts: np.ndarray, ops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The prompts, such as `<s> 9 a -2 b +1 =`, as ids and mask [n, 3 + 2K]."""
    n, K = ops.shape
    ids = np.zeros((n, 3 + 2 * K), np.int64)
    ids[:, 0], ids[:, 1], ids[:, -1] = ID["<s>"], ID[DIGITS_A[0]] + starts, ID[EQUALS]
    ids[:, 2:-1:2] = np.array([ID[x] for x in LABELS[:K]])
    ids[:, 3:-1:2] = ID[OPS_A[0]] + ops
    mask = np.ones_like(ids, np.bool_)
    mask[:, 2:-1] = np.repeat(np.arange(K)[None] < steps[:, None], 2, axis=1)
    return ids, mask


def _interleave(
    r: np.random.Generator, grids: list[tuple[np.ndarray, np.ndarray, np.ndarray]], is_worked: np.ndarray, n: int
) -> Documents:
    """The first n documents, concatenated, in the random order of kinds that `is_worked` gives. grids: of the documents
    with a direct answer and of the worked ones."""
    next_row, order = [0, 0], []
    for worked in is_worked.astype(int).tolist():
        i = next_row[worked]
        if i < len(grids[worked][2]):
            order.append((worked, i))
            next_row[worked] += 1
        if len(order) == n:
            break
    concatenated = []
    for ids, mask, _ in grids:
        ends = mask.sum(1).cumsum()
        concatenated.append((ids[mask], ends))
    parts, lengths, prompts = [], [], []
    for worked, i in order:
        flat, ends = concatenated[worked]
        start = int(ends[i - 1]) if i else 0
        parts.append(flat[start : int(ends[i])])
        lengths.append(int(ends[i]) - start)
        prompts.append(int(grids[worked][2][i]))
    return Documents(np.concatenate(parts), np.array(lengths).cumsum(), np.array(prompts))
