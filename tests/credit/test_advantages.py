"""Advantages against exact integer arithmetic (a float is an integer times a power of two)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from ladder.base.errors import UserError
from ladder.credit.advantages import ADVANTAGE_KINDS, EPS, AdvantageKind, advantages

GROUPWISE: tuple[AdvantageKind, ...] = ("group_mean", "group_std", "leave_one_out")


# ---------------------------------------------------------------- the oracle


def deviations(values: list[float]) -> tuple[list[int], int]:
    """n * 2^k * (v_i - mean), exact, and the common factor n * 2^k."""
    ratios = [v.as_integer_ratio() for v in values]
    scale = max(d for _, d in ratios)
    whole = [a * (scale // d) for a, d in ratios]
    return [len(whole) * v - sum(whole) for v in whole], len(whole) * scale


def deviation_std(devs: list[int], factor: int) -> float:
    n = len(devs)
    return math.sqrt(sum(d * d for d in devs) / (factor * factor * (n - 1))) if n > 1 else 0.0


def exact(kind: AdvantageKind, groups: list[list[float]]) -> list[list[float]]:
    """Advantages by the papers' formulas: every sum is exact and rounded once at the end."""
    if kind == "reinforce_pp":
        flat = [v for g in groups for v in g]
        flat_a = iter(exact("group_std", [flat])[0])
        return [[next(flat_a) for _ in g] for g in groups]
    devs = [deviations(g) if g else ([], 1) for g in groups]
    centred = [[d / f for d in ds] for ds, f in devs]
    if kind == "group_mean":
        return centred
    if kind == "group_std":
        return [[c / (deviation_std(*d) + EPS) for c in cs] for cs, d in zip(centred, devs, strict=True)]
    if kind == "leave_one_out":  # r_i - (sum of the others) / (n - 1)
        return [[d / (f // len(ds) * (len(ds) - 1)) if len(ds) > 1 else 0.0 for d in ds] for ds, f in devs]
    flat_c = [c for cs in centred for c in cs]
    std = math.sqrt(math.fsum(c * c for c in flat_c) / (len(flat_c) - 1)) if len(flat_c) > 1 else 0.0
    return [[c / (std + EPS) for c in cs] for cs in centred]


def random_group(rng: np.random.Generator) -> np.ndarray:
    G = int(rng.integers(1, 17))
    match int(rng.integers(6)):
        case 0:
            return (rng.random(G) < rng.random()).astype(np.float64)  # correct or not
        case 1:
            return rng.normal(size=G)
        case 2:
            return rng.normal(10.0 ** rng.integers(0, 15), 10.0 ** rng.integers(-12, 1), G)  # offset, tiny spread
        case 3:
            return np.full(G, rng.normal())
        case 4:
            return rng.normal(size=G) * 10.0 ** rng.integers(-30, 30, G)  # mixed scales
        case _:
            return rng.choice([0.1, 0.1 + 2**-56, 0.3, 0.1 + 0.2], G)  # equal up to rounding


def batches(n: int, seed: int) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """n batches of (rewards, valid), each of 1 to 4 groups."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        rewards = [random_group(rng) for _ in range(int(rng.integers(1, 5)))]
        valid = [rng.random(len(r)) < rng.choice([0.5, 1.0]) for r in rewards]
        for r, v in zip(rewards, valid, strict=True):
            r[~v] = rng.choice([np.nan, np.inf, 0.0, 1e300])
        yield rewards, valid


@pytest.mark.parametrize("kind", ADVANTAGE_KINDS)
def test_exact_arithmetic(kind: AdvantageKind) -> None:
    """More than 10^4 groups over all kinds, random and adversarial, with invalid members of every sort."""
    n_groups = 0
    for rewards, valid in batches(850, ADVANTAGE_KINDS.index(kind)):
        n_groups += len(rewards)
        got = advantages(kind, rewards, valid)
        want = exact(kind, [r[v].tolist() for r, v in zip(rewards, valid, strict=True)])
        batch_max = max((abs(w) for g in want for w in g), default=0.0)
        for a, v, w in zip(got, valid, want, strict=True):
            assert np.isnan(a[~v]).all()
            largest = max(map(abs, w), default=0.0) if kind in GROUPWISE else batch_max
            np.testing.assert_allclose(a[v], w, rtol=0, atol=2e-13 * largest)
    assert n_groups >= 2_000


def test_by_hand() -> None:
    # rewards 1, 0, 0, 1 and one that could not be judged: mean 1/2; deviations +-1/2; unbiased variance 4/4/3 = 1/3,
    # std .577350; leave one out: 1 - (0 + 0 + 1)/3 = 2/3
    r, v = [np.array([1.0, 0.0, 0.0, 1.0, np.nan])], [np.array([True, True, True, True, False])]
    sign = np.array([1, -1, -1, 1, np.nan])
    np.testing.assert_allclose(advantages("group_mean", r, v)[0], sign / 2)
    np.testing.assert_allclose(advantages("group_std", r, v)[0], sign * 0.5 / (math.sqrt(1 / 3) + EPS))
    np.testing.assert_allclose(advantages("leave_one_out", r, v)[0], sign * 2 / 3)


def test_reinforce_pp_by_hand() -> None:
    # groups (1, 0), (1, 1): batch mean 3/4, deviations 1/4, -3/4, 1/4, 1/4, squares sum 12/16, unbiased variance 1/4:
    # std 1/2 -> .5, -1.5, .5, .5. With the group baseline: deviations 1/2, -1/2, 0, 0, variance 1/6
    r, v = [np.array([1.0, 0.0]), np.array([1.0, 1.0])], [np.ones(2, bool)] * 2
    plain = np.concatenate(advantages("reinforce_pp", r, v))
    np.testing.assert_allclose(plain, np.array([0.25, -0.75, 0.25, 0.25]) / (0.5 + EPS))
    with_baseline = np.concatenate(advantages("reinforce_pp_baseline", r, v))
    np.testing.assert_allclose(with_baseline, np.array([0.5, -0.5, 0, 0]) / (math.sqrt(1 / 6) + EPS))


# ---------------------------------------------------------------- properties


@pytest.mark.parametrize("kind", ADVANTAGE_KINDS)
def test_equal_rewards_and_single_answers_get_exactly_zero(kind: AdvantageKind) -> None:
    rng = np.random.default_rng(1)
    for value in [0.0, 0.1, 1 / 3, -7.7, 1e15 + 0.3, 1e-300, *rng.normal(size=50)]:
        for G in (1, 2, 3, 7, 16):
            assert advantages(kind, [np.full(G, value)], [np.ones(G, bool)])[0].tolist() == [0.0] * G
    single = advantages(kind, [np.array([5.0, np.nan, np.nan])], [np.array([True, False, False])])[0]
    assert single[0] == 0 and np.isnan(single[1:]).all()
    assert np.isnan(advantages(kind, [np.full(3, np.nan)], [np.zeros(3, bool)])[0]).all()
    assert advantages(kind, [], []) == []


def test_a_group_with_equal_rewards_gets_zero_in_a_batch_with_other_groups() -> None:
    r, v = [np.full(4, 0.1), np.array([1.0, 0.0, 0.0, 0.0])], [np.ones(4, bool)] * 2
    for kind in (*GROUPWISE, "reinforce_pp_baseline"):
        equal, other = advantages(kind, r, v)
        assert equal.tolist() == [0.0] * 4 and other[0] > 0 > other[1]
    # REINFORCE++ without a baseline compares answers to different prompts, by design
    assert advantages("reinforce_pp", r, v)[0][0] < 0


@pytest.mark.parametrize("kind", ADVANTAGE_KINDS)
def test_invalid_members_change_nothing(kind: AdvantageKind) -> None:
    """Answers excluded from the loss are excluded from the baseline: the reward of an invalid answer has no effect."""
    for rewards, valid in batches(300, 9):
        got = advantages(kind, rewards, valid)
        valid_only = [r[v] for r, v in zip(rewards, valid, strict=True)]
        want = advantages(kind, valid_only, [np.ones(len(r), bool) for r in valid_only])
        for a, v, w in zip(got, valid, want, strict=True):
            assert np.array_equal(a[v], w)


@pytest.mark.parametrize("kind", ADVANTAGE_KINDS)
def test_shift_changes_nothing(kind: AdvantageKind) -> None:
    """Adding a constant that keeps all sums exact in float64 gives bit-identical advantages."""
    rng = np.random.default_rng(3)
    for _ in range(300):
        rewards = [rng.integers(0, 1024, int(rng.integers(1, 9))) / 64.0 for _ in range(3)]
        valid = [np.ones(len(r), bool) for r in rewards]
        shifted = [r + 2.0**40 for r in rewards]
        for a, b in zip(advantages(kind, rewards, valid), advantages(kind, shifted, valid), strict=True):
            assert np.array_equal(a, b)


def test_order_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    for kind in ADVANTAGE_KINDS:
        for _ in range(200):
            r = rng.normal(size=8) * 10.0 ** rng.integers(-8, 8, 8)
            p = rng.permutation(8)
            ones = [np.ones(8, bool)]
            a, b = advantages(kind, [r], ones)[0], advantages(kind, [r[p]], ones)[0]
            assert np.array_equal(a[p], b)


def test_leave_one_out_identity() -> None:
    """A_i = r_i - mean of the others, and = n/(n-1) times the group-mean advantage; advantages sum to 0."""
    rng = np.random.default_rng(5)
    for _ in range(1000):
        n = int(rng.integers(2, 12))
        r, ones = rng.normal(size=n), [np.ones(n, bool)]
        loo, mean = advantages("leave_one_out", [r], ones)[0], advantages("group_mean", [r], ones)[0]
        others = np.array([np.delete(r, i).mean() for i in range(n)])
        np.testing.assert_allclose(loo, r - others, atol=1e-13)
        np.testing.assert_allclose(loo, mean * n / (n - 1), atol=1e-14)
        assert abs(mean.sum()) < 1e-13


def test_group_std_has_unit_spread_and_never_explodes() -> None:
    rng = np.random.default_rng(6)
    for offset, spread in [(0, 1), (1e9, 1e-3), (1e15, 1), (-1e6, 1e3)]:
        r = offset + rng.normal(size=16) * spread
        a = advantages("group_std", [r], [np.ones(16, bool)])[0]
        assert a.std(ddof=1) == pytest.approx(1, abs=2e-3)
    for _ in range(1000):  # |A| <= (n - 1) / sqrt(n) whatever the rewards
        r = random_group(rng)
        a = advantages("group_std", [r], [np.ones(len(r), bool)])[0]
        assert np.abs(a).max() <= (len(r) - 1) / math.sqrt(len(r)) + 1e-9
    # rewards that differ by rounding only get negligible advantages
    a = advantages("group_std", [np.array([0.3, 0.1 + 0.2, 0.3])], [np.ones(3, bool)])[0]
    assert 0 < np.abs(a).max() < 1e-9


def test_bad_input() -> None:
    ok = [np.ones(2, bool)]
    with pytest.raises(UserError, match="group_median"):
        advantages("group_median", [np.zeros(2)], ok)  # pyright: ignore[reportArgumentType]
    for bad in (np.nan, np.inf, -np.inf, 1e200):
        with pytest.raises(ValueError, match="not finite"):
            advantages("group_mean", [np.array([0.0, bad])], ok)
    with pytest.raises(ValueError, match="bool mask"):
        advantages("group_mean", [np.zeros(2)], [np.ones(2)])
    with pytest.raises(ValueError, match="bool mask"):
        advantages("group_mean", [np.zeros(3)], ok)
    with pytest.raises(ValueError):
        advantages("group_mean", [np.zeros(2)], [])
