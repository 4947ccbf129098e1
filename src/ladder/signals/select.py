"""Selection as a signal: score groups of answers, keep the best, and train on them as examples.

Rejection sampling (keep what is right), best-of-n, and the harvest of DeepSeek-R1 (right, readable, deduplicated,
with a quota per prompt). The same function makes a dataset (the harvest stage) or an online signal (RAFT, STaR).

RAFT: Dong et al. 2023, arXiv:2304.06767. STaR: Zelikman et al. 2022, arXiv:2203.14465.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ladder.contract.rollouts import Outcome, Rollout, Score


@dataclass(slots=True)
class Funnel:
    """What happened to the answers on their way: counts at each gate, in order."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, n: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + n


@dataclass(frozen=True, slots=True)
class Select:
    """Keeps, of each group, at most `per_prompt` answers that scored `at_least` and pass every filter.

    filters: named tests of one rollout, asked in order. dedupe: equal texts to one prompt count once. longest or
    best-scored answers are not preferred: among the kept, the first sampled win, unless `best` asks for the
    highest scores (best-of-n).
    """

    per_prompt: int = 1
    at_least: float = 1.0
    filters: dict[str, Callable[[Rollout], bool]] = field(default_factory=dict)
    dedupe: bool = True
    best: bool = False

    def __call__(
        self, groups: Sequence[Sequence[Rollout]], judged: Sequence[Sequence[Outcome]]
    ) -> tuple[list[Rollout], Funnel]:
        """The kept rollouts in order, and the funnel: sampled, judged, right, <each filter>, distinct, kept."""
        funnel, kept = Funnel(), []
        for group, outcomes in zip(groups, judged, strict=True):
            kept += self._one(list(zip(group, outcomes, strict=True)), funnel)
        return kept, funnel

    def _one(self, group: list[tuple[Rollout, Outcome]], funnel: Funnel) -> list[Rollout]:
        funnel.add("sampled", len(group))
        scored = [(r, o.value) for r, o in group if isinstance(o, Score)]
        funnel.add("judged", len(scored))
        scored = [(r, v) for r, v in scored if v >= self.at_least and r.stop != "length"]
        funnel.add("right", len(scored))
        for name, test in self.filters.items():
            scored = [(r, v) for r, v in scored if test(r)]
            funnel.add(name, len(scored))
        if self.best:
            scored.sort(key=lambda rv: -rv[1])
        if self.dedupe:
            first: dict[str, tuple[Rollout, float]] = {}
            for r, v in scored:
                first.setdefault(r.text, (r, v))
            scored = list(first.values())
            funnel.add("distinct", len(scored))
        scored = scored[: self.per_prompt]
        funnel.add("kept", len(scored))
        return [r for r, _ in scored]
