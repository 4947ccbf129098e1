"""Token advantages (GAE): numbers worked by hand, the definition as a double sum in float64, and masks with gaps."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ladder.base.errors import UserError
from ladder.credit.gae import AdaptiveKL, explained_variance, gae, token_rewards, whiten
from ladder.losses.kl import kl_in_reward

T, F = True, False


def arr(*x: float) -> np.ndarray:
    return np.array(x, np.float64)


def mask(*x: bool) -> np.ndarray:
    return np.array(x)


def near(x: list[float]) -> object:
    return pytest.approx(x, abs=1e-12)


# ---------------------------------------------------------------- GAE


def test_gae_by_hand() -> None:
    # rewards 0 0 1, values .5 .25 .5, lam 1/2:  delta = -.25 .25 .5;  A3 = .5, A2 = .25 + .25, A1 = -.25 + .25
    A, R = gae([arr(0, 0, 0, 1)], [arr(9, 0.5, 0.25, 0.5)], [mask(F, T, T, T)], lam=0.5)
    assert A[0].tolist() == near([0, 0, 0.5, 0.5])
    assert R[0].tolist() == near([0, 0.5, 0.75, 1.0])
    # gamma 1/2: delta = .125 - .5, .25 - .25, .5;  A3 = .5, A2 = .125, A1 = -.375 + .03125
    A, _ = gae([arr(0, 0, 0, 1)], [arr(9, 0.5, 0.25, 0.5)], [mask(F, T, T, T)], gamma=0.5, lam=0.5)
    assert A[0].tolist() == near([0, -0.34375, 0.125, 0.5])


def test_gae_skips_tokens_that_the_policy_did_not_sample() -> None:
    """Gaps in the mask shift the positions and change no number; entries in the gaps are never read."""
    nan = math.nan
    contiguous = gae([arr(0, 0.5, 0, 1)], [arr(0.1, 0.2, 0.3, 0.4)], [mask(T, T, T, T)], gamma=0.9, lam=0.8)
    gaps_mask = mask(F, F, T, F, T, F, F, T, T, F)
    rewards = arr(0, 0, 0, 0, 0.5, 0, 0, 0, 1, 0)
    values = arr(nan, nan, 0.1, nan, 0.2, nan, nan, 0.3, 0.4, nan)
    with_gaps = gae([rewards], [values], [gaps_mask], gamma=0.9, lam=0.8)
    for a, b in zip(contiguous, with_gaps, strict=True):
        assert b[0][gaps_mask].tolist() == a[0].tolist()
        assert not b[0][~gaps_mask].any()


def definition(r: np.ndarray, V: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """A_t as the exponentially weighted mean of the k-step advantages, (1 - lam) sum lam^(k-1) A_t^(k), eq. 16, in its
    finite form: the weights of all k beyond the last token are added to the longest estimate."""
    n = len(r)
    A = np.zeros(n)
    for t in range(n):
        remaining = n - t
        for k in range(1, remaining + 1):
            bootstrap = gamma**k * V[t + k] if t + k < n else 0.0
            estimate = sum(gamma**i * r[t + i] for i in range(k)) + bootstrap - V[t]
            A[t] += estimate * (lam ** (k - 1) * (1 - lam) if k < remaining else lam ** (k - 1))
    return A


def test_gae_oracle() -> None:
    """Batches of answers of different lengths with gaps in the mask, in float32 as columns are; also lam 0 and 1."""
    rng = np.random.default_rng(0)
    for i in range(60):
        gamma, lam = (1.0, float(i % 2)) if i < 10 else rng.uniform(0.5, 1, 2)
        masks, rewards, values = [], [], []
        for _ in range(int(rng.integers(1, 5))):
            n = int(rng.integers(1, 12))
            m = rng.random(n) < 0.6
            m[rng.integers(n)] = True
            masks.append(m)
            rewards.append(np.where(m, rng.normal(size=n), 0).astype(np.float32))
            values.append(np.where(m, rng.normal(size=n), np.nan).astype(np.float32))
        A, R = gae(rewards, values, masks, gamma=gamma, lam=lam)
        for a, ret, r, v, m in zip(A, R, rewards, values, masks, strict=True):
            V = v[m].astype(np.float64)
            want = definition(r[m].astype(np.float64), V, gamma, lam)
            assert a[m].tolist() == near(want.tolist()) and ret[m].tolist() == near((want + V).tolist())
            assert a.dtype == np.float64 and not a[~m].any() and not ret[~m].any()


def test_with_lam_1_the_return_is_the_discounted_reward_sum() -> None:
    """The returns do not depend on the critic's values."""
    A, R = gae([arr(1, 2, 4)], [arr(7, -3, 5)], [mask(T, T, T)], gamma=0.5, lam=1.0)
    assert R[0].tolist() == near([1 + 1 + 1, 2 + 2, 4])
    assert A[0].tolist() == near([3 - 7, 4 + 3, 4 - 5])


def test_answers_are_independent() -> None:
    alone = gae([arr(0, 1)], [arr(0.5, 0.5)], [mask(T, T)])[0][0]
    batch = gae(
        [arr(0, 1), arr(5), arr(0, 0, -1)], [arr(0.5, 0.5), arr(2), arr(1, 2, 3)], [mask(*[T] * n) for n in (2, 1, 3)]
    )
    assert batch[0][0].tolist() == alone.tolist()
    assert batch[0][1].tolist() == [3.0]


def test_gae_rejects_bad_input() -> None:
    ok = ([arr(0, 1)], [arr(0.5, 0.5)], [mask(F, T)])
    assert gae(*ok) and gae([], [], []) == ([], [])
    for name in ("gamma", "lam"):
        for factor in (-0.1, 1.1, math.nan):
            with pytest.raises(UserError) as error:
                gae(*ok, **{name: factor})
            assert error.value.field == name
    with pytest.raises(ValueError, match="did not sample"):
        gae([arr(1, 1)], ok[1], ok[2])
    with pytest.raises(ValueError, match="not finite"):
        gae([arr(0, math.nan)], ok[1], ok[2])
    with pytest.raises(ValueError, match="not finite"):
        gae(ok[0], [arr(0, math.inf)], ok[2])
    with pytest.raises(ValueError, match="without a sampled token"):
        gae(ok[0], ok[1], [mask(F, F)])
    with pytest.raises(ValueError, match="bool mask"):
        gae(ok[0], ok[1], [arr(0, 1)])
    with pytest.raises(ValueError, match="of that shape"):
        gae(ok[0], [arr(1)], ok[2])
    with pytest.raises(ValueError):
        gae(ok[0], ok[1], [])


# ---------------------------------------------------------------- token rewards


def test_token_rewards_by_hand() -> None:
    # log-ratios .5, -1 at the sampled tokens; coefficient .1; the score at the last of them
    logps, ref, m = arr(0, -1.0, -9, -2.0, -9), arr(0, -1.5, -9, -1.0, -9), mask(F, T, F, T, F)
    assert token_rewards(3.0, logps, ref, m, kl_coef=0.1).tolist() == near([0, -0.05, 0, 3.1, 0])
    assert token_rewards(3.0, logps, None, m).tolist() == [0, 0, 0, 3, 0]
    truncated = token_rewards(3.0, logps, None, m, stop="length", missing_eos_penalty=1.5)
    assert truncated.tolist() == [0, 0, 0, 1.5, 0]
    for stop in ("eos", "stop"):
        assert token_rewards(3.0, logps, None, m, stop=stop, missing_eos_penalty=1.5)[3] == 3.0


def test_token_rewards_sum_to_the_score_minus_the_kl() -> None:
    import torch

    rng = np.random.default_rng(0)
    logps, ref = -rng.exponential(size=(2, 9))
    m = rng.random(9) < 0.6
    assert m.any()
    total = token_rewards(2.0, logps, ref, m, kl_coef=0.3).sum()
    assert total == pytest.approx(2 - 0.3 * kl_in_reward(torch.tensor(logps[m]), torch.tensor(ref[m])))


def test_token_rewards_reject_bad_input() -> None:
    m = mask(F, T)
    with pytest.raises(ValueError, match="no reference"):
        token_rewards(1.0, arr(0, -1), None, m, kl_coef=0.1)
    with pytest.raises(ValueError, match="score of an answer must be finite"):
        token_rewards(math.nan, arr(0, -1), None, m)
    with pytest.raises(ValueError, match="without a sampled token"):
        token_rewards(1.0, arr(0, -1), None, mask(F, F))
    with pytest.raises(ValueError, match="of that shape"):
        token_rewards(1.0, arr(0, -1), arr(0), m, kl_coef=0.1)


# ---------------------------------------------------------------- whitening and explained variance


def test_whitening_is_over_all_sampled_tokens() -> None:
    # sampled: 1, 2, 3, mean 2, standard deviation (n - 1) 1
    whitened = whiten([arr(9, 1, 9, 2), arr(3, 9)], [mask(F, T, F, T), mask(T, F)])
    assert [x.tolist() for x in whitened] == [pytest.approx([0, -1, 0, 0], abs=1e-5), pytest.approx([1, 0], abs=1e-5)]
    flat = np.random.default_rng(0).normal(3, 5, 1000)
    white = whiten([flat], [np.ones(1000, bool)])[0]
    assert white.mean() == pytest.approx(0, abs=1e-12) and white.std(ddof=1) == pytest.approx(1, abs=1e-6)
    assert whiten([arr(0.1, 0.1), arr(0.1)], [mask(T, T), mask(T)])[0].tolist() == [0, 0]
    assert whiten([arr(5)], [mask(T)])[0].tolist() == [0]
    assert whiten([], []) == []


def test_explained_variance() -> None:
    m = [mask(F, T, T, T), mask(T)]
    R = [arr(9, 1, 2, 3), arr(6)]
    assert explained_variance(R, R, m) == 1
    assert explained_variance([r + 5 for r in R], R, m) == pytest.approx(1)
    assert explained_variance([arr(0, 3, 3, 3), arr(3)], R, m) == pytest.approx(0)
    assert explained_variance([arr(0, -1, -2, -3), arr(-6)], R, m) == pytest.approx(-3)
    assert math.isnan(explained_variance(R, [arr(0, 1, 1, 1), arr(1)], m))


# ---------------------------------------------------------------- adaptive KL coefficient


def test_adaptive_kl_by_hand() -> None:
    # target 6. KL 6: unchanged. 6.6: e = .1, times 1.01. 60: e is clipped at .2, times 1.02. 0: times .98
    c = AdaptiveKL(0.1, 6.0)
    for kl, factor in ((6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (0.0, 0.98), (-3.0, 0.98)):
        before = c.coef
        c.update(kl)
        assert c.coef == pytest.approx(before * factor, rel=1e-12)
    c = AdaptiveKL(1.0, 1.0, gain=0.5)
    c.update(2.0)
    assert c.coef == pytest.approx(1.1)


def test_adaptive_kl_converges_to_its_target() -> None:
    """For a policy whose KL is 1 / coef."""
    c = AdaptiveKL(1.0, 4.0)
    for _ in range(400):
        c.update(1 / c.coef)
    assert 1 / c.coef == pytest.approx(4.0, rel=0.01)


def test_adaptive_kl_resumes() -> None:
    a, b = AdaptiveKL(0.1, 6.0), AdaptiveKL(0.1, 6.0)
    a.update(9.1)
    b.restore(json.loads(json.dumps(a.state())))
    for c in (a, b):
        c.update(5.3)
    assert a == b and a.coef != 0.1


def test_adaptive_kl_rejects_bad_input() -> None:
    for name in ("coef", "target", "gain"):
        for value in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(UserError) as error:
                AdaptiveKL(**({"coef": 0.1, "target": 6.0, "gain": 0.1} | {name: value}))
            assert error.value.field == name
    with pytest.raises(UserError, match="gain of 5"):
        AdaptiveKL(0.1, 6.0, gain=5.0)
    for kl in (math.nan, math.inf):
        with pytest.raises(ValueError, match="KL of the answers must be finite"):
            AdaptiveKL(0.1, 6.0).update(kl)
