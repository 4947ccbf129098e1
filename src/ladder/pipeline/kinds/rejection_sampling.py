"""The stage of rejection sampling: samples answers to many prompts and keeps the best as training examples.

Writes data.jsonl (`signals.rows.answer_row`): the token ids that were sampled, with mask and log-probabilities. A
killed stage resumes after its last saved part.
"""

from __future__ import annotations

import shutil
from typing import Any, ClassVar

from pydantic import Field

from ladder.base.files import write_lines
from ladder.contract.rollouts import Score, Task
from ladder.pipeline.build import models
from ladder.pipeline.build import tasks as build_tasks
from ladder.pipeline.kinds.sampling import Sampled, in_parts
from ladder.pipeline.recipe import Recipe, Spec
from ladder.pipeline.stage import Context, Makes
from ladder.rewards.judge import check_judged, judge
from ladder.signals.rows import answer_row
from ladder.signals.select import Funnel, Select


class RejectionSampling(Sampled):
    """num_prompts: number of tasks. reward: None takes the recipe's. keep: stop once this many answers are kept (None:
    after all prompts). per_prompt, at_least, dedupe, best: see `signals.select.Select`. filters: names
    (`build.tasks.filters`). max_failed: the share of answers whose reward may fail before the stage stops."""

    named: ClassVar[str] = "rejection_sampling"
    makes: ClassVar[Makes] = "data"
    num_prompts: int = Field(default=1024, ge=1)
    reward: Spec | None = None
    keep: int | None = Field(default=None, ge=1)
    per_prompt: int = Field(default=1, ge=1)
    at_least: float = 1.0
    filters: tuple[str, ...] = ()
    dedupe: bool = True
    best: bool = False
    max_failed: float = Field(default=0.1, ge=0, le=1)

    def judges(self) -> dict[str, Spec | None]:
        return {"reward": self.reward}

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        build_tasks.filters(self.filters, self.spec(recipe), f"{name}.filters")

    def run(self, ctx: Context) -> dict[str, Any]:
        filters = build_tasks.filters(self.filters, self.spec(ctx.recipe), f"{ctx.name}.filters")
        select = Select(self.per_prompt, self.at_least, filters, self.dedupe, self.best)
        tasks = self.source(ctx.name, ctx.recipe).tasks(self.split, self.num_prompts)
        rows, funnel, drawn = self._collect(ctx, tasks, select)
        shown = "  ".join(f"{name} {n:,}" for name, n in funnel.counts.items())
        ctx.console.say(f"  {shown}")
        if not rows:
            hint = "lower at_least, or remove filters"
            raise ctx.error(f"none of the sampled answers was kept ({shown})", "at_least", hint)
        for row in rows[:3]:
            ctx.console.plain(f"    {row['prompt'][-60:]} {row['text']}")
        write_lines(ctx.directory / "data.jsonl", rows)
        shutil.rmtree(ctx.directory / "parts", ignore_errors=True)
        return {"funnel": funnel.counts, "drawn_tokens": drawn, **self._figures(ctx, tasks, rows)}

    def _collect(self, ctx: Context, tasks: list[Task], select: Select) -> tuple[list[dict[str, Any]], Funnel, int]:
        """Samples and selects: the kept rows, the funnel, and the number of tokens that were sampled in all."""
        loaded = models.load(ctx.recipe, ctx.model_source(self))
        collect = self.collector(ctx, loaded, self.sampler(ctx, loaded))
        reward = self.reward_of(ctx, "reward", loaded)
        rows: list[dict[str, Any]] = []
        funnel, drawn = Funnel(), 0

        def select_part(number: int, start: int, part_tasks: list[Task]) -> dict[str, Any]:
            groups = collect(part_tasks, step=number, version=0)
            judged = judge(reward, groups)
            check_judged(judged, self.max_failed, f"{ctx.name} from prompt {start} on")
            selected, part_funnel = select(groups, judged)
            pairs = (p for g, o in zip(groups, judged, strict=True) for p in zip(g, o, strict=True))
            scores = {id(r): o.value for r, o in pairs if isinstance(o, Score)}
            drawn = sum(r.length for g in groups for r in g)
            kept = [answer_row(r, scores[id(r)]) for r in selected]
            return {"kept": kept, "funnel": part_funnel.counts, "drawn": drawn}

        for result in in_parts(ctx, tasks, select_part, lambda: {"kept": len(rows)}):
            rows.extend(result["kept"])
            drawn += result["drawn"]
            for name, n in result["funnel"].items():
                funnel.add(name, n)
            if self.keep is not None and len(rows) >= self.keep:
                break
        kept_rows = rows[: self.keep]
        funnel.counts["kept"] = len(kept_rows)
        return kept_rows, funnel, drawn

    def _figures(self, ctx: Context, tasks: list[Task], rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures of the kept answers, for each evaluation set over those whose task could be of that set."""
        by_id = {t.id: t for t in tasks}
        figures: dict[str, Any] = {}
        for name, eval_set in (ctx.recipe.eval.sets if ctx.recipe.eval else {}).items():
            set_rows = [r for r in rows if build_tasks.belongs(by_id[r["task"]], eval_set.task)]
            if not set_rows:
                continue
            figures[name] = {
                "accuracy": sum(r["reward"] for r in set_rows) / len(set_rows),
                "length": sum(sum(r["mask"]) for r in set_rows) / len(set_rows),
                **build_tasks.text_stats(eval_set.task, [r["text"] for r in set_rows]),
                "n": len(set_rows),
            }
        return figures
