"""Best-of-n: what is got when the answer that one reward likes best, of n, is judged by another.

From N answers to a prompt, the mean over all subsets of size n at once (Stiennon et al. 2020, arXiv:2009.01325,
appendix G.2; Gao et al. 2022): of N answers sorted by the choosing reward, the i-th (from 0) is the best of
C(N-1-i, n-1) of the C(N, n) subsets. Answers that the choosing reward finds equal share what they are worth.

The distance from the policy that drew them: KL = log n - (n - 1) / n, exact when no two answers tie.
"""

from __future__ import annotations

import math

import numpy as np


def best_of(choosing: np.ndarray, worth: np.ndarray, n: int) -> float:
    """The expected worth of the answer chosen of n; both [N]. Raises ValueError when there are fewer than n."""
    N = len(choosing)
    if not 0 < n <= N:
        raise ValueError(f"the best of {n} needs at least {n} answers, there are {N}")
    order = np.argsort(-choosing, kind="stable")
    shared = np.array([worth[choosing == choosing[i]].mean() for i in order])
    weights = np.array([math.comb(N - 1 - i, n - 1) for i in range(N)], np.float64) / math.comb(N, n)
    return float(weights @ shared)


def best_of_kl(n: int) -> float:
    """KL(best of n || policy) in nats."""
    return math.log(n) - (n - 1) / n
