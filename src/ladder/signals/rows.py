"""The one codec between rollouts and rows of a stage's `data.jsonl`: token ids, mask and log-probabilities survive.

A stage that selects answers writes one row per answer, a stage that compares them one row per pair; a stage that trains
reads both back as samples, token for token. Text stands beside the ids, so any other tool can read the file too. The
mask says which tokens the policy drew: a token that was forced (the end of a thinking budget) is never trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ladder.base.errors import UserError
from ladder.base.jsonl import read_lines
from ladder.contract.rollouts import Rollout
from ladder.contract.training import Pair, Sample

Row = dict[str, Any]
"""One JSON object of a `data.jsonl`."""
SIDES = ("chosen", "rejected")


def answer_row(rollout: Rollout, reward: float) -> Row:
    """One answer with its reward: "tokens", "mask" and "logps" hold prompt and answer."""
    return {
        "task": rollout.task.id,
        "prompt": rollout.task.prompt,
        "text": rollout.text,
        "reward": reward,
        "tokens": rollout.tokens,
        "mask": [int(m) for m in rollout.mask],
        "logps": _short(rollout.logps),
    }


def pair_row(chosen: Rollout, rejected: Rollout, margin: float) -> Row:
    """A verdict on two answers to one prompt: "prompt_tokens", and for either side "_tokens", "_mask", "_logps" of the
    answer alone. margin: by how much the judge found the chosen one better."""
    sides: Row = {}
    n = chosen.mask.index(True) if True in chosen.mask else len(chosen.tokens)
    n = min(n, rejected.mask.index(True) if True in rejected.mask else len(rejected.tokens))
    assert chosen.tokens[:n] == rejected.tokens[:n], "the sides of a pair answer one prompt"
    for name, one in zip(SIDES, (chosen, rejected), strict=True):
        sides |= {
            f"{name}_tokens": one.tokens[n:],
            f"{name}_mask": [int(m) for m in one.mask[n:]],
            f"{name}_logps": _short(one.logps[n:]),
        }
    texts = {"task": chosen.task.id, "prompt": chosen.task.prompt, "chosen": chosen.text, "rejected": rejected.text}
    return texts | {"prompt_tokens": chosen.tokens[:n]} | sides | {"margin": round(margin, 6)}


def samples(path: Path) -> list[Sample]:
    """The answers of a stage's rows. Raises UserError when there are none."""
    made = []
    for number, row in enumerate(read_lines(path), 1):
        meta = {"origin": f"{path}:{number}", "task": row.get("task")}
        made.append(_sample(row["tokens"], row["mask"], row["logps"], meta))
    if not made:
        raise UserError("this stage kept no example, so there is nothing to train on", file=path)
    return made


def pairs(path: Path) -> list[Pair]:
    """The pairs of a stage's rows. Raises UserError when there are none."""
    made = []
    for number, row in enumerate(read_lines(path), 1):
        meta = {"origin": f"{path}:{number}", "margin": row["margin"]}
        prompt = row["prompt_tokens"]
        before: list[float] = [0] * len(prompt)
        chosen, rejected = (
            _sample(
                [*prompt, *row[f"{name}_tokens"]],
                [*before, *row[f"{name}_mask"]],
                [*before, *row[f"{name}_logps"]],
                dict(meta),
            )
            for name in SIDES
        )
        made.append(Pair(chosen, rejected, meta))
    if not made:
        raise UserError("this stage made no pair, so there is nothing to train on", file=path)
    return made


def _sample(tokens: list[int], mask: list[float], logps: list[float], meta: Row) -> Sample:
    """The log-probabilities are the column "sampler_logps"."""
    columns = {"sampler_logps": torch.tensor(logps, dtype=torch.float32)}
    return Sample(torch.tensor(tokens), torch.tensor(mask, dtype=torch.bool), columns, meta)


def _short(logps: list[float]) -> list[float]:
    """float32 numbers in the fewest digits that name them."""
    return [float(str(x)) for x in np.asarray(logps, np.float32)]
