"""The codec between rollouts and the rows of a stage's `data.jsonl`: token ids, mask and log-probabilities are kept.

A stage that selects answers writes one row per answer, a stage that compares them one row per pair; a stage that trains
reads both back as samples with the same token ids. A row also holds the text, so that any other tool can read the file.
The mask marks the tokens that the policy sampled: a forced token (the end of a thinking budget) is never trained.
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
    """The row of one answer with its reward: "tokens", "mask" and "logps" are of prompt and answer."""
    return {
        "task": rollout.task.id,
        "prompt": rollout.task.prompt,
        "text": rollout.text,
        "reward": reward,
        "tokens": rollout.tokens,
        "mask": [int(m) for m in rollout.mask],
        "logps": _shortest(rollout.logps),
    }


def pair_row(chosen: Rollout, rejected: Rollout, margin: float) -> Row:
    """The row of a preference between two answers to one prompt: "prompt_tokens", and for either side "_tokens",
    "_mask" and "_logps" of the answer alone. margin: the judge's score of the chosen answer minus that of the rejected
    one."""
    sides: Row = {}
    n = chosen.mask.index(True) if True in chosen.mask else len(chosen.tokens)
    n = min(n, rejected.mask.index(True) if True in rejected.mask else len(rejected.tokens))
    assert chosen.tokens[:n] == rejected.tokens[:n], "the sides of a pair answer one prompt"
    for name, rollout in zip(SIDES, (chosen, rejected), strict=True):
        sides |= {
            f"{name}_tokens": rollout.tokens[n:],
            f"{name}_mask": [int(m) for m in rollout.mask[n:]],
            f"{name}_logps": _shortest(rollout.logps[n:]),
        }
    texts = {"task": chosen.task.id, "prompt": chosen.task.prompt, "chosen": chosen.text, "rejected": rejected.text}
    return texts | {"prompt_tokens": chosen.tokens[:n]} | sides | {"margin": round(margin, 6)}


def samples(path: Path) -> list[Sample]:
    """Reads the answers of a stage's data.jsonl. Raises UserError if there are none."""
    answers = []
    for number, row in enumerate(read_lines(path), 1):
        meta = {"origin": f"{path}:{number}", "task": row.get("task")}
        answers.append(_sample(row["tokens"], row["mask"], row["logps"], meta))
    if not answers:
        raise UserError("this stage kept no example, so there is nothing to train on", file=path)
    return answers


def pairs(path: Path) -> list[Pair]:
    """Reads the pairs of a stage's data.jsonl. Raises UserError if there are none."""
    preference_pairs = []
    for number, row in enumerate(read_lines(path), 1):
        meta = {"origin": f"{path}:{number}", "margin": row["margin"]}
        prompt = row["prompt_tokens"]
        prompt_zeros: list[float] = [0] * len(prompt)
        chosen, rejected = (
            _sample(
                [*prompt, *row[f"{name}_tokens"]],
                [*prompt_zeros, *row[f"{name}_mask"]],
                [*prompt_zeros, *row[f"{name}_logps"]],
                dict(meta),
            )
            for name in SIDES
        )
        preference_pairs.append(Pair(chosen, rejected, meta))
    if not preference_pairs:
        raise UserError("this stage made no pair, so there is nothing to train on", file=path)
    return preference_pairs


def _sample(tokens: list[int], mask: list[float], logps: list[float], meta: Row) -> Sample:
    """A sample with the sampler's log-probabilities in the column "sampler_logps"."""
    columns = {"sampler_logps": torch.tensor(logps, dtype=torch.float32)}
    return Sample(torch.tensor(tokens), torch.tensor(mask, dtype=torch.bool), columns, meta)


def _shortest(logps: list[float]) -> list[float]:
    """Float32 numbers as the floats with the fewest decimal digits that identify them, to keep the file small."""
    return [float(str(x)) for x in np.asarray(logps, np.float32)]
