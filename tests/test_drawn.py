"""What samplers are compared with can tell: weights off by a percent, another key, a temperature, one changed token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import drawn
import families as fam
from drawn import draw, explained, requests, same
from ladder.contract.rollouts import Completion, Request, Sampling


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2"])
def test_draws_are_the_inverse_cdf_under_transformers_own_forward(name: str) -> None:
    model = fam.cached(name)
    explained(draw(model), model)
    same(draw(model), draw(model, slots=3), model)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_every_weight_that_is_off_by_a_percent_is_found_out(name: str) -> None:
    model = fam.build(name).requires_grad_(False)
    answers = draw(model)
    for weight in dict(model.named_parameters()).values():
        before = weight.clone()
        weight.mul_(1 + 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        with pytest.raises(AssertionError):
            explained(answers, model)
        weight.copy_(before)
    explained(answers, model)


def other_key(asked: list[Request]) -> list[Request]:
    return [replace(r, key=r.key + 1) for r in asked]


def cooler(asked: list[Request]) -> list[Request]:
    return [replace(r, sampling=replace(r.sampling, temperature=0.99)) for r in asked]


def truncated(asked: list[Request]) -> list[Request]:
    return [replace(r, sampling=replace(r.sampling, top_k=5)) for r in asked]


@pytest.mark.parametrize("change", [other_key, cooler, truncated])
def test_draws_for_other_requests_are_found_out(change: Any) -> None:
    model = fam.cached("llama")
    with pytest.raises(AssertionError):
        explained(draw(model), model, change(requests()))


def test_a_token_that_was_not_drawn_is_found_out() -> None:
    """Though its log-probability is the model's."""
    model = fam.cached("llama")
    answers = draw(model)
    first = answers[0]
    for token in (first.tokens[0] - 1, first.tokens[0] + 1, fam.EOS):
        tokens = [token]
        logits = drawn.plain(model, [requests()[0].prompt + tokens])[0]
        logp = float(logits[-2].log_softmax(-1)[token])
        answers[0] = Completion(tokens, [logp], [False], "eos" if token == fam.EOS else "length", "")
        with pytest.raises(AssertionError, match="is another's by"):
            explained(answers, model)


def test_answers_that_differ_where_rounding_parts_nothing_are_found_out() -> None:
    model = fam.cached("llama")
    answers = draw(model)
    shorter = replace(answers[0], tokens=answers[0].tokens[:-1], logps=answers[0].logps[:-1], forced=[])
    with pytest.raises(AssertionError, match="goes on"):
        same([shorter, *answers[1:]], answers, model)
    with pytest.raises(AssertionError):
        same([replace(answers[0], stop="stop"), *answers[1:]], answers, model)


def test_neighbours_may_part_at_their_boundary_and_only_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(fam.VOCAB, fam.VOCAB, generator=torch.Generator().manual_seed(0))
    model, p = fam.bigram(logits), logits[7].double().softmax(-1)
    asked = [Request([7], 20, Sampling(1))]

    def answers(tokens: list[int]) -> list[Completion]:
        return [Completion([t], [float(p[t].log())], [False], "length", "") for t in tokens]

    boundary = float(p.cumsum(-1)[30])
    monkeypatch.setattr(drawn, "uniforms", lambda *_: torch.tensor([boundary], dtype=torch.float64))
    same(answers([30] * 20), answers([30] * 18 + [31] * 2), model, asked)
    with pytest.raises(AssertionError, match="3 of 20 answers part"):
        same(answers([30] * 20), answers([30] * 17 + [31] * 3), model, asked)
    with pytest.raises(AssertionError, match="is another's by"):
        same(answers([30] * 20), answers([30] * 19 + [32]), model, asked)


def test_greedy_draws_are_the_likeliest() -> None:
    model = fam.cached("llama")
    asked = [Request(r.prompt, 1, replace(r.sampling, temperature=0)) for r in requests()]
    sampler = drawn.NativeSampler(model, drawn.TOKENIZER, eos=[fam.EOS, 11])
    answers = [c for group in sampler.generate(asked) for c in group]
    explained(answers, model, asked)
    tokens = np.array(answers[0].tokens)
    tokens[-1] = (tokens[-1] + 1) % fam.VOCAB
    with pytest.raises(AssertionError, match="likelier"):
        explained([replace(answers[0], tokens=tokens.tolist()), *answers[1:]], model, asked)
