"""The Triton kernels compute the same as torch's operators: in Triton's interpreter, or on a GPU if there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiles

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from ladder.kernels import triton_draw, triton_layers  # noqa: E402

TYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Tolerated error by dtype, relative to the largest number."""


@pytest.fixture
def random() -> Any:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int, kind: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=g) * scale).to(DEVICE, kind)

    return normal


def close(got: Any, want: Any, kind: torch.dtype | None = None) -> None:
    """Asserts equality up to the rounding of the result's dtype, or of `kind` where intermediate values have it."""
    if want is None:
        assert got is None
        return
    assert got.shape == want.shape and got.dtype == want.dtype and bool(got.isfinite().all())
    difference = float((got.double() - want.double()).abs().max()) / max(1e-9, float(want.double().abs().max()))
    assert difference <= ROUNDING[kind or want.dtype], difference


def both(name: str, *arguments: Any, written: tuple[int, ...] = ()) -> None:
    """Compares a kernel with its oracle, each on copies of the arguments: the results, and the arguments (by index)
    that they write to."""
    kernel_args, oracle_args = ([a.clone() if isinstance(a, Tensor) else a for a in arguments] for _ in range(2))
    got, want = getattr(triton_layers, name)(*kernel_args), getattr(tiles, name)(*oracle_args)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, want)), strict=True):
        close(a, b, arguments[0].dtype)
    for i in written:
        close(kernel_args[i], oracle_args[i])


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 96), (1, 1536), (3, 7, 24), (70, 64)], ids=str)
@pytest.mark.parametrize("added", [False, True])
def test_norms(kind: torch.dtype, shape: tuple[int, ...], added: bool, random: Any) -> None:
    x, w = random(*shape, kind=kind), random(shape[-1], kind=kind)
    delta = random(*shape, kind=kind) if added else None
    both("norm", x, delta, w, 1e-5, None)
    both("norm", x, delta, w, 1e-5, torch.empty_like(x), written=(4,))
    _, _, r = tiles.norm(x, None, w, 1e-5, None)
    both("norm_again", x, w, r, torch.empty_like(x), written=(3,))
    more = random(*shape, kind=kind) if added else None
    for weighted in (False, True):
        both("norm_backward", x, w, r, random(*shape, kind=kind), more, torch.empty_like(x), weighted, written=(5,))


def test_norms_with_more_rows_than_one_program_processes(random: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_layers, "PROGRAMS", 3)
    x, w = random(301, 64), random(64)
    _, _, r = tiles.norm(x, None, w, 1e-5, None)
    both("norm_backward", x, w, r, random(301, 64), random(301, 64), torch.empty_like(x), True, written=(5,))


def test_norm_kernels_may_overwrite_their_inputs(random: Any) -> None:
    x, delta, w = random(9, 32), random(9, 32), random(32)
    want = tiles.norm(x, delta, w, 1e-5, None)
    for got, wanted in zip(triton_layers.norm(x, delta, w, 1e-5, delta), want, strict=True):
        close(got, wanted)
    grad, more, into = random(9, 32), random(9, 32), torch.empty_like(x)
    tiles.norm_backward(x, w, want[2], grad, more, into, False)
    for place in (grad.clone(), more.clone()):
        args = (place if place.equal(grad) else grad, place if place.equal(more) else more)
        triton_layers.norm_backward(x, w, want[2], *args, place, False)
        close(place, into)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rotation(kind: torch.dtype, sign: float, random: Any) -> None:
    half = random(11, 12, kind=kind), random(11, 12, kind=kind)
    cos, sin = (torch.cat([t, t], -1) for t in half)
    both("rotate_", random(11, 3, 24, kind=kind), cos, sin, sign, written=(0,))


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_gates(kind: torch.dtype, random: Any) -> None:
    g, u, grad = (random(13, 101, kind=kind, scale=3.0) for _ in range(3))
    both("gate", g, u)
    both("gate", g, u, torch.empty_like(g), written=(2,))
    both("gate_backward_", g, u, grad, written=(0, 1, 2))


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("V", [37, 300])
def test_log_probabilities(
    kind: torch.dtype, entropy: bool, V: int, random: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_layers, "STRETCH", 128)  # several stretches of 300, and the last one not full
    z = random(6, V, kind=kind, scale=4.0)
    t = torch.randint(0, V, (6,), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    z[0, :] = -50.0
    z[0, V - 1] = 60.0
    z[1, 0] = 90.0
    both("logps", z, t, 0.7, entropy)
    lse, _, ents = tiles.logps(z, t, 0.7, entropy)
    ge = random(6) if entropy else None
    both("logps_backward_", z, t, 0.7, lse, random(6), ge, ents, written=(0,))


def test_logps_of_zero_rows(random: Any) -> None:
    lse, logps, ents = triton_layers.logps(random(0, 40), torch.zeros(0, dtype=torch.int64, device=DEVICE), 1.0, True)
    assert len(lse) == len(logps) == 0 and ents is not None and len(ents) == 0


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_gradients_of_shared_keys_are_summed(kind: torch.dtype, random: Any) -> None:
    index = torch.tensor([0, 1, 2, 0, 1, 3, 4, 0, 1, 5])
    order = index.argsort(stable=True).to(DEVICE)
    offsets = torch.tensor([0, *index.bincount(minlength=7).cumsum(0)]).to(DEVICE)
    both("gathered", random(10, 2, 24, kind=kind), order, offsets)


SHAPES = [(4, 2, 16, 40), (7, 1, 64, 300), (3, 3, 24, 20), (8, 2, 128, 600)]
"""Heads, key heads, width, room."""


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("normed", [False, True])
def test_a_decoding_step(kind: torch.dtype, shape: tuple[int, ...], normed: bool, random: Any) -> None:
    heads, key_heads, width, room = shape
    positions = torch.tensor([room - 1, 0, room // 2, 3]).to(DEVICE)
    stores = tuple(random(6, key_heads, room, width, kind=kind) for _ in range(2))
    qkv = random(4, (heads + 2 * key_heads) * width, kind=kind)
    norms = (random(width, kind=kind), random(width, kind=kind)) if normed else None
    tables = random(room, width, kind=kind), random(room, width, kind=kind)
    kernel_cache, oracle_cache = ([s.clone() for s in stores] for _ in range(2))
    q = triton_layers.enter(qkv, positions, tables, norms, 1e-5, (kernel_cache[0], kernel_cache[1]))
    close(q, tiles.enter(qkv, positions, tables, norms, 1e-5, (oracle_cache[0], oracle_cache[1])))
    for a, b in zip(kernel_cache, oracle_cache, strict=True):
        close(a, b)
        assert a[4:].equal(b[4:])
    if DEVICE == "cpu" and kind == torch.bfloat16:
        return  # Triton's interpreter stores bfloat16 as integers, and would multiply those
    cache = (oracle_cache[0], oracle_cache[1])
    close(triton_layers.attend(q, cache, positions, 0.3), tiles.attend(q, cache, positions, 0.3))


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("V", [50, 700])
def test_sampling(kind: torch.dtype, V: int, random: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_draw, "STRETCH", 128)
    z = random(40, V + 3, kind=kind, scale=3.0)[:, :V]  # rows that are not adjacent in memory
    z[0, : V // 2] = float("-inf")
    z[1, V // 2 :] = float("-inf")
    z[2, 7] = 500.0
    u = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u[:4] = torch.tensor([0.0, 1 - 2**-53, 0.5, 0.0])
    (tokens, logps), (oracle_tokens, oracle_logps) = triton_layers.draw(z, u, 0.7), tiles.draw(z, u, 0.7)
    assert int(tokens[0]) == V // 2 and V // 2 - 9 < int(tokens[1]) < V // 2 and int(tokens[2]) == 7
    difference = (logps - oracle_logps).abs()
    tokens[1], difference[1] = oracle_tokens[1], 0.0  # at the very end float32 cannot separate the last few tokens
    ends = (z.double() / 0.7).softmax(-1).cumsum(-1).cpu()
    boundary = ends.gather(1, torch.minimum(tokens, oracle_tokens)[:, None])[:, 0]
    parted = tokens != oracle_tokens  # by rounding: neighbours, and the number lies at their boundary
    rounded = ((tokens - oracle_tokens).abs() <= 1) & ((u - boundary).abs() <= 1e-5)
    assert rounded[parted].all() and int(parted.sum()) < 3
    assert tokens.dtype == torch.int64 and tokens.device.type == "cpu"
    assert logps.dtype == torch.float32 and float(difference[~parted].max()) < 1e-4  # float32 represents 700 to 6e-5


def test_samples_follow_the_distribution(random: Any) -> None:
    z, n = random(1, 40), 200
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, _ = triton_layers.draw(z.expand(n, -1), u, 1.0)
    counts = torch.bincount(tokens, minlength=40)
    assert float((counts - z[0].cpu().softmax(-1) * n).abs().max()) <= 1.01
