"""Stages that train on preferences: a policy directly (DPO and its variants, KTO), or a reward model (Bradley-Terry).

data: {stage: annotate}              the pairs of simulated annotators, with the token ids that were sampled
data: {path: pairs.jsonl}            `prompt`, `chosen`, `rejected`, hh-rlhf, or for KTO `completion`, `label`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field, model_validator

from ladder.base import rng
from ladder.base.errors import UserError
from ladder.base.files import sha256, write_json
from ladder.contract.training import KnownStart, Loss, Pair, Sample, Unit
from ladder.data.samples import Encoding, to_pairs, to_samples
from ladder.data.source import Data, Report
from ladder.engine.engine import Engine
from ladder.evals.ranking import Ranking, ranking
from ladder.losses import BradleyTerry
from ladder.losses.preference import PairTerms, won
from ladder.models.load import LoadedModel
from ladder.packing.pack import prompt_length, sequences
from ladder.pipeline.build import losses, models
from ladder.pipeline.evaluate import during
from ladder.pipeline.kinds.supervised import StageData, files_of, stage_of
from ladder.pipeline.loop import Job, run_training
from ladder.pipeline.recipe import Recipe, Spec
from ladder.pipeline.stage import Context, Makes, Trained
from ladder.signals import rows
from ladder.signals.examples import Examples
from ladder.signals.preferences import Preferences, at_end, check_pairs
from ladder.signals.unpaired import Unpaired, check_labels
from ladder.train import Learner


class FromPairs(Trained):
    """data: the source of the pairs. holdout: share of the pairs or answers (split by prompt) that is held out of
    training. epochs: passes over the pairs. batch: pairs or answers of a step. encoding: how rows become tokens."""

    data: Data | StageData
    holdout: float = Field(default=0.1, ge=0, lt=1)
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=32, ge=1)
    encoding: Encoding = Encoding()

    def needs(self, recipe: Recipe) -> list[tuple[str, Makes]]:
        return super().needs(recipe) + stage_of(self.data)

    def inputs(self, recipe: Recipe) -> list[Path]:
        return super().inputs(recipe) + files_of(self.data)

    def pairs(self, ctx: Context, loaded: LoadedModel) -> tuple[list[Pair], list[Pair]]:
        """Loads the pairs: (training, held out)."""
        if isinstance(self.data, StageData):
            pairs = rows.pairs(ctx.parents[self.data.stage] / "data.jsonl")
        else:
            report = Report()
            pairs = to_pairs(list(self.data.examples(report)), loaded.tokenizer, self.encoding, report)
            tell(ctx, report)
        training, held_out = split_by_prompt(pairs, self.holdout)
        ctx.console.say(f"  {len(training):,} pairs, {len(held_out):,} held out")
        return training, held_out


class PreferenceStage(FromPairs):
    """Trains the policy on preferences. loss: DPO, IPO, Hinge, SimPO, ORPO (pairs) or KTO (liked or not)."""

    named: ClassVar[str] = "preference"
    loss: Spec = "DPO"

    def check_loss(self, loss: Loss, name: str, recipe: Recipe) -> None:
        """Raises UserError unless the loss is one on pairs (not a reward model's) or on answers with a label."""
        labelled = loss.unit == "sequence" and "label" in loss.needs
        if isinstance(loss, BradleyTerry) or not (loss.unit == "pair" or labelled):
            message = f"{type(loss).__name__} does not train a policy on preferences"
            raise UserError(message, field=f"{name}.loss", hint="take DPO, IPO, Hinge, SimPO, ORPO or KTO")

    def run(self, ctx: Context) -> dict[str, Any]:
        loaded = models.load(ctx.recipe, ctx.model_source(self))
        loss = losses.loss(self.loss, f"{ctx.name}.loss")
        unpaired = loss.unit == "sequence"
        training, held_out = self._labelled(ctx, loaded) if unpaired else self.pairs(ctx, loaded)
        examples = Examples(training, self.batch, epochs=self.epochs, seed=ctx.seed)
        steps = self.epochs * examples.steps_per_epoch
        engine = models.engine(ctx.recipe, loaded, ctx.adapter(self), self.optim, steps)
        reference = models.reference(engine) if "ref_logps" in loss.needs else None
        signal = Unpaired(examples, engine.forward, reference) if unpaired else Preferences(examples, reference)
        if reference is not None:
            ctx.console.say("  computing the reference log-probabilities of all answers")
            signal.keep(ctx.directory / "reference", sha256(Path(ctx.model_source(self))) if ctx.local(self) else "")
        job = Job(loaded, signal, Learner(engine, loss), steps, eval_every=self.eval_every)
        job.at_reference = loss.at_reference if isinstance(loss, KnownStart) else None
        job.evaluate = during(ctx, loaded)
        initial_logps = implicit(engine, held_out) if held_out and reference is not None else None
        run_training(ctx, job)
        figures: dict[str, Any] = {"answers" if unpaired else "pairs": len(training), "steps": steps}
        if initial_logps is not None:
            figures["held_out"] = agreement(held_out, implicit(engine, held_out) - initial_logps)
        return figures

    def _labelled(self, ctx: Context, loaded: LoadedModel) -> tuple[list[Sample], list[Sample]]:
        """Loads the liked and disliked answers: (training, held out). A pair gives one of each."""
        if isinstance(self.data, StageData):
            pairs = rows.pairs(ctx.parents[self.data.stage] / "data.jsonl")
            for pair in pairs:
                pair.chosen.meta["label"], pair.rejected.meta["label"] = True, False
            samples = [s for pair in pairs for s in (pair.chosen, pair.rejected)]
        else:
            report = Report()
            samples = to_samples(self.data.examples(report), loaded.tokenizer, self.encoding, report)
            tell(ctx, report)
        training, held_out = split_by_prompt(check_labels(samples), self.holdout)
        ctx.console.say(f"  {len(training):,} answers, {len(held_out):,} held out")
        return training, held_out


def tell(ctx: Context, report: Report) -> None:
    """Prints the numbers of rows that were dropped or truncated, and why."""
    for text in report.lines():
        ctx.console.plain(f"  {text}")


def implicit(engine: Engine, units: Sequence[Unit]) -> torch.Tensor:
    """The summed log-probability of every answer: [2P] for P pairs, [S] for S samples."""
    return torch.stack([c["logps"].sum() for c in engine.forward(units)])


def agreement(held_out: Sequence[Unit], log_ratios: torch.Tensor) -> dict[str, float]:
    """How often the policy's log-ratio to its initial weights agrees with held-out preferences. For pairs, the
    accuracy: the share in which the chosen answer has the larger log-ratio. For liked and disliked answers, the area
    under the ROC curve: the same share over all combinations of a liked and a disliked one. log_ratios: [2P] or [S]."""
    if isinstance(held_out[0], Pair):
        return {"accuracy": float(won(log_ratios[0::2], log_ratios[1::2]).mean()), "n": float(len(held_out))}
    liked = torch.tensor([bool(s.meta["label"]) for s in sequences(held_out)])
    if liked.all() or not liked.any():
        return {"n": float(len(held_out))}  # all labels are equal: there is no combination to compare
    differences = log_ratios[liked][:, None] - log_ratios[~liked][None]
    return {"auc": float(won(differences, torch.zeros_like(differences)).mean()), "n": float(len(held_out))}


class RewardModel(FromPairs):
    """Trains a reward model: a scalar head, and the model under it, to score answers. loss: BradleyTerry."""

    named: ClassVar[str] = "reward_model"
    makes: ClassVar[Makes] = "scorer"
    loss: Spec = "BradleyTerry"

    def check_loss(self, loss: Loss, name: str, recipe: Recipe) -> None:
        """Raises UserError unless the loss is one on pairs of scores."""
        if loss.unit != "pair" or (isinstance(loss, PairTerms) and not isinstance(loss, BradleyTerry)):
            message = f"{type(loss).__name__} does not train a reward model"
            raise UserError(message, field=f"{name}.loss", hint="take BradleyTerry")

    @model_validator(mode="after")
    def _check_eval_every(self) -> RewardModel:
        if self.eval_every:
            raise ValueError("a reward model is only evaluated at the end, on held-out pairs: leave eval_every out")
        return self

    def run(self, ctx: Context) -> dict[str, Any]:
        loaded = models.load(ctx.recipe, ctx.model_source(self), scalar=True)
        training, held_out = self.pairs(ctx, loaded)
        filler = int(loaded.model.config.pad_token_id)  # pyright: ignore
        check_pairs(training)
        scored_pairs = [at_end(p, filler) for p in training]
        examples = Examples(scored_pairs, self.batch, epochs=self.epochs, seed=ctx.seed)
        steps = self.epochs * examples.steps_per_epoch
        engine = models.engine(ctx.recipe, loaded, ctx.adapter(self), self.optim, steps)
        job = Job(loaded, examples, Learner(engine, losses.loss(self.loss, f"{ctx.name}.loss")), steps)
        run_training(ctx, job)
        figures: dict[str, Any] = {"pairs": len(training), "steps": steps}
        if held_out:
            scorer = models.frozen(ctx.recipe, loaded, 1.0)
            columns = scorer.forward([at_end(p, filler) for p in held_out])
            scores = torch.stack([c["values"][-1] for c in columns])
            lengths = [int(s.mask.sum()) for p in held_out for s in (p.chosen, p.rejected)]
            margins = [float(p.meta.get("margin", float("nan"))) for p in held_out]
            result: Ranking = ranking(scores.double().numpy(), lengths, margins)
            figures["held_out"] = result.figures()
            write_json(ctx.directory / "held_out.json", result.details())
            ctx.console.say(
                f"  held out: {result.accuracy:.1%} of {result.n} pairs ({result.low:.1%} to {result.high:.1%}), "
                f"ECE {result.ece:.3f}, correlation of score and length {result.length_correlation:.2f}"
            )
        return figures


T = TypeVar("T", Pair, Sample)


def split_by_prompt(units: Sequence[T], share: float) -> tuple[list[T], list[T]]:
    """Splits units into (training, held out) by a hash of the prompt's tokens, so that no prompt is in both parts.
    share: of the prompts that are held out. Raises UserError if nothing is left to train on."""
    training: list[T] = []
    held_out: list[T] = []
    for unit in units:
        (first, *_) = sequences([unit])
        hash_fraction = rng.key(0, "holdout", *first.tokens[: prompt_length(first)].tolist()) / 2**63
        (held_out if hash_fraction < share else training).append(unit)
    if not training:
        raise UserError("all data is held out, nothing is left to train on", field="holdout", hint="lower it")
    return training, held_out


__all__ = ["FromPairs", "PreferenceStage", "RewardModel", "split_by_prompt"]
