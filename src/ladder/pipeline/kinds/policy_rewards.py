"""What the stages that train a policy on rewards have in common: drawing, judging, watching, the job of the loop.

What differs between them is the credit and the learners beside the policy: `rl.py` compares the answers to one prompt,
`ppo.py` asks a critic. The KL from the base model is measured on some answers of every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ladder.base.errors import UserError
from ladder.contract.rollouts import Task
from ladder.contract.training import Loss, Reference
from ladder.credit.base import Credit
from ladder.diagnose.detectors import Alarms
from ladder.engine.engine import Engine
from ladder.pipeline.alarms import LiveAlarms
from ladder.pipeline.build import behaviour, losses, models
from ladder.pipeline.build import tasks as build_tasks
from ladder.pipeline.build.behaviour import Rollouts, StageRollouts
from ladder.pipeline.evaluate import during
from ladder.pipeline.kinds.sampling import Sampled
from ladder.pipeline.loop import Job, run_training
from ladder.pipeline.recipe import NativeSpec, Recipe, Spec
from ladder.pipeline.rollout_log import watcher
from ladder.pipeline.stage import Context, Makes, Trained
from ladder.signals.prompts import Prompts
from ladder.signals.rewards import Rewards
from ladder.train import Learner


@dataclass(frozen=True, slots=True)
class Assigned:
    """How a stage assigns credit. critics: the learners beside the policy that the credit asks."""

    credit: Credit
    critics: Sequence[Learner] = ()


class PolicyRewards(Sampled, Trained):
    """reward: None takes the recipe's; reward models: `pipeline.build.rewards`. prompts_per_step: tasks of a step.
    minibatches, epochs: optimiser steps a step and passes over its answers. kl_coef: weight of the KL in the reward.
    max_failed: see `signals.rewards.Rewards`. measure_kl: log the KL from the base model (costs a frozen copy of it).
    watch: rewards that are measured and logged under their names, and that nothing is trained on. alarms: see
    `diagnose.detectors.Alarms`. lag: draw with the policy of so many steps ago. rollouts: whose answers are trained on,
    if not the policy's own (`pipeline.build.behaviour`)."""

    renamed: ClassVar[Mapping[str, str]] = {
        "group": "group_size",
        "prompts": "prompts_per_step",
        "drop_silent": "drop_zero_variance",
        "missing_terminator": "missing_eos_penalty",
    }
    reward: Spec | None = None
    steps: int = Field(default=100, ge=1)
    prompts_per_step: int = Field(default=32, ge=1)
    loss: Spec = "PolicyClip"
    epochs: int = Field(default=1, ge=1)
    minibatches: int = Field(default=1, ge=1)
    kl_coef: float = Field(default=0.0, ge=0)
    max_failed: float = Field(default=0.1, ge=0, le=1)
    measure_kl: bool = True
    watch: dict[str, Spec] | None = None
    alarms: Alarms = Alarms()
    lag: int = Field(default=0, ge=0)
    rollouts: Rollouts = "own"

    def assign(self, ctx: Context) -> Assigned:
        """How this kind of stage turns judged answers into trained ones."""
        raise NotImplementedError

    def judges(self) -> dict[str, Spec | None]:
        watched = {f"watch.{name}": spec for name, spec in (self.watch or {}).items()}
        return {"reward": self.reward, **watched}

    def needs(self, recipe: Recipe) -> list[tuple[str, Makes]]:
        own = super().needs(recipe)
        if isinstance(self.rollouts, StageRollouts):
            own.append((self.rollouts.stage, "model"))
        return own

    def inputs(self, recipe: Recipe) -> list[Path]:
        return super().inputs(recipe) + behaviour.files(self.rollouts)

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        self.check_apart(name)
        self._check_sampling(f"{name}.sampling")
        behaviour.check(self.rollouts, self.lag, name)
        loss = losses.known_loss(self.loss, f"{name}.loss")
        if loss is not None:
            self._check_loss(loss, name, recipe)

    def prepare(self, name: str, recipe: Recipe) -> None:
        super().prepare(name, recipe)
        self._check_loss(losses.loss(self.loss, f"{name}.loss"), name, recipe)

    def _check_sampling(self, field: str) -> None:
        cuts = {"top_p": self.sampling.top_p < 1, "top_k": self.sampling.top_k > 0, "min_p": self.sampling.min_p > 0}
        for one in (name for name, set_ in cuts.items() if set_):
            message = "draws from a part of the distribution, while the loss means all of it: the ratio would not be 1"
            raise UserError(message, field=f"{field}.{one}", hint="leave it out; the temperature may be set")

    def _check_loss(self, loss: Loss, name: str, recipe: Recipe) -> None:
        if self.epochs * self.minibatches > 1 and "old_logps" not in loss.needs:
            message = f"{type(loss).__name__} has no ratio, so it is right for one optimiser step on each batch only"
            field = "minibatches" if self.minibatches > 1 else "epochs"
            raise UserError(message, field=f"{name}.{field}", hint="set it to 1, or take a loss with a ratio")
        if self.rollouts != "own" and self.kl_coef:
            message = "takes the KL of who draws off the reward, and here that is another model"
            raise UserError(message, field=f"{name}.kl_coef", hint="put the KL into the loss (loss.kl_coef)")
        if recipe.sampler.kind != "native" and (self.rollouts != "own" or self.lag):
            field = "rollouts" if self.rollouts != "own" else "lag"
            message = "answers of another model or another step are drawn by the native sampler"
            raise UserError(message, field=f"{name}.{field}", hint="use sampler: {kind: native}, or leave it out")
        where = _rounded(recipe)
        if where and "old_logps" in loss.needs and not corrects(loss):
            message = "engine and sampler do not round alike: the ratio would not be 1"
            hint = f"set {name}.loss.importance_cap to 2: the engine then computes the log-probabilities anew"
            raise UserError(message, field=where, hint=hint)
        if corrects(loss) and recipe.sampler.kind == "native" and not where and not _apart(recipe):
            message = "corrects for a sampler that computes otherwise than the engine; here both are the same modules"
            hint = "leave it out; for answers of an older policy CISPO's ratio_max caps the ratio itself"
            raise UserError(message, field=f"{name}.loss.importance_cap", hint=hint)

    def run(self, ctx: Context) -> dict[str, Any]:
        loaded = models.load(ctx.recipe, ctx.model_source(self))
        tasks = self.source(ctx.name, ctx.recipe).tasks(self.split)
        self._check(ctx, tasks)
        engine = models.engine(
            ctx.recipe, loaded, ctx.adapter(self), self.optim, self.updates, self.sampling.temperature
        )
        loss = losses.loss(self.loss, f"{ctx.name}.loss")
        field = f"{ctx.name}.rollouts"
        drawn = behaviour.behaviour_policy(ctx.recipe, loaded, self.rollouts, self.lag, ctx.parents, field)
        assigned = self.assign(ctx)
        signal = Rewards(
            prompts=Prompts(tasks, self.prompts_per_step, ctx.seed),
            collect=self.collector(ctx, loaded, drawn.sampler),
            reward=self.reward_of(ctx, "reward", loaded),
            credit=assigned.credit,
            reference=self._reference(engine, loss),
            max_failed=self.max_failed,
            stats=build_tasks.stats(self.spec(ctx.recipe)),
            load=drawn.load,
            rescore=engine.forward if corrects(loss) else None,
            probe=engine.forward if "old_logps" not in loss.needs else None,
        )
        base = self._base(ctx, engine) if self.measure_kl and self.rollouts == "own" else None
        alarms = LiveAlarms(ctx, self._alarms())
        watched = {name: self.reward_of(ctx, f"watch.{name}", loaded) for name in self.watch or {}}
        signal.on_rollouts = watcher(ctx, base, watched, alarms)
        shape = f"{self.prompts_per_step} x {self.group_size}"
        ctx.console.say(f"  {len(tasks):,} problems, {self.steps} steps of {shape} answers")
        learner = Learner(engine, loss, epochs=self.epochs, minibatches=self.minibatches)
        job = Job(loaded, signal, learner, self.steps, eval_every=self.eval_every, alarms=alarms)
        job.critics = assigned.critics
        job.behind = self.lag > 0 or self.rollouts != "own"
        job.off_policy = drawn.off_policy
        job.keeps = {"drawing": drawn.replica} if drawn.replica is not None else {}
        job.evaluate = during(ctx, loaded)
        run_training(ctx, job)
        return {"steps": self.steps}

    @property
    def updates(self) -> int:
        """Optimiser steps in all."""
        return self.steps * self.epochs * self.minibatches

    def _alarms(self) -> Alarms:
        """Answers of another policy, when they are asked for, are no mismatch."""
        if self.rollouts == "own" and not self.lag:
            return self.alarms
        return self.alarms.model_copy(update={"off": (*self.alarms.off, "mismatch")})

    def _check(self, ctx: Context, tasks: Sequence[Task]) -> None:
        if self.prompts_per_step > len(tasks):
            message = f"{self.prompts_per_step} prompts a step out of {len(tasks)} tasks"
            raise ctx.error(message, "prompts_per_step", "lower it")

    def _reference(self, engine: Engine, loss: Any) -> Reference | None:
        """The stage's first model; nothing when no term asks for it."""
        asked = self.kl_coef > 0 or "ref_logps" in loss.needs
        return models.reference(engine) if asked else None

    def _base(self, ctx: Context, engine: Engine) -> Reference:
        """The base model's log-probabilities."""
        own = ctx.model_source(self)
        if own == ctx.base and engine.without is not None:
            return lambda units: engine.forward(units, reference=True)
        return models.frozen(ctx.recipe, models.load(ctx.recipe, ctx.base), self.sampling.temperature).forward


def _rounded(recipe: Recipe) -> str | None:
    """What rounds products on one side only."""
    if recipe.engine.matmul != "highest":
        return "engine.matmul"
    native = recipe.sampler if isinstance(recipe.sampler, NativeSpec) else NativeSpec()
    return "sampler.dtype" if native.dtype != "float32" else None


def _apart(recipe: Recipe) -> bool:
    """Whether engine and sampler round in ways of their own, though in one type: by other kernels on a GPU."""
    return recipe.model.device != "cpu" and recipe.model.dtype != "float32"


def corrects(loss: Loss) -> bool:
    """Whether a loss corrects for a sampler that computes otherwise than the engine."""
    return "sampler_logps" in loss.needs
