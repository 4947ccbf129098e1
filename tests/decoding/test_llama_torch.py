"""Decoding over packed weights is the modules' decoding: same tokens and log-probabilities, with fresh weights at every
call, whatever lies in them; and it is really what runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import families as fam
from drawn import TOKENIZER, TOLERANCE, draw, requests, same
from ladder.attention.packed import PackedPlan
from ladder.contract.rollouts import Request, Sampling, Task
from ladder.credit.base import to_sample
from ladder.decoding import backend, llama, llama_cpu, llama_torch
from ladder.decoding.llama_weights import Effective, Matrix, effective, packable
from ladder.decoding.sampler import NativeSampler
from ladder.engine.engine import Engine
from ladder.kernels import attend
from ladder.models.head import Head
from ladder.models.lora import LoRA, attach
from ladder.packing.prefix_tree import Segment
from ladder.rollout.collect import to_rollout

ALL = sum(r.n for r in requests())
KNOWN = ("llama", "qwen2", "qwen3")


@pytest.fixture(autouse=True)
def operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of these models' widths are whole vectors hangs on the processor; here none is decoded in C."""
    monkeypatch.setattr(llama_cpu, "obstacle", lambda _: "operators are what is tested")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every step that the packed path decoded."""
    seen: list[int] = []
    plain = llama.Decoder.step

    def step(self: Any, tokens: Any, positions: Any) -> Any:
        seen.append(len(tokens))
        return plain(self, tokens, positions)

    monkeypatch.setattr(llama.Decoder, "step", step)
    return seen


# ------------------------------------------------------------ against the modules


@pytest.mark.parametrize("options", [{}, {"slots": 3}, {"slots": 6, "workers": 2}, {"slots": 1}], ids=str)
@pytest.mark.parametrize("name", KNOWN)
def test_packed_is_what_the_modules_draw(name: str, options: dict[str, Any], steps: list[int]) -> None:
    oracle = draw(fam.cached(name), packed=False)
    assert not steps
    same(draw(fam.cached(name), **options), oracle, fam.cached(name))
    assert max(steps) == min(ALL, options.get("slots", ALL)) or "workers" in options


def test_spans_of_any_cost_and_room_that_grows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = draw(fam.cached("qwen3"), packed=False)
    monkeypatch.setattr(llama_torch, "SPAN_COST", 0)
    monkeypatch.setattr(llama_torch, "ROOM", 1)
    spans: list[int] = []
    plain = llama_torch.Shared.begin

    def begin(self: Any, positions: Any) -> None:
        plain(self, positions)
        spans.append(len(self.turn.spans))

    monkeypatch.setattr(llama_torch.Shared, "begin", begin)
    same(draw(fam.cached("qwen3"), slots=5), oracle, fam.cached("qwen3"))
    assert max(spans) > 2


def test_biases_grouped_queries_and_untied_heads_are_read(steps: list[int]) -> None:
    model = fam.build("llama", attention_bias=True, mlp_bias=True, num_key_value_heads=1, tie_word_embeddings=False)
    same(draw(model), draw(model, packed=False), model)
    assert steps


def test_a_matrix_is_the_plain_product() -> None:
    g = torch.Generator().manual_seed(0)
    a, b, x = (torch.randn(n, 24, generator=g) for n in (8, 5, 7))
    bias, other = torch.randn(13, generator=g), torch.randn(7, 13, generator=g)
    plain = x @ torch.cat([a, b]).T + bias
    for pack in (True, False):
        m = Matrix([Effective(a, bias[:8]), Effective(b, bias[8:])], pack)
        for mine, exact in (
            (m(x), plain),
            (m(x, onto=other), plain + other),
            (m(x, times=other), plain * other),
            (m(x, silu=True), nn.functional.silu(plain)),
        ):
            assert torch.allclose(mine, exact, atol=1e-5), pack


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_weights_are_packed_for_many_rows_and_left_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packable(torch.zeros(2, 2)) and not packable(torch.zeros(2, 2, dtype=torch.float64))
    made: list[bool] = []
    plain = Matrix.__init__

    def init(self: Any, *args: Any) -> None:
        plain(self, *args)
        made.append(self.packed)

    monkeypatch.setattr(Matrix, "__init__", init)
    draw(fam.cached("llama"))
    assert made and all(made)
    made.clear()
    draw(fam.cached("llama"), slots=backend.PACK_ROWS - 1)
    assert made and not any(made)


@pytest.mark.parametrize("scaling", [1.0, 0.3])
def test_what_prompts_share_needs_no_mask_where_there_is_a_kernel(
    scaling: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked: list[int] = []
    plain = PackedPlan.attend
    monkeypatch.setattr(PackedPlan, "attend", lambda *a, **how: masked.append(1) or plain(*a, **how))
    opening = Segment(0, 5)
    plan = PackedPlan.of([opening, Segment(5, 3, opening), Segment(8, 4, opening)], 12)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(12, n, 16, generator=g) for n in (4, 2, 2))
    here = llama._over(plan, 0, scaling, q, k, v)
    assert bool(masked) == (attend.kernels() is None)
    monkeypatch.setattr(attend, "kernels", lambda: None)
    assert torch.allclose(here, llama._over(plan, 0, scaling, q, k, v), atol=1e-5) and masked


# ------------------------------------------------------------ which models


@pytest.mark.parametrize(
    ("name", "changes", "fits"),
    [
        ("llama", {}, True),
        ("mistral", {}, False),  # its window is shorter than the context
        ("mistral", {"sliding_window": None}, True),
        ("mistral", {"sliding_window": fam.CONTEXT}, True),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, False),
        ("llama", {"hidden_act": "gelu"}, False),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, False),
        ("gemma3", {}, False),
        ("smollm3", {}, False),
    ],
)
def test_what_the_packed_path_does_not_know_the_modules_decode(
    name: str, changes: dict[str, Any], fits: bool, steps: list[int]
) -> None:
    model = fam.build(name, **changes)
    mine = draw(model)
    assert bool(steps) == fits == llama.fits(model.get_decoder(), Head.of(model), fam.CONTEXT)
    same(mine, draw(model, packed=False), model)


def test_other_types_are_decoded_by_the_modules() -> None:
    model = fam.build("llama").to(torch.float64)
    assert not llama.fits(model.get_decoder(), Head.of(model), fam.CONTEXT)


# ------------------------------------------------------------ fresh weights


def canary(sampler: NativeSampler, model: Any) -> None:
    """The log-probabilities of what is drawn are the engine's, for the weights as they are now."""
    request = Request([30, 31, 32], 6, Sampling(5), 1)
    for c in sampler.generate([request])[0]:
        rollout = to_rollout(Task("a", ""), request.prompt, c, 0)
        logps = Engine(model).forward([to_sample(rollout)])[0]["logps"]
        assert float((logps - torch.tensor(rollout.logps)).abs().max()) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_every_weight_is_fresh_at_every_call(name: str, steps: list[int]) -> None:
    """Each tensor is changed alone, in place, as an optimiser does; qwen3's head is its embedding."""
    model = fam.build(name).requires_grad_(False)
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (name == "qwen3")
    for weight in dict(model.named_parameters()).values():
        before = sampler.generate([Request([30, 31, 32], 6, Sampling(5), 1)])
        weight.mul_(1.1).add_(0.02)
        sampler.load(lambda: iter(()), 1)
        canary(sampler, model)
        after = sampler.generate([Request([30, 31, 32], 6, Sampling(5), 1)])
        assert [c.logps for g in before for c in g] != [c.logps for g in after for c in g]
    assert steps


def test_an_adapter_is_drawn_with(steps: list[int]) -> None:
    base = fam.build("qwen2")
    plain = draw(base)
    wrapped = attach(base, LoRA(rank=4, targets="all-linear"), seed=1)
    same(draw(wrapped), plain, wrapped)  # B is 0 at first
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.1)
    adapted = draw(wrapped)
    assert [c.tokens for c in adapted] != [c.tokens for c in plain]
    steps.clear()
    same(adapted, draw(wrapped, packed=False), wrapped)
    assert not steps
    with wrapped.disable_adapter():
        same(draw(wrapped), plain, wrapped)
    assert steps and effective(nn.Identity()) is None
