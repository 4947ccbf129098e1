"""Errors in the kernels that the other tests would miss: matrices larger than one cache block, the largest number at
unusual positions, and writes outside a kernel's memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ladder.attention.packed import PackedPlan
from ladder.kernels import attend, decode, layers
from ladder.kernels.attend import Families
from ladder.kernels.library import why
from ladder.packing.prefix_tree import Segment

MISSING = why("layers") or why("attend") or why("decode")
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------ products with packed weights


@pytest.mark.parametrize("K", [1, 192, 193, 592])
@pytest.mark.parametrize("N", [1, 48, 101])
def test_a_matrix_product_of_several_blocks(N: int, K: int) -> None:
    """With blocks of unequal size, full register tiles and partial ones."""
    g = torch.Generator().manual_seed(N * K)
    weight, bias = torch.randn(N, K, generator=g), torch.randn(N, generator=g)
    packed = decode.Arena([weight.shape], torch.float32).pack(weight)
    for A in (1, 7, 8, 9, 16, 64, 65, 130):
        x = torch.randn(A, K, generator=g)
        exact = x.double() @ weight.double().T
        for b in (None, bias):
            got = packed.multiply(x, b)
            assert torch.allclose(got.double(), exact if b is None else exact + b, atol=3e-4), (A, b is None)


# ------------------------------------------------------------ log-probabilities


@pytest.mark.parametrize("at", [0, 4095, 4096, 4991, 4992, 5002])
def test_one_logit_far_above_the_others(at: int) -> None:
    """At any position: in a whole vector, at the end of a block of the vocabulary, after the last whole vector."""
    z = torch.zeros(1, 5003)
    z[0, at] = 300.0
    for target, want in ((at, 0.0), (1, -300.0)):
        lse, logp, entropy = layers.logps(z, torch.tensor([target]), 1.0, True)
        assert float(lse) == 300.0 and float(logp) == want
        assert entropy is not None and abs(float(entropy)) < 1e-6


def test_many_small_probabilities_are_not_lost_in_the_sum() -> None:
    """Twelve blocks of terms e^-20 and a last term 1: summed in float32, they would be off by one part in 1,000."""
    z = torch.full((1, 12 * 4096 + 1), -20.0)
    z[0, -1] = 0.0
    exact = z.double().log_softmax(-1)
    logp = layers.logps(z, torch.tensor([z.shape[1] - 1]), 1.0, False)[1]
    assert float(logp) == pytest.approx(float(exact[0, -1]), rel=2e-5)


# ------------------------------------------------------------ scratch memory


CANARY = 12345.0


def attended(families: Families, q: Tensor, k: Tensor) -> None:
    """Runs attention forward and backward."""
    out, lse = attend.attend(q, k, k, families, 0.25)
    attend.attend_backward(q, k, k, out, lse, out, families, 0.25)


def row(answers: int, length: int, width: int, spare: int) -> tuple[Families, Tensor, Tensor]:
    """Answers to one-token prompts, and scratch with `spare` more floats than needed."""
    segments: list[Segment] = []
    for i in range(answers):
        root = Segment(i * (length + 1), 1)
        segments += [root, Segment(root.start + 1, length, root)]
    T = answers * (length + 1)
    families = PackedPlan.of(segments, T).families
    each = attend.kernels().attend_room(families.keys, width)
    families.scratch = torch.full((each * torch.get_num_threads() + spare,), CANARY)
    g = torch.Generator().manual_seed(0)
    return families, torch.randn(T, 2, width, generator=g), torch.randn(T, 1, width, generator=g)


@pytest.mark.parametrize("width", [4, 16, 40])
@pytest.mark.parametrize("length", [1, 79, 300])  # with the prompt's token, 80 keys are whole vectors: no room is left
def test_attention_stays_within_its_scratch(width: int, length: int) -> None:
    torch.set_num_threads(1)
    families, q, k = row(1, length, width, spare=1 << 16)
    attended(families, q, k)
    assert families.scratch is not None and (families.scratch[-(1 << 16) :] == CANARY).all()


@pytest.mark.parametrize("width", [12, 16])
def test_the_earlier_content_of_scratch_changes_nothing(width: int) -> None:
    torch.set_num_threads(1)
    results = []
    for before in (0.0, float("nan")):
        families, q, k = row(2, 37, width, spare=0)
        assert families.scratch is not None
        out, lse = attend.attend(q, k, k, families, 0.25)
        families.scratch.fill_(before)
        results.append((out, lse, *attend.attend_backward(q, k, k, out, lse, out, families, 0.25)))
        families.scratch.fill_(before)
        results[-1] += attend.attend(q, k, k, families, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_scratch_grows_with_the_number_of_threads() -> None:
    families = PackedPlan.of([Segment(0, 37)], 37).families
    for threads in (1, 3):
        scratch, each = families.room(16, threads)
        assert len(scratch) >= threads * each


def test_every_thread_has_its_own_scratch() -> None:
    torch.set_num_threads(2)
    families, q, k = row(48, 320, 16, spare=0)  # longer than one thread has a core to itself
    assert families.scratch is not None
    half = len(families.scratch) // 2
    end = time.monotonic() + 60
    while time.monotonic() < end:  # pieces of work go to any free thread, and a thread that starts late may get none
        attended(families, q, k)
        if (families.scratch[half:] != CANARY).any():
            return
    pytest.fail("the second thread never wrote to its half")
