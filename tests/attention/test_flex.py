"""Attention over packed segments as on CUDA equals bucket attention, forward and backward; flex attention's block grid
matches the mask; another packed row compiles nothing; and the CPU never uses flex or flash attention.

None of this runs on CUDA: flex attention runs uncompiled (torch's check against gradients on the CPU is disabled; its
computation in torch's operators exists), and `tiles.py` replaces the kernels of flash attention.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from torch import Tensor

import families as fam
import tiles
from ladder.attention import flash, flex
from ladder.attention.packed import PackedPlan
from ladder.contract.training import Sample
from ladder.engine.engine import Engine
from ladder.kernels import dispatch
from ladder.losses import CrossEntropy
from ladder.packing.pack import count, pack
from ladder.packing.prefix_tree import Segment

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


def family(start: int, prompt: int, *answers: int) -> list[Segment]:
    """A prompt's segment and those of its answers."""
    root = Segment(start, prompt)
    out, at = [root], start + prompt
    for n in answers:
        out.append(Segment(at, n, root))
        at += n
    return out


def flat(*lengths: int) -> list[Segment]:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [Segment(s, n) for s, n in zip(starts, lengths, strict=True)]


def forked() -> list[Segment]:
    """A tree with three levels, followed by a second tree."""
    root = Segment(0, 140)
    low, high = Segment(140, 20, root), Segment(250, 140, root)
    more = [Segment(160, 90, low), high, Segment(390, 5, high), Segment(395, 130, high)]
    return [root, low, *more, *family(525, 9, 60, 60)]


PACKS = {
    "forked": forked(),
    "plain": flat(5, 130, 1, 40),
    "shared": family(0, 150, 90, 1, 30) + family(271, 3, 2, 200),
    "late prompt": flat(300) + family(300, 260, 140, 17),
    "whole blocks": family(0, 128, 128, 256),
    "one": flat(200),
    "one over": family(0, 200, 57),
    "few": family(0, 2, 1, 3),
}


def inputs(T: int, heads: int, key_heads: int, kind: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(T)
    qkv = [torch.randn(1, n, T, 16, generator=g) for n in (heads, key_heads, key_heads)]
    return [x.to(kind).requires_grad_() for x in qkv]


def outcome(plan: PackedPlan, heads: tuple[int, int], kind: torch.dtype = torch.float32, **how: Any) -> list[Tensor]:
    """The attention output, and the gradients of a random projection of it with respect to queries, keys and values."""
    leaves = inputs(sum(s.length for s in plan.segments), *heads, kind)
    out = plan.attend(0, *leaves, scaling=0.4, **how)
    mix = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(kind)
    return [out.detach(), *torch.autograd.grad((out * mix).sum(), leaves)]


def plan_of(name: str) -> PackedPlan:
    return PackedPlan.of(PACKS[name], sum(s.length for s in PACKS[name]))


def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes plans attend as on CUDA; returns a list to which each call adds the module that computes it."""
    callers: list[str] = []
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "fits", lambda q, v: True)
    for module in (flex, flash):
        plain, name = module.attend, module.__name__
        monkeypatch.setattr(module, "attend", lambda *a, _p=plain, _n=name, **k: callers.append(_n) or _p(*a, **k))
    return callers


CASES = [
    (pack, window, softcap, heads)
    for pack in PACKS
    for window, softcap, heads in ((0, 0.0, (4, 2)), (7, 0.0, (2, 2)), (140, 2.0, (3, 1)))
]


@pytest.mark.parametrize(("pack", "window", "softcap", "heads"), CASES)
def test_flex_attention_equals_bucket_attention(
    pack: str, window: int, softcap: float, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = outcome(plan_of(pack), heads, window=window, softcap=softcap)
    taken = as_on_cuda(monkeypatch)
    got = outcome(plan_of(pack), heads, window=window, softcap=softcap)
    assert taken == ([] if pack == "one" and not window else ["ladder.attention.flex"])
    for flex_result, bucket_result in zip(got, want, strict=True):
        torch.testing.assert_close(flex_result, bucket_result, atol=2e-5, rtol=1e-4)


def test_short_segments_are_not_padded_to_long_ones() -> None:
    segments = [*family(0, 300, 220, 5), *family(525, 5), *family(530, 3)]
    buckets = PackedPlan.of(segments, 533).rows.buckets
    assert [(b.n, b.Lq, b.Lk) for b in buckets] == [(1, 300, 300), (2, 5, 5), (1, 220, 520), (1, 5, 305)]


@pytest.mark.parametrize("window", [0, 1, 7, 128, 200])
@pytest.mark.parametrize("name", PACKS)
def test_the_block_grid_matches_the_dense_mask(name: str, window: int) -> None:
    row = plan_of(name).flexed
    n, mask = row.padded // flex.BLOCK, row.mask(window)
    dense = torch_flex.create_mask(mask.mask_mod, 1, 1, row.padded, row.padded, "cpu")[0, 0]
    tiles = dense.view(n, flex.BLOCK, n, flex.BLOCK)
    nonempty, full = (torch.from_numpy(grid) for grid in row.blocks(window))
    assert torch.equal(full, tiles.all(3).all(1))
    assert torch.equal(nonempty, tiles.any(3).any(1))
    assert torch.equal(mask.to_dense()[0, 0].bool(), nonempty)
    assert mask.full_kv_num_blocks is not None
    assert int(mask.full_kv_num_blocks.sum()) == int(full.sum())
    assert int(mask.kv_num_blocks.sum()) == int((nonempty & ~full).sum())  # otherwise keys would count twice
    assert bool(dense.any(1).all())  # padding queries see at least one key as well


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "phi3"])
def test_model_gradients_equal_those_of_bucket_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliding windows, soft caps and grouped queries of real model families, with shared prompts."""
    g = torch.Generator().manual_seed(2)
    prompt = torch.randint(20, fam.VOCAB, (60,), generator=g)
    samples = []
    for n in (30, 80, 3):
        tokens = torch.cat([prompt, torch.randint(20, fam.VOCAB, (n,), generator=g)])
        samples.append(Sample(tokens, torch.arange(len(tokens)) >= 60, {}, {}))
    want = gradients(fam.build(name), samples)
    taken = as_on_cuda(monkeypatch)
    got = gradients(fam.build(name), samples)
    assert len(taken) >= 2 and set(taken) == {"ladder.attention.flex"}  # every layer
    assert got.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(got[key], want[key], atol=1e-5, rtol=1e-3, msg=key)


def gradients(model: Any, samples: list[Sample]) -> dict[str, Tensor]:
    engine, loss = Engine(model), CrossEntropy()
    total = count(samples, loss)
    for packed in pack(samples, loss.needs, 10_000):
        each, _ = loss(engine._out(packed, False), packed.batch)
        (each.sum() / total).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_another_packed_row_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths, windows and caps vary within three programs: the first call is specialised to its own sizes, the second
    compiles one with dynamic sizes, and soft caps need one more."""
    programs: list[Any] = []
    compiled = torch.compile(
        torch_flex.flex_attention,
        dynamic=True,
        fullgraph=True,
        backend=lambda program, _: programs.append(program) or program,
    )
    monkeypatch.setattr(flex, "flex_attention", compiled)
    counts = []
    for lengths, window, softcap in (
        ((200, 30), 0, 0.0), ((300, 90), 0, 0.0), ((500, 90, 70), 0, 0.0), ((700,), 9, 0.0), ((310, 90), 80, 0.0),
        ((300, 90), 0, 2.0), ((500, 300), 0, 3.0), ((600, 500), 70, 4.0),
    ):  # fmt: skip
        segments = flat(*lengths)
        row = PackedPlan.of(segments, sum(lengths)).flexed
        q, k, v = (x.detach() for x in inputs(row.tokens, 4, 2))
        flex.attend(row, q, k, v, scaling=0.4, window=window, softcap=softcap)
        counts.append(len(programs))
    assert counts[1:5] == [counts[1]] * 4 and counts[5:] == [counts[1] + 1] * 3


def test_the_cpu_never_uses_flex_or_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("chosen on a processor")

    for module in (flex, flash):
        monkeypatch.setattr(module, "attend", never)
    for kind in (torch.float32, torch.bfloat16):
        outcome(plan_of("shared"), (4, 2), kind, window=0, softcap=0.0)


@pytest.mark.parametrize(
    ("device", "kind", "widths", "fits"),
    [
        ("cuda", torch.bfloat16, (64, 64), True),
        ("cuda", torch.float32, (16, 80), True),
        ("cuda", torch.float32, (12, 64), False),
        ("cuda", torch.float32, (64, 12), False),
        ("cuda", torch.float64, (64, 64), False),
        ("cpu", torch.float32, (64, 64), False),
        ("mps", torch.float32, (64, 64), False),
    ],
)
def test_which_inputs_flex_attention_supports(
    device: str, kind: torch.dtype, widths: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LADDER_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "tiled", lambda: tiles)
    q, v = (SimpleNamespace(device=torch.device(device), dtype=kind, shape=(1, 2, 9, w)) for w in widths)
    assert flex.fits(q, v) == fits  # pyright: ignore
    with monkeypatch.context() as m:
        m.setattr(dispatch, "tiled", lambda: None)
        assert not flex.fits(q, v)  # pyright: ignore
    monkeypatch.setenv("LADDER_KERNELS", "0")
    assert not flex.fits(q, v)  # pyright: ignore


# ------------------------------------------------------------ flash attention


def halves(q: Any, v: Any) -> bool:
    return q.dtype in flash.HALVES


@pytest.mark.parametrize(
    ("name", "kind", "window", "softcap", "who"),
    [
        ("plain", torch.bfloat16, 0, 0.0, ["ladder.attention.flash"]),
        ("plain", torch.float16, 130, 0.0, ["ladder.attention.flash"]),  # as wide as the longest
        ("plain", torch.bfloat16, 129, 0.0, ["ladder.attention.flex"]),
        ("plain", torch.bfloat16, 0, 2.0, ["ladder.attention.flex"]),
        ("plain", torch.float32, 0, 0.0, ["ladder.attention.flex"]),
        ("shared", torch.bfloat16, 0, 0.0, ["ladder.attention.flash"]),
        ("shared", torch.bfloat16, 9, 0.0, ["ladder.attention.flex"]),
        ("one", torch.bfloat16, 0, 0.0, ["ladder.attention.flash"]),
        ("one", torch.float32, 0, 0.0, []),
    ],
)
def test_flash_attention_is_chosen_for_16_bit_inputs_without_mask(
    name: str, kind: torch.dtype, window: int, softcap: float, who: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = outcome(plan_of(name), (4, 2), kind, window=window, softcap=softcap)
    taken = as_on_cuda(monkeypatch)
    tiles.in_place(monkeypatch)
    monkeypatch.setattr(flash, "fits", halves)
    got = outcome(plan_of(name), (4, 2), kind, window=window, softcap=softcap)
    assert taken == who
    for cuda_result, bucket_result in zip(got, want, strict=True):
        torch.testing.assert_close(cuda_result, bucket_result, atol=0.06, rtol=0.06)


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("heads", [(4, 2), (3, 1), (2, 2)], ids=str)
def test_flash_attention_equals_bucket_attention(
    pack: str, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32: keys are gathered for each segment, and their gradients are summed back."""
    want = outcome(plan_of(pack), heads, torch.float32, window=0, softcap=0.0)
    tiles.in_place(monkeypatch)
    monkeypatch.setattr(flash, "fits", lambda q, v: True)
    got = outcome(plan_of(pack), heads, torch.float32, window=0, softcap=0.0)
    for flash_result, bucket_result in zip(got, want, strict=True):
        torch.testing.assert_close(flash_result, bucket_result, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("device", "kind", "widths", "fits"),
    [
        ("cuda", torch.bfloat16, (64, 64), True),
        ("cuda", torch.float16, (256, 256), True),
        ("cuda", torch.float32, (64, 64), False),
        ("cuda", torch.bfloat16, (264, 264), False),
        ("cuda", torch.bfloat16, (12, 12), False),
        ("cuda", torch.bfloat16, (64, 128), False),
        ("cpu", torch.bfloat16, (64, 64), False),
    ],
)
def test_which_inputs_flash_attention_supports(
    device: str, kind: torch.dtype, widths: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LADDER_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "tiled", lambda: tiles)
    monkeypatch.setattr(flash, "able", lambda _: True)
    q, v = (SimpleNamespace(device=torch.device(device), dtype=kind, shape=(1, 2, 9, w)) for w in widths)
    assert flash.fits(q, v) == fits  # pyright: ignore
    for name in ("able", "tiled"):  # a GPU before Ampere, and one without Triton
        with monkeypatch.context() as m:
            m.setattr(flash if name == "able" else dispatch, name, lambda *_: None)
            assert not flash.fits(q, v)  # pyright: ignore
    monkeypatch.setenv("LADDER_KERNELS", "0")
    assert not flash.fits(q, v)  # pyright: ignore


def test_which_gpus_have_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (capability, hip, want) in enumerate(
        (((8, 0), None, True), ((9, 0), None, True), ((7, 5), None, False), ((9, 4), "6.3", False))
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        monkeypatch.setattr(torch.version, "hip", hip)
        assert flash.able(torch.device("cuda", number)) == want
    flash.able.cache_clear()


def test_the_reason_for_missing_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda _: object())
    monkeypatch.setattr(dispatch.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "clang" else None)
    assert dispatch.untiled() is None
    monkeypatch.setattr(dispatch.shutil, "which", lambda _: None)
    assert "C compiler" in str(dispatch.untiled())
    monkeypatch.setattr(dispatch, "find_spec", lambda _: None)
    assert "Triton" in str(dispatch.untiled())
