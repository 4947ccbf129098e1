"""The fused decoder computes the same loss and gradients as transformers' modules: for every supported family, with
adapters, shared prompts, pairs, scalar heads and frozen parameters; and it is really used, or the reason is given.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import families as fam
import tiles
from engine_units import LOSSES, group, same, units_of, weights
from ladder.attention.packed import PackedPlan
from ladder.contract.training import Loss, Sample, Unit
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.kernels import library
from ladder.losses import BradleyTerry
from ladder.models import fused_llama
from ladder.models.lora import LoRA, adapter_off, attach
from ladder.packing.pack import sequences

either = pytest.mark.usefixtures("path")
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one key head": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 16},
    "yarn": {"rope_parameters": YARN},
}
FROZEN = [
    ("embed_tokens",),
    ("embed_tokens", "layers.0."),
    ("embed_tokens", "layers."),
    ("proj", "embed", "lm_head"),
    ("layers.1.", "norm"),
]
KNOWN = ("llama", "qwen2", "qwen3", "mistral")


def build(name: str, **changes: Any) -> Any:
    return fam.build(name, **({"sliding_window": None} if name == "mistral" else {}), **changes)


@pytest.fixture(params=["C", "CUDA"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU's kernels, or the CUDA path with torch operators in place of its kernels."""
    if request.param == "CUDA":
        tiles.in_place(monkeypatch)
        monkeypatch.setattr(fused_llama, "_has_kernels", lambda base: True)
    elif fused_llama.missing() is not None:
        pytest.skip(str(fused_llama.missing()))
    return request.param


def pair(make: Any, **options: Any) -> tuple[Engine, Engine]:
    """Two engines of the same model: one with the fused decoder, one with transformers' modules."""
    fused, modules = (Engine(make(), Optim(lr=1e-3), **options) for _ in range(2))
    assert fused.fused is not None, "not fused"
    modules.fused = None
    return fused, modules


def agree(fused: Engine, modules: Engine, units: list[Unit], loss: Loss, tolerance: float = 1e-5) -> dict[str, Tensor]:
    """Asserts equal losses and gradients, and returns the gradients."""
    (got, a), (want, b) = (fam.gradients(e, units, loss) for e in (fused, modules))
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)  # sums of some hundred log-probabilities in float32
    assert got.keys() == want.keys() and got
    for name in want:
        assert not got[name].is_sparse and got[name].is_contiguous()
        worst = float((got[name] - want[name]).abs().max() / want[name].abs().max().clamp(min=1e-6))
        assert worst < tolerance, f"{name}: off by {worst:.2g}"
    return got


@either
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("loss", ["token", "everything", "pair"])
@pytest.mark.parametrize("split", [(40, 1, True), (999, 1, True), (999, 1, False), (999, 2, True)])
def test_loss_and_gradients_equal_those_of_the_modules(
    name: str, tied: bool, loss: str, split: tuple[int, int, bool]
) -> None:
    options = dict(zip(("budget", "workers", "share_prefix"), split, strict=True))
    got = agree(*pair(lambda: build(name, tie_word_embeddings=tied), **options), units_of(LOSSES[loss]), LOSSES[loss])
    assert ("lm_head.weight" in got) != tied
    assert any("q_norm" in n for n in got) == (name == "qwen3")
    assert any("q_proj.bias" in n for n in got) == (name == "qwen2")


@either
@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_of_llama(shape: str) -> None:
    agree(*pair(lambda: build("llama", **SHAPES[shape])), units_of(LOSSES["token"]), LOSSES["token"])


@either
@pytest.mark.parametrize("tied", [False, True])
def test_the_pad_tokens_embedding_gets_no_gradient(tied: bool) -> None:
    samples = group(0, 3, prompt=6)
    for s in samples:
        s.tokens[2] = fam.PAD
    fused, modules = pair(lambda: build("llama", tie_word_embeddings=tied))
    got = agree(fused, modules, list(samples), LOSSES["token"])
    assert tied or not got["model.embed_tokens.weight"][fam.PAD].any()


@either
@pytest.mark.parametrize("targets", ["attention", "mlp", "all-linear"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_adapters(targets: str, name: str) -> None:
    def make() -> Any:
        wrapped = attach(build(name), LoRA(rank=3, alpha=7, targets=targets), seed=1)
        g = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for n, p in wrapped.named_parameters():
                if "lora_B" in n:
                    p.copy_(0.3 * torch.randn(p.shape, generator=g))
        return wrapped

    fused, modules = pair(make, budget=60)
    got = agree(fused, modules, units_of(LOSSES["everything"]), LOSSES["everything"])
    assert all("lora_" in n for n in got)
    for e in (fused, modules):
        e.without = lambda e=e: adapter_off(e.model)  # pyright: ignore[reportArgumentType]
    units = units_of(LOSSES["token"])
    adapter_off_columns, adapter_on_columns = (fused.forward(units, reference=r) for r in (True, False))
    base_columns = Engine(build(name)).forward(units)
    for off, base, on in zip(adapter_off_columns, base_columns, adapter_on_columns, strict=True):
        torch.testing.assert_close(off["logps"], base["logps"], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(off["logps"], on["logps"], atol=1e-3)


@either
def test_a_scalar_head() -> None:
    import transformers as tf

    def make() -> Any:
        config = build("llama").config
        config.num_labels = 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return tf.LlamaForSequenceClassification(config).eval()

    units = units_of(LOSSES["pair"])
    for s in sequences(units):
        s.mask[:] = False
        s.mask[-1] = True
    agree(*pair(make), units, BradleyTerry())


@either
@pytest.mark.parametrize("frozen", FROZEN, ids=" ".join)
def test_frozen_parameters_get_no_gradient_and_change_no_other(frozen: tuple[str, ...]) -> None:
    def make() -> Any:
        model = build("llama")
        for n, p in model.named_parameters():
            p.requires_grad_(not any(part in n for part in frozen))
        return model

    got = agree(*pair(make), units_of(LOSSES["token"]), LOSSES["token"])
    assert not any(part in n for n in got for part in frozen)


@either
def test_one_token_answers_and_repeated_positions() -> None:
    """The first token of every answer is predicted from one hidden state, that of the shared prompt's last token."""
    prompt = torch.arange(10, 20)
    units: list[Unit] = [Sample(torch.cat([prompt, torch.tensor([t])]), torch.arange(11) >= 10) for t in (30, 31, 32)]
    agree(*pair(lambda: build("llama")), units, LOSSES["token"])


@either
@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_steps_give_bit_identical_weights(workers: int) -> None:
    final_weights = []
    for _ in range(2):
        e = Engine(build("llama"), Optim(lr=1e-2), budget=60, workers=workers)
        for _ in range(3):
            e.update(units_of(LOSSES["everything"]), LOSSES["everything"])
        final_weights.append(weights(e))
    assert same(*final_weights)


@either
def test_a_second_backward_raises() -> None:
    e = Engine(build("llama"), Optim())
    assert e.fused is not None
    from ladder.packing.pack import pack

    (packed,) = pack(group(0, 2), (), 999)
    plan = PackedPlan.of(packed.segments, len(packed.tokens_T))
    states = e.fused.hidden(packed.tokens_T, packed.positions_T, plan, packed.src_N)
    states.sum().backward(retain_graph=True)
    with pytest.raises(AssertionError, match="one backward a forward"):
        states.sum().backward()


def test_unsupported_models_use_the_modules() -> None:
    unsupported = ("gemma2", "gemma3", "phi3", "gpt2", "smollm3", "mistral")  # this mistral has a sliding window
    assert not any(Engine(fam.build(n)).fused for n in unsupported)
    assert Engine(fam.build("llama").double()).fused is None
    assert Engine(fam.build("llama").bfloat16()).fused is None
    assert Engine(fam.build("llama"), Optim(), checkpointing=True).fused is None
    assert Engine(fam.build("llama", hidden_act="gelu")).fused is None
    dropout = attach(build("llama"), LoRA(rank=2), seed=0)
    for m in dropout.modules():
        if hasattr(m, "lora_dropout"):
            m.lora_dropout["default"] = torch.nn.Dropout(0.1)  # pyright: ignore
    assert Engine(dropout).fused is None


def test_without_kernels_the_reason_is_given_and_the_modules_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    library.library.cache_clear()
    monkeypatch.setenv("LADDER_KERNELS", "0")
    try:
        e = Engine(build("llama"), Optim())
        assert e.fused is None and fused_llama.missing() == "LADDER_KERNELS=0 turns compiled kernels off"
        assert e.update(units_of(LOSSES["token"]), LOSSES["token"])["loss"] > 0
    finally:
        library.library.cache_clear()
        library._reasons.clear()


MEASURE = """
import resource, sys, torch
from ladder.engine.allocator import keep_pages
if sys.argv[1] == "keep":
    assert keep_pages()
def step():
    [torch.ones(1 << 24) for _ in range(2)]
for _ in range(8):  # the first few steps leave holes into which aligned blocks do not fit
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_training_engine_makes_the_allocator_keep_freed_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("ladder.engine.engine.keep_pages", lambda: calls.append(1))
    Engine(build("llama"))
    assert not calls
    Engine(build("llama"), Optim())
    assert calls
    faults = [
        int(subprocess.run([sys.executable, "-c", MEASURE, word], capture_output=True, text=True, check=True).stdout)
        for word in ("keep", "default")
    ]
    assert faults[0] * 10 < faults[1]  # two blocks of 16,384 pages, four times; of 32 where pages are huge


def test_gradients_are_accumulated_in_place() -> None:
    """The fused decoder returns no gradient to autograd, which would hold a second copy."""
    e = Engine(build("llama", tie_word_embeddings=True), Optim(lr=1e-3), budget=40)
    if e.fused is None:
        pytest.skip(str(fused_llama.missing()))
    seen_by_autograd: set[str] = set()
    for name, p in e.trained.items():
        p.register_hook(lambda grad, name=name: seen_by_autograd.add(name) if grad is not None else None)
    e.update(units_of(LOSSES["everything"]), LOSSES["everything"])
    assert not seen_by_autograd
    e.fused = None
    e.update(units_of(LOSSES["everything"]), LOSSES["everything"])
    assert seen_by_autograd == e.trained.keys()
