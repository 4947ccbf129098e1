"""The base class of stages that train a policy on rewards: sampling, judging, watched rewards, the training job.

The subclasses differ in the credit and in the learners beside the policy: `rl.py` compares the answers to one prompt
(group advantages), `ppo.py` trains a critic. The KL from the base model is measured on some answers of every step.
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
    """How a stage assigns credit. critics: the learners beside the policy, whose values the credit reads."""

    credit: Credit
    critics: Sequence[Learner] = ()


class PolicyRewards(Sampled, Trained):
    """reward: None takes the recipe's; reward models: `pipeline.build.rewards`. prompts_per_step: tasks of a step.
    minibatches: optimiser steps per pass over a step's answers. epochs: passes over them. kl_coef: weight of the KL in
    the reward. max_failed: see `signals.rewards.Rewards`. measure_kl: log the KL from the base model (costs a frozen
    copy of it). watch: rewards that are measured and logged under their names, but not trained on. alarms: see
    `diagnose.detectors.Alarms`. lag: sample with the policy of that many steps ago. rollouts: the behaviour policy, if
    it is another model than the policy (`pipeline.build.behaviour`)."""

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
        """The credit of this kind of stage, and its critics."""
        raise NotImplementedError

    def judges(self) -> dict[str, Spec | None]:
        watched = {f"watch.{name}": spec for name, spec in (self.watch or {}).items()}
        return {"reward": self.reward, **watched}

    def needs(self, recipe: Recipe) -> list[tuple[str, Makes]]:
        parents = super().needs(recipe)
        if isinstance(self.rollouts, StageRollouts):
            parents.append((self.rollouts.stage, "model"))
        return parents

    def inputs(self, recipe: Recipe) -> list[Path]:
        return super().inputs(recipe) + behaviour.files(self.rollouts)

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        self.check_apart(name)
        self._check_sampling(f"{name}.sampling")
        behaviour.check(self.rollouts, self.lag, name)

    def _check_sampling(self, field: str) -> None:
        """Raises UserError for settings that cut the distribution: the engine's log-probabilities are of all tokens."""
        cuts = {"top_p": self.sampling.top_p < 1, "top_k": self.sampling.top_k > 0, "min_p": self.sampling.min_p > 0}
        for setting in (name for name, is_set in cuts.items() if is_set):
            message = "samples from a part of the distribution, but the loss reads all of it: the ratio would not be 1"
            raise UserError(message, field=f"{field}.{setting}", hint="leave it out; the temperature may be set")

    def columns(self) -> frozenset[str] | None:
        """The columns that a loss of the policy may read; None where nobody knows beforehand."""
        return frozenset({"advantages", "old_logps", "ref_logps", "sampler_logps"})

    def check_loss(self, loss: Loss, name: str, recipe: Recipe) -> None:
        """Raises UserError if the loss does not fit the number of optimiser steps, the behaviour policy or the rounding
        of engine and sampler."""
        columns = self.columns()
        unknown = [] if columns is None else [one for one in loss.needs if one not in columns]
        if loss.unit == "pair" or unknown:
            lacks = "pairs" if loss.unit == "pair" else f"the column {unknown[0]!r}"
            message = f"{type(loss).__name__} needs {lacks}, which this kind of stage does not have"
            raise UserError(message, field=f"{name}.loss", hint="take PolicyClip, or another loss of a policy")
        if self.epochs * self.minibatches > 1 and "old_logps" not in loss.needs:
            message = f"{type(loss).__name__} has no ratio, so it is correct for one optimiser step per batch only"
            field = "minibatches" if self.minibatches > 1 else "epochs"
            raise UserError(message, field=f"{name}.{field}", hint="set it to 1, or take a loss with a ratio")
        if self.rollouts != "own" and self.kl_coef:
            message = "subtracts the KL of the sampled tokens from the reward, but here another model samples them"
            raise UserError(message, field=f"{name}.kl_coef", hint="put the KL into the loss (loss.kl_coef)")
        if recipe.sampler.kind != "native" and (self.rollouts != "own" or self.lag):
            field = "rollouts" if self.rollouts != "own" else "lag"
            message = "only the native sampler samples from another model or from an earlier policy"
            raise UserError(message, field=f"{name}.{field}", hint="use sampler: {kind: native}, or leave it out")
        rounding_field = _rounding_field(recipe)
        if rounding_field and "old_logps" in loss.needs and not corrects(loss):
            message = "engine and sampler do not round alike: the ratio would not be 1"
            hint = f"set {name}.loss.importance_cap to 2: the engine then recomputes the log-probabilities"
            raise UserError(message, field=rounding_field, hint=hint)
        same_kernels = recipe.sampler.kind == "native" and not rounding_field and not _rounds_differently(recipe)
        if corrects(loss) and same_kernels:
            message = "corrects for a sampler that computes differently from the engine; here both use the same modules"
            hint = "leave it out; for answers of an older policy CISPO's ratio_max caps the ratio itself"
            raise UserError(message, field=f"{name}.loss.importance_cap", hint=hint)

    def run(self, ctx: Context) -> dict[str, Any]:
        loaded = models.load(ctx.recipe, ctx.model_source(self))
        tasks = self.source(ctx.name, ctx.recipe).tasks(self.split)
        self._check_tasks(ctx, tasks)
        engine = models.engine(
            ctx.recipe, loaded, ctx.adapter(self), self.optim, self.updates, self.sampling.temperature
        )
        loss = losses.loss(self.loss, f"{ctx.name}.loss")
        field = f"{ctx.name}.rollouts"
        behaviour_policy = behaviour.behaviour_policy(ctx.recipe, loaded, self.rollouts, self.lag, ctx.parents, field)
        assigned = self.assign(ctx)
        signal = Rewards(
            prompts=Prompts(tasks, self.prompts_per_step, ctx.seed),
            collect=self.collector(ctx, loaded, behaviour_policy.sampler),
            reward=self.reward_of(ctx, "reward", loaded),
            credit=assigned.credit,
            reference=self._reference(engine, loss),
            max_failed=self.max_failed,
            stats=build_tasks.stats(self.spec(ctx.recipe)),
            load=behaviour_policy.load,
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
        job.off_policy = behaviour_policy.off_policy
        job.keeps = {"drawing": behaviour_policy.replica} if behaviour_policy.replica is not None else {}
        job.evaluate = during(ctx, loaded)
        run_training(ctx, job)
        return {"steps": self.steps}

    @property
    def updates(self) -> int:
        """Optimiser steps of the stage in all."""
        return self.steps * self.epochs * self.minibatches

    def _alarms(self) -> Alarms:
        """The stage's alarms; without the one for a mismatch if the behaviour policy differs from the policy."""
        if self.rollouts == "own" and not self.lag:
            return self.alarms
        return self.alarms.model_copy(update={"off": (*self.alarms.off, "mismatch")})

    def _check_tasks(self, ctx: Context, tasks: Sequence[Task]) -> None:
        if self.prompts_per_step > len(tasks):
            message = f"{self.prompts_per_step} prompts a step out of {len(tasks)} tasks"
            raise ctx.error(message, "prompts_per_step", "lower it")

    def _reference(self, engine: Engine, loss: Any) -> Reference | None:
        """The reference: the stage's initial model; None if neither the reward's KL nor the loss reads it."""
        is_needed = self.kl_coef > 0 or "ref_logps" in loss.needs
        return models.reference(engine) if is_needed else None

    def _base(self, ctx: Context, engine: Engine) -> Reference:
        """The forward pass of the frozen base model; without a copy if the base is the policy without its adapter."""
        if ctx.model_source(self) == ctx.base and engine.without is not None:
            return lambda units: engine.forward(units, reference=True)
        return models.frozen(ctx.recipe, models.load(ctx.recipe, ctx.base), self.sampling.temperature).forward


def _rounding_field(recipe: Recipe) -> str | None:
    """The recipe's field by which only the engine or only the sampler rounds its products; None without one."""
    if recipe.engine.matmul != "highest":
        return "engine.matmul"
    native = recipe.sampler if isinstance(recipe.sampler, NativeSpec) else NativeSpec()
    return "sampler.dtype" if native.dtype != "float32" else None


def _rounds_differently(recipe: Recipe) -> bool:
    """Whether engine and sampler round differently in the same data type, because they use other kernels on a GPU."""
    return recipe.model.device != "cpu" and recipe.model.dtype != "float32"


def corrects(loss: Loss) -> bool:
    """Whether a loss corrects for a sampler that computes differently from the engine."""
    return "sampler_logps" in loss.needs
