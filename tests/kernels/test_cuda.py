"""On a real GPU: the CUDA paths compute the same as torch's operators.

Skipped without a GPU. The same code runs on the CPU with stand-ins for the kernels in models/test_fused_llama.py,
attention/test_flex.py and decoding/test_llama_cuda.py, and in Triton's interpreter in test_triton.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import families as fam
import small_run
from drawn import TOKENIZER, requests
from engine_units import LOSSES, units_of
from ladder.attention import flash
from ladder.attention.packed import PackedPlan
from ladder.decoding.llama import Llama
from ladder.decoding.llama_cuda import Graphed
from ladder.decoding.modules import Modules
from ladder.decoding.prefill import Prompts
from ladder.decoding.sampler import NativeSampler
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import CrossEntropy
from ladder.models.head import Head
from ladder.models.logprobs import token_logps
from ladder.models.lora import LoRA, attach
from ladder.packing.prefix_tree import Segment

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICE = torch.device("cuda")
HALVES = (torch.bfloat16, torch.float16)
SIZES = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}


def build(name: str, kind: torch.dtype, **changes: Any) -> Any:
    window = {"sliding_window": None} if name == "mistral" else {}
    return fam.build(name, **window, **SIZES | changes).to(DEVICE, kind)


def error(got: Tensor, truth: Tensor) -> float:
    return float((got.double() - truth.double()).norm() / truth.double().norm())


# ------------------------------------------------------------ attention


def prefix_trees() -> list[Segment]:
    """Root segments, a prompt with answers, and a chain of three segments."""
    opening = Segment(300, 130)
    prompt = Segment(430, 70, opening)
    return [
        Segment(0, 200), Segment(200, 100), opening, prompt, Segment(500, 33, prompt), Segment(533, 150, prompt),
        Segment(683, 64, opening),
    ]  # fmt: skip


BY_FLASH = [(kind, heads, 0, 0.0) for kind in HALVES for heads in ((4, 4), (6, 2))]
BY_FLEX = [
    (torch.float32, (6, 2), 0, 0.0), (torch.float32, (4, 4), 90, 5.0), (torch.bfloat16, (6, 2), 90, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "heads", "window", "softcap"), BY_FLASH + BY_FLEX, ids=str)
def test_attention_on_cuda_equals_bucket_attention(
    kind: torch.dtype, heads: tuple[int, int], window: int, softcap: float
) -> None:
    segments = prefix_trees()
    T = segments[-1].end
    g = torch.Generator().manual_seed(0)
    q, k, v, out = (torch.randn(1, h, T, 64, generator=g) for h in (heads[0], heads[1], heads[1], heads[0]))

    def run(plan: PackedPlan, how: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        attended = how(plan, 0, *leaves, scaling=0.125, window=window, softcap=softcap)
        attended.backward(out.transpose(1, 2).to(attended))
        return [attended, *(x.grad for x in leaves)]  # pyright: ignore

    by_buckets = lambda plan, _, *a, **o: plan._attend_by_buckets(*a, *o.values())  # noqa: E731
    truth = run(PackedPlan.of(segments, T), by_buckets, *(x.double() for x in (q, k, v)))
    plan = PackedPlan.of(segments, T).to(DEVICE)
    torch._dynamo.reset()  # dynamo limits how many head configurations one process compiles flex attention for
    got = run(plan, PackedPlan.attend, *(x.to(DEVICE, kind) for x in (q, k, v)))
    assert (plan._lines is not None) == ((kind, heads, window, softcap) in BY_FLASH)
    assert (plan._flexed is not None) == (plan._lines is None) and plan._rows is None
    for result, exact in zip(got, truth, strict=True):
        assert error(result.cpu(), exact) < (2e-3 if kind == torch.float32 else 8e-3)


def test_flash_attention_aligns_the_causal_mask_to_the_right() -> None:
    """Fewer queries than keys: the first query sees all keys but those of the queries after it."""
    plan = PackedPlan.of([(p := Segment(0, 5)), Segment(5, 3, p)], 8).to(DEVICE)
    q, k, v = (torch.zeros(8, 1, 64, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    v[:, 0, 0] = 2.0 ** torch.arange(8)
    out, _ = flash.attend(q, k, v, plan.lines, 1.0)
    want = [(2**n - 1) / n for n in range(1, 9)]
    assert torch.allclose(out[:, 0, 0].float().cpu(), torch.tensor(want), rtol=1e-2)


# ------------------------------------------------------------ training


@pytest.mark.parametrize("kind", [torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("name", "loss"), product(("llama", "qwen2", "qwen3"), ("token", "pair")))
def test_gradients_are_as_exact_as_those_of_the_modules(name: str, loss: str, tied: bool, kind: torch.dtype) -> None:
    """Compared with float64 on the CPU, from the same weights."""
    units = units_of(LOSSES[loss])

    def gradients(model: Any, by_modules: bool) -> dict[str, Tensor]:
        engine = Engine(model, Optim(), budget=120)
        if by_modules:
            engine.fused = None
        else:
            assert engine.fused is not None
        return {n: g.cpu() for n, g in fam.gradients(engine, units, LOSSES[loss])[0].items()}

    def make() -> Any:
        return build(name, kind, tie_word_embeddings=tied)

    truth = gradients(make().cpu().double(), True)
    fused, modules = gradients(make(), False), gradients(make(), True)
    assert fused.keys() == truth.keys()
    for n, exact in truth.items():
        assert error(fused[n], exact) < max(1.6 * error(modules[n], exact), 4e-3), n


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_training_in_bfloat16_learns_like_float32(kind: torch.dtype) -> None:
    """With a learning rate whose steps are below bfloat16's precision."""
    units = units_of(LOSSES["token"])
    curves = []
    for k, device in ((torch.float32, "cpu"), (kind, "cuda")):
        engine = Engine(fam.build("llama", **SIZES).to(device, k), Optim(lr=3e-4))
        curves.append([engine.update(units, CrossEntropy())["loss"] for _ in range(30)])
    assert curves[0][-1] < curves[0][0] - 2.0
    assert all(abs(a - b) < 1.0 for a, b in zip(*curves, strict=True)) and abs(curves[0][-1] - curves[1][-1]) < 0.15


def test_save_and_load_are_bit_exact(tmp_path: Path) -> None:
    units = units_of(LOSSES["token"])

    def engine() -> Engine:
        return Engine(build("qwen2", torch.bfloat16), Optim(lr=1e-3))

    a, b = engine(), engine()
    for _ in range(3):
        a.update(units, CrossEntropy())
    a.save(tmp_path)
    b.load(tmp_path)
    assert a.optimizer is not None and b.optimizer is not None
    for n, p in a.trained.items():
        assert p.equal(b.trained[n]) and a.optimizer.masters[n].equal(b.optimizer.masters[n])
    assert a.forward(units)[0]["logps"].equal(b.forward(units)[0]["logps"])


@pytest.mark.parametrize("entropy", [False, True])
def test_log_probabilities_of_a_large_vocabulary(entropy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    h, w = torch.randn(300, 64, generator=g), torch.randn(50_021, 64, generator=g) * 0.2
    t = torch.randint(0, len(w), (300,), generator=g)

    def run(kind: torch.dtype, device: str) -> list[Tensor]:
        a, b = (x.to(device, kind, copy=True).requires_grad_() for x in (h, w))
        logps, ents = token_logps(a, Head(b, None), t.to(device), temperature=0.8, entropy=entropy)
        (logps.sum() + (ents.sum() if ents is not None else 0)).backward()
        return [x.detach().cpu() for x in (logps, a.grad, b.grad, *([] if ents is None else [ents]))]  # pyright: ignore

    truth = run(torch.float64, "cpu")
    for keep in (True, False):
        monkeypatch.setattr("ladder.models.logprobs.KEEP", 1 << 26 if keep else 0)
        monkeypatch.setattr("ladder.models.logprobs.CHUNK", 1 << 24 if keep else 1 << 18)
        for result, exact in zip(run(torch.bfloat16, "cuda"), truth, strict=True):
            assert error(result, exact) < 1e-2
        for result, exact in zip(run(torch.float32, "cuda"), truth, strict=True):
            assert error(result, exact) < 1e-4


# ------------------------------------------------------------ decoding


def logits(state: Any, steps: int = 12) -> Tensor:
    g = torch.Generator().manual_seed(1)
    prompts, owner = [[30, 31, 32, 33, 34], [40, 41]], torch.tensor([0, 0, 1, 1]).numpy()
    out = [state.read(Prompts.of(prompts, owner), 0)[owner].double().cpu()]
    for i in range(steps):
        tokens = torch.randint(20, fam.VOCAB, (4,), generator=g).numpy()
        out.append(state.step(tokens, torch.tensor([5, 5, 2, 2]).numpy() + i).double().cpu())
    return torch.stack(out)


@pytest.mark.parametrize("kind", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_replayed_decoding_step_equals_the_modules(name: str, kind: torch.dtype) -> None:
    model = build(name, kind).requires_grad_(False)
    exact = build(name, kind).cpu().double().requires_grad_(False)
    truth = logits(Modules(exact.get_decoder(), Head.of(exact), 6, 64))
    with torch.no_grad():
        base, head = model.get_decoder(), Head.of(model)
        state = Graphed(Llama.of(base, head, 64, pack=False), 6, 64)
        graphed, modules = logits(state), logits(Modules(base, head, 6, 64))
    assert len(state.graphs) == 1
    assert error(graphed, truth) < max(1.3 * error(modules, truth), 2e-3)


def test_generate_samples_the_same_tokens_as_the_modules_and_keeps_its_graphs() -> None:
    model = build("qwen3", torch.float32).requires_grad_(False)
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS])
    oracle = NativeSampler(model, TOKENIZER, eos=[fam.EOS], packed=False)
    for scale in (1.0, 1.05):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        tokens, oracle_tokens = (
            [c.tokens for group in s.generate(requests()) for c in group] for s in (sampler, oracle)
        )
        equal_share = sum(a == b for a, b in zip(tokens, oracle_tokens, strict=True)) / len(tokens)
        assert equal_share > 0.8  # float32 products differ in their last bits, which can change a sampled token
    assert sampler.state is not None and sampler.state.graphs


@pytest.mark.parametrize("kind", [torch.bfloat16], ids=str)
def test_sampled_logps_equal_the_engines(kind: torch.dtype) -> None:
    from ladder.contract.training import Sample

    model = build("qwen2", kind)
    engine = Engine(model, Optim(lr=1e-3))
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS])
    for _ in range(2):
        units, sampled_logps = [], []
        for r, group in zip(requests(), sampler.generate(requests()), strict=True):
            for c in group:
                if r.sampling.temperature == 1 and not r.sampling.top_k and r.sampling.top_p == 1:
                    tokens = torch.tensor([*r.prompt, *c.tokens])
                    units.append(Sample(tokens, torch.arange(len(tokens)) >= len(r.prompt)))
                    sampled_logps += c.logps
        engine_logps = torch.cat([c["logps"][u.mask] for c, u in zip(engine.forward(units), units, strict=True)])
        assert (engine_logps - torch.tensor(sampled_logps)).abs().mean() < 0.05
        engine.update(units_of(LOSSES["token"]), CrossEntropy())


def test_a_bfloat16_adapter_trains_and_samples() -> None:
    wrapped = attach(build("qwen2", torch.bfloat16), LoRA(rank=4, targets="all-linear"), seed=1)
    engine = Engine(wrapped, Optim(lr=1e-2))
    losses = [engine.update(units_of(LOSSES["token"]), CrossEntropy())["loss"] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.1
    assert NativeSampler(wrapped, TOKENIZER, eos=[fam.EOS]).generate(requests())


# ------------------------------------------------------------ whole pipelines


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_pipeline_runs_and_resumes(dtype: str, tmp_path: Path) -> None:
    """Pretraining, R1-Zero, rejection sampling, SFT and RL of the tiny recipe; then the plan shows every stage done."""
    changes = "model.device=cuda", f"model.dtype={dtype}"
    small_run.run(tmp_path / "r1", *changes)
    assert set(small_run.plan(tmp_path / "r1", *changes).values()) == {"done"}
