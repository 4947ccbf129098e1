"""The stage of reinforcement learning without a critic: rewards of sampled answers, group advantages, a policy loss.

The fields choose the algorithm: GRPO (advantage group_std), Dr. GRPO (group_mean and loss.unit padded), RLOO
(leave_one_out), DAPO, GSPO, CISPO (loss).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ladder.base.errors import UserError
from ladder.credit.advantages import AdvantageKind
from ladder.credit.group import GroupCredit
from ladder.pipeline.build.named import built, located, sources
from ladder.pipeline.kinds.policy_rewards import Assigned, PolicyRewards
from ladder.pipeline.recipe import Recipe, Spec
from ladder.pipeline.stage import Context


class RL(PolicyRewards):
    """advantage, drop_zero_variance, skip_truncated: see `credit.group.GroupCredit`. credit: a user's class that
    replaces it, by import path, with its fields (`{kind: "file.py:Name", ...}`)."""

    named: ClassVar[str] = "rl"
    group_size: int = Field(default=8, ge=2)
    advantage: AdvantageKind = "group_std"
    drop_zero_variance: bool = True
    skip_truncated: bool = False
    credit: Spec | None = None

    def inputs(self, recipe: Recipe) -> list[Path]:
        return super().inputs(recipe) + sources(self.credit, "credit")

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        if self.credit is None:
            return
        located(self.credit, f"{name}.credit")
        for field in ("advantage", "drop_zero_variance", "skip_truncated"):
            if getattr(self, field) != type(self).model_fields[field].default:
                message = "is a field of the built-in credit, which the field credit replaces here"
                raise UserError(message, field=f"{name}.{field}", hint="leave it out")

    def columns(self) -> frozenset[str] | None:
        return super().columns() if self.credit is None else None

    def prepare(self, name: str, recipe: Recipe) -> None:
        super().prepare(name, recipe)
        if self.credit is not None:
            built(self.credit, f"{name}.credit")

    def assign(self, ctx: Context) -> Assigned:
        if self.credit is not None:
            return Assigned(built(self.credit, f"{ctx.name}.credit"))
        return Assigned(GroupCredit(self.advantage, self.kl_coef, self.drop_zero_variance, self.skip_truncated))
