"""The stage of best-of-n: the model is not trained; of n sampled answers the one with the highest reward is chosen.

Its figures are the means of the reward and of the watched rewards over the chosen answers, for n = 1, 2, 4, ...
`group_size`: the curve of Gao et al. 2022 that reinforcement learning is compared with (`evals/best_of.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ladder.contract.rollouts import Outcome, Score, Task
from ladder.evals.best_of import best_of, best_of_kl
from ladder.pipeline.build import models
from ladder.pipeline.kinds.sampling import Sampled, in_parts
from ladder.pipeline.recipe import Recipe, Spec
from ladder.pipeline.stage import Context, Makes
from ladder.rewards.judge import check_judged, judge


class BestOf(Sampled):
    """reward: the reward by which the answer is chosen; None takes the recipe's, for reward models see
    `pipeline.build.rewards`. watch: further rewards that are measured on the chosen answer. max_failed: the share of
    answers whose reward may fail; a prompt with such an answer is left out."""

    named: ClassVar[str] = "best_of"
    makes: ClassVar[Makes] = "figures"
    reward: Spec | None = None
    watch: dict[str, Spec] = Field(default_factory=dict)
    num_prompts: int = Field(default=256, ge=1)
    group_size: int = Field(default=16, ge=2)
    max_failed: float = Field(default=0.1, ge=0, le=1)

    def judges(self) -> dict[str, Spec | None]:
        return {"reward": self.reward, **{f"watch.{name}": spec for name, spec in self.watch.items()}}

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        self.check_apart(name)

    def run(self, ctx: Context) -> dict[str, Any]:
        loaded = models.load(ctx.recipe, ctx.model_source(self))
        collect = self.collector(ctx, loaded, self.sampler(ctx, loaded))
        judges = {field.removeprefix("watch."): self.reward_of(ctx, field, loaded) for field in self.judges()}
        tasks = self.source(ctx.name, ctx.recipe).tasks(self.split, self.num_prompts)

        def judge_part(number: int, start: int, part_tasks: list[Task]) -> dict[str, Any]:
            groups = collect(part_tasks, step=number, version=0)
            judged = {name: judge(reward, groups) for name, reward in judges.items()}
            check_judged(judged["reward"], self.max_failed, f"{ctx.name} from prompt {start} on")
            rows = [whole({name: outcomes[i] for name, outcomes in judged.items()}) for i in range(len(groups))]
            return {"rows": [row for row in rows if row is not None]}

        rows = [row for result in in_parts(ctx, tasks, judge_part, dict) for row in result["rows"]]
        if not rows:
            raise ctx.error("the reward failed on at least one answer to every prompt", "reward")
        curve = [self._point(n, rows) for n in sizes(self.group_size)]
        for point in curve:
            ctx.console.say("  " + "  ".join(f"{k} {v:.3g}" for k, v in point.items()))
        return {"curve": curve, "left_out": len(tasks) - len(rows)}

    def _point(self, n: int, rows: Sequence[dict[str, list[float]]]) -> dict[str, float]:
        """One point of the curve: KL and the means over prompts of all rewards of the best of n answers. rows: the
        scores of each prompt's answers."""
        point = {"n": float(n), "kl": round(best_of_kl(n), 6)}
        for name in rows[0]:
            values = [best_of(np.array(row["reward"]), np.array(row[name]), n) for row in rows]
            point[name] = round(float(np.mean(values)), 6)
        return point


def sizes(most: int) -> list[int]:
    """The n of the curve: powers of two up to `most`, and `most`."""
    return sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most})


def whole(judged: dict[str, list[Outcome]]) -> dict[str, list[float]] | None:
    """The scores of one prompt's answers, by the reward's name; None if any reward failed on any answer."""
    scores = {name: [o.value for o in outcomes if isinstance(o, Score)] for name, outcomes in judged.items()}
    return scores if all(len(scores[name]) == len(judged[name]) for name in judged) else None
