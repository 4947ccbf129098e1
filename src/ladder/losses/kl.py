"""Estimators of the reverse KL divergence KL(policy || reference) from log-probabilities of sampled tokens.

Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html; with
d = logp(policy) - logp(reference) of a token drawn from the policy:

    k1 = d        k2 = d^2 / 2        k3 = exp(-d) - 1 + d

As *values*, k1 and k3 are unbiased (k3 is also never negative), k2 is biased. Training uses the *gradient*, whose bias
depends on where the estimator is used. Exact expected gradients for on-policy data (tests/losses/test_kl.py enumerates
every sequence):

    | where                                   | k1                      | k2                    | k3                  |
    |-----------------------------------------|-------------------------|-----------------------|---------------------|
    | in the reward (`kl_in_reward`: a number | UNBIASED: the gradient  | biased                | biased (lacks the   |
    | for the whole answer, no gradient)      | of the sequences' KL    |                       | gradient of KL(ref  |
    |                                         |                         |                       | || policy))         |
    | in the loss (`kl`: differentiated, per  | ZERO: trains nothing,   | UNBIASED for the KL   | biased: gradient of |
    | token)                                  | adds noise              | of each step          | KL(ref || policy)   |

"of each step" means at the visited prefixes, with their distribution held fixed: a per-token term in the loss does
not credit a token with the divergence of later tokens. Only a KL in the reward does; for answers of one token the two
are equal. Off-policy (ratio != 1) nothing in the second row is exact.

Left out: clamping (verl clamps d to +-20; here a non-finite loss stops the run with an error) and adaptive
coefficients (`credit/gae.py` has one for the KL in the reward). The defaults are the unbiased estimators: k1 in the
reward, k2 in the loss.
"""

from __future__ import annotations

from typing import Literal, assert_never, get_args

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


def kl(logps: Tensor, ref_logps: Tensor, estimator: Estimator) -> Tensor:
    """Estimates per token in nats, of the shape of the inputs; differentiable in `logps`."""
    assert logps.shape == ref_logps.shape, (logps.shape, ref_logps.shape)
    d = logps - ref_logps
    match estimator:
        case "k1":
            return d
        case "k2":
            return 0.5 * d.square()
        case "k3":
            return (-d).expm1() + d
        case _:
            assert_never(estimator)


def kl_in_reward(logps: Tensor, ref_logps: Tensor, estimator: Estimator = "k1") -> float:
    """The KL penalty of one answer before its coefficient: the sum of the estimates over its trained tokens [N]."""
    return kl(logps.detach().double(), ref_logps.detach().double(), estimator).sum().item()
