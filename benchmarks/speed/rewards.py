"""The reward of the GRPO workloads: the share of odd token ids, so that every group has a spread and no judge costs."""

from __future__ import annotations

from collections.abc import Sequence

from ladder.contract.rollouts import Outcome, Rollout, Score


def odd_share(ids: Sequence[int]) -> float:
    return sum(i % 2 for i in ids) / max(1, len(ids))


def reward(group: Sequence[Rollout]) -> list[Outcome]:
    return [Score(odd_share(r.tokens[r.mask.index(True) :])) for r in group]
