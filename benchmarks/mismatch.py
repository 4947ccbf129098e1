"""Measures the difference between the sampler's and the engine's log-probabilities, in float32 and in bfloat16.

    python benchmarks/mismatch.py MODEL PROMPTS.jsonl      a model's directory or GGUF file; rows with "question"

16 answers of at most 128 tokens to each of 4 prompts. With d = engine - sampler for each sampled token it prints the
mean and the largest |d|; the k3 estimate of KL(sampler || engine), the mean of exp(d) - 1 - d; the mean importance
weight exp(d), which is 1 up to noise; and the share of weights that a cap of 2 truncates.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from ladder.contract.rollouts import Request, Sampling
from ladder.contract.training import Sample
from ladder.decoding.sampler import NativeSampler
from ladder.engine.engine import Engine
from ladder.models.load import load_model

PROMPTS, ANSWERS, TOKENS, CAP = 4, 16, 128, 2.0


def main() -> None:
    source, rows = sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
    loaded = load_model(source)
    engine = Engine(loaded.model.requires_grad_(False), None, budget=1280)
    prompts = [loaded.tokenizer(json.loads(row)["question"])["input_ids"] for row in rows[:PROMPTS]]
    requests = [Request(ids, ANSWERS, Sampling(TOKENS), i) for i, ids in enumerate(prompts)]
    print("| sampler | tokens | mean abs | largest | KL (k3) | mean weight | cut off at 2 |")
    print("|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        sampler = NativeSampler(loaded.model, loaded.tokenizer, eos=loaded.eos, dtype=dtype)
        d = difference(engine, requests, sampler)
        weight = d.exp()
        figures = (d.abs().mean(), d.abs().max(), (weight - 1 - d).mean(), weight.mean())
        cells = [str(dtype).removeprefix("torch."), f"{len(d):,}", *(f"{x:.2g}" for x in figures[:3])]
        print("|", " | ".join([*cells, f"{figures[3]:.5f}", f"{(weight > CAP).float().mean():.2%}"]), "|")


def difference(engine: Engine, requests: list[Request], sampler: NativeSampler) -> torch.Tensor:
    """d = engine's minus sampler's log-probability of every sampled token, [N]."""
    samples, drawn = [], []
    for request, group in zip(requests, sampler.generate(requests), strict=True):
        for c in group:
            tokens = torch.tensor([*request.prompt, *c.tokens])
            samples.append(Sample(tokens, torch.arange(len(tokens)) >= len(request.prompt)))
            drawn.append(torch.tensor(c.logps))
    found = engine.forward(samples)
    return torch.cat([row["logps"][s.mask] - q for row, s, q in zip(found, samples, drawn, strict=True)])


if __name__ == "__main__":
    main()
