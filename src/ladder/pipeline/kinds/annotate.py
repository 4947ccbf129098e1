"""The stage of simulated annotators: pairs of a model's answers, compared by a judge and, at a stated rate, wrongly.

Writes data.jsonl, one pair a line (`signals.rows.pair_row`). The texts make it a preference file for any tool; the
token ids are those that were sampled, with mask and log-probabilities. Of the judge's scores only the margin is
written: how far apart the two answers really were.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from ladder.base import rng
from ladder.base.files import write_lines
from ladder.contract.rollouts import Outcome, Rollout, Score, Task
from ladder.pipeline.build import models
from ladder.pipeline.build import tasks as build_tasks
from ladder.pipeline.kinds.sampling import Sampled, in_parts
from ladder.pipeline.recipe import Recipe, Spec
from ladder.pipeline.stage import Context, Makes
from ladder.rewards.judge import judge
from ladder.signals.rows import pair_row

COUNTS = ("pairs", "equal", "wrong", "filtered", "drawn")


class Annotate(Sampled):
    """num_prompts: how many tasks. judge: what annotators go by. error: the chance that a verdict is the wrong way
    round. Of the `group_size` answers to a prompt neighbours are compared; pairs that the judge finds equal are left
    out. filters: names in `pipeline.build.tasks.FILTERS`; a pair is left out unless both answers pass them all."""

    named: ClassVar[str] = "annotate"
    makes: ClassVar[Makes] = "data"
    num_prompts: int = Field(default=1024, ge=1)
    judge: Spec
    error: float = Field(default=0.1, ge=0, lt=0.5)
    group_size: int = Field(default=4, ge=2)
    filters: tuple[str, ...] = ()

    def judges(self) -> dict[str, Spec | None]:
        return {"judge": self.judge}

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        build_tasks.filters(self.filters, self.spec(recipe), f"{name}.filters")
        self.check_apart(name)

    def run(self, ctx: Context) -> dict[str, Any]:
        tests = list(build_tasks.filters(self.filters, self.spec(ctx.recipe), f"{ctx.name}.filters").values())
        tasks = self.source(ctx.name, ctx.recipe).tasks(self.split, self.num_prompts)
        loaded = models.load(ctx.recipe, ctx.model_source(self))
        collect = self.collector(ctx, loaded, self.sampler(ctx, loaded))
        annotator = self.reward_of(ctx, "judge", loaded)
        rows: list[dict[str, Any]] = []
        counts = dict.fromkeys(COUNTS, 0)

        def part(_: int, start: int, some: list[Task]) -> dict[str, Any]:
            own: dict[str, Any] = {"rows": []} | dict.fromkeys(COUNTS, 0)
            groups = collect(some, step=start, version=0)
            for i, (group, outcomes) in enumerate(zip(groups, judge(annotator, groups), strict=True)):
                own["drawn"] += sum(r.length for r in group)
                passed = [all(test(r) for test in tests) for r in group]
                self._compare(group, outcomes, passed, rng.np_rng(ctx.seed, ctx.name, "annotator", start + i), own)
            return own

        for one in in_parts(ctx, tasks, part, lambda: {"pairs": len(rows)}):
            rows.extend(one["rows"])
            counts = {name: n + one[name] for name, n in counts.items()}
        if not rows:
            raise ctx.error(
                f"there is nothing to prefer: the judge found {counts['equal']:,} pairs equal, and "
                f"{counts['filtered']:,} did not pass the filters",
                "filters" if counts["filtered"] else "judge",
            )
        write_lines(ctx.directory / "data.jsonl", rows)
        shutil.rmtree(ctx.directory / "parts", ignore_errors=True)
        agreement = 1 - counts["wrong"] / counts["pairs"]
        out = counts["equal"] + counts["filtered"]
        ctx.console.say(f"  {len(rows):,} pairs, {out:,} left out; annotators agree {agreement:.1%}")
        told = {name: counts[name] for name in ("pairs", "equal", "filtered")}
        return told | {"agreement": round(agreement, 4), "drawn_tokens": counts["drawn"]}

    def _compare(
        self,
        group: Sequence[Rollout],
        outcomes: Sequence[Outcome],
        passed: Sequence[bool],
        draw: Any,
        found: dict[str, Any],
    ) -> None:
        """Verdicts on neighbours, two and two; what is found is added to `found`."""
        for j in range(0, self.group_size - 1, 2):
            if not (passed[j] and passed[j + 1]):
                found["filtered"] += 1
                continue
            a, b = (o.value if isinstance(o, Score) else None for o in outcomes[j : j + 2])
            if a is None or b is None or a == b or group[j].tokens == group[j + 1].tokens:
                found["equal"] += 1
                continue
            wrong = bool(draw.random() < self.error)
            best, other = (j, j + 1) if (a > b) != wrong else (j + 1, j)
            found["rows"].append(pair_row(group[best], group[other], (a - b) if best == j else (b - a)))
            found["pairs"] += 1
            found["wrong"] += wrong
