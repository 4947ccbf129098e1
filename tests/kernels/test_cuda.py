"""On a GPU, for real: what is written for CUDA computes what the general path computes there.

Skipped where there is none. The same code runs on the processor with stand-ins in test_fused.py, test_flex.py,
test_graphed_sampler.py and in Triton's interpreter in test_tiled.py.
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
    some = {"sliding_window": None} if name == "mistral" else {}
    return fam.build(name, **some, **SIZES | changes).to(DEVICE, kind)


def error(got: Tensor, truth: Tensor) -> float:
    return float((got.double() - truth.double()).norm() / truth.double().norm())


# ------------------------------------------------------------ attention


def forest() -> list[Segment]:
    """Plain segments, a prompt with answers, and a chain of three."""
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
def test_a_packed_row_is_attended_to_as_in_buckets(
    kind: torch.dtype, heads: tuple[int, int], window: int, softcap: float
) -> None:
    segments = forest()
    T = segments[-1].end
    g = torch.Generator().manual_seed(0)
    q, k, v, out = (torch.randn(1, h, T, 64, generator=g) for h in (heads[0], heads[1], heads[1], heads[0]))

    def run(plan: PackedPlan, how: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
        some = [x.clone().requires_grad_() for x in inputs]
        attended = how(plan, 0, *some, scaling=0.125, window=window, softcap=softcap)
        attended.backward(out.transpose(1, 2).to(attended))
        return [attended, *(x.grad for x in some)]  # pyright: ignore

    by_buckets = lambda plan, _, *a, **o: plan._by_buckets(*a, *o.values())  # noqa: E731
    truth = run(PackedPlan.of(segments, T), by_buckets, *(x.double() for x in (q, k, v)))
    plan = PackedPlan.of(segments, T).to(DEVICE)
    torch._dynamo.reset()  # a process compiles flex attention for a few kinds of heads at most
    got = run(plan, PackedPlan.attend, *(x.to(DEVICE, kind) for x in (q, k, v)))
    assert (plan._lines is not None) == ((kind, heads, window, softcap) in BY_FLASH)
    assert (plan._flexed is not None) == (plan._lines is None) and plan._rows is None
    for mine, true in zip(got, truth, strict=True):
        assert error(mine.cpu(), true) < (2e-3 if kind == torch.float32 else 8e-3)


def test_the_kernels_read_causal_from_the_right() -> None:
    """Queries that continue keys: the first sees all but those of the queries behind it."""
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
def test_gradients_are_as_exact_as_the_modules(name: str, loss: str, tied: bool, kind: torch.dtype) -> None:
    """Against float64 on the processor, from the same weights."""
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
    mine, theirs = gradients(make(), False), gradients(make(), True)
    assert mine.keys() == truth.keys()
    for n, true in truth.items():
        assert error(mine[n], true) < max(1.6 * error(theirs[n], true), 4e-3), n


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_it_learns_in_halves_as_in_float32(kind: torch.dtype) -> None:
    """With a learning rate whose steps halves alone could not hold."""
    units = units_of(LOSSES["token"])
    curves = []
    for k, device in ((torch.float32, "cpu"), (kind, "cuda")):
        engine = Engine(fam.build("llama", **SIZES).to(device, k), Optim(lr=3e-4))
        curves.append([engine.update(units, CrossEntropy())["loss"] for _ in range(30)])
    assert curves[0][-1] < curves[0][0] - 2.0
    assert all(abs(a - b) < 1.0 for a, b in zip(*curves, strict=True)) and abs(curves[0][-1] - curves[1][-1]) < 0.15


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
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
        for mine, true in zip(run(torch.bfloat16, "cuda"), truth, strict=True):
            assert error(mine, true) < 1e-2
        for mine, true in zip(run(torch.float32, "cuda"), truth, strict=True):
            assert error(mine, true) < 1e-4


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
def test_a_replayed_step_is_the_modules(name: str, kind: torch.dtype) -> None:
    model = build(name, kind).requires_grad_(False)
    exact = build(name, kind).cpu().double().requires_grad_(False)
    truth = logits(Modules(exact.get_decoder(), Head.of(exact), 6, 64))
    with torch.no_grad():
        base, head = model.get_decoder(), Head.of(model)
        state = Graphed(Llama.of(base, head, 64, pack=False), 6, 64)
        mine, theirs = logits(state), logits(Modules(base, head, 6, 64))
    assert len(state.graphs) == 1
    assert error(mine, truth) < max(1.3 * error(theirs, truth), 2e-3)


def test_whole_calls_draw_what_the_modules_draw_and_graphs_outlive_them() -> None:
    model = build("qwen3", torch.float32).requires_grad_(False)
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS])
    oracle = NativeSampler(model, TOKENIZER, eos=[fam.EOS], packed=False)
    for scale in (1.0, 1.05):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        mine, theirs = (
            [c.tokens for group in s.generate(requests()) for c in group] for s in (sampler, oracle)
        )
        alike = sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine)
        assert alike > 0.8  # float32 products differ in their last bits, and a draw can lie between them
    assert sampler.state is not None and sampler.state.graphs


@pytest.mark.parametrize("kind", [torch.bfloat16], ids=str)
def test_drawn_log_probabilities_are_the_engines(kind: torch.dtype) -> None:
    from ladder.contract.training import Sample

    model = build("qwen2", kind)
    engine = Engine(model, Optim(lr=1e-3))
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS])
    for _ in range(2):
        units, drawn = [], []
        for r, group in zip(requests(), sampler.generate(requests()), strict=True):
            for c in group:
                if r.sampling.temperature == 1 and not r.sampling.top_k and r.sampling.top_p == 1:
                    tokens = torch.tensor([*r.prompt, *c.tokens])
                    units.append(Sample(tokens, torch.arange(len(tokens)) >= len(r.prompt)))
                    drawn += c.logps
        found = torch.cat([c["logps"][u.mask] for c, u in zip(engine.forward(units), units, strict=True)])
        assert (found - torch.tensor(drawn)).abs().mean() < 0.05
        engine.update(units_of(LOSSES["token"]), CrossEntropy())


def test_an_adapter_in_halves_trains_and_draws() -> None:
    wrapped = attach(build("qwen2", torch.bfloat16), LoRA(rank=4, targets="all-linear"), seed=1)
    engine = Engine(wrapped, Optim(lr=1e-2))
    losses = [engine.update(units_of(LOSSES["token"]), CrossEntropy())["loss"] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.1
    assert NativeSampler(wrapped, TOKENIZER, eos=[fam.EOS]).generate(requests())


# ------------------------------------------------------------ all of it


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_pipeline_runs_and_resumes(dtype: str, tmp_path: Path) -> None:
    """Pretraining, R1-Zero, harvest, SFT and RL of the tiny recipe; a second call finds everything done."""
    changes = "model.device=cuda", f"model.dtype={dtype}"
    small_run.run(tmp_path / "r1", *changes)
    assert set(small_run.plan(tmp_path / "r1", *changes).values()) == {"done"}
