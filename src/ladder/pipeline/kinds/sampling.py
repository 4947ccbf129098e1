"""What stages that sample answers to tasks have in common: where the tasks come from, how answers are drawn, and work
on many prompts that goes on after its last whole part when it was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ladder.base.errors import UserError
from ladder.base.files import read_json, write_json
from ladder.contract.rollouts import Reward, Sampler, Task
from ladder.decoding.sampler import NativeSampler
from ladder.models.load import LoadedModel
from ladder.pipeline.build import rewards, samplers
from ladder.pipeline.build import tasks as build_tasks
from ladder.pipeline.build.rewards import Place, RewardPlan
from ladder.pipeline.recipe import Recipe, SamplingSpec, Spec
from ladder.pipeline.stage import Context, Makes, StageConfig
from ladder.rollout.collect import Collector
from ladder.rollout.vllm import VLLMSampler
from ladder.tasks import TaskSource

PART = 128
"""Prompts between two saves."""

Work = Callable[[int, int, list[Task]], dict[str, Any]]
"""(the part's number, the place of its first task, its tasks) -> what is kept of it, JSON-able."""


class Sampled(StageConfig):
    """task: None takes the recipe's. split: of the task. group_size: answers to each prompt.
    sampling: how they are drawn."""

    renamed: ClassVar[Mapping[str, str]] = {"group": "group_size", "prompts": "num_prompts"}
    task: Spec | None = None
    split: str = "train"
    group_size: int = Field(default=8, ge=1)
    sampling: SamplingSpec = SamplingSpec()

    def judges(self) -> dict[str, Spec | None]:
        """Whatever judges rollouts in this stage, by the field that names it; None takes the recipe's reward."""
        return {}

    def needs(self, recipe: Recipe) -> list[tuple[str, Makes]]:
        scorers = dict.fromkeys(stage for plan in self._plans("", recipe) for stage in plan.stages)
        return [*super().needs(recipe), *((stage, "scorer") for stage in scorers)]

    def inputs(self, recipe: Recipe) -> list[Path]:
        files = [path for plan in self._plans("", recipe) for path in plan.files]
        return build_tasks.files(self.spec(recipe)) + files

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        build_tasks.check(self.spec(recipe), self.split, name)
        self._plans(name, recipe)

    def prepare(self, name: str, recipe: Recipe) -> None:
        super().prepare(name, recipe)
        self.source(name, recipe)
        for plan in self._plans(name, recipe):
            plan.start()

    def _plans(self, name: str, recipe: Recipe) -> list[RewardPlan]:
        return [rewards.parse(recipe, spec, f"{name}.{field}") for field, spec in self.judges().items()]

    def reward_of(self, ctx: Context, field: str, policy: LoadedModel) -> Reward:
        """What a field names, built: functions started, reward models loaded. Raises UserError."""
        plan = rewards.parse(ctx.recipe, self.judges()[field], f"{ctx.name}.{field}")
        return plan.build(Place(ctx.recipe, ctx.parents, policy))

    def check_apart(self, name: str) -> None:
        """Raises UserError when all answers to a prompt would be the same."""
        if self.sampling.temperature == 0:
            message = "greedy answers to a prompt are all the same: there is nothing to compare"
            raise UserError(message, field=f"{name}.sampling.temperature", hint="set 1.0")

    def spec(self, recipe: Recipe) -> Spec | None:
        """The task in the recipe's words."""
        return self.task if self.task is not None else recipe.task

    def source(self, name: str, recipe: Recipe) -> TaskSource:
        """Where the tasks come from. Raises UserError."""
        return build_tasks.tasks_of(self.spec(recipe), self.split, name)

    def sampler(self, ctx: Context, loaded: LoadedModel) -> NativeSampler | VLLMSampler:
        """A sampler that ends when the run is asked to stop."""
        made = samplers.drawer(ctx.recipe, loaded)
        made.progress = lambda *_: ctx.check_stop()
        return made

    def collector(self, ctx: Context, loaded: LoadedModel, sampler: Sampler) -> Collector:
        encode = samplers.encoder(ctx.recipe, loaded)
        return Collector(sampler, encode, self.group_size, samplers.sampling(self.sampling), ctx.seed, ctx.name)


def in_parts(
    ctx: Context, tasks: Sequence[Task], work: Work, shown: Callable[[], dict[str, float]]
) -> Iterator[dict[str, Any]]:
    """What `work` made of the tasks, part by part, with progress. A part that is done is read and not done again."""
    with ctx.console.bar(ctx.name, len(tasks)) as bar:
        for number, start in enumerate(range(0, len(tasks), PART)):
            path = ctx.directory / "parts" / f"{number:05d}.json"
            if not path.exists():
                write_json(path, work(number, start, list(tasks[start : start + PART])))
            yield read_json(path)
            bar.update(min(start + PART, len(tasks)), shown())
            ctx.check_stop()
