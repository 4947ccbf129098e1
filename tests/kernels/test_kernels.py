"""Every training kernel against float64, also for sizes that are no multiple of the vector width; attention is
bit-identical for any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ladder.attention.packed import PackedPlan
from ladder.kernels import attend, layers
from ladder.kernels.library import why
from ladder.packing.prefix_tree import Segment

MISSING = why("layers") or why("attend")
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
SIZES = [(1, 1), (3, 13), (5, 16), (37, 576), (9, 1500)]


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def close(got: Tensor, want: Tensor, tolerance: float = 1e-6) -> None:
    worst = float((got.double() - want.detach().double()).abs().max() / want.detach().abs().max().clamp(min=1))
    assert worst < tolerance, f"off by {worst:.2g} of the largest"


def draws(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) for shape in shapes]


@pytest.mark.parametrize("T, D", SIZES)
@pytest.mark.parametrize("added", [False, True])
def test_norm(T: int, D: int, added: bool) -> None:
    x, delta, dy, more = draws(*[(T, D)] * 4)
    w = draws((D,), seed=1)[0]
    leaves = [(x + delta if added else x).double().requires_grad_(), w.double().requires_grad_()]
    want = leaves[0] * (leaves[0].square().mean(-1, keepdim=True) + 1e-5).rsqrt() * leaves[1]
    dx, dw = torch.autograd.grad(want, leaves, dy.double())
    s, y, r = layers.norm(x, delta if added else None, w, 1e-5, None)
    close(s, leaves[0])
    close(y, want)
    assert torch.equal(layers.norm_again(s, w, r, torch.empty_like(s)), y)
    got = torch.empty_like(s)
    weight_grad = layers.norm_backward(s, w, r, dy, more, got, True)
    assert weight_grad is not None
    close(got, dx + more)
    close(weight_grad, dw)
    for into in (dy, more):  # the gradient may overwrite either
        alias = into.clone()
        inputs = [alias if z is into else z for z in (dy, more)]
        assert layers.norm_backward(s, w, r, inputs[0], inputs[1], alias, False) is None
        assert torch.equal(alias, got)
    over = (delta if added else x).clone()  # the norm may overwrite delta
    assert torch.equal(layers.norm(x, over if added else None, w, 1e-5, over)[1], y) and over.data_ptr() != y.data_ptr()


@pytest.mark.parametrize("T, heads, W", [(1, 1, 2), (5, 3, 16), (33, 9, 64), (4, 2, 12)])
def test_rotation_and_its_gradient(T: int, heads: int, W: int) -> None:
    x, angle = draws((T, heads, W), (T, W // 2))
    cos, sin = (torch.cat([1.3 * f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
    leaf = x.double().requires_grad_()
    a, b = leaf[..., : W // 2], leaf[..., W // 2 :]
    want = leaf * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]
    close(layers.rotate_(x.clone(), cos, sin), want)
    (grad,) = draws((T, heads, W), seed=2)
    close(layers.rotate_(grad.clone(), cos, sin, -1.0), torch.autograd.grad(want, leaf, grad.double())[0])


@pytest.mark.parametrize("T, D", SIZES)
def test_gate(T: int, D: int) -> None:
    g, u, dy = draws(*[(T, D)] * 3)
    g = g * 30  # exp must neither overflow nor give NaN
    leaves = [x.double().requires_grad_() for x in (g, u)]
    want = torch.nn.functional.silu(leaves[0]) * leaves[1]
    close(layers.gate(g, u), want)
    dg, du = torch.autograd.grad(want, leaves, dy.double())
    layers.gate_backward_(g, u, dy)
    for got, expected in ((g, dg), (u, du), (dy, want)):
        close(got, expected)


# ------------------------------------------------------------ attention


def flat(*lengths: int) -> list[Segment]:
    out: list[Segment] = []
    for n in lengths:
        out.append(Segment(sum(s.length for s in out), n))
    return out


def grouped(*groups: tuple[int, tuple[int, ...]]) -> list[Segment]:
    out: list[Segment] = []
    at = 0
    for prompt, answers in groups:
        root = Segment(at, prompt)
        out.append(root)
        at += prompt
        for n in answers:
            out.append(Segment(at, n, root))
            at += n
    return out


def forked() -> list[Segment]:
    """Two trees, one of them with four levels, and a root segment without children."""
    root = Segment(0, 9)
    left = Segment(9, 20, root)
    top = Segment(33, 1, left)
    right = Segment(90, 33, root)
    tree = [root, left, Segment(29, 4, left), top, Segment(34, 16, top), Segment(50, 40, top), right]
    more = Segment(163, 5)
    return [*tree, Segment(123, 7, right), Segment(130, 33, right), more, Segment(168, 2, more), Segment(170, 11)]


PACKS = {
    "one": flat(1),
    "some": flat(1, 31, 32, 33, 70),
    "shared": grouped((7, (1, 40, 17)), (48, (16, 16))),
    "forked": forked(),
    "both": [*flat(19), *[Segment(s.start + 19, s.length) for s in flat(5)], *[Segment(24, 3)]],
}


def by_torch(segments: list[Segment], q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention with one dense mask over the packed row."""
    T = len(q)
    visible = torch.zeros(T, T, dtype=torch.bool)
    for s in segments:
        queries = slice(s.start, s.start + s.length)
        visible[queries, queries] = torch.ones(s.length, s.length).tril().bool()
        for ancestor in list(s.chain())[1:]:
            visible[queries, ancestor.start : ancestor.end] = True
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("thw,shw->hts", q, k) * scale
    return torch.einsum("hts,shw->thw", scores.masked_fill(~visible, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("H, KH, W", [(1, 1, 16), (4, 2, 12), (9, 3, 64), (2, 1, 128), (4, 4, 40)])
def test_attention(pack: str, H: int, KH: int, W: int) -> None:
    segments = PACKS[pack]
    T = sum(s.length for s in segments)
    q, k, v, go = draws((T, H, W), (T, KH, W), (T, KH, W), (T, H, W))
    families, scale = PackedPlan.of(segments, T).families, 1.7 * W**-0.5
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    want = by_torch(segments, *leaves, scale)
    out, lse = attend.attend(q, k, v, families, scale)
    close(out, want, 2e-6)
    gradients = attend.attend_backward(q, k, v, out, lse, go, families, scale)
    for got, expected in zip(gradients, torch.autograd.grad(want, leaves, go.double()), strict=True):
        close(got, expected, 5e-6)


def test_attention_is_bit_identical_with_any_number_of_threads() -> None:
    segments = PACKS["shared"]
    T = sum(s.length for s in segments)
    q, k, v, go = draws((T, 4, 16), (T, 2, 16), (T, 2, 16), (T, 4, 16))
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        families = PackedPlan.of(segments, T).families
        out, lse = attend.attend(q, k, v, families, 0.25)
        results.append((out, lse, *attend.attend_backward(q, k, v, out, lse, go, families, 0.25)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_attention_with_large_scores() -> None:
    q, k, v = draws((40, 1, 16), (40, 1, 16), (40, 1, 16))
    segments = flat(40)
    out, _ = attend.attend(100 * q, 100 * k, v, PackedPlan.of(segments, 40).families, 1.0)
    close(out, by_torch(segments, 100 * q.double(), 100 * k.double(), v.double(), 1.0), 1e-2)  # near ties
