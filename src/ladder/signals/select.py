"""Selection: keeps the best of judged groups of answers, to train on them as examples.

Rejection sampling (keep the correct answers), best-of-n, and the rejection sampling of DeepSeek-R1 (correct, readable,
deduplicated, with a quota per prompt). The same function makes a dataset (the rejection-sampling stage) or an online
signal (RAFT, STaR).

RAFT: Dong et al. 2023, arXiv:2304.06767. STaR: Zelikman et al. 2022, arXiv:2203.14465.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ladder.contract.rollouts import Outcome, Rollout, Score


@dataclass(slots=True)
class Funnel:
    """How many answers were left after each filter, in order."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, n: int) -> None:
        """Adds n answers to the count of a filter."""
        self.counts[name] = self.counts.get(name, 0) + n


@dataclass(frozen=True, slots=True)
class Select:
    """Keeps of each group at most `per_prompt` answers with a score of at least `at_least` that pass every filter.

    filters: named tests of one rollout, applied in order. dedupe: of equal texts to one prompt only the first is kept.
    best: keep the answers with the highest scores (best-of-n); without it, those sampled first, whatever their score or
    length.
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
        funnel, selected = Funnel(), []
        for group, outcomes in zip(groups, judged, strict=True):
            selected += self._select_group(list(zip(group, outcomes, strict=True)), funnel)
        return selected, funnel

    def _select_group(self, group: list[tuple[Rollout, Outcome]], funnel: Funnel) -> list[Rollout]:
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
            by_text: dict[str, tuple[Rollout, float]] = {}
            for r, v in scored:
                by_text.setdefault(r.text, (r, v))
            scored = list(by_text.values())
            funnel.add("distinct", len(scored))
        scored = scored[: self.per_prompt]
        funnel.add("kept", len(scored))
        return [r for r, _ in scored]
