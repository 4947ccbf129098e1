"""What samplers are compared on: requests of every shape, what was drawn for them, and when two drew the same.

Two paths that compute the same in another order differ by rounding, and a number can lie between the two: then one of
them draws a token and the other its neighbour, and the answers part. So answers are compared as far as they agree, and
every token of either is held against transformers' own forward of the whole sequence: its log-probability, and that it
is the inverse CDF of its place's number there. A boundary of the cumulative probabilities moves by no more than half of
the largest error of a log-probability, so TOLERANCE is the tolerance of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

import families as fam
from ladder.contract.rollouts import Completion, Request, Sampling
from ladder.decoding.draw import stream, truncate, uniforms
from ladder.decoding.sampler import NativeSampler
from ladder.kernels import decode

TOKENIZER = fam.tokenizer()
TOLERANCE = 1e-4
PART = 0.1
"""Share of the answers that may part; one part in a thousand does, where float32 knows probabilities to 1e-6."""


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
    """Answers to `requests`, one after the other."""
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS, 11], **options)
    return [c for group in sampler.generate(requests()) for c in group]


def same(
    mine: Sequence[Completion], theirs: Sequence[Completion], model: Any, asked: Sequence[Request] | None = None
) -> None:
    """Both are what the model says, to rounding, and alike but for the few that rounding parts."""
    explained(mine, model, asked)
    explained(theirs, model, asked)
    parted = 0
    for a, b in zip(mine, theirs, strict=True):
        alike = agreed(a, b)
        assert gap(a.logps[:alike], b.logps[:alike]) < TOLERANCE
        if alike < max(len(a.tokens), len(b.tokens)):
            assert alike < min(len(a.tokens), len(b.tokens)), "one ends where the other goes on with the same tokens"
            parted += 1
        else:
            assert a.stop == b.stop
    assert parted <= max(1, PART * len(mine)), f"{parted} of {len(mine)} answers part"


def agreed(a: Completion, b: Completion) -> int:
    """Tokens before the first that differs."""
    pairs = zip(a.tokens, b.tokens, strict=False)
    return next((i for i, (s, t) in enumerate(pairs) if s != t), min(len(a.tokens), len(b.tokens)))


def explained(drawn: Sequence[Completion], model: Any, asked: Sequence[Request] | None = None) -> None:
    """Each token is the inverse CDF of its number under transformers' own forward, with that log-probability.

    Nothing of the samplers is read but the numbers and what truncation leaves out. drawn: n answers a request."""
    asked = requests() if asked is None else asked
    places = [(r, i) for r in asked for i in range(r.n)]
    whole = plain(model, [r.prompt + c.tokens for (r, _), c in zip(places, drawn, strict=True)])
    for (r, i), c, logits_TV in zip(places, drawn, whole, strict=True):
        assert not any(c.forced), "a forced token is nobody's draw"
        at, tokens = len(r.prompt) - 1, torch.tensor(c.tokens)[:, None]
        z = logits_TV[at : at + len(tokens)]
        if r.sampling.temperature == 0:
            assert float((z.amax(-1) - z.gather(1, tokens)[:, 0]).max()) < TOLERANCE, "another token is likelier"
            assert gap(c.logps, z.log_softmax(-1).gather(1, tokens)[:, 0]) < TOLERANCE
            continue
        p = truncate(z / r.sampling.temperature, r.sampling).softmax(-1)
        chosen = p.gather(1, tokens)[:, 0]
        assert gap(c.logps, chosen.log()) < TOLERANCE
        numbers = uniforms(np.full(len(tokens), stream(r.key, i), np.uint64), np.arange(len(tokens)))
        above = p.cumsum(-1).gather(1, tokens)[:, 0]
        off = torch.maximum(above - chosen - numbers, numbers - above)
        assert float(off.max()) < TOLERANCE, f"token {int(off.argmax())} is another's by {float(off.max()):.2g}"


def gap(a: Tensor | list[float], b: Tensor | list[float]) -> float:
    """The largest difference; 0 of nothing."""
    apart = (torch.as_tensor(a, dtype=torch.float64) - torch.as_tensor(b, dtype=torch.float64)).abs()
    return float(apart.max()) if len(apart) else 0.0


def plain(model: Any, sequences: Sequence[list[int]]) -> list[Tensor]:
    """Logits [T, V] of each sequence by transformers' own eager attention, without a cache."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*s, *[fam.PAD] * (longest - len(s))] for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    with eagerly(model), torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.double()
    return [x[: len(s)] for x, s in zip(logits, sequences, strict=True)]


@contextmanager
def eagerly(model: Any) -> Iterator[None]:
    """The model attends as transformers does where nobody says how."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
