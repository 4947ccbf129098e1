"""The stage of simulated annotators: pairs of a model's answers, compared by a judge and, at a stated rate, wrongly.

Writes data.jsonl, one pair a line: {"task", "prompt", "chosen", "rejected", "chosen_tokens", "rejected_tokens",
"prompt_tokens", "margin"}. The texts make it a preference file for any tool; the token ids are those that were sampled.
The judge's figures stay out of it but for the margin, which says how far apart the two really were.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from ladder import rng
from ladder.engine.checkpoint import write_lines
from ladder.errors import UserError
from ladder.pipeline import parts
from ladder.pipeline.recipe import Recipe, SamplingSpec, Spec
from ladder.pipeline.stage import Context, Makes, StageConfig
from ladder.rollout.collect import Collector
from ladder.types import Rollout, Score

PART = 128
"""Prompts sampled at a time."""


class Annotate(StageConfig):
    """judge: what annotators go by. error: the chance that a verdict is the wrong way round. prompts: of the
    split, with `group` answers each, of which neighbours are compared; pairs that the judge finds equal are left
    out."""

    makes: ClassVar[Makes] = "data"
    judge: Spec
    error: float = Field(default=0.1, ge=0, lt=0.5)
    task: Spec | None = None
    split: str = "train"
    prompts: int = Field(default=1024, ge=1)
    group: int = Field(default=4, ge=2)
    sampling: SamplingSpec = SamplingSpec()

    def check(self, name: str, recipe: Recipe) -> None:
        parts.reward(self.judge, f"{name}.judge")
        parts.tasks(self.task if self.task is not None else recipe.task, f"{name}.task")
        if self.sampling.temperature == 0:
            message = "greedy answers to a prompt are all the same: there is nothing to compare"
            raise UserError(message, field=f"{name}.sampling.temperature", mend="set 1.0")

    def run(self, ctx: Context) -> dict[str, Any]:
        spec = self.task if self.task is not None else ctx.recipe.task
        judge = parts.reward(self.judge, f"{ctx.name}.judge")
        tasks = parts.tasks(spec, f"{ctx.name}.task").tasks(self.split, self.prompts)
        loaded = parts.load(ctx.recipe, ctx.model_source(self))
        sampler = parts.sampler(ctx.recipe, loaded)
        sampler.progress = lambda *_: ctx.check_stop()
        encode = parts.encoder(ctx.recipe, loaded)
        collect = Collector(sampler, encode, self.group, parts.sampling(self.sampling), ctx.seed, ctx.name)
        rows: list[dict[str, Any]] = []
        counts = {"pairs": 0, "equal": 0, "wrong": 0}
        with ctx.console.bar(ctx.name, len(tasks)) as bar:
            for start in range(0, len(tasks), PART):
                groups = collect(tasks[start : start + PART], step=start, version=0)
                for i, group in enumerate(groups):
                    scores = [o.value if isinstance(o, Score) else None for o in judge(group)]
                    r = rng.np_rng(ctx.seed, ctx.name, "annotator", start + i)
                    for j in range(0, self.group - 1, 2):
                        a, b = scores[j], scores[j + 1]
                        if a is None or b is None or a == b or group[j].tokens == group[j + 1].tokens:
                            counts["equal"] += 1
                            continue
                        wrong = bool(r.random() < self.error)
                        best, other = (j, j + 1) if (a > b) != wrong else (j + 1, j)
                        rows.append(pair_row(group[best], group[other], (a - b) if best == j else (b - a)))
                        counts["pairs"] += 1
                        counts["wrong"] += wrong
                bar.update(min(start + PART, len(tasks)), {})
                ctx.check_stop()
        if not rows:
            raise ctx.error("the judge found every two answers equal: there is nothing to prefer", "judge")
        write_lines(ctx.directory / "data.jsonl", rows)
        agreement = 1 - counts["wrong"] / counts["pairs"]
        ctx.console.say(f"  {len(rows):,} pairs, {counts['equal']:,} left out; annotators agree {agreement:.1%}")
        return {"pairs": counts["pairs"], "equal": counts["equal"], "agreement": round(agreement, 4)}


def pair_row(chosen: Rollout, rejected: Rollout, margin: float) -> dict[str, Any]:
    """A verdict, with both answers token for token."""
    n = chosen.mask.index(True)
    return {
        "task": chosen.task.id,
        "prompt": chosen.task.prompt,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "prompt_tokens": chosen.tokens[:n],
        "chosen_tokens": chosen.tokens[n:],
        "rejected_tokens": rejected.tokens[n:],
        "margin": round(margin, 6),
    }
