"""What samplers are compared on: requests of every shape, what was drawn for them, and when two drew the same."""

from __future__ import annotations

from typing import Any

import torch

import families as fam
from ladder.contract.rollouts import Completion, Request, Sampling
from ladder.decoding.sampler import NativeSampler
from ladder.kernels import decode

TOKENIZER = fam.tokenizer()
TOLERANCE = 1e-4


def requests(longest: int = 40) -> list[Request]:
    """Prompts and limits of very different lengths, so that rows differ in age, length and company; one prompt with
    more rows than attend in one piece."""
    g = torch.Generator().manual_seed(3)
    shapes = ((3, 5, longest), (40, 1, 7), (1, 7, 12), (12, 2, longest), (25, decode.ROWS + 3, 9))
    return [
        Request(torch.randint(20, fam.VOCAB, (length,), generator=g).tolist(), n, Sampling(limit), i)
        for i, (length, n, limit) in enumerate(shapes)
    ]


def draw(model: Any, **options: Any) -> list[Completion]:
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS, 11], **options)
    return [c for group in sampler.generate(requests()) for c in group]


def same(mine: list[Completion], theirs: list[Completion]) -> None:
    assert [c.tokens for c in mine] == [c.tokens for c in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert float((torch.tensor(a.logps) - torch.tensor(b.logps)).abs().max()) < TOLERANCE
