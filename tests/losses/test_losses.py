"""Losses against numbers worked by hand, and against the papers' formulas in float64 over padded [B, T] arrays.

The oracle below follows the papers, one scalar at a time over padded batches with masks; it shares no code with the
losses (min and clip as printed, not clamped logarithms). Its gradient is autograd's on the padded array, which is
checked against finite differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ladder.base.errors import UserError
from ladder.contract.batch import Batch, Out
from ladder.contract.training import Loss, Sample
from ladder.losses import CISPO, GSPO, CrossEntropy, PolicyClip, PolicyGradient
from ladder.packing.pack import count, pack

PolicyLoss = PolicyClip | PolicyGradient | GSPO | CISPO
COLUMNS = ("advantages", "old_logps", "ref_logps", "sampler_logps")


# ---------------------------------------------------------------- helpers


@dataclass
class Padded:
    """A padded batch, [B, T] each; entries outside the mask are NaN."""

    mask: np.ndarray
    logps: np.ndarray
    entropy: np.ndarray
    cols: dict[str, np.ndarray]


def draw(rng: np.random.Generator, B: int, T: int, *, spread: float = 0.5, per_token: bool = False) -> Padded:
    """A random batch with gaps in its masks; every row has at least one trained token."""
    mask = rng.random((B, T)) < 0.7
    mask[np.arange(B), rng.integers(T, size=B)] = True
    logps = -rng.exponential(1.0, (B, T)) - 0.01
    old = logps + rng.normal(0, spread, (B, T))
    cols = {
        "advantages": rng.normal(size=(B, T)) if per_token else np.repeat(rng.normal(size=(B, 1)), T, 1),
        "old_logps": old,
        "ref_logps": logps + rng.normal(0, 1.0, (B, T)),
        "sampler_logps": old + rng.normal(0, spread, (B, T)),
    }
    batch = Padded(mask, logps, rng.exponential(1.0, (B, T)), cols)
    for x in (batch.logps, batch.entropy, *cols.values()):
        x[~mask] = np.nan
    return batch


def ragged(p: Padded, needs: tuple[str, ...]) -> tuple[Tensor, Tensor, Batch]:
    """The trained positions of a padded batch, as passed to a loss: logps [N], entropy [N], Batch."""
    mask = torch.tensor(p.mask)
    lengths = mask.sum(1)
    cols = {name: torch.tensor(p.cols[name])[mask] for name in needs}
    batch = Batch(torch.arange(len(lengths)).repeat_interleave(lengths), lengths, cols)
    return torch.tensor(p.logps)[mask], torch.tensor(p.entropy)[mask], batch


def ours(loss: Loss, p: Padded) -> tuple[float, Tensor, Tensor]:
    """The engine's loss (the sum divided by the count of units) and its gradients by logps and entropy, [N] each."""
    logps, entropy, batch = ragged(p, loss.needs)
    logps.requires_grad_()
    entropy.requires_grad_()
    losses, _ = loss(Out(logps, entropy if loss.entropy else None), batch)
    total = units(loss, p)
    (losses.sum() / total).backward()
    entropy_grad = entropy.grad if entropy.grad is not None else torch.zeros_like(entropy)
    assert logps.grad is not None
    return losses.sum().item() / total, logps.grad, entropy_grad


def units(loss: Loss, p: Padded) -> float:
    """The number of the loss's units, counted by the engine's function."""
    samples = []
    for row in p.mask:
        mask = torch.cat([torch.zeros(1, dtype=torch.bool), torch.tensor(row)])
        samples.append(Sample(torch.zeros(len(mask), dtype=torch.int64), mask))
    return count(samples, loss)


# ---------------------------------------------------------------- the oracle


def surrogate(loss: PolicyLoss, p: Padded, x: Tensor, b: int, t: int) -> Tensor:
    """The surrogate loss of one token."""
    A, old = float(p.cols["advantages"][b, t]), float(p.cols["old_logps"][b, t])
    if isinstance(loss, PolicyGradient):
        return -A * x[b, t]
    if isinstance(loss, CISPO):
        weight = torch.exp(x[b, t] - old).detach()
        weight = min(max(weight.item(), loss.ratio_min), loss.ratio_max)
        return -weight * A * x[b, t]
    if isinstance(loss, GSPO):
        trained = [u for u in range(p.mask.shape[1]) if p.mask[b, u]]
        pi, pi_old = torch.ones((), dtype=torch.float64), 1.0
        for u in trained:
            pi = pi * torch.exp(x[b, u])
            pi_old = pi_old * math.exp(p.cols["old_logps"][b, u])
        s = (pi / pi_old) ** (1 / len(trained))
        ratio = s.detach() * torch.exp(x[b, t]) / torch.exp(x[b, t]).detach()
        return -torch.minimum(ratio * A, ratio.clip(1 - loss.clip_low, 1 + loss.clip_high) * A)
    ratio = torch.exp(x[b, t]) / math.exp(old)
    inner = torch.minimum(ratio * A, ratio.clip(1 - loss.clip_low, 1 + loss.clip_high) * A)
    if loss.dual_clip is not None and A < 0:
        inner = torch.maximum(inner, torch.tensor(loss.dual_clip * A, dtype=torch.float64))
    return -inner


def oracle_of(loss: PolicyLoss, p: Padded, x: Tensor, h: Tensor) -> Tensor:
    """The loss of the batch by the papers' formulas. x, h: log-probabilities and entropies, padded [B, T]."""
    B, T = p.mask.shape
    per_row: list[list[Tensor]] = [[] for _ in range(B)]
    for b in range(B):
        for t in range(T):
            if not p.mask[b, t]:
                continue
            value = surrogate(loss, p, x, b, t)
            if loss.importance_cap is not None:
                weight = math.exp(p.cols["old_logps"][b, t]) / math.exp(p.cols["sampler_logps"][b, t])
                value = min(weight, loss.importance_cap) * value
            if loss.kl_coef:
                r = torch.exp(torch.tensor(p.cols["ref_logps"][b, t]) - x[b, t])  # reference / policy
                k = {"k1": -torch.log(r), "k2": torch.log(r) ** 2 / 2, "k3": r - 1 - torch.log(r)}[loss.kl]
                value = value + loss.kl_coef * k
            per_row[b].append(value - loss.entropy_coef * h[b, t])
    if loss.unit == "sequence":
        return sum((sum(r, start=torch.zeros(())) / len(r) for r in per_row), start=torch.zeros(())) / B
    total = sum((v for r in per_row for v in r), start=torch.zeros(()))
    if loss.unit == "padded":
        assert loss.length is not None
        return total / (B * loss.length)
    return total / sum(len(r) for r in per_row)


def oracle(loss: PolicyLoss, p: Padded) -> tuple[float, Tensor, Tensor]:
    """The oracle's loss and its gradients by log-probabilities and entropies, [N] each."""
    x = torch.tensor(p.logps, requires_grad=True)
    h = torch.tensor(p.entropy, requires_grad=True)
    value = oracle_of(loss, p, x, h)
    value.backward()
    mask = torch.tensor(p.mask)
    assert x.grad is not None
    return value.item(), x.grad[mask], h.grad[mask] if h.grad is not None else torch.zeros(int(mask.sum()))


def check_against_oracle(loss: PolicyLoss, p: Padded) -> None:
    got, want = ours(loss, p), oracle(loss, p)
    assert got[0] == pytest.approx(want[0], rel=1e-9, abs=1e-9)
    for a, b in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(a, b.double(), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- against the oracle

CONFIGS: dict[str, PolicyLoss] = {
    "reinforce": PolicyGradient(),
    "reinforce_rloo": PolicyGradient(unit="padded", length=1, importance_cap=1.5),
    "ppo": PolicyClip(),
    "ppo_dual": PolicyClip(dual_clip=1.3),
    "grpo": PolicyClip(unit="sequence", kl_coef=0.1, kl="k3"),
    "dr_grpo": PolicyClip(unit="padded", length=7),
    "dapo": PolicyClip(clip_high=0.28),
    "tis": PolicyClip(importance_cap=1.2, kl_coef=0.3, kl="k2", entropy_coef=0.05),
    "k1": PolicyClip(kl_coef=0.3, kl="k1"),
    "gspo": GSPO(),
    "gspo_wide": GSPO(clip_low=0.1, clip_high=0.3, kl_coef=0.2, entropy_coef=-0.1, importance_cap=2.0),
    "gspo_token": GSPO(unit="token", clip_low=0.2, clip_high=0.2),
    "cispo": CISPO(ratio_max=1.3),
    "cispo_low": CISPO(ratio_max=1.4, ratio_min=0.8, unit="sequence", importance_cap=1.1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_oracle(name: str) -> None:
    """Value and both gradients on 60 batches of rows of different lengths, including single rows and single tokens."""
    rng = np.random.default_rng(len(name))
    for i in range(60):
        B, T = (1, 1) if i == 0 else (int(rng.integers(1, 5)), int(rng.integers(1, 7)))
        check_against_oracle(CONFIGS[name], draw(rng, B, T, per_token=i % 2 == 1))


@pytest.mark.parametrize("name", ["ppo_dual", "grpo", "dr_grpo", "tis"])
def test_the_oracles_gradient_matches_finite_differences(name: str) -> None:
    """For the losses without a stopped gradient."""
    loss, rng, eps = CONFIGS[name], np.random.default_rng(7), 1e-6
    for _ in range(10):
        p = draw(rng, 3, 4)
        _, grad, _ = oracle(loss, p)
        h = torch.tensor(p.entropy)
        for n, (b, t) in enumerate(np.argwhere(p.mask)):
            x = np.stack([p.logps, p.logps])
            x[:, b, t] += [eps, -eps]
            up, down = (oracle_of(loss, p, torch.tensor(y), h).item() for y in x)
            assert (up - down) / (2 * eps) == pytest.approx(grad[n].item(), abs=1e-7)


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_cross_entropy_oracle(unit: str) -> None:
    rng = np.random.default_rng(3)
    loss = CrossEntropy(unit=unit)  # pyright: ignore[reportArgumentType]
    for _ in range(100):
        p = draw(rng, int(rng.integers(1, 5)), int(rng.integers(1, 7)))
        rows = [-x[m] for x, m in zip(p.logps, p.mask, strict=True)]
        want = np.concatenate(rows).mean() if unit == "token" else np.mean([r.mean() for r in rows])
        value, grad, _ = ours(loss, p)
        assert value == pytest.approx(float(want), rel=1e-12)
        assert grad.sum().item() == pytest.approx(-1.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_samples_give_the_oracles_loss(name: str) -> None:
    """With `pack` into several micro-batches and float32 columns, the parts sum to the oracle's loss."""
    loss, rng = CONFIGS[name], np.random.default_rng(5)
    for _ in range(10):
        p = draw(rng, 4, 5)
        samples, want = [], oracle(loss, p)[0]
        logps, entropy, _ = ragged(p, ())
        for row in range(4):
            mask = torch.cat([torch.zeros(1, dtype=torch.bool), torch.tensor(p.mask[row])])
            cols = {n: torch.cat([torch.zeros(1), torch.tensor(c[row]).float()]) for n, c in p.cols.items()}
            samples.append(Sample(torch.randint(9, (6,)), mask, cols))
        start, value = 0, 0.0
        packs = pack(samples, loss.needs, budget=8)
        assert len(packs) > 1
        for packed in packs:
            part = slice(start, start + len(packed.tgt_N))
            out = Out(logps[part], entropy[part] if loss.entropy else None)
            value += loss(out, packed.batch)[0].sum().item() / count(samples, loss)
            start = part.stop
        assert start == len(logps)
        assert value == pytest.approx(want, rel=1e-5, abs=1e-5)


# ---------------------------------------------------------------- worked by hand


def by_ratio(
    loss: Loss, rows: list[list[tuple[float, float]]], **extra: list[float]
) -> tuple[list[float], dict[str, list[float]], list[float]]:
    """(losses, metrics, gradient by logps) of rows of (ratio, advantage); policy log-probabilities are -1."""
    flat = [x for row in rows for x in row]
    lengths = torch.tensor([len(r) for r in rows])
    cols = {
        "old_logps": torch.tensor([-1 - math.log(r) for r, _ in flat], dtype=torch.float64),
        "advantages": torch.tensor([a for _, a in flat], dtype=torch.float64),
    } | {k: torch.tensor(v, dtype=torch.float64) for k, v in extra.items()}
    batch = Batch(torch.arange(len(rows)).repeat_interleave(lengths), lengths, {n: cols[n] for n in loss.needs})
    logps = torch.full((len(flat),), -1.0, dtype=torch.float64, requires_grad=True)
    entropy = torch.full((len(flat),), 0.5, dtype=torch.float64)
    losses, metrics = loss(Out(logps, entropy if loss.entropy else None), batch)
    losses.sum().backward()
    assert logps.grad is not None
    return losses.tolist(), {k: v.tolist() for k, v in metrics.items()}, logps.grad.tolist()


def near(x: list[float]) -> object:
    return pytest.approx(x, abs=1e-12)


def test_cross_entropy_by_hand() -> None:
    # p = 1/2 and 1/4 in one sequence, 1/8 in another: ln 2, ln 4, ln 8; means (ln 2 + ln 4)/2 = 1.5 ln 2 and 3 ln 2
    out = Out(torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64).log())
    batch = Batch(torch.tensor([0, 0, 1]), torch.tensor([2, 1]), {})
    ln2 = math.log(2)
    assert CrossEntropy()(out, batch)[0].tolist() == near([ln2, 2 * ln2, 3 * ln2])
    assert CrossEntropy(unit="sequence")(out, batch)[0].tolist() == near([1.5 * ln2, 3 * ln2])


def test_policy_gradient_by_hand() -> None:
    # -A logp = -2 * -1 = 2 with gradient -A = -2;  -(-3) * -1 = -3 with gradient 3
    losses, _, grad = by_ratio(PolicyGradient(), [[(9.0, 2.0)], [(9.0, -3.0)]])
    assert (losses, grad) == (near([2.0, -3.0]), near([-2.0, 3.0]))


def test_clip_by_hand() -> None:
    # clip .2/.28, dual 3. A = 2:  r = 1.5 -> -min(3, 1.28 * 2) = -2.56, no gradient;
    #                              r = 0.5 -> -min(1, 0.8 * 2)  = -1, gradient -r A = -1.
    #                     A = -1:  r = 0.5 -> -min(-.5, -.8) = 0.8, no gradient;
    #                              r = 1.5 -> -min(-1.5, -1.28) = 1.5, gradient 1.5;
    #                              r = 4   -> 4 without the dual clip, gradient 4; 3 with it, no gradient.
    rows = [[(1.5, 2.0), (0.5, 2.0)], [(0.5, -1.0), (1.5, -1.0), (4.0, -1.0)]]
    losses, metrics, grad = by_ratio(PolicyClip(clip_high=0.28, dual_clip=3.0), rows)
    assert losses == near([-2.56, -1.0, 0.8, 1.5, 3.0])
    assert grad == near([0.0, -1.0, 0.0, 1.5, 0.0])
    assert metrics["ratio/clipped"] == [1, 0, 1, 0, 1]
    assert metrics["ratio/mean"] == near([1.5, 0.5, 0.5, 1.5, 4.0])
    assert metrics["ratio/peak_max"] == metrics["ratio/mean"]
    # KL(old || policy), k3: r - 1 - ln r; for 1.5: .5 - .405465
    assert metrics["ratio/approx_kl"][0] == pytest.approx(0.5 - math.log(1.5))
    losses, metrics, grad = by_ratio(PolicyClip(clip_high=0.28), rows)
    assert (losses[-1], grad[-1]) == (pytest.approx(4.0), pytest.approx(4.0))
    assert metrics["ratio/clipped"][-1] == 0
    # sequence: means of the above: (-2.56 - 1)/2 and (.8 + 1.5 + 4)/3
    assert by_ratio(PolicyClip(clip_high=0.28, unit="sequence"), rows)[0] == near([-1.78, 2.1])


def test_gspo_by_hand() -> None:
    # ratios 4 and 1: s = sqrt(4 * 1) = 2. A = -1: -min(-2, -1.0004) = 2 for both tokens, gradient of each 2,
    # halved by the mean over the answer. A = 1: -min(2, 1.0004) = -1.0004 and no gradient.
    losses, metrics, grad = by_ratio(GSPO(), [[(4.0, -1.0), (1.0, -1.0)], [(4.0, 1.0), (1.0, 1.0)]])
    assert losses == near([2.0, -1.0004])
    assert grad == near([1.0, 1.0, 0.0, 0.0])
    assert metrics["ratio/mean"] == near([2.0] * 4)
    assert metrics["ratio/clipped_answers"] == [0, 0, 1, 1]


def test_cispo_by_hand() -> None:
    # weights min(r, 5): 2, 5, 5; logp = -1, so the loss is w A: 4, 10, -5, and the gradient -w A, never cut
    losses, metrics, grad = by_ratio(CISPO(), [[(2.0, 2.0), (8.0, 2.0), (8.0, -1.0)]])
    assert (losses, grad) == (near([4.0, 10.0, -5.0]), near([-4.0, -10.0, 5.0]))
    assert metrics["ratio/clipped"] == [0, 1, 1]
    # ratio_max bounds the ratio itself: an on-policy ratio is not clipped
    assert by_ratio(CISPO(ratio_max=1.0), [[(1.0, 2.0)]])[1]["ratio/clipped"] == [0]


def test_shared_terms_by_hand() -> None:
    # A = 2, r = 1: surrogate -2. old/sampler = 3, cap 2: -4. ref = policy / e, d = 1: k2 = .5, k3 = e^-1 = .367879;
    # entropy .5 with coefficient .1: -.05.  k2: -4 + .5 - .05 = -3.55
    extra = {"sampler_logps": [-1 - math.log(3)], "ref_logps": [-2.0]}
    loss = PolicyClip(importance_cap=2.0, kl_coef=1.0, entropy_coef=0.1)
    losses, metrics, grad = by_ratio(loss, [[(1.0, 2.0)]], **extra)
    assert losses == near([-3.55])
    assert grad == near([-4.0 + 1.0])  # d k2 / d logp = d = 1
    assert by_ratio(replace(loss, kl="k3"), [[(1.0, 2.0)]], **extra)[0] == near([-4.05 + math.exp(-1)])
    assert by_ratio(replace(loss, kl="k3"), [[(1.0, 2.0)]], **extra)[2] == near([-4 + 1 - math.exp(-1)])
    assert by_ratio(replace(loss, kl="k1"), [[(1.0, 2.0)]], **extra)[0] == near([-4.05 + 1])
    assert metrics["kl"] == near([math.exp(-1)])
    assert (metrics["importance/mean"], metrics["importance/capped"]) == (near([3.0]), [1])
    assert metrics["entropy"] == [0.5]


# ---------------------------------------------------------------- behaviour


def test_every_option_changes_the_loss() -> None:
    """Configurations that differ in one field give different losses on one batch."""
    p = draw(np.random.default_rng(11), 6, 8, spread=0.8, per_token=True)
    base = PolicyClip(kl_coef=0.1, importance_cap=2.0, dual_clip=3.0)
    variants: list[PolicyLoss] = [
        base,
        replace(base, clip_low=0.1),
        replace(base, clip_high=0.1),
        replace(base, dual_clip=1.1),
        replace(base, unit="sequence"),
        replace(base, unit="padded", length=5),
        replace(base, unit="padded", length=6),
        replace(base, kl_coef=0.2),
        replace(base, kl="k1"),
        replace(base, kl="k3"),
        replace(base, importance_cap=1.1),
        replace(base, importance_cap=None),
        replace(base, entropy_coef=0.1),
        PolicyGradient(),
        GSPO(),
        GSPO(clip_low=0.1),
        GSPO(clip_high=0.1),
        CISPO(),
        CISPO(ratio_max=1.1),
        CISPO(ratio_min=0.9),
    ]
    values = [ours(loss, p)[0] for loss in variants]
    assert len({round(v, 10) for v in values}) == len(values)


NEEDS: list[tuple[Loss, set[str]]] = [
    (CrossEntropy(), set()),
    (PolicyGradient(), {"advantages"}),
    (PolicyGradient(importance_cap=2.0), {"advantages", "old_logps", "sampler_logps"}),
    (PolicyGradient(kl_coef=0.1), {"advantages", "ref_logps"}),
    (PolicyClip(), {"advantages", "old_logps"}),
    (PolicyClip(kl_coef=0.1), {"advantages", "old_logps", "ref_logps"}),
    (GSPO(importance_cap=2.0), {"advantages", "old_logps", "sampler_logps"}),
    (CISPO(kl_coef=0.1, importance_cap=2.0), {"advantages", "old_logps", "ref_logps", "sampler_logps"}),
]


@pytest.mark.parametrize(("loss", "needs"), NEEDS)
def test_needs_lists_exactly_the_columns_that_are_read(loss: Loss, needs: set[str]) -> None:
    class RecordingDict(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            read.add(name)
            return super().__getitem__(name)

    read: set[str] = set()
    logps, entropy, batch = ragged(draw(np.random.default_rng(0), 2, 3), COLUMNS)
    batch.cols = RecordingDict(batch.cols)
    loss(Out(logps, entropy if loss.entropy else None), batch)
    assert set(loss.needs) == needs == read
    assert len(loss.needs) == len(needs)


def test_defaults_are_those_of_the_papers() -> None:
    ppo, gspo, cispo = PolicyClip(), GSPO(), CISPO()
    assert (ppo.clip_low, ppo.clip_high, ppo.dual_clip, ppo.unit) == (0.2, 0.2, None, "token")
    assert (gspo.clip_low, gspo.clip_high, gspo.unit) == (3e-4, 4e-4, "sequence")
    assert (cispo.ratio_min, cispo.ratio_max, cispo.unit) == (0.0, 5.0, "token")
    for loss in (ppo, gspo, cispo, PolicyGradient()):
        assert (loss.kl_coef, loss.kl, loss.entropy_coef, loss.importance_cap) == (0.0, "k2", 0.0, None)


def test_entropy_false_reads_no_entropy() -> None:
    loss = PolicyClip(entropy=False)
    logps, _, batch = ragged(draw(np.random.default_rng(0), 2, 3), loss.needs)
    assert "entropy" not in loss(Out(logps), batch)[1]
    assert not loss.entropy and PolicyClip().entropy


@pytest.mark.parametrize("loss", [PolicyGradient(), PolicyClip(), GSPO(unit="token"), CISPO()])
def test_on_policy_all_losses_have_the_same_gradient(loss: PolicyLoss) -> None:
    """At ratio 1 every surrogate has REINFORCE's gradient, nothing is clipped, and the KL from the old policy is 0."""
    p = draw(np.random.default_rng(2), 3, 4)
    p.cols["old_logps"] = p.logps
    assert torch.equal(ours(loss, p)[1], ours(PolicyGradient(), p)[1])
    logps, entropy, batch = ragged(p, loss.needs)
    _, metrics = loss(Out(logps, entropy), batch)
    if "ratio/mean" in metrics:
        (clipped,) = (x for name, x in metrics.items() if name.startswith("ratio/clipped"))
        assert metrics["ratio/mean"].eq(1).all() and clipped.eq(0).all()
        assert metrics["ratio/approx_kl"].eq(0).all()


def test_gspo_equals_its_sequence_objective() -> None:
    """Value and gradient of the token form equal those of eq. 5 (one ratio per answer, no stopped gradient)."""
    loss, rng = GSPO(clip_low=0.1, clip_high=0.2), np.random.default_rng(4)
    for _ in range(50):
        p = draw(rng, 3, 5)
        x = torch.tensor(p.logps, requires_grad=True)
        total = torch.zeros((), dtype=torch.float64)
        for b, m in enumerate(p.mask):
            A = p.cols["advantages"][b, m][0]
            s = (x[b, m] - torch.tensor(p.cols["old_logps"][b, m])).mean().exp()
            total = total - torch.minimum(s * A, s.clip(0.9, 1.2) * A) / 3
        total.backward()
        value, grad, _ = ours(loss, p)
        assert x.grad is not None
        assert value == pytest.approx(total.item(), abs=1e-9)
        torch.testing.assert_close(grad, x.grad[torch.tensor(p.mask)], rtol=1e-9, atol=1e-9)


def test_a_ratio_that_overflows_is_clipped_without_nan() -> None:
    logps = torch.tensor([-0.1, -0.1], requires_grad=True)
    cols = {"old_logps": torch.tensor([-200.0, -200.0]), "advantages": torch.tensor([1.0, -1.0])}
    batch = Batch(torch.tensor([0, 1]), torch.tensor([1, 1]), cols)
    losses, _ = PolicyClip(entropy=False, dual_clip=3.0)(Out(logps), batch)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([-1.2, 3.0])
    assert logps.grad is not None and logps.grad.tolist() == [0, 0]


def test_a_column_of_another_shape_is_rejected() -> None:
    logps, entropy, batch = ragged(draw(np.random.default_rng(0), 3, 4), ("advantages", "old_logps"))
    batch.cols["advantages"] = torch.ones(1, dtype=torch.float64)
    with pytest.raises(AssertionError, match="advantages"):
        PolicyClip()(Out(logps, entropy), batch)


@pytest.mark.parametrize("name", CONFIGS)
def test_metrics_are_detached_and_one_dimensional(name: str) -> None:
    loss = CONFIGS[name]
    logps, entropy, batch = ragged(draw(np.random.default_rng(0), 3, 4), loss.needs)
    losses, metrics = loss(Out(logps.requires_grad_(), entropy), batch)
    assert losses.requires_grad and len(losses) == (3 if loss.unit == "sequence" else len(logps))
    for x in metrics.values():
        assert x.ndim == 1 and not x.requires_grad


WRONG: list[tuple[type, dict[str, object], str]] = [
    (CrossEntropy, {"unit": "padded"}, "unit"),
    (PolicyClip, {"unit": "batch"}, "unit"),
    (PolicyClip, {"unit": "padded"}, "length"),
    (PolicyClip, {"unit": "padded", "length": 0}, "length"),
    (PolicyClip, {"length": 5}, "length"),
    (PolicyClip, {"clip_low": 1.0}, "clip_low"),
    (PolicyClip, {"clip_low": -0.1}, "clip_low"),
    (PolicyClip, {"clip_high": -0.1}, "clip_high"),
    (PolicyClip, {"clip_high": math.inf}, "clip_high"),
    (PolicyClip, {"dual_clip": 1.0}, "dual_clip"),
    (PolicyClip, {"kl": "k4"}, "kl"),
    (PolicyClip, {"kl_coef": -0.1}, "kl_coef"),
    (PolicyClip, {"kl_coef": math.nan}, "kl_coef"),
    (PolicyClip, {"entropy_coef": math.nan}, "entropy_coef"),
    (PolicyClip, {"entropy_coef": 0.1, "entropy": False}, "entropy"),
    (PolicyClip, {"importance_cap": 0.5}, "importance_cap"),
    (GSPO, {"clip_low": 2.0}, "clip_low"),
    (GSPO, {"unit": "batch"}, "unit"),
    (CISPO, {"ratio_max": 0.2}, "ratio_max"),
    (CISPO, {"ratio_min": 1.2}, "ratio_min"),
    (CISPO, {"kl": "k4"}, "kl"),
]


@pytest.mark.parametrize(("kind", "fields", "field"), WRONG)
def test_bad_configurations_are_rejected(kind: type, fields: dict[str, object], field: str) -> None:
    with pytest.raises(UserError) as error:
        kind(**fields)
    assert error.value.field == field and error.value.hint
