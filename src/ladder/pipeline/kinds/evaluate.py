"""The stage that only measures: where a model stands before anything is done to it."""

from __future__ import annotations

from typing import Any, ClassVar

from ladder.pipeline.build import models
from ladder.pipeline.evaluate import evaluate_stage
from ladder.pipeline.stage import Context, Makes, StageConfig


class Evaluate(StageConfig):
    """Evaluates the model as it stands. Raises UserError when the recipe measures nothing."""

    named: ClassVar[str] = "evaluate"
    makes: ClassVar[Makes] = "figures"

    def run(self, ctx: Context) -> dict[str, Any]:
        if ctx.recipe.eval is None:
            raise ctx.error("the recipe says nothing about what to measure", "kind", "add eval at its top")
        ctx.log.cut(-1)
        return evaluate_stage(ctx, models.load(ctx.recipe, ctx.model_source(self)), 0)
