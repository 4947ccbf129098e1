"""The inputs of a run, made once and read by every side: first weights, token ids, their order.

    base, base_adapter      the real model; the first weights of its LoRA adapter
    scorer                  the same with the first weights of a score
    tiny, ...               random weights, 0.9 million of them, over bytes
    sft, pairs, prompts.jsonl, tiny_sft, ...      token ids, in the order in which they are trained
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import ours, rows, tiny_model

from ladder.data.chat import encode_prompt
from ladder.data.samples import Encoding, to_pairs, to_samples
from ladder.data.source import Data, Report
from ladder.models.load import LoadedModel, load_model, save_model
from ladder.models.lora import attach, save_adapter
from ladder.tasks.gsm8k import GSM8K

LONGEST_ROW = LONGEST_PAIR = 512


@dataclass(frozen=True)
class Counts:
    """How many rows of each kind."""

    rows: int = 64
    pairs: int = 40
    prompts: int = 64


DEFAULT = Counts()


@dataclass(frozen=True)
class Sources:
    """model: the real one (a GGUF file or directory). data: a directory of the data sets (benchmarks/README.md)."""

    model: str
    data: Path


def prepare(work: Path, sources: Sources) -> None:
    """Makes what is not there yet."""
    done = work / "prepared"
    if done.exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    base = load_model(sources.model)
    inputs(work, base, sources.data, "")
    _weights(work, base, sources.model)
    tiny = tiny_model.build(ours.SEED)
    inputs(work, tiny, sources.data, "tiny_")
    save_model(tiny, work / "tiny")
    done.touch()


def inputs(work: Path, loaded: LoadedModel, data: Path, prefix: str, counts: Counts = DEFAULT) -> None:
    """The rows of all workloads in a model's tokens."""
    tokenizer = loaded.tokenizer
    examples = list(Data(path=str(data / "instructions_175.jsonl")).examples(Report()))
    encoding = Encoding(max_tokens=LONGEST_ROW, over_long="drop")
    samples = to_samples(examples, tokenizer, encoding)[: counts.rows]
    rows.write(work / f"{prefix}sft.jsonl", map(rows.of_sample, samples))
    hh = Data(path=str(data / "hh_harmless_pairs.jsonl"), layout="hh", on_bad_row="skip")
    pairs = to_pairs(list(hh.examples(Report())), tokenizer, Encoding(max_tokens=LONGEST_PAIR, over_long="drop"))
    rows.write(work / f"{prefix}pairs.jsonl", map(rows.of_pair, pairs[: counts.pairs]))
    tasks = GSM8K(str(data / "gsm8k_train.jsonl")).tasks("train", counts.prompts)
    rows.write(work / f"{prefix}prompts.jsonl", ({"ids": encode_prompt(tokenizer, t.prompt)} for t in tasks))


def _weights(work: Path, base: LoadedModel, source: str) -> None:
    save_model(base, work / "base")
    base.model = attach(base.model, ours.ADAPTER, ours.SEED)
    save_adapter(base.model, work / "base_adapter")
    scorer: Any = load_model(source, scalar=True)
    g = torch.Generator().manual_seed(ours.SEED)
    with torch.no_grad():
        scorer.model.score.weight.copy_(torch.randn(scorer.model.score.weight.shape, generator=g) * 0.02)
    save_model(scorer, work / "scorer")
