"""The Triton kernels compute what torch's operators do: in Triton's interpreter, or for real where there is a GPU."""

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
"""Relative to the largest number."""


@pytest.fixture
def random() -> Any:
    g = torch.Generator().manual_seed(0)

    def made(*shape: int, kind: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=g) * scale).to(DEVICE, kind)

    return made


def close(got: Any, want: Any, kind: torch.dtype | None = None) -> None:
    """As far as the type of the result allows, or that of what was rounded on the way."""
    if want is None:
        assert got is None
        return
    assert got.shape == want.shape and got.dtype == want.dtype and bool(got.isfinite().all())
    apart = float((got.double() - want.double()).abs().max()) / max(1e-9, float(want.double().abs().max()))
    assert apart <= ROUNDING[kind or want.dtype], apart


def both(name: str, *arguments: Any, written: tuple[int, ...] = ()) -> None:
    """The kernel and its oracle, on copies; their results, and the arguments that they write to."""
    here, there = ([a.clone() if isinstance(a, Tensor) else a for a in arguments] for _ in range(2))
    got, want = getattr(triton_layers, name)(*here), getattr(tiles, name)(*there)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, want)), strict=True):
        close(a, b, arguments[0].dtype)
    for i in written:
        close(here[i], there[i])


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


def test_norms_of_more_rows_than_one_program_takes(random: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_layers, "PROGRAMS", 3)
    x, w = random(301, 64), random(64)
    _, _, r = tiles.norm(x, None, w, 1e-5, None)
    both("norm_backward", x, w, r, random(301, 64), random(301, 64), torch.empty_like(x), True, written=(5,))


def test_a_norm_may_be_written_over_what_is_added_and_a_gradient_over_either(random: Any) -> None:
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


def test_nothing_asked_for_is_nothing(random: Any) -> None:
    lse, found, ents = triton_layers.logps(random(0, 40), torch.zeros(0, dtype=torch.int64, device=DEVICE), 1.0, True)
    assert len(lse) == len(found) == 0 and ents is not None and len(ents) == 0


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_rows_that_several_lines_hold_are_summed(kind: torch.dtype, random: Any) -> None:
    index = torch.tensor([0, 1, 2, 0, 1, 3, 4, 0, 1, 5])
    order = index.argsort(stable=True).to(DEVICE)
    offsets = torch.tensor([0, *index.bincount(minlength=7).cumsum(0)]).to(DEVICE)
    both("gathered", random(10, 2, 24, kind=kind), order, offsets)


SHAPES = [(4, 2, 16, 40), (7, 1, 64, 300), (3, 3, 24, 20), (8, 2, 128, 600)]
"""Heads, key heads, width, room."""


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("normed", [False, True])
def test_a_step_of_decoding(kind: torch.dtype, shape: tuple[int, ...], normed: bool, random: Any) -> None:
    heads, key_heads, width, room = shape
    positions = torch.tensor([room - 1, 0, room // 2, 3]).to(DEVICE)
    stores = tuple(random(6, key_heads, room, width, kind=kind) for _ in range(2))
    qkv = random(4, (heads + 2 * key_heads) * width, kind=kind)
    norms = (random(width, kind=kind), random(width, kind=kind)) if normed else None
    tables = random(room, width, kind=kind), random(room, width, kind=kind)
    here, there = ([s.clone() for s in stores] for _ in range(2))
    q = triton_layers.enter(qkv, positions, tables, norms, 1e-5, (here[0], here[1]))
    close(q, tiles.enter(qkv, positions, tables, norms, 1e-5, (there[0], there[1])))
    for a, b in zip(here, there, strict=True):
        close(a, b)
        assert a[4:].equal(b[4:])
    if DEVICE == "cpu" and kind == torch.bfloat16:
        return  # the interpreter keeps these as integers, and multiplies those
    read = (there[0], there[1])
    close(triton_layers.attend(q, read, positions, 0.3), tiles.attend(q, read, positions, 0.3))


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("V", [50, 700])
def test_draws(kind: torch.dtype, V: int, random: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_draw, "STRETCH", 128)
    z = random(40, V + 3, kind=kind, scale=3.0)[:, :V]  # rows that do not lie end to end
    z[0, : V // 2] = float("-inf")
    z[1, V // 2 :] = float("-inf")
    z[2, 7] = 500.0
    u = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u[:4] = torch.tensor([0.0, 1 - 2**-53, 0.5, 0.0])
    (tokens, logps), (want, wanted) = triton_layers.draw(z, u, 0.7), tiles.draw(z, u, 0.7)
    assert int(tokens[0]) == V // 2 and V // 2 - 9 < int(tokens[1]) < V // 2 and int(tokens[2]) == 7
    apart = (logps - wanted).abs()
    tokens[1], apart[1] = want[1], 0.0  # at the very end float32 cannot tell the last few
    ends = (z.double() / 0.7).softmax(-1).cumsum(-1).cpu()
    between = ends.gather(1, torch.minimum(tokens, want)[:, None])[:, 0]
    parted = tokens != want  # by rounding: neighbours, and the number at their boundary
    assert not (parted & (((tokens - want).abs() > 1) | ((u - between).abs() > 1e-5))).any() and int(parted.sum()) < 3
    assert tokens.dtype == torch.int64 and tokens.device.type == "cpu"
    assert logps.dtype == torch.float32 and float(apart[~parted].max()) < 1e-4  # 700 in float32 is known to 6e-5


def test_draws_follow_the_distribution(random: Any) -> None:
    z, n = random(1, 40), 200
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, _ = triton_layers.draw(z.expand(n, -1), u, 1.0)
    counts = torch.bincount(tokens, minlength=40)
    assert float((counts - z[0].cpu().softmax(-1) * n).abs().max()) <= 1.01
