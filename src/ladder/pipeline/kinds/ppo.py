"""The stage of PPO with a critic, the original algorithm of RLHF: advantages are from GAE over the critic's values, and
the critic is a second learner beside the policy.

For group advantages with the same reward model, change one line (`kind: rl`).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.credit.critic import CriticCredit
from ladder.credit.gae import AdaptiveKL
from ladder.engine.optim import Optim
from ladder.pipeline.build import losses, models
from ladder.pipeline.build.rewards import parse
from ladder.pipeline.kinds.policy_rewards import Assigned, PolicyRewards
from ladder.pipeline.recipe import Recipe, Spec
from ladder.pipeline.stage import Context
from ladder.train import Learner


class Critic(Config):
    """init: the critic's initial weights: "reward" (the reward model, the first one of several) or "policy" (the
    stage's initial model with a fresh scalar head). gamma, lam: of GAE. whitened: whiten the advantages."""

    init: str = Field(default="reward", pattern="^(reward|policy)$")
    optim: Optim = Optim()
    loss: Spec = "ValueClip"
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    whitened: bool = True


class PPO(PolicyRewards):
    """critic: the second learner. target_kl: adapts kl_coef so that the KL of an answer stays near this value.
    missing_eos_penalty: subtracted from the score of a truncated answer."""

    named: ClassVar[str] = "ppo"
    group_size: int = Field(default=1, ge=1)
    epochs: int = Field(default=4, ge=1)
    kl_coef: float = Field(default=0.05, ge=0)
    critic: Critic = Critic()
    target_kl: float | None = Field(default=None, gt=0)
    missing_eos_penalty: float = Field(default=0.0, ge=0)

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        if self.critic.init == "reward" and not self._scorers(recipe):
            message = "there is no reward model to take the critic's initial weights from"
            raise UserError(message, field=f"{name}.critic.init", hint="set it to policy, or reward to {stage: NAME}")
        losses.known_loss(self.critic.loss, f"{name}.critic.loss")
        if self.target_kl is not None and not self.kl_coef:
            raise UserError("adapts kl_coef, which is 0", field=f"{name}.target_kl", hint="set kl_coef above 0")

    def prepare(self, name: str, recipe: Recipe) -> None:
        super().prepare(name, recipe)
        losses.loss(self.critic.loss, f"{name}.critic.loss")

    def _scorers(self, recipe: Recipe) -> list[str]:
        """The names of the stages whose reward models score the answers."""
        return parse(recipe, self.reward, "reward").stages

    def assign(self, ctx: Context) -> Assigned:
        from_policy = self.critic.init == "policy"
        source = ctx.model_source(self) if from_policy else str(ctx.parents[self._scorers(ctx.recipe)[0]] / "model")
        loaded = models.load(ctx.recipe, source, scalar=True)
        engine = models.engine(ctx.recipe, loaded, None, self.critic.optim, self.updates)
        loss = losses.loss(self.critic.loss, f"{ctx.name}.critic.loss")
        credit = CriticCredit(
            critic=engine.forward,
            gamma=self.critic.gamma,
            lam=self.critic.lam,
            whitened=self.critic.whitened,
            kl_coef=self.kl_coef,
            adaptive=AdaptiveKL(self.kl_coef, self.target_kl) if self.target_kl is not None else None,
            missing_eos_penalty=self.missing_eos_penalty,
        )
        learner = Learner(engine, loss, name="critic", epochs=self.epochs, minibatches=self.minibatches)
        return Assigned(credit, [learner])
