"""The stage that only evaluates a model, for example before any training."""

from __future__ import annotations

from typing import Any, ClassVar

from ladder.pipeline.build import models
from ladder.pipeline.evaluate import evaluate_stage
from ladder.pipeline.stage import Context, Makes, StageConfig


class Evaluate(StageConfig):
    """Evaluates the stage's model on the recipe's evaluation sets. Raises UserError if the recipe has none."""

    named: ClassVar[str] = "evaluate"
    makes: ClassVar[Makes] = "figures"

    def run(self, ctx: Context) -> dict[str, Any]:
        if ctx.recipe.eval is None:
            raise ctx.error("the recipe has no evaluation sets", "kind", "add eval at the top of the recipe")
        ctx.log.cut(-1)
        return evaluate_stage(ctx, models.load(ctx.recipe, ctx.model_source(self)), 0)
