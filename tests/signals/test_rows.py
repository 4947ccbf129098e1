"""The codec between rollouts and rows: what the policy did not draw is not trained after it either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ladder.base.errors import UserError
from ladder.base.files import write_lines
from ladder.contract.rollouts import Rollout, Task
from ladder.credit.base import to_sample
from ladder.signals import rows

PROMPT = [1, 7, 8]


def rollout(answer: list[int], forced: list[bool], text: str = "x") -> Rollout:
    rng = np.random.default_rng(len(answer))
    logps = [0.0 if f else float(np.float32(-x)) for f, x in zip(forced, rng.random(len(answer)), strict=True)]
    mask = [False] * len(PROMPT) + [not f for f in forced]
    return Rollout(Task("t", "p"), [*PROMPT, *answer], mask, [0.0, 0.0, 0.0, *logps], text, "eos")


FORCED = rollout([20, 21, 90, 91, 22, 2], [False, False, True, True, False, False])
"""The policy's thinking was ended by two tokens that it did not draw."""
FREE = rollout([30, 31, 2], [False] * 3)
AT_ONCE = rollout([90, 40, 2], [True, False, False])
"""The first token already is forced."""


def test_an_answer_comes_back_token_for_token(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_lines(path, [rows.answer_row(r, 1.0) for r in (FORCED, FREE, AT_ONCE)])
    for sample, one in zip(rows.samples(path), (FORCED, FREE, AT_ONCE), strict=True):
        want = to_sample(one)
        assert sample.tokens.equal(want.tokens) and sample.mask.equal(want.mask)
        assert sample.cols["sampler_logps"].equal(want.cols["sampler_logps"])


@pytest.mark.parametrize(("chosen", "rejected"), [(FORCED, FREE), (FREE, FORCED), (AT_ONCE, FREE), (FREE, AT_ONCE)])
def test_the_sides_of_a_pair_keep_what_was_forced(tmp_path: Path, chosen: Rollout, rejected: Rollout) -> None:
    path = tmp_path / "data.jsonl"
    write_lines(path, [rows.pair_row(chosen, rejected, 0.5)])
    (pair,) = rows.pairs(path)
    for side, one in ((pair.chosen, chosen), (pair.rejected, rejected)):
        want = to_sample(one)
        assert side.tokens.equal(want.tokens) and side.mask.equal(want.mask)
        assert side.cols["sampler_logps"].equal(want.cols["sampler_logps"])
    assert pair.meta["margin"] == 0.5


def test_no_pair_is_an_error(tmp_path: Path) -> None:
    write_lines(tmp_path / "data.jsonl", [])
    with pytest.raises(UserError, match="this stage made no pair"):
        rows.pairs(tmp_path / "data.jsonl")
