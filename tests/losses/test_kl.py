"""KL estimators against exact enumeration: 4 tokens, answers of 1, 2 and 3 tokens, no sampling.

A policy is a table of logits for every prefix, so later tokens depend on earlier ones. All expectations are sums over
all 4^T sequences; the exact gradients are those of autograd on the exact divergences.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ladder.contract.batch import Batch, Out
from ladder.losses import PolicyClip, PolicyGradient
from ladder.losses.kl import ESTIMATORS, Estimator, kl, kl_in_reward

V = 4
STEPS = (1, 2, 3)


class Enumeration:
    """All sequences of T tokens under a policy and a reference."""

    def __init__(self, T: int, seed: int = 3) -> None:
        g = torch.Generator().manual_seed(seed)
        self.T = T
        prefixes = [p for t in range(T) for p in itertools.product(range(V), repeat=t)]
        self.row = {p: i for i, p in enumerate(prefixes)}
        self.theta = torch.randn(len(prefixes), V, generator=g, dtype=torch.float64, requires_grad=True)
        self.ref = torch.randn(len(prefixes), V, generator=g, dtype=torch.float64).log_softmax(-1)
        sequences = list(itertools.product(range(V), repeat=T))
        self.at = torch.tensor([[self.row[s[:t]] for t in range(T)] for s in sequences])
        self.tokens = torch.tensor(sequences)
        self.logps = self.theta.log_softmax(-1)[self.at, self.tokens]  # [4^T, T]
        self.ref_logps = self.ref[self.at, self.tokens]
        self.prob = self.logps.sum(1).exp()  # [4^T]

    def gradient(self, scalar: Tensor) -> Tensor:
        if not scalar.requires_grad:
            return torch.zeros_like(self.theta)
        return torch.autograd.grad(scalar, self.theta, retain_graph=True)[0]

    def exact(self) -> Tensor:
        """KL(policy || reference) of whole sequences."""
        return (self.prob * (self.logps - self.ref_logps).sum(1)).sum()

    def visits(self) -> Tensor:
        """Probability of visiting each prefix, without gradient."""
        visits = torch.zeros(len(self.row), dtype=torch.float64)
        return visits.index_add(0, self.at.reshape(-1), self.prob.detach().repeat_interleave(self.T))

    def per_step(self, reverse: bool) -> Tensor:
        """Sum over steps of the KL of one step, with the distribution of prefixes held fixed."""
        log_pi = self.theta.log_softmax(-1)
        if reverse:
            values = (log_pi.exp() * (log_pi - self.ref)).sum(-1)
        else:
            values = (self.ref.exp() * (self.ref - log_pi)).sum(-1)
        return (self.visits() * values).sum()

    def in_loss(self, kind: Estimator) -> Tensor:
        """Expected gradient of the estimator as a term of the loss."""
        values = kl(self.logps.reshape(-1), self.ref_logps.reshape(-1), kind).reshape(-1, self.T).sum(1)
        return self.gradient((self.prob.detach() * values).sum())

    def in_reward(self, kind: Estimator) -> Tensor:
        """Expected REINFORCE gradient of the estimator as a cost of the whole answer."""
        cost = torch.tensor(
            [kl_in_reward(p, r, kind) for p, r in zip(self.logps, self.ref_logps, strict=True)],
            dtype=torch.float64,
        )
        return self.gradient((self.prob.detach() * cost * self.logps.sum(1)).sum())


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("T", STEPS)
def test_values(T: int) -> None:
    w = Enumeration(T)
    expected = {k: (w.prob * kl(w.logps, w.ref_logps, k).sum(1)).sum().item() for k in ESTIMATORS}
    exact = w.exact().item()
    assert expected["k1"] == pytest.approx(exact, rel=1e-12)
    assert expected["k3"] == pytest.approx(exact, rel=1e-12)
    assert abs(expected["k2"] - exact) > 0.01
    assert kl(w.logps, w.ref_logps, "k3").min() >= 0


@pytest.mark.parametrize("T", STEPS)
def test_in_reward_only_k1_is_unbiased(T: int) -> None:
    w = Enumeration(T)
    exact = w.gradient(w.exact())
    assert close(w.in_reward("k1"), exact)
    assert (w.in_reward("k2") - exact).abs().max() > 0.01
    assert (w.in_reward("k3") - exact).abs().max() > 0.01


def test_in_reward_k3_lacks_the_gradient_of_the_forward_kl() -> None:
    w = Enumeration(1)
    assert close(w.in_reward("k3") + w.gradient(w.per_step(reverse=False)), w.gradient(w.exact()))


@pytest.mark.parametrize("T", STEPS)
def test_in_loss_k1_is_zero_k2_is_unbiased_per_step_k3_is_the_forward_kl(T: int) -> None:
    w = Enumeration(T)
    reverse, forward = w.gradient(w.per_step(reverse=True)), w.gradient(w.per_step(reverse=False))
    assert close(w.in_loss("k1"), torch.zeros_like(reverse)) and reverse.abs().max() > 0.01
    assert close(w.in_loss("k2"), reverse)
    assert close(w.in_loss("k3"), forward)
    assert (forward - reverse).abs().max() > 0.01


def test_the_per_step_gradient_equals_that_of_the_kl_only_for_one_step() -> None:
    one, two = Enumeration(1), Enumeration(2)
    assert close(one.in_loss("k2"), one.gradient(one.exact()))
    assert (two.in_loss("k2") - two.gradient(two.exact())).abs().max() > 0.01


@pytest.mark.parametrize("T", STEPS)
def test_losses_and_penalised_rewards_follow_the_exact_objective(T: int) -> None:
    """REINFORCE summed over answers with reward R - beta k1 has exactly the gradient of -(E[R] - beta KL), also with a
    constant baseline. The KL term of the loss adds beta times the gradient of the per-step KL."""
    w, beta = Enumeration(T, seed=1), 0.3
    R = torch.randn(len(w.tokens), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    k1 = [kl_in_reward(p, r) for p, r in zip(w.logps, w.ref_logps, strict=True)]
    objective = w.gradient((w.prob * R).sum() - beta * w.exact())
    reward = R - beta * torch.tensor(k1, dtype=torch.float64)
    for baseline in (0.0, 1.7):
        got = expected_gradient(w, PolicyGradient(unit="padded", length=1, entropy=False), reward - baseline)
        assert close(got, -objective)
    steps: dict[Estimator, Tensor] = {"k2": w.per_step(reverse=True), "k3": w.per_step(reverse=False)}
    for kind, exact in steps.items():
        loss = PolicyClip(unit="padded", length=1, entropy=False, kl_coef=beta, kl=kind)
        want = -w.gradient((w.prob * R).sum()) + beta * w.gradient(exact)
        assert close(expected_gradient(w, loss, R), want)


def expected_gradient(w: Enumeration, loss: PolicyGradient | PolicyClip, advantages_S: Tensor) -> Tensor:
    """Expectation over all answers of the gradient of a loss's sum over one answer (on-policy)."""
    S, T = w.tokens.shape
    cols = {
        "advantages": advantages_S.repeat_interleave(T),
        "old_logps": w.logps.detach().reshape(-1),
        "ref_logps": w.ref_logps.reshape(-1),
    }
    batch = Batch(torch.arange(S).repeat_interleave(T), torch.full((S,), T), {n: cols[n] for n in loss.needs})
    values, _ = loss(Out(w.logps.reshape(-1)), batch)
    return w.gradient((w.prob.detach() * batch.sum(values)).sum())


def test_by_hand() -> None:
    # policy 1/2, reference 1/8: d = ln 4 = 1.386294; k2 = .960906; k3 = 1/4 - 1 + ln 4 = .636294
    logp, ref = torch.tensor([0.5], dtype=torch.float64).log(), torch.tensor([0.125], dtype=torch.float64).log()
    d = math.log(4)
    got = {k: kl(logp, ref, k).item() for k in ESTIMATORS}
    assert got == pytest.approx({"k1": d, "k2": d * d / 2, "k3": d - 0.75})
    assert kl_in_reward(torch.stack([logp, ref])[:, 0], torch.stack([ref, ref])[:, 0]) == pytest.approx(d)


def test_equal_policies_have_no_kl_and_no_gradient() -> None:
    logps = torch.randn(9, dtype=torch.float64).requires_grad_()
    for kind in ESTIMATORS:
        values = kl(logps, logps.detach(), kind)
        assert values.eq(0).all()
        (grad,) = torch.autograd.grad(values.sum(), logps)
        assert grad.eq(1 if kind == "k1" else 0).all()


def test_bad_input() -> None:
    with pytest.raises(AssertionError):
        kl(torch.zeros(2), torch.zeros(2), "k4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(AssertionError):
        kl(torch.zeros(2), torch.zeros(1), "k1")
