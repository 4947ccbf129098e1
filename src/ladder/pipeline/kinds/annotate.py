"""The stage of simulated annotators: a judge compares pairs of a model's answers, and a given share of its verdicts is
flipped.

Writes data.jsonl, one pair a line (`signals.rows.pair_row`). The texts make it a preference file for any tool; the
token ids are those that were sampled, with mask and log-probabilities. Of the judge's scores only the margin is
written: the true difference between the two scores.
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
from ladder.rewards.judge import check_judged, judge
from ladder.signals.rows import pair_row

COUNTS = ("pairs", "equal", "wrong", "filtered", "failed", "drawn")


class Annotate(Sampled):
    """num_prompts: number of tasks. judge: the reward by which the annotators compare. error: the probability that a
    verdict is flipped. Of the `group_size` answers to a prompt the 1st is compared with the 2nd, the 3rd with the 4th,
    and so on; pairs with equal scores are left out. filters: names (`build.tasks.filters`); a pair is left out unless
    both answers pass them all. max_failed: the
    share of answers that may fail to be judged; a pair with such an answer is left out and counted."""

    named: ClassVar[str] = "annotate"
    makes: ClassVar[Makes] = "data"
    num_prompts: int = Field(default=1024, ge=1)
    judge: Spec
    error: float = Field(default=0.1, ge=0, lt=0.5)
    group_size: int = Field(default=4, ge=2)
    filters: tuple[str, ...] = ()
    max_failed: float = Field(default=0.1, ge=0, le=1)

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

        def annotate_part(_: int, start: int, part_tasks: list[Task]) -> dict[str, Any]:
            result: dict[str, Any] = {"rows": []} | dict.fromkeys(COUNTS, 0)
            groups = collect(part_tasks, step=start, version=0)
            judged = judge(annotator, groups)
            check_judged(judged, self.max_failed, f"{ctx.name} from prompt {start} on")
            for i, (group, outcomes) in enumerate(zip(groups, judged, strict=True)):
                result["drawn"] += sum(r.length for r in group)
                passed = [all(test(r) for test in tests) for r in group]
                self._compare(group, outcomes, passed, rng.np_rng(ctx.seed, ctx.name, "annotator", start + i), result)
            return result

        for result in in_parts(ctx, tasks, annotate_part, lambda: {"pairs": len(rows)}):
            rows.extend(result["rows"])
            counts = {name: n + result[name] for name, n in counts.items()}
        if not rows:
            raise ctx.error(
                f"no pairs were made: the judge found {counts['equal']:,} pairs equal, and "
                f"{counts['filtered']:,} did not pass the filters",
                "filters" if counts["filtered"] else "judge",
            )
        write_lines(ctx.directory / "data.jsonl", rows)
        shutil.rmtree(ctx.directory / "parts", ignore_errors=True)
        agreement = 1 - counts["wrong"] / counts["pairs"]
        left_out = counts["equal"] + counts["filtered"] + counts["failed"]
        ctx.console.say(
            f"  {len(rows):,} pairs, {left_out:,} left out; {agreement:.1%} of the verdicts agree with the judge"
        )
        figures = {name: counts[name] for name in ("pairs", "equal", "filtered", "failed")}
        return figures | {"agreement": round(agreement, 4), "drawn_tokens": counts["drawn"]}

    def _compare(
        self,
        group: Sequence[Rollout],
        outcomes: Sequence[Outcome],
        passed: Sequence[bool],
        generator: Any,
        result: dict[str, Any],
    ) -> None:
        """Compares the answers of a group in pairs; adds the pairs' rows and the counts to `result`. passed: whether
        each answer passes the filters. generator: decides which verdicts are flipped."""
        for j in range(0, self.group_size - 1, 2):
            if not (passed[j] and passed[j + 1]):
                result["filtered"] += 1
                continue
            a, b = (o.value if isinstance(o, Score) else None for o in outcomes[j : j + 2])
            if a is None or b is None:
                result["failed"] += 1
                continue
            if a == b or group[j].tokens == group[j + 1].tokens:
                result["equal"] += 1
                continue
            wrong = bool(generator.random() < self.error)
            best, other = (j, j + 1) if (a > b) != wrong else (j + 1, j)
            result["rows"].append(pair_row(group[best], group[other], (a - b) if best == j else (b - a)))
            result["pairs"] += 1
            result["wrong"] += wrong
