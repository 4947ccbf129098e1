"""Decoding in bfloat16: products are those of rounded numbers, whichever unit computes them; a step is the plain
computation with everything rounded that is said to be; and what it costs in log-probability is bounded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import families as fam
from drawn import TOKENIZER, draw, plain, requests
from ladder.base.errors import UserError
from ladder.contract.rollouts import Completion, Request, Sampling
from ladder.decoding import llama, llama_cpu
from ladder.decoding.key_values import KeyValues, Layout
from ladder.decoding.llama_torch import Shared
from ladder.decoding.prefill import Prompts
from ladder.decoding.sampler import NativeSampler
from ladder.kernels import decode, library, memory
from ladder.models.lora import LoRA, attach

pytestmark = pytest.mark.skipif(decode.kernels() is None, reason="no C compiler here")

WITHOUT = {"all": (), "no tiles": ("-mno-amx-bf16",), "no halves": ("-mno-amx-bf16", "-mno-avx512bf16")}
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 112}
ODD = {"hidden_size": 48, "head_dim": 16, "num_key_value_heads": 1, "intermediate_size": 37}


@pytest.fixture(params=WITHOUT)
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels as made for processors with fewer units."""
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, *WITHOUT[request.param]))
    library.library.cache_clear()
    if decode.kernels() is None:
        pytest.skip(f"this compiler knows no {WITHOUT[request.param]}")
    yield
    library.library.cache_clear()


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


# ------------------------------------------------------------ products


def test_packed_weights_are_the_nearest_halves() -> None:
    g = torch.Generator().manual_seed(0)
    for N, K in ((1, 1), (47, 33), (100, 64)):
        weight = torch.randn(N, K, generator=g) * 10.0 ** torch.randint(-30, 30, (N, K), generator=g)
        weight.view(-1)[:4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, float("inf"), float("nan")])[: N * K]
        packed = decode.Arena([weight.shape], torch.bfloat16).pack(weight)
        width = decode.kernels().panel_width()
        laid = packed.memory.view(-1, decode.deep(K) // 2, width, 2).transpose(1, 2).reshape(-1, decode.deep(K))
        assert torch.equal(laid[:N, :K].nan_to_num(7), weight.bfloat16().nan_to_num(7))
        assert not laid[N:].any() and not laid[:N, K:].any()


@pytest.mark.parametrize("K", [1, 31, 48, 592])
@pytest.mark.parametrize("N", [1, 48, 101])
def test_a_product_is_that_of_rounded_numbers(N: int, K: int, units: None) -> None:
    g = torch.Generator().manual_seed(N * K)
    weight, bias = torch.randn(N, K, generator=g), torch.randn(N, generator=g)
    packed = decode.Arena([weight.shape], torch.bfloat16).pack(weight)
    for A in (1, 7, 16, 17, 33, 64, 65, 130):
        x = torch.randn(A, K, generator=g)
        exact = rounded(x).double() @ rounded(weight).double().T
        for b in (None, bias):
            got = packed.multiply(x, b)
            assert torch.allclose(got.double(), exact if b is None else exact + b, atol=2e-4), (A, b is None)


# ------------------------------------------------------------ steps


class Rounding(Shared):
    """Keys and values as bfloat16 keeps them."""

    def fill(self, cache: KeyValues, layout: Layout, first: int) -> None:
        super().fill({i: (rounded(k), rounded(v)) for i, (k, v) in cache.items()}, layout, first)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(layer, q, rounded(k), rounded(v))


def oracle(model: llama.Llama, slots: int) -> llama.Decoder:
    """Operators over rounded matrices, with rounded inputs."""
    for matrix in [m for x in model.layers for m in (x.qkv, x.out, x.gate, x.up, x.down)] + [model.head]:
        weight = rounded(matrix.weight)
        matrix.leave_to(lambda x, bias, weight=weight: F.linear(rounded(x), weight, bias))
    decoder = llama.Decoder(model, slots)
    group = model.heads // model.key_heads
    decoder.store = Rounding(len(model.layers), model.key_heads, group, model.width, slots, model.embedding)
    return decoder


@pytest.mark.parametrize(("name", "changes"), [("llama", WIDE), ("qwen3", ODD), ("qwen2", WIDE)])
def test_a_step_is_the_plain_computation_rounded(name: str, changes: dict[str, Any], units: None) -> None:
    """But where a sum's last bit decides to which side one of some thousand numbers is rounded: in a row of ten."""
    model = fam.build(name, vocab_size=131, **changes).requires_grad_(False)
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS])
    off: list[Tensor] = []
    for A in (1, 5, 16, 35, 70):
        owner = np.arange(A) // 2
        some = [[5 + i, 6 + i, 7 + i][: 2 + i % 2] for i in range(owner.max() + 1)]
        prompts = Prompts.of(some, owner)
        plain, here = (llama.Llama.of(sampler.base, sampler.head, 64, pack=False) for _ in range(2))
        logits = []
        for state in (oracle(plain, A), llama_cpu.Compiled(here, llama_cpu.pack(here, torch.bfloat16), A)):
            with torch.no_grad():
                state.read(prompts, 0)
                for j in range(3):
                    found = state.step(np.arange(A) + 3 * j, prompts.lengths[owner] + j)
            logits.append(found)
        off.append((logits[0] - logits[1]).abs().amax(-1))
    every = torch.cat(off)
    assert float(every.quantile(0.7)) < 1e-5 and float(every.max()) < 0.1, every


def test_it_is_no_further_off_than_a_model_in_bfloat16() -> None:
    """Log-probabilities against the float32 model's of the same tokens, beside those of the modules with everything in
    bfloat16."""
    model = fam.build("llama", **WIDE).requires_grad_(False)
    half = draw(model, dtype=torch.bfloat16)
    modules = draw(copy.deepcopy(model).bfloat16(), packed=False)
    prompts = [r.prompt for r in requests() for _ in range(r.n)]

    def off(drawn: list[Completion]) -> float:
        exact = plain(model, [p + c.tokens for p, c in zip(prompts, drawn, strict=True)])
        apart = []
        for prompt, c, logits in zip(prompts, drawn, exact, strict=True):
            logps = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(c.tokens)[:, None])[:, 0]
            apart.append((logps - torch.tensor(c.logps)).abs())
        return float(torch.cat(apart).mean())

    assert 1e-4 < off(half) < 1.2 * off(modules)


def test_an_adapter_and_fresh_weights_are_drawn_with() -> None:
    base = fam.build("qwen2", **WIDE)
    wrapped = attach(base, LoRA(rank=4, targets="all-linear"), seed=1)
    sampler = NativeSampler(wrapped, TOKENIZER, eos=[fam.EOS], dtype=torch.bfloat16)
    drawn = []
    for std in (0.0, 0.3):
        with torch.no_grad():
            for name, p in wrapped.named_parameters():
                if "lora_B" in name:
                    p.normal_(generator=torch.Generator().manual_seed(len(name)), std=std)
        drawn.append(sampler.generate([Request([5, 6, 7], 8, Sampling(12))]))
    assert [c.tokens for c in drawn[0][0]] != [c.tokens for c in drawn[1][0]]


def test_what_has_no_bfloat16_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    half: dict[str, Any] = {"eos": [fam.EOS], "dtype": torch.bfloat16}
    odd = fam.build("qwen3", **WIDE, head_dim=6)
    for model, words in ((fam.cached("gemma2"), "through its own modules"), (odd, "width of 6 is no multiple")):
        with pytest.raises(UserError, match=words) as error:
            NativeSampler(model, TOKENIZER, **half)
        assert error.value.field == "sampler.dtype" and error.value.hint
    monkeypatch.setenv("LADDER_KERNELS", "0")
    library.library.cache_clear()
    try:
        with pytest.raises(UserError, match="turns compiled kernels off"):
            NativeSampler(fam.build("llama", **WIDE), TOKENIZER, **half)
    finally:
        monkeypatch.undo()
        library.library.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_lies_in_fresh_memory_changes_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fam.build("llama", **WIDE).requires_grad_(False)
    before = [(c.tokens, c.logps) for c in draw(model, dtype=dtype)]
    plain = memory.empty
    monkeypatch.setattr(memory, "empty", lambda *of: plain(*of).fill_(float("nan")))
    assert [(c.tokens, c.logps) for c in draw(model, dtype=dtype)] == before
