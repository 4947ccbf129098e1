"""Stages that learn from preferences: a policy directly (DPO and its kin, KTO), and a reward model (Bradley-Terry).

data: {stage: annotate}              what simulated annotators said, token for token
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
from ladder.pipeline.kinds.supervised import StageData
from ladder.pipeline.loop import Job, run_training
from ladder.pipeline.recipe import Recipe, Spec
from ladder.pipeline.stage import Context, Makes, Trained
from ladder.signals import rows
from ladder.signals.examples import Examples
from ladder.signals.preferences import Preferences, at_end, check_pairs
from ladder.signals.unpaired import Unpaired, check_labels
from ladder.train import Learner


class FromPairs(Trained):
    """data: where the pairs come from. holdout: share of the pairs or answers (by prompt) that is never trained on.
    epochs, batch: passes and pairs a step. encoding: how rows become tokens."""

    data: Data | StageData
    holdout: float = Field(default=0.1, ge=0, lt=1)
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=32, ge=1)
    encoding: Encoding = Encoding()

    def needs(self, recipe: Recipe) -> list[tuple[str, Makes]]:
        own = super().needs(recipe)
        return [*own, (self.data.stage, "data")] if isinstance(self.data, StageData) else own

    def inputs(self, recipe: Recipe) -> list[Path]:
        return [Path(self.data.path)] if isinstance(self.data, Data) and not self.data.path.startswith("hub:") else []

    def pairs(self, ctx: Context, loaded: LoadedModel) -> tuple[list[Pair], list[Pair]]:
        """(trained, held out)."""
        if isinstance(self.data, StageData):
            found = rows.pairs(ctx.parents[self.data.stage] / "data.jsonl")
        else:
            report = Report()
            found = to_pairs(list(self.data.examples(report)), loaded.tokenizer, self.encoding, report)
            tell(ctx, report)
        kept, held = split_by_prompt(found, self.holdout)
        ctx.console.say(f"  {len(kept):,} pairs, {len(held):,} held out")
        return kept, held


class PreferenceStage(FromPairs):
    """Trains the policy on preferences. loss: DPO, IPO, Hinge, SimPO, ORPO (pairs) or KTO (liked or not)."""

    named: ClassVar[str] = "preference"
    loss: Spec = "DPO"

    def check(self, name: str, recipe: Recipe) -> None:
        loss = losses.known_loss(self.loss, f"{name}.loss")
        if loss is not None:
            self._check_loss(loss, name)

    def prepare(self, name: str, recipe: Recipe) -> None:
        super().prepare(name, recipe)
        self._check_loss(losses.loss(self.loss, f"{name}.loss"), name)

    def _check_loss(self, loss: Loss, name: str) -> None:
        """Any loss on pairs, or on answers with a label; one that reads scores is for a reward model."""
        labelled = loss.unit == "sequence" and "label" in loss.needs
        if isinstance(loss, BradleyTerry) or not (loss.unit == "pair" or labelled):
            message = f"{type(loss).__name__} is no loss of a policy on preferences"
            raise UserError(message, field=f"{name}.loss", hint="take DPO, IPO, Hinge, SimPO, ORPO or KTO")

    def run(self, ctx: Context) -> dict[str, Any]:
        loaded = models.load(ctx.recipe, ctx.model_source(self))
        loss = losses.loss(self.loss, f"{ctx.name}.loss")
        single = loss.unit == "sequence"
        kept, held = self._labelled(ctx, loaded) if single else self.pairs(ctx, loaded)
        examples = Examples(kept, self.batch, epochs=self.epochs, seed=ctx.seed)
        steps = self.epochs * examples.steps_per_epoch
        engine = models.engine(ctx.recipe, loaded, ctx.adapter(self), self.optim, steps)
        reference = models.reference(engine) if "ref_logps" in loss.needs else None
        signal = Unpaired(examples, engine.forward, reference) if single else Preferences(examples, reference)
        if reference is not None:
            ctx.console.say("  asking the reference once for all answers")
            signal.keep(ctx.directory / "reference", sha256(Path(ctx.model_source(self))) if ctx.local(self) else "")
        job = Job(loaded, signal, Learner(engine, loss), steps, eval_every=self.eval_every)
        job.at_reference = loss.at_reference if isinstance(loss, KnownStart) else None
        job.evaluate = during(ctx, loaded)
        before = implicit(engine, held) if held and reference is not None else None
        run_training(ctx, job)
        figures: dict[str, Any] = {"answers" if single else "pairs": len(kept), "steps": steps}
        if before is not None:
            figures["held_out"] = agreement(held, implicit(engine, held) - before)
        return figures

    def _labelled(self, ctx: Context, loaded: LoadedModel) -> tuple[list[Sample], list[Sample]]:
        """Liked and disliked answers, (trained, held out); a pair is one of each."""
        if isinstance(self.data, StageData):
            pairs = rows.pairs(ctx.parents[self.data.stage] / "data.jsonl")
            for pair in pairs:
                pair.chosen.meta["label"], pair.rejected.meta["label"] = True, False
            found = [s for pair in pairs for s in (pair.chosen, pair.rejected)]
        else:
            report = Report()
            found = to_samples(self.data.examples(report), loaded.tokenizer, self.encoding, report)
            tell(ctx, report)
        kept, held = split_by_prompt(check_labels(found), self.holdout)
        ctx.console.say(f"  {len(kept):,} answers, {len(held):,} held out")
        return kept, held


def tell(ctx: Context, report: Report) -> None:
    """What was dropped or cut, and why."""
    for text in report.lines():
        ctx.console.plain(f"  {text}")


def implicit(engine: Engine, units: Sequence[Unit]) -> torch.Tensor:
    """Summed log-probabilities of every answer: [2P] of pairs, [S] of samples."""
    return torch.stack([c["logps"].sum() for c in engine.forward(units)])


def agreement(held: Sequence[Unit], ratio: torch.Tensor) -> dict[str, float]:
    """How often the policy's own log-ratio agrees with preferences it never saw: with pairs, or, of answers that were
    liked or not, for how many of all couples of one and the other the liked one has the larger (the area under the ROC
    curve)."""
    if isinstance(held[0], Pair):
        return {"accuracy": float(won(ratio[0::2], ratio[1::2]).mean()), "n": float(len(held))}
    liked = torch.tensor([bool(s.meta["label"]) for s in sequences(held)])
    if liked.all() or not liked.any():
        return {"n": float(len(held))}  # there is no couple to tell apart
    couples = ratio[liked][:, None] - ratio[~liked][None]
    return {"auc": float(won(couples, torch.zeros_like(couples)).mean()), "n": float(len(held))}


class RewardModel(FromPairs):
    """Trains a scalar head (and the model under it) to score answers. loss: BradleyTerry."""

    named: ClassVar[str] = "reward_model"
    makes: ClassVar[Makes] = "scorer"
    loss: Spec = "BradleyTerry"

    def check(self, name: str, recipe: Recipe) -> None:
        loss = losses.known_loss(self.loss, f"{name}.loss")
        if loss is not None:
            self._check_loss(loss, name)

    def prepare(self, name: str, recipe: Recipe) -> None:
        super().prepare(name, recipe)
        self._check_loss(losses.loss(self.loss, f"{name}.loss"), name)

    def _check_loss(self, loss: Loss, name: str) -> None:
        """Any loss on pairs that is not one of a policy's."""
        if loss.unit != "pair" or (isinstance(loss, PairTerms) and not isinstance(loss, BradleyTerry)):
            message = f"{type(loss).__name__} trains no scores"
            raise UserError(message, field=f"{name}.loss", hint="take BradleyTerry")

    @model_validator(mode="after")
    def _whole(self) -> RewardModel:
        if self.eval_every:
            raise ValueError("a reward model is measured on held-out pairs, at its end: leave eval_every out")
        return self

    def run(self, ctx: Context) -> dict[str, Any]:
        loaded = models.load(ctx.recipe, ctx.model_source(self), scalar=True)
        kept, held = self.pairs(ctx, loaded)
        filler = int(loaded.model.config.pad_token_id)  # pyright: ignore
        check_pairs(kept)
        ends = [at_end(p, filler) for p in kept]
        examples = Examples(ends, self.batch, epochs=self.epochs, seed=ctx.seed)
        steps = self.epochs * examples.steps_per_epoch
        engine = models.engine(ctx.recipe, loaded, ctx.adapter(self), self.optim, steps)
        job = Job(loaded, examples, Learner(engine, losses.loss(self.loss, f"{ctx.name}.loss")), steps)
        run_training(ctx, job)
        figures: dict[str, Any] = {"pairs": len(kept), "steps": steps}
        if held:
            scorer = models.frozen(ctx.recipe, loaded, 1.0)
            scores = torch.stack([c["values"][-1] for c in scorer.forward([at_end(p, filler) for p in held])])
            lengths = [int(s.mask.sum()) for p in held for s in (p.chosen, p.rejected)]
            margins = [float(p.meta.get("margin", float("nan"))) for p in held]
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
    """(kept, held out): by a hash of the prompt's tokens, so that no prompt is on both sides."""
    kept: list[T] = []
    held: list[T] = []
    for unit in units:
        (first, *_) = sequences([unit])
        drawn = rng.key(0, "holdout", *first.tokens[: prompt_length(first)].tolist()) / 2**63
        (held if drawn < share else kept).append(unit)
    if not kept:
        raise UserError("everything is held out", field="holdout", hint="lower it, or give more")
    return kept, held


__all__ = ["FromPairs", "PreferenceStage", "RewardModel", "split_by_prompt"]
