"""Decoding in C is the modules' decoding: same tokens and log-probabilities for every family that it knows, whatever
the schedule, with fresh weights at every call; what is drawn is drawn from the right distribution; and it really runs.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import families as fam
import threads
from drawn import TOKENIZER, draw, same
from ladder.contract.rollouts import Request, Sampling
from ladder.decoding import backend, llama, llama_cpu, shared_cache
from ladder.decoding import draw as decoding_draw
from ladder.decoding.prefill import Prompts
from ladder.decoding.sampler import NativeSampler
from ladder.kernels import decode, library
from ladder.models.lora import LoRA, attach

pytestmark = pytest.mark.skipif(decode.kernels() is None, reason="no C compiler here")

WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 112}
"""Widths that the kernels know on any processor, none of them a whole number of panels."""
BIASED = {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1, "tie_word_embeddings": False}
MODELS = [
    ("llama", {}), ("llama", BIASED), ("qwen2", {}), ("qwen3", {"head_dim": 16}), ("qwen3", {"head_dim": 48}),
    ("mistral", {"sliding_window": None}), ("llama", {"num_key_value_heads": 4, "num_hidden_layers": 3}),
]  # fmt: skip


def build(name: str, **changes: Any) -> Any:
    return fam.build(name, **(WIDE | changes)).requires_grad_(False)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every step in C."""
    seen: list[int] = []
    plain = llama_cpu.Compiled.step

    def step(self: Any, tokens: Any, positions: Any) -> Any:
        seen.append(len(tokens))
        return plain(self, tokens, positions)

    monkeypatch.setattr(llama_cpu.Compiled, "step", step)
    return seen


@pytest.fixture
def plain_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_draw, "kernels", lambda _: None)


# ------------------------------------------------------------ steps


@pytest.mark.parametrize("options", [{}, {"slots": 5}, {"slots": 12, "workers": 2}], ids=str)
@pytest.mark.parametrize(("name", "changes"), MODELS)
def test_compiled_is_what_the_modules_draw(
    name: str, changes: dict[str, Any], options: dict[str, Any], steps: list[int], plain_draws: None
) -> None:
    model = build(name, **changes)
    oracle = draw(model, packed=False)
    assert not steps
    same(draw(model, **options), oracle, model)
    assert max(steps) > 3


def test_room_that_grows_changes_nothing(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    model = build("qwen3", head_dim=16)
    before = draw(model)
    monkeypatch.setattr(shared_cache, "ROOM", 1)
    assert [(c.tokens, c.logps) for c in draw(model)] == [(c.tokens, c.logps) for c in before]


def test_a_row_has_the_same_bits_in_any_company(steps: list[int]) -> None:
    """Answers to one prompt, which is read alone in any case, with few and many rows beside each other."""
    model = build("llama")

    def bits(slots: int) -> list[Any]:
        sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS, 11], slots=slots)
        return [(c.tokens, c.logps) for c in sampler.generate([Request([5, 6, 7, 8], 21, Sampling(40), 3)])[0]]

    mine = bits(21)
    for slots in (4, 7, 16):
        assert bits(slots) == mine
    assert len(set(steps)) > 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    """Of packed weights, steps and draws. Prompts are read by torch's operators, which promise nothing of the kind."""
    model = build("llama")
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS])
    owner = np.arange(23) // 2
    prompts = Prompts.of([[5 + i, 6 + i, 7 + 2 * i] for i in range(12)], owner)
    numbers = torch.rand(23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found: list[list[torch.Tensor]] = []
    try:
        for count in (1, 2, 3, 4):
            rows = llama.Llama.of(sampler.base, sampler.head, 64, pack=False)
            torch.set_num_threads(count)
            weights = llama_cpu.pack(rows, dtype)
            state = llama_cpu.Compiled(rows, weights, 23)
            torch.set_num_threads(1)
            with torch.no_grad():
                state.read(prompts, 0)
                torch.set_num_threads(count)
                logits = [state.step(np.arange(23) + 3 * j, prompts.lengths[owner] + j).clone() for j in range(4)]
            laid = decode.Arena([model.lm_head.weight.shape], dtype).pack(model.lm_head.weight)
            x = torch.randn(70, 64, generator=torch.Generator().manual_seed(1))
            found.append([*logits, *decode.draw(logits[-1], numbers, 0.9), laid.multiply(x, None)])
    finally:
        threads.settle()
    for some in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(some, found[0], strict=True))


@pytest.mark.parametrize("count", [2, 3])
def test_draws_of_many_threads_are_the_models(count: int, steps: list[int]) -> None:
    model = build("llama")
    mine = draw(model)
    torch.set_num_threads(threads.NUMBER + count - 1)
    try:
        same(draw(model), mine, model)
    finally:
        threads.settle()
    assert steps


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_every_weight_is_fresh_at_every_call(name: str, steps: list[int]) -> None:
    model = build(name, head_dim=16)
    for weight in dict(model.named_parameters()).values():
        weight.mul_(1.1).add_(0.02)
        same(draw(model), draw(model, packed=False), model)
    assert steps


def test_an_adapter_is_drawn_with(steps: list[int]) -> None:
    base = fam.build("qwen2", **WIDE)
    plain = draw(base)
    wrapped = attach(base, LoRA(rank=4, targets="all-linear"), seed=1)
    same(draw(wrapped), plain, wrapped)  # B is 0 at first
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.1)
    adapted = draw(wrapped)
    assert [c.tokens for c in adapted] != [c.tokens for c in plain]
    same(adapted, draw(wrapped, packed=False), wrapped)
    assert steps


def test_who_decodes_what_the_kernels_do_not_know(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    """Odd widths, few rows and machines without a compiler: torch's operators, with the same result."""
    odd = build("qwen3", head_dim=6)  # no multiple of any vector
    assert llama_cpu.obstacle(odd.get_decoder())
    same(draw(odd), draw(odd, packed=False), odd)
    wide = build("llama")
    with monkeypatch.context() as few:
        few.setattr(backend, "PACK_TOKENS", 10**6)
        oracle = draw(wide, slots=backend.PACK_ROWS - 1)
    assert not steps
    monkeypatch.setattr(llama_cpu, "obstacle", lambda _: "no compiler")
    same(draw(wide), oracle, wide)
    assert not steps


def test_a_step_is_the_plain_computation_at_many_sizes() -> None:
    """The logits of one step for any number of rows, against the operators."""
    model = build("llama", vocab_size=131, num_hidden_layers=1)
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS])
    rows = llama.Llama.of(sampler.base, sampler.head, 64, pack=False)
    for A in range(1, 2 * decode.ROWS + 3):
        owner = np.arange(A) * 2 // A
        prompts = Prompts.of([[5, 6, 7], [8, 9]][: owner.max() + 1], owner)
        logits = []
        for state in (llama.Decoder(rows, A), llama_cpu.Compiled(rows, llama_cpu.pack(rows), A)):
            with torch.no_grad():
                state.read(prompts, 0)
                for j in range(3):
                    found = state.step(np.arange(A) + 3 * j, prompts.lengths[owner] + j)
            logits.append(found)
        assert torch.allclose(*logits, atol=2e-5), A


def test_few_prompts_are_cut_into_pieces_for_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # 16 rows and three heads of keys: one thread takes them together, two get four pieces each (3 x 3 heads of keys)
    assert [decode.piece(16, 9, 3, threads) for threads in (1, 2, 4, 64)] == [16, 6, 3, 3]
    # queries fill a product's eight rows as long as there are eight; many rows are not cut further than before
    assert decode.piece(64, 3, 3, 64) == 8 and decode.piece(64, 32, 1, 64) == 1
    assert decode.piece(1000, 9, 3, 2) == decode.ROWS

    model = build("llama", num_hidden_layers=1)
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS])
    rows = llama.Llama.of(sampler.base, sampler.head, 64, pack=False)
    owner = np.array([0, 0, 0, 1, 0, 0, 1, 0, 0, 0])
    prompts, logits = Prompts.of([[5, 6, 7], [8, 9]], owner), []
    for most in (decode.ROWS, 3, 1):
        monkeypatch.setattr(decode, "piece", lambda *_, most=most: most)
        state = llama_cpu.Compiled(rows, llama_cpu.pack(rows), len(owner))
        with torch.no_grad():
            state.read(prompts, 0)
            logits.append(state.step(np.arange(10) + 3, prompts.lengths[owner]).clone())
        assert state.turn is not None and state.turn.units.most == min(most, 8)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


# ------------------------------------------------------------ draws


@pytest.mark.parametrize("V", [1, 5, 16, 100, 128, 129, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
def test_a_draw_is_the_inverse_cdf(V: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(V)
    logits = torch.randn(50, V + 3, generator=g)[:, :V] * 4
    u = torch.rand(50, generator=g, dtype=torch.float64)
    u[0], u[1] = 0.0, 1 - 2**-53
    tokens, logps = decode.draw(logits, u, temperature)
    exact = (logits.double() / temperature).log_softmax(-1)
    cdf = exact.exp().cumsum(-1)
    above = cdf.gather(1, tokens[:, None])[:, 0]
    below = above - exact.exp().gather(1, tokens[:, None])[:, 0]
    assert bool(((below - 1e-6 <= u) & (u <= above + 1e-6)).all())  # sums of float32 know their boundaries no better
    assert float((tokens != (cdf <= u[:, None]).sum(-1).clamp(max=V - 1))[2:].float().mean()) < 0.05
    assert torch.allclose(logps.double(), exact.gather(1, tokens[:, None])[:, 0], atol=2e-6)


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.full((3, 300), -torch.inf)
    logits[:, 7] = 1.0
    logits[1, 250] = 1.0
    tokens, logps = decode.draw(logits, torch.tensor([0.0, 0.75, 1 - 2**-53], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [7, 250, 7]
    assert torch.allclose(logps, torch.tensor([0.0, -np.log(2), 0.0], dtype=torch.float32), atol=1e-6)


def test_truncated_and_greedy_draws_take_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "draw", lambda *_: pytest.fail("drawn by the kernel"))
    u = torch.full((2,), 0.5, dtype=torch.float64)
    for how in (Sampling(temperature=0), Sampling(top_p=0.9), Sampling(top_k=3), Sampling(min_p=0.1)):
        decoding_draw.draw(torch.randn(2, 50), u, how)


# ------------------------------------------------------------ the library


def test_a_library_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    off = ("LADDER_KERNELS", "0", "turns")
    for name, value, word in (("CC", "no-such-compiler", "no C compiler"), off, ("CC", "false", "could not")):
        with monkeypatch.context() as m:
            m.setenv(name, value)
            library.library.cache_clear()
            assert library.library("decode") is None
            assert word in str(library.why("decode"))
    library.library.cache_clear()
    library._reasons.clear()
    assert decode.kernels() is not None and library.why("decode") is None
    assert len(list((tmp_path / "signal-ladder" / "kernels").glob("*.so"))) == 1


TARGETS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "native", "sapphirerapids")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Path]:
    """Libraries are looked for and made in a cache of the test's own, and forgotten after it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.library.cache_clear()
    yield tmp_path / "signal-ladder" / "kernels"
    library.library.cache_clear()
    library._reasons.clear()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="targets of x86-64")
def test_a_library_for_another_processor_computes_or_says_what_is_missing(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(0)
    weight, x, made = torch.randn(101, 200, generator=g), torch.randn(9, 200, generator=g), 0
    for target in TARGETS:
        monkeypatch.setenv("LADDER_MARCH", target)
        library.library.cache_clear()
        said = library.why("decode")
        if said is not None:
            assert target != "native" and ("this processor has no" in said or "bad value" in said or "unknown" in said)
            made += "this processor has no" in said
            continue
        made += 1
        got = decode.Arena([weight.shape], torch.float32).pack(weight).multiply(x, None)
        assert torch.allclose(got.double(), x.double() @ weight.double().T, atol=1e-4), target
    assert len(list(elsewhere.glob("*.so"))) == made, "each target has a library of its own"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="targets of x86-64")
@pytest.mark.parametrize("target", TARGETS)
def test_the_kernels_compile_without_a_warning(target: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = ("-Wextra", "-Wno-unused-parameter", "-Wno-unknown-pragmas", "-Werror")
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, *strict))
    monkeypatch.setenv("LADDER_MARCH", target)
    for name in library.NAMES:
        said = library.why(name)
        assert said is None or "this processor has no" in said or target == "sapphirerapids", said
