"""Throughput of `NativeSampler.generate` of two source trees, in turns: python benchmarks/sampler_ab.py OLD NEW.

OLD, NEW: checkouts whose `src` the processes import. In each round a process of either tree, with one thread, generates
the same completions; the trees alternate in going first. Time is the process's processor time, so that other work on
the machine disturbs the ratio little. For each case the script prints the median over rounds of (tokens a second of
NEW) / (tokens a second of OLD), with its quartiles.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """A random Llama, and requests to it: prompts of `prompt` tokens with n samples of `answer` tokens each, every
    third of them a quarter as long."""

    hidden: int
    heads: int
    layers: int
    vocab: int
    prompts: int
    n: int
    prompt: int
    answer: int
    repeats: int = 1


CASES = {
    "tiny, 1 row": Case(64, 4, 3, 51, 1, 1, 40, 48, 12),
    "tiny, 512 rows": Case(64, 4, 3, 51, 64, 8, 40, 48, 2),
    "30M, 1 row": Case(512, 8, 8, 8192, 1, 1, 60, 48, 3),
    "30M, 3 rows": Case(512, 8, 8, 8192, 1, 3, 60, 48, 2),
    "30M, 64 rows": Case(512, 8, 8, 8192, 8, 8, 60, 32),
}


class NoText:
    """A tokenizer for tokens whose text does not matter."""

    def decode(self, *_: Any, **__: Any) -> str:
        return ""

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        return [""] * len(rows)


def seconds(case: Case) -> float:
    """Processor seconds of this process and its one thread in a round, after a warm-up."""
    import torch
    import transformers as tf

    from ladder.attention.plan import IMPLEMENTATION
    from ladder.contract.rollouts import Request, Sampling
    from ladder.decoding.sampler import NativeSampler

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=case.vocab, hidden_size=case.hidden, intermediate_size=case.hidden * 21 // 8,
        num_hidden_layers=case.layers, num_attention_heads=case.heads, max_position_embeddings=512,
    )  # fmt: skip
    config._attn_implementation = IMPLEMENTATION
    model = tf.LlamaForCausalLM(config).eval().requires_grad_(False)
    sampler = NativeSampler(model, NoText(), eos=[case.vocab])  # which is never sampled
    lengths = [case.answer // 4 if i % 3 == 2 else case.answer for i in range(case.prompts)]
    asked = [
        Request(torch.randint(0, case.vocab, (case.prompt,)).tolist(), case.n, Sampling(length), i)
        for i, length in enumerate(lengths)
    ]
    sampler.generate(asked[:1])
    begun = time.process_time()
    for _ in range(case.repeats):
        sampler.generate(asked)
    return time.process_time() - begun


def timed(tree: Path, name: str) -> float:
    """Of a process of a tree."""
    env = {**os.environ, "PYTHONPATH": str(tree / "src")}
    command = [sys.executable, __file__, "--case", name]
    return float(json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout))


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="*", type=Path, help="OLD NEW")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--case", help="times a case in this process")
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(seconds(CASES[asked.case])))
        return
    old, new = asked.trees
    for name in (name for name in CASES if asked.only in name):
        ratios = []
        for turn in range(asked.rounds):
            first, second = (old, new) if turn % 2 else (new, old)
            spent = {tree: timed(tree, name) for tree in (first, second)}
            ratios.append(spent[old] / spent[new])
        low, _, high = statistics.quantiles(ratios, n=4)
        print(f"{name}: {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
