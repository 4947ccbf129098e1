"""The stage of PPO with a critic: RLHF as it was first done. It is the stage of reinforcement learning with two things
changed: a value of every token instead of a group's mean, and a second learner for it.

`RL` with a group advantage against the same reward model is one line away (`kind: rl`).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import Field

from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.credit.critic import CriticRewards
from ladder.credit.gae import AdaptiveKL
from ladder.engine.optim import Optim
from ladder.pipeline.build import losses, models
from ladder.pipeline.build.rewards import stages_of
from ladder.pipeline.kinds.rl import RL
from ladder.pipeline.loop import Job
from ladder.pipeline.recipe import Recipe, Spec
from ladder.pipeline.stage import Context
from ladder.signals.rewards import Rewards
from ladder.train import Learner


class Critic(Config):
    """init: "reward" (the reward model, of several the first) or "policy" (the stage's first model, with a fresh head).
    clip: of its values. gamma, lam: of GAE."""

    init: str = Field(default="reward", pattern="^(reward|policy)$")
    optim: Optim = Optim()
    loss: Spec = "ValueClip"
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    whitened: bool = True


class PPO(RL):
    """critic: the second learner. target_kl: moves kl_coef so that the KL of an answer stays near it.
    missing_terminator: taken off the score of an answer that was cut off."""

    group: int = Field(default=1, ge=1)
    epochs: int = Field(default=4, ge=1)
    kl_coef: float = Field(default=0.05, ge=0)
    critic: Critic = Critic()
    target_kl: float | None = Field(default=None, gt=0)
    missing_terminator: float = Field(default=0.0, ge=0)

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        if self.critic.init == "reward" and not stages_of(self.reward):
            message = "there is no reward model to begin from"
            raise UserError(message, field=f"{name}.critic.init", mend="set it to policy, or reward to {stage: NAME}")
        if self.target_kl is not None and not self.kl_coef:
            raise UserError("moves kl_coef, which is 0", field=f"{name}.target_kl", mend="set kl_coef above 0")
        if "advantage" in self.model_fields_set:
            raise UserError("a critic takes its place", field=f"{name}.advantage", mend="leave it out, or use kind rl")

    def _join(self, ctx: Context, job: Job, signal: Rewards) -> None:
        own = self.critic.init == "policy"
        begins = ctx.model_source(self) if own else str(ctx.parents[stages_of(self.reward)[0]] / "model")
        loaded = models.load(ctx.recipe, begins, scalar=True)
        engine = models.engine(ctx.recipe, loaded, None, self.critic.optim, self._updates())
        loss = losses.loss(self.critic.loss, f"{ctx.name}.critic.loss")
        job.critics = [Learner(engine, loss, name="critic", epochs=self.epochs, minibatches=self.minibatches)]
        known: dict[str, Any] = {f.name: getattr(signal, f.name) for f in fields(signal) if f.init}
        job.signal = CriticRewards(
            **known,
            critic=engine.forward,
            gamma=self.critic.gamma,
            lam=self.critic.lam,
            whitened=self.critic.whitened,
            adaptive=AdaptiveKL(self.kl_coef, self.target_kl) if self.target_kl is not None else None,
            missing_terminator=self.missing_terminator,
        )
