"""Supervised stages: pretraining and SFT. They differ only in the source of the examples and in the trained tokens.

    data: {web: {documents: 90000}}             the built-in world's corpus: the tokens after a problem are trained
    data: {stage: rejection}                    the answers that a stage kept, with the token ids that were sampled
    data: {task: {gsm8k: {...}}, split: train}  worked examples of a task
    data: {path: mine.jsonl}                    rows of any known layout (`ladder.data`); also .parquet and hub:NAME
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from ladder.base import config
from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.contract.training import Loss, Sample
from ladder.data.chat import leading_bos
from ladder.data.kinds import Answered, Origin
from ladder.data.samples import Encoding, load, to_samples
from ladder.data.source import Data, Report
from ladder.models.load import LoadedModel
from ladder.pipeline.build import losses, models, tasks
from ladder.pipeline.evaluate import during
from ladder.pipeline.loop import Job, run_training
from ladder.pipeline.recipe import Recipe, Spec
from ladder.pipeline.stage import Context, Makes, Trained
from ladder.signals import rows
from ladder.signals.examples import Examples
from ladder.tasks.chain.web import Web
from ladder.train import Learner


class TaskExamples(Config):
    """The worked examples of a task source (GSM8K). n: number of examples of the split (None: all)."""

    task: Spec
    split: str = "train"
    n: int | None = Field(default=None, ge=1)


class StageData(Config):
    """The data.jsonl of an earlier stage."""

    stage: str


def stage_of(data: Any) -> list[tuple[str, Makes]]:
    """What a source of examples or pairs needs of an earlier stage."""
    return [(data.stage, "data")] if isinstance(data, StageData) else []


def files_of(data: Any) -> list[Path]:
    """The local file that a source of examples or pairs reads."""
    return [Path(data.path)] if isinstance(data, Data) and not data.path.startswith("hub:") else []


class WebData(Config):
    """The built-in world's corpus. web: fields of `tasks.chain.web.Web`. seed: of the text; None takes the run's."""

    web: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None


class Imitate(Trained):
    """The base class of supervised stages. data: the source of the examples. epochs: passes over them. steps: number of
    steps, instead of epochs. batch: size of a step, in sequences or tokens (`by`). loss: one of `ladder.losses`.
    encoding: how rows become tokens."""

    data: Data | StageData | TaskExamples | WebData
    epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=32, ge=1)
    by: Literal["sequences", "tokens"] = "sequences"
    loss: Spec = "CrossEntropy"
    encoding: Encoding = Encoding()

    def needs(self, recipe: Recipe) -> list[tuple[str, Makes]]:
        return super().needs(recipe) + stage_of(self.data)

    def inputs(self, recipe: Recipe) -> list[Path]:
        read = tasks.files(self.data.task) if isinstance(self.data, TaskExamples) else files_of(self.data)
        return super().inputs(recipe) + read

    def check_loss(self, loss: Loss, name: str, recipe: Recipe) -> None:
        """Raises UserError for a loss on pairs or one that reads a column: examples have neither."""
        if loss.unit == "pair" or loss.needs:
            needed = "pairs" if loss.unit == "pair" else f"the column {loss.needs[0]!r}"
            message = f"{type(loss).__name__} needs {needed}, which examples do not have"
            raise UserError(message, field=f"{name}.loss", hint="take CrossEntropy")

    def check(self, name: str, recipe: Recipe) -> None:
        super().check(name, recipe)
        if isinstance(self.data, StageData | WebData) and self.encoding != Encoding():
            message = "applies to rows of text; these examples are token ids already"
            raise UserError(message, field=f"{name}.encoding", hint="leave it out")
        match self.data:
            case WebData():
                web_of(self.data, f"{name}.data.web")
            case TaskExamples():
                tasks.check(self.data.task, self.data.split, f"{name}.data")
            case _:
                pass

    def run(self, ctx: Context) -> dict[str, Any]:
        loaded = models.load(ctx.recipe, ctx.model_source(self))
        units, report = self.examples(ctx, loaded)
        check_bos(units, loaded)
        signal = Examples(units, self.batch, by=self.by, epochs=None if self.steps else self.epochs, seed=ctx.seed)
        signal.report = report
        steps = self.steps or self.epochs * signal.steps_per_epoch
        tokens = sum(len(u.tokens) for u in units)
        ctx.console.say(f"  {len(units):,} examples, {tokens:,} tokens, {steps:,} steps")
        for text in report.lines() if report else []:
            ctx.console.plain(f"  {text}")
        eos_share = sum(ends(u, loaded.eos) for u in units) / len(units)
        ctx.console.say(f"  {eos_share:.0%} of them end with a trained end-of-sequence token")
        engine = models.engine(ctx.recipe, loaded, ctx.adapter(self), self.optim, steps)
        loss = losses.loss(self.loss, f"{ctx.name}.loss")
        job = Job(loaded, signal, Learner(engine, loss), steps, eval_every=self.eval_every)
        job.evaluate = during(ctx, loaded)
        run_training(ctx, job)
        return {"examples": len(units), "tokens": tokens, "steps": steps}

    def examples(self, ctx: Context, loaded: LoadedModel) -> tuple[Sequence[Sample], Report | None]:
        """Loads the examples, with the report on dropped and truncated rows (None if they are token ids already)."""
        match self.data:
            case WebData():
                return web_samples(self.data, ctx.seed, f"{ctx.name}.data.web"), None
            case StageData():
                return rows.samples(ctx.parents[self.data.stage] / "data.jsonl"), None
            case TaskExamples():
                return self._task_examples(self.data, ctx, loaded)
            case Data():
                return load(self.data, loaded.tokenizer, self.encoding)

    def _task_examples(self, data: TaskExamples, ctx: Context, loaded: LoadedModel) -> tuple[Sequence[Sample], Report]:
        source: Any = tasks.tasks(data.task, f"{ctx.name}.data.task")
        if not hasattr(source, "examples"):
            raise ctx.error("this task has no worked examples", "data.task", "use GSM8K, or give a file as data")
        worked = source.examples(data.split, data.n)
        numbered = enumerate(worked, 1)
        answered = [Answered(r["prompt"], r["completion"], origin=Origin(data.split, i)) for i, r in numbered]
        report = Report()
        return to_samples(answered, loaded.tokenizer, self.encoding, report), report


class Pretrain(Imitate):
    """Pretraining: next-token prediction from the model's initial weights."""

    named: ClassVar[str] = "pretrain"
    begins: ClassVar[bool] = True


class SFT(Imitate):
    """Supervised fine-tuning."""

    named: ClassVar[str] = "sft"


def web_of(data: WebData, field: str) -> Web:
    """The built-in world's corpus with a recipe's settings. Raises UserError."""
    return config.validated(Web, data.web, field)


def web_samples(data: WebData, seed: int, field: str) -> list[Sample]:
    """The documents of the built-in world's corpus. The tokens of the problems are not trained: problems are drawn
    uniformly, so there is nothing to learn in them."""
    web = web_of(data, field)
    documents = web.write(seed if data.seed is None else data.seed)
    flat = torch.from_numpy(documents.flat)
    starts = [0, *documents.ends[:-1].tolist()]
    samples = []
    for start, end, prompt in zip(starts, documents.ends.tolist(), documents.prompts.tolist(), strict=True):
        mask = torch.ones(end - start, dtype=torch.bool)
        mask[:prompt] = False
        samples.append(Sample(flat[start:end], mask))
    return samples


def ends(unit: Sample, eos: Sequence[int]) -> bool:
    """Whether the last trained token is an end-of-sequence token: a model never trained on one does not learn to
    stop."""
    return int(unit.tokens[unit.mask][-1]) in eos


def check_bos(units: Sequence[Sample], loaded: LoadedModel) -> None:
    """Raises UserError for an example that begins with more than one BOS token."""
    if loaded.tokenizer.bos_token_id is None:
        return
    for unit in units:
        if leading_bos(loaded.tokenizer, unit.tokens[:4].tolist()) > 1:
            origin = unit.meta.get("origin", "an example")
            hint = "remove the BOS token from the text or the chat template"
            raise UserError(f"{origin} begins with two BOS tokens", hint=hint)
