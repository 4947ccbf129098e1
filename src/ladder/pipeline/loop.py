"""One stage's training: the loop of `train.py` with everything around it that a run needs.

Resumes from the newest whole checkpoint, checks at the first update (and at the first one after a resume) what must
hold there, writes metrics, saves now and then, stops between steps when asked to, and leaves the trained model as a
plain directory.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from ladder.base.errors import UserError
from ladder.contract.training import Signal
from ladder.engine import checkpoint
from ladder.models.load import LoadedModel, save_model
from ladder.models.lora import PeftModel, merge, save_adapter
from ladder.pipeline.alarms import LiveAlarms
from ladder.pipeline.stage import Context, Interrupted
from ladder.train import Learner, train

RATIO_SLACK = 0.01
"""How far the first ratio policy / sampler may be from 1 on average, and the first KL from 0."""
EXACT, ROUNDED = 1e-5, 3e-3
"""Most divergence of policy and sampler before any step, in nats a token: in float32, and in shorter types."""

DIVISORS = {
    "token": "trained tokens",
    "sequence": "sequences",
    "padded": "sequences times the length",
    "pair": "pairs",
}
"""What the engine divides a loss by, for people."""

Evaluate = Callable[[int], None]


class Keeps(Protocol):
    """Something with a state in files of its own."""

    def save(self, directory: Path) -> None: ...
    def restore(self, directory: Path) -> None: ...


@dataclass(slots=True)
class Job:
    """What a kind of stage hands over. evaluate: called every `eval_every` steps. critics: learners beside the policy.
    at_reference: the loss that the first update must show, where the policy still is its reference. alarms: told of
    every step; may end the run. keeps: what else a checkpoint holds, by the name of its directory. off_policy: the
    rollouts are of a model that never was the policy, so that even the first ratio is not 1. behind: the
    sampler's weights are older than the policy's once any weight has moved."""

    loaded: LoadedModel
    signal: Signal
    learner: Learner
    steps: int
    evaluate: Evaluate | None = None
    eval_every: int = 0
    critics: Sequence[Learner] = ()
    at_reference: float | None = None
    alarms: LiveAlarms | None = None
    keeps: Mapping[str, Keeps] = field(default_factory=dict)
    off_policy: bool = False
    behind: bool = False

    @property
    def learners(self) -> list[Learner]:
        return [self.learner, *self.critics]


def run_training(ctx: Context, job: Job) -> None:
    """Trains to the last step, or raises Interrupted with everything saved. Writes `ctx.directory / "model"`."""
    root = ctx.directory / "checkpoints"
    for learner in job.learners:
        unit = DIVISORS[learner.loss.unit]
        ctx.console.plain(f"  {learner.name}: {learner.loss}, divided by the step's {unit}")
    start, updated = _resume(ctx, job, root)
    checks = FirstUpdate(job, updated)
    saved_at = time.monotonic()
    fired: list[str] = []
    with ctx.console.bar(ctx.name, job.steps, start) as bar:

        def on_step(step: int, figures: dict[str, float]) -> bool:
            nonlocal saved_at
            checks.step(figures)
            ctx.log.step(step, figures)
            fired.extend(job.alarms.step(step, figures) if job.alarms else [])
            bar.update(step, figures)
            if job.evaluate and job.eval_every and step % job.eval_every == 0 and step < job.steps:
                job.evaluate(step)
            stopping = bool(ctx.stop or fired)
            if stopping or step == job.steps or time.monotonic() - saved_at > ctx.recipe.save_every:
                _save(ctx, job, root, step, checks.updated)
                saved_at = time.monotonic()
            return stopping

        done = train(job.signal, job.learners, steps=job.steps, start=start, seed=ctx.seed, on_step=on_step)
    if fired:
        raise ctx.error(
            f"stopped after step {done} because of {', '.join(fired)}, as the recipe asks (see findings.jsonl)",
            "alarms.stop",
            "change what is wrong; the same command again goes on in spite of it",
        )
    if ctx.stop and done < job.steps:
        raise Interrupted
    write_model(ctx.directory / "model", job.loaded)
    shutil.rmtree(root, ignore_errors=True)


@dataclass(slots=True)
class FirstUpdate:
    """Checks what must hold at the first update of a process, before any weight has moved. A step may train nothing (no
    answer carried a signal), so this is not the first step. updated: an earlier process has moved weights; the policy
    then is no longer its reference, and only the ratio to the sampler must still be 1."""

    job: Job
    updated: bool
    checked: bool = False

    def step(self, figures: Mapping[str, float]) -> None:
        """Figures of one step. Raises UserError with the sentence that explains what does not hold."""
        if "loss" not in figures:
            return
        if not self.checked:
            check_ratio(figures, self._divergence())
            if not self.updated:
                check_kl(figures)
                if self.job.at_reference is not None:
                    check_reference(figures["first/loss"], self.job.at_reference, _sums(figures))
        self.checked = self.updated = True

    def _divergence(self) -> float | None:
        """The largest divergence of policy and sampler that rounding explains; None where they differ by design."""
        if self.job.off_policy or (self.updated and self.job.behind):
            return None
        return EXACT if _exact(self.job) else ROUNDED


def _resume(ctx: Context, job: Job, root: Path) -> tuple[int, bool]:
    """Goes back to the newest checkpoint; returns its step, and whether any weight had moved by then."""
    newest = checkpoint.newest(root, ctx.console.say)
    if newest is None:
        ctx.log.cut(0)
        return 0, False
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    job.learner.engine.load(newest)
    for critic in job.critics:
        critic.engine.load(newest / critic.name)
    for name, kept in job.keeps.items():
        kept.restore(newest / name)
    job.signal.restore(state["signal"])
    ctx.before = state["seconds"]
    ctx.log.cut(state["step"])
    ctx.console.say(f"  goes on after step {state['step']} of {job.steps}")
    return int(state["step"]), bool(state["updated"])


def _save(ctx: Context, job: Job, root: Path, step: int, updated: bool) -> None:
    state = {"step": step, "updated": updated, "signal": job.signal.state(), "seconds": ctx.seconds}

    def write(directory: Path) -> None:
        job.learner.engine.save(directory)
        for critic in job.critics:
            (directory / critic.name).mkdir()
            critic.engine.save(directory / critic.name)
        for name, kept in job.keeps.items():
            (directory / name).mkdir()
            kept.save(directory / name)
        (directory / "state.json").write_text(json.dumps(state), encoding="utf-8")

    checkpoint.save(root, step, write)


def _exact(job: Job) -> bool:
    return all(p.dtype in (torch.float32, torch.float64) for p in job.loaded.model.parameters())


def check_ratio(figures: Mapping[str, float], divergence: float | None = EXACT) -> None:
    """Whether sampler and engine agree before any weight of the step moved. divergence: the largest one that passes;
    None where another model draws, whose ratio may be anything. Raises UserError.

    The mean of the ratio finds tokens that the sampler cannot draw, and nothing else: over what it draws that mean is 1
    however wrong temperature or weights are. The divergence finds those. A loss without a ratio has neither figure; the
    signal then compares the log-probabilities itself ("probe/kl").
    """
    if divergence is None:
        return
    ratio = figures.get("first/ratio/mean", 1.0)
    apart = figures.get("first/ratio/approx_kl", figures.get("probe/kl", 0.0))
    if not (abs(ratio - 1) <= RATIO_SLACK and apart <= divergence):
        raise UserError(
            f"at the first update the ratio of policy to sampler is {ratio:.4f} on average and should be 1, their "
            f"divergence is {apart:.2g} nats a token and should be 0: the sampler draws from another distribution "
            "than the one that is trained",
            hint="use the same temperature, weights and precision for both",
        )


def check_kl(figures: Mapping[str, float]) -> None:
    """Whether the policy still is its reference before any weight has moved. Raises UserError."""
    kl = figures.get("first/kl", figures.get("kl/response", 0.0) / max(1.0, figures.get("length/mean", 1.0)))
    if not abs(kl) <= RATIO_SLACK:
        raise UserError(
            f"at the first update the KL from the reference is {kl:.4f} and should be 0: the reference is another model"
        )


def _sums(figures: Mapping[str, float]) -> float:
    """How large the summed log-probabilities are that a loss on whole answers compares, in nats: its own figures where
    it has them, else a nat a token."""
    sums = [abs(x) for name, x in figures.items() if name.startswith("first/logps/")]
    return max(sums, default=figures.get("length/mean", 0.0))


def check_reference(loss: float, at_reference: float, sums: float = 0.0) -> None:
    """The first loss of a policy that still is its reference, known beforehand (ln 2 for DPO). sums: the size of the
    log-probabilities that it compares, which policy and reference may have added up in another order: each is known to
    a few times 2^-24 of it. Raises UserError."""
    if not abs(loss - at_reference) <= 1e-6 * max(1.0, at_reference) + 4 * 2**-24 * sums:
        raise UserError(
            f"at the first update the loss is {loss:.8f} and should be {at_reference:.8f}, because the policy still "
            "is its reference: the reference's log-probabilities are of another model, or of other tokens",
            hint="start from the model that the reference is of",
        )


def write_model(directory: Path, loaded: LoadedModel) -> None:
    """The model as a plain directory. An adapter is saved beside it in PEFT's layout, and merged into the model."""
    if isinstance(loaded.model, PeftModel):
        adapter = loaded.model
        checkpoint.write_directory(directory.with_name("adapter"), lambda d: save_adapter(adapter, d))
        loaded.model = merge(adapter)
    checkpoint.write_directory(directory, lambda d: save_model(loaded, d))
