"""The engine: every split gives the same gradient, a bad step changes nothing, a resumed run is identical.

Gradients are compared in float64 on a model that computes in it throughout (GPT-2; a Llama's norms compute in float32),
with an oracle that runs transformers' own attention over one sequence at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import families as fam
from engine_units import LOSSES, PairLoss, group, same, units_of, weights
from ladder.base.errors import UserError
from ladder.contract.batch import Batch, Out
from ladder.contract.training import Loss, Sample, Unit
from ladder.engine.engine import PROCESSOR, Engine, NotFinite, _minibatches
from ladder.engine.optim import Optim
from ladder.losses import CrossEntropy, PolicyClip, PolicyGradient
from ladder.packing.pack import count, sequences


def gpt2(implementation: str = "ladder") -> Any:
    return fam.build("gpt2", implementation).double()


def engine(model: Any = None, optim: Optim | None = None, **options: Any) -> Engine:
    return Engine(model or fam.build("llama"), optim or Optim(lr=1e-2), **options)


def oracle(model: Any, units: Sequence[Unit], loss: Loss) -> dict[str, Tensor]:
    """Gradients from one sequence at a time with transformers' own attention, and the loss over all of them at once."""
    logps, entropy, samples = [], [], list(sequences(units))
    for s in samples:
        logp = model(input_ids=s.tokens[None], use_cache=False).logits[0, :-1].log_softmax(-1)[s.mask[1:]]
        logps.append(logp.gather(1, s.tokens[s.mask][:, None])[:, 0])
        entropy.append(-(logp.exp() * logp).sum(-1))
    lengths = torch.tensor([len(x) for x in logps])
    cols = {name: torch.cat([s.cols[name][s.mask] for s in samples]) for name in loss.needs}
    batch = Batch(torch.repeat_interleave(torch.arange(len(lengths)), lengths), lengths, cols)
    losses, _ = loss(Out(torch.cat(logps), torch.cat(entropy)), batch)
    divisors = {"token": len(batch.seq_N), "sequence": len(samples), "pair": len(samples) // 2}
    if loss.unit == "padded":
        divisors["padded"] = len(samples) * loss.length  # pyright: ignore[reportAttributeAccessIssue]
    (losses.sum() / divisors[loss.unit]).backward()
    return {n: p.grad for n, p in model.named_parameters()}


def close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name in want:
        worst = float((got[name] - want[name]).abs().max())
        assert torch.allclose(got[name], want[name], atol=tolerance, rtol=tolerance), f"{name}: off by {worst:.2g}"


# ---------------------------------------------------------------- splits


SPLITS = [(1, 1, True), (45, 1, False), (45, 1, True), (45, 2, True), (999, 1, False), (999, 2, False), (999, 1, True)]


@pytest.mark.parametrize("name", LOSSES)
def test_every_split_gives_the_gradient_of_unpacked_sequences(name: str) -> None:
    loss = LOSSES[name]
    units = units_of(loss)
    want = oracle(gpt2("eager"), units, loss)
    assert max(float(g.abs().max()) for g in want.values()) > 1e-3
    for budget, workers, share in SPLITS:
        e = engine(gpt2(), budget=budget, workers=workers, share_prefix=share)
        close(fam.gradients(e, units, loss)[0], want, 1e-10)


@pytest.mark.parametrize("name", ["token", "clip per sequence", "pair"])
def test_every_split_leads_to_the_same_weights(name: str) -> None:
    loss = LOSSES[name]
    units, final_weights, figures = units_of(loss), [], []
    for budget, workers, share in SPLITS[::2]:
        e = engine(gpt2(), Optim(lr=1e-3), budget=budget, workers=workers, share_prefix=share)
        figures.append(e.update(units, loss, epochs=2, minibatches=2, key=5))
        final_weights.append(weights(e))
    for other_weights, other_figures in zip(final_weights[1:], figures[1:], strict=True):
        close(other_weights, final_weights[0], 1e-7)  # Adam's first steps divide by |g|, so rounding near 0 shows
        for key in ("loss", "grad_norm", "first/loss"):
            assert other_figures[key] == pytest.approx(figures[0][key], rel=1e-6)


def test_a_shared_prompt_changes_no_gradient_of_a_llama() -> None:
    units: list[Unit] = list(group(3, 8, prompt=20))
    loss = LOSSES["everything"]
    shared, apart = (
        fam.gradients(engine(fam.build("llama").double(), share_prefix=share), units, loss)[0]
        for share in (True, False)
    )
    close(shared, apart, 1e-5)
    close(shared, oracle(fam.build("llama", "eager").double(), units, loss), 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_activation_checkpointing_changes_no_gradient(name: str) -> None:
    """In float64, which the fused decoder does not take: what is recomputed is the only difference."""
    units, loss = units_of(LOSSES["everything"]), LOSSES["everything"]
    plain, recomputed = (engine(fam.build(name).double(), checkpointing=on) for on in (False, True))
    assert recomputed.model.training and recomputed.base.gradient_checkpointing
    close(fam.gradients(recomputed, units, loss)[0], fam.gradients(plain, units, loss)[0], 1e-10)


def test_more_workers_than_micro_batches() -> None:
    units: list[Unit] = list(group(0, 1))
    one, many = (fam.gradients(engine(gpt2(), workers=n), units, CrossEntropy())[0] for n in (1, 3))
    close(many, one, 1e-12)


# ---------------------------------------------------------------- minibatches and epochs


@dataclass(frozen=True)
class RecordingLoss(CrossEntropy):
    """Cross-entropy that records the samples of each call (by the first entry of their column)."""

    seen: tuple[list[list[float]], ...] = ([],)
    needs: tuple[str, ...] = ("advantages",)  # pyright: ignore

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen[0].append(batch.first(batch.cols["advantages"]).tolist())
        return CrossEntropy.__call__(self, out, batch)


def numbered(n: int) -> list[Unit]:
    samples = [group(100 + i, 1)[0] for i in range(n)]
    for i, s in enumerate(samples):
        s.cols["advantages"].fill_(i)
    return list(samples)


def test_every_epoch_meets_every_unit_once() -> None:
    orders = {}
    for key in (1, 1, 2):
        seen: list[list[float]] = []
        e = engine()
        e.update(numbered(9), RecordingLoss(seen=(seen,)), epochs=3, minibatches=3, key=key)
        assert e.optimizer is not None and e.optimizer.step_count == 9
        assert len(seen) == 9
        epochs = [[i for part in seen[at : at + 3] for i in part] for at in (0, 3, 6)]
        assert epochs[0] == list(range(9))
        assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
        assert epochs[1] != epochs[0] and epochs[2] != epochs[1]
        assert orders.setdefault(key, seen) == seen
    assert orders[1] != orders[2]


def test_each_minibatch_is_one_optimiser_step() -> None:
    units = numbered(6)
    at_once, one_by_one = engine(), engine()
    at_once.update(units, CrossEntropy(), minibatches=2)
    for part in _minibatches(units, 2, shuffle=None):
        one_by_one.update(part, CrossEntropy())
    assert same(weights(at_once), weights(one_by_one))
    with pytest.raises(ValueError, match="6 units cannot be split into 7"):
        at_once.update(units, CrossEntropy(), minibatches=7)


def test_first_figures_are_measured_before_any_weight_changes() -> None:
    e = engine(optim=Optim(lr=0.05))
    units = units_of(PolicyClip())
    for s, columns in zip(sequences(units), e.forward(units), strict=True):
        s.cols["old_logps"] = columns["logps"]
        s.cols["ref_logps"] = columns["logps"]
    figures = e.update(units, PolicyClip(kl_coef=0.1), minibatches=4)
    assert figures["first/ratio/mean"] == pytest.approx(1, abs=1e-5)
    assert figures["first/kl"] == pytest.approx(0, abs=1e-5)
    assert figures["ratio/peak_max"] > 1.01 > figures["first/ratio/peak_max"]
    assert figures["kl"] > 1e-3 and figures["first/loss"] != figures["loss"]


def test_figures() -> None:
    units = numbered(4)
    nll = -torch.cat([c["logps"][s.mask] for s, c in zip(sequences(units), engine().forward(units), strict=True)])
    figures = engine(optim=Optim(lr=0.25)).update(units, CrossEntropy(entropy=True))
    assert figures["loss"] == pytest.approx(float(nll.mean()), rel=1e-5) == figures["nll"]
    assert figures["lr"] == 0.25 and figures["grad_norm"] > 0 and figures["tokens_per_s"] > 0
    assert figures["tokens"] == sum(int(s.mask.nonzero()[-1]) for s in sequences(units))
    assert 0 < figures["entropy"] < 4.61  # ln 100


# ---------------------------------------------------------------- invalid steps


@dataclass(frozen=True)
class Steep(CrossEntropy):
    """A finite loss (0) with a gradient that is not finite."""

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return (out.logps - out.logps.detach()).abs().sqrt(), {}


@dataclass(frozen=True)
class Lost(CrossEntropy):
    """An infinite loss with a finite gradient."""

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return float("inf") - out.logps, {}


def poisoned(value: float) -> list[Unit]:
    units = units_of(PolicyGradient())
    list(sequences(units))[-1].cols["advantages"].fill_(value)
    return units


BAD: dict[str, tuple[Loss, list[Unit], str]] = {
    "a column holds nan": (PolicyGradient(), poisoned(float("nan")), "the loss is nan"),
    "a column holds inf": (PolicyGradient(), poisoned(float("inf")), "the loss is (inf|nan)"),
    "the loss alone": (Lost(), units_of(CrossEntropy()), "the loss is inf"),
    "the gradient alone": (Steep(), units_of(CrossEntropy()), "the gradient norm is nan"),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("bad", BAD)
def test_a_step_that_is_not_finite_changes_nothing(bad: str, workers: int) -> None:
    units = units_of(CrossEntropy())
    e, unaffected = (engine(budget=40, workers=workers) for _ in range(2))
    e.update(units, CrossEntropy())
    unaffected.update(units, CrossEntropy())
    before = weights(e)
    loss, batch, why = BAD[bad]
    with pytest.raises(NotFinite, match=rf"{why} at optimiser step 1"):
        e.update(batch, loss)
    assert same(weights(e), before)
    assert all(p.grad is None for p in e.trained.values())
    e.update(units, CrossEntropy())  # moments and step count were not changed either
    unaffected.update(units, CrossEntropy())
    assert same(weights(e), weights(unaffected))


@dataclass(frozen=True)
class Failing(CrossEntropy):
    """Raises at its second micro-batch."""

    calls: tuple[list[int], ...] = ([],)

    def __call__(self, out: Out, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls[0].append(1)
        if len(self.calls[0]) == 2:
            raise RuntimeError("out of memory")
        return CrossEntropy.__call__(self, out, batch)


def test_the_default_budget_depends_on_the_device() -> None:
    assert engine().budget == PROCESSOR
    assert engine(budget=PROCESSOR + 1).budget == PROCESSOR + 1


def test_an_incomplete_step_leaves_no_gradient() -> None:
    e = engine(budget=1)
    with pytest.raises(RuntimeError, match="out of memory"):
        e.update(numbered(3), Failing(calls=([],)))
    assert all(p.grad is None for p in e.trained.values())


def test_invalid_batches_raise_before_any_weight_changes() -> None:
    e = engine()
    before = weights(e)
    lacking = [Sample(s.tokens, s.mask) for s in group(0, 2)]
    with pytest.raises(ValueError, match=r"needs the column 'old_logps'|needs the column 'advantages'"):
        e.update(lacking, PolicyClip())
    with pytest.raises(ValueError, match="the batch is empty"):
        e.update([], CrossEntropy())
    with pytest.raises(ValueError, match="takes samples only"):
        e.update(units_of(PairLoss()), CrossEntropy())
    with pytest.raises(ValueError, match="takes pairs only"):
        e.update(lacking, PairLoss())
    with pytest.raises(ValueError, match="nothing to train"):
        e.update([Sample(torch.arange(4), torch.zeros(4, dtype=torch.bool))], CrossEntropy())
    with pytest.raises(ValueError, match="no trainable parameter"):
        Engine(fam.build("llama").requires_grad_(False), Optim())
    assert same(weights(e), before)


# ---------------------------------------------------------------- forward


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("share", [True, False])
def test_forward_gives_the_columns_of_log_softmax(temperature: float, share: bool) -> None:
    units = [*units_of(CrossEntropy(), 2), *units_of(PairLoss(), 2)]
    columns = Engine(fam.build("llama"), temperature=temperature, budget=70, share_prefix=share).forward(
        units, entropy=True
    )
    samples = list(sequences(units))
    assert len(columns) == len(samples) == 16
    for s, got in zip(samples, columns, strict=True):
        with torch.no_grad():
            logits = fam.cached("llama", "eager")(input_ids=s.tokens[None], use_cache=False).logits[0, :-1]
        logp = (logits / temperature).log_softmax(-1)
        want = {
            "logps": logp.gather(1, s.tokens[1:, None])[:, 0],
            "entropy": -(logp.exp() * logp).sum(-1),
        }
        for name, value in want.items():
            assert got[name].shape == s.tokens.shape and got[name].dtype == torch.float32
            full = torch.cat([torch.zeros(1), value]).masked_fill(~s.mask, 0)
            torch.testing.assert_close(got[name], full, atol=3e-5, rtol=1e-5)


def test_forward_of_nothing_and_without_entropy() -> None:
    e = engine()
    assert e.forward([]) == []
    (only,) = e.forward(group(0, 1))
    assert only.keys() == {"logps"}
    with pytest.raises(ValueError, match="no adapter"):
        e.forward(group(0, 1), reference=True)


# ---------------------------------------------------------------- weights


def test_a_frozen_copy_does_not_change() -> None:
    e = engine(temperature=0.7)
    units = units_of(CrossEntropy())
    frozen = e.freeze()
    columns_before = e.forward(units)
    for _ in range(2):
        e.update(units, CrossEntropy())
    for before, copied, trained in zip(columns_before, frozen.forward(units), e.forward(units), strict=True):
        assert torch.equal(before["logps"], copied["logps"])
        assert not torch.equal(before["logps"], trained["logps"])
    assert not any(p.requires_grad for p in frozen.model.parameters())
    assert all(p.requires_grad for p in e.model.parameters())
    with pytest.raises(ValueError, match="frozen"):
        frozen.update(units, CrossEntropy())
    with pytest.raises(ValueError, match="frozen"):
        frozen.save(Path("nowhere"))
    with pytest.raises(ValueError, match="frozen"):
        frozen.load(Path("nowhere"))


def test_weights_are_the_models_live_parameters() -> None:
    e = engine()
    named = dict(e.weights())
    assert named.keys() == dict(e.model.named_parameters()).keys()
    before = named["lm_head.weight"].detach().clone()
    e.update(numbered(2), CrossEntropy())
    assert not torch.equal(named["lm_head.weight"], before)
    assert named["lm_head.weight"] is e.model.get_parameter("lm_head.weight")


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_same_run(kind: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    optim = Optim(lr=1e-2, kind=kind, warmup=0.3, schedule="cosine", weight_decay=0.1)
    batches = [units_of(CrossEntropy(), 2), numbered(4), numbered(3), units_of(CrossEntropy(), 3)]

    def start(seed: int = 0) -> Engine:
        return engine(fam.build("llama", seed=seed).to(dtype), optim, total_steps=4)

    def run(e: Engine, batches: Sequence[list[Unit]]) -> float:
        return [e.update(units, CrossEntropy())["lr"] for units in batches][-1]

    straight, first, second = start(), start(), start(seed=9)
    last = run(straight, batches)
    run(first, batches[:2])
    first.save(tmp_path)
    saved = weights(first)
    second.load(tmp_path)
    assert same(weights(second), saved)
    assert run(second, batches[2:]) == last
    assert same(weights(second), weights(straight))
    assert not same(weights(second), saved)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["optim.json", "optim.safetensors", "trained.safetensors"]


def test_a_checkpoint_of_another_model_or_optimiser_raises(tmp_path: Path) -> None:
    e = engine()
    e.update(numbered(2), CrossEntropy())
    e.save(tmp_path)
    others = {
        "model.layers": engine(fam.build("llama", num_hidden_layers=3)),
        "model.embed_tokens.weight has shape": engine(fam.build("llama", vocab_size=101)),
        "trained with adamw, not muon": engine(optim=Optim(kind="muon")),
    }
    for match, other in others.items():
        before = weights(other)
        with pytest.raises(UserError, match=match):
            other.load(tmp_path)
        assert same(weights(other), before)


def test_the_loss_divisor_counts_the_whole_step() -> None:
    units = units_of(CrossEntropy())
    trained = sum(int(s.mask.sum()) for s in sequences(units))
    assert count(units, CrossEntropy()) == trained
    assert count(units, CrossEntropy(unit="sequence")) == 16
    assert count(units, PolicyClip(unit="padded", length=7)) == 16 * 7
    assert count(units_of(PairLoss()), PairLoss()) == 8


def test_only_what_requires_a_gradient_is_trained() -> None:
    model = fam.build("llama")
    model.model.layers[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    e = engine(model, workers=2, budget=40)
    e.update(units_of(CrossEntropy()), CrossEntropy())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == ("layers.0." in name), name
