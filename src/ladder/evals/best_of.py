"""Best-of-n: the expected gold reward of the answer that a proxy reward ranks highest among n samples.

The estimate from N answers to a prompt is the mean over all subsets of size n (Stiennon et al. 2020, arXiv:2009.01325,
appendix G.2; Gao et al. 2022): of N answers sorted by the proxy reward, best first, the i-th (from 0) is the best of
C(N-1-i, n-1) of the C(N, n) subsets. Answers with equal proxy rewards each count with the mean of their gold rewards.

The divergence of best-of-n from the policy that sampled the answers: KL = log n - (n - 1) / n, exact without ties.
"""

from __future__ import annotations

import math

import numpy as np


def best_of(choosing: np.ndarray, worth: np.ndarray, n: int) -> float:
    """The expected gold reward of the best of n answers. choosing: proxy rewards [N]. worth: gold rewards [N]. Raises
    ValueError when N < n."""
    N = len(choosing)
    if not 0 < n <= N:
        raise ValueError(f"the best of {n} needs at least {n} answers, there are {N}")
    order = np.argsort(-choosing, kind="stable")
    gold_rewards = np.array([worth[choosing == choosing[i]].mean() for i in order])
    weights = np.array([math.comb(N - 1 - i, n - 1) for i in range(N)], np.float64) / math.comb(N, n)
    return float(weights @ gold_rewards)


def best_of_kl(n: int) -> float:
    """KL(best-of-n || policy) in nats."""
    return math.log(n) - (n - 1) / n
