"""The base class of stages that sample answers to tasks (task source, sampler, rewards), and work in parts: a stage
over many prompts saves its results part by part, and resumes after the last saved part.
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
"""Number of prompts of a part (between two saves)."""

Work = Callable[[int, int, list[Task]], dict[str, Any]]
"""(number of the part, index of its first task, its tasks) -> the part's result, which is saved as JSON."""


class Sampled(StageConfig):
    """task: None takes the recipe's. split: of the task. group_size: answers sampled to each prompt. sampling: the
    sampling settings."""

    renamed: ClassVar[Mapping[str, str]] = {"group": "group_size", "prompts": "num_prompts"}
    task: Spec | None = None
    split: str = "train"
    group_size: int = Field(default=8, ge=1)
    sampling: SamplingSpec = SamplingSpec()

    def judges(self) -> dict[str, Spec | None]:
        """The rewards of this stage, by the field that names them; None takes the recipe's reward."""
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
        """Builds the reward that a field names: starts functions, loads reward models. Raises UserError."""
        plan = rewards.parse(ctx.recipe, self.judges()[field], f"{ctx.name}.{field}")
        return plan.build(Place(ctx.recipe, ctx.parents, policy))

    def check_apart(self, name: str) -> None:
        """Raises UserError if sampling is greedy: all answers to a prompt would be the same."""
        if self.sampling.temperature == 0:
            message = "greedy answers to a prompt are all the same and cannot be compared"
            raise UserError(message, field=f"{name}.sampling.temperature", hint="set 1.0")

    def spec(self, recipe: Recipe) -> Spec | None:
        """The specification of the stage's task, as it is written in the recipe."""
        return self.task if self.task is not None else recipe.task

    def source(self, name: str, recipe: Recipe) -> TaskSource:
        """The source of the stage's tasks. Raises UserError."""
        return build_tasks.tasks_of(self.spec(recipe), self.split, name)

    def sampler(self, ctx: Context, loaded: LoadedModel) -> NativeSampler | VLLMSampler:
        """The recipe's sampler, which raises Interrupted if the user asks the run to stop."""
        sampler = samplers.rollout_sampler(ctx.recipe, loaded)
        sampler.progress = lambda *_: ctx.check_stop()
        return sampler

    def collector(self, ctx: Context, loaded: LoadedModel, sampler: Sampler) -> Collector:
        """The collector that samples `group_size` rollouts to each task."""
        encode = samplers.encoder(ctx.recipe, loaded)
        return Collector(sampler, encode, self.group_size, samplers.sampling(self.sampling), ctx.seed, ctx.name)


def in_parts(
    ctx: Context, tasks: Sequence[Task], work: Work, shown: Callable[[], dict[str, float]]
) -> Iterator[dict[str, Any]]:
    """Applies `work` to the tasks part by part and yields each part's result, with a progress bar. A part that an
    earlier run saved is read from its file instead. shown: the figures beside the bar."""
    with ctx.console.bar(ctx.name, len(tasks)) as bar:
        for number, start in enumerate(range(0, len(tasks), PART)):
            path = ctx.directory / "parts" / f"{number:05d}.json"
            if not path.exists():
                write_json(path, work(number, start, list(tasks[start : start + PART])))
            yield read_json(path)
            bar.update(min(start + PART, len(tasks)), shown())
            ctx.check_stop()
