"""KTO against numbers worked by hand, the paper's formulas in float64, and the gradients of a tiny model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import families as fam
from ladder.base.errors import UserError
from ladder.contract.batch import Batch, Out
from ladder.contract.training import Pair, Sample, Unit
from ladder.engine.engine import Engine, NotFinite
from ladder.engine.optim import Optim
from ladder.losses import KTO

LN3 = math.log(3)
LOSSES = {
    "plain": KTO(),
    "sharp": KTO(beta=1.5),
    "weighted": KTO(beta=0.8, desirable=1.33, undesirable=0.7),
}


@dataclass
class Answer:
    logps: np.ndarray  # [N]
    ref: np.ndarray
    label: float
    z0: float


def draw(rng: np.random.Generator, n: int) -> list[Answer]:
    z0, answers = float(rng.exponential()), []
    for _ in range(n):
        logps = -rng.exponential(0.7, rng.integers(1, 6))
        answers.append(Answer(logps, logps + rng.normal(0, 0.5, len(logps)), float(rng.random() < 0.5), z0))
    return answers


def batch_of(answers: Sequence[Answer]) -> tuple[Tensor, Batch]:
    lengths = torch.tensor([len(a.logps) for a in answers])
    cols = {
        "ref_logps": np.concatenate([a.ref for a in answers]),
        "label": np.concatenate([np.full(len(a.ref), a.label) for a in answers]),
        "kl_z0": np.concatenate([np.full(len(a.ref), a.z0) for a in answers]),
    }
    seq_N = torch.arange(len(answers)).repeat_interleave(lengths)
    batch = Batch(seq_N, lengths, {k: torch.tensor(v) for k, v in cols.items()})
    return torch.tensor(np.concatenate([a.logps for a in answers])), batch


def ours(loss: KTO, answers: Sequence[Answer]) -> tuple[list[float], list[float], dict[str, list[float]]]:
    logps, batch = batch_of(answers)
    losses, metrics = loss(Out(logps.requires_grad_()), batch)
    losses.sum().backward()
    assert logps.grad is not None
    return losses.tolist(), logps.grad.tolist(), {k: v.tolist() for k, v in metrics.items()}


def paper(loss: KTO, logps: Tensor, answer: Answer) -> Tensor:
    """Equations 7 and 8: lambda_y - v(x, y), with the probability of the whole answer."""
    r = torch.log(torch.exp(logps).prod() / math.prod(np.exp(answer.ref)))
    if answer.label:
        return loss.desirable - loss.desirable / (1 + torch.exp(-loss.beta * (r - answer.z0)))
    return loss.undesirable - loss.undesirable / (1 + torch.exp(-loss.beta * (answer.z0 - r)))


@pytest.mark.parametrize("name", LOSSES)
def test_oracle(name: str) -> None:
    """Values and gradients on 60 batches of answers of different lengths, most of them with both labels."""
    loss, rng = LOSSES[name], np.random.default_rng(len(name))
    for _ in range(60):
        answers = draw(rng, int(rng.integers(1, 6)))
        values, grads = [], []
        for a in answers:
            x = torch.tensor(a.logps, requires_grad=True)
            value = paper(loss, x, a)
            value.backward()
            assert x.grad is not None
            values.append(value.item())
            grads += x.grad.tolist()
        got = ours(loss, answers)
        assert got[0] == pytest.approx(values, rel=1e-9, abs=1e-12)
        assert got[1] == pytest.approx(grads, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(name: str) -> None:
    logps, batch = batch_of(draw(np.random.default_rng(1), 4))
    torch.autograd.gradcheck(lambda x: LOSSES[name](Out(x), batch)[0], logps.requires_grad_())


def answer(ratios: list[float], label: float, z0: float = 0.0) -> Answer:
    """An answer from its log-ratios to a reference whose log-probabilities are all -2."""
    x = np.array(ratios)
    return Answer(x - 2, np.full(len(x), -2.0), label, z0)


def test_by_hand() -> None:
    # r = ln 3 + 1 over two tokens, z0 = 1: s(ln 3) = 3/4. liked: 2 (1 - 3/4); disliked: 3 (1 - 1/4)
    # gradients: -+ weight * 3/4 * 1/4
    loss = KTO(beta=1.0, desirable=2.0, undesirable=3.0)
    losses, grad, metrics = ours(loss, [answer([LN3, 1.0], 1, 1.0), answer([LN3 + 1], 0, 1.0)])
    assert losses == pytest.approx([0.5, 2.25])
    assert grad == pytest.approx([-0.375, -0.375, 0.5625])
    assert metrics["rewards/desirable"] == metrics["rewards/undesirable"] == pytest.approx([LN3 + 1])
    assert metrics["logps/desirable"] == pytest.approx([LN3 - 3])
    assert metrics["logps/undesirable"] == pytest.approx([LN3 - 1])
    assert metrics["kl_z0"] == [1.0, 1.0]
    # beta: r - z0 = 2 ln 3, halved
    assert ours(KTO(beta=0.5), [answer([2 * LN3], 1)])[0] == pytest.approx([0.25])


def test_the_loss_at_the_reference_is_half_the_weight() -> None:
    answers = [answer([0.0, 0.0], 1), answer([0.0], 0)]
    assert ours(KTO(), answers)[0] == [0.5, 0.5]
    assert ours(KTO(desirable=1.5), answers)[0] == [0.75, 0.5]
    assert KTO().at_reference == 0.5 and KTO(desirable=3.0, undesirable=3.0).at_reference == 1.5
    assert KTO(desirable=1.5).at_reference is None


def test_metrics_of_an_absent_label_are_empty() -> None:
    metrics = ours(KTO(), [answer([1.0], 1)])[2]
    assert len(metrics["rewards/desirable"]) == 1 and metrics["rewards/undesirable"] == []


@pytest.mark.parametrize("label", [0.5, -1.0, 2.0, math.nan])
def test_a_label_other_than_0_and_1_gives_nan(label: float) -> None:
    losses, _, _ = ours(KTO(), [answer([1.0], label), answer([1.0], 1)])
    assert math.isnan(losses[0]) and math.isfinite(losses[1])


def test_ratios_of_any_size_stay_finite() -> None:
    losses, grad, _ = ours(KTO(beta=1.0), [answer([x], label) for x in (5000.0, -5000.0) for label in (0, 1)])
    assert losses == [1.0, 0.0, 0.0, 1.0] and grad == [0.0] * 4


WRONG = [
    ({"beta": 0.0}, "beta"),
    ({"desirable": 0.0}, "desirable"),
    ({"desirable": math.inf}, "desirable"),
    ({"undesirable": -1.0}, "undesirable"),
    ({"undesirable": math.nan}, "undesirable"),
]


@pytest.mark.parametrize(("fields", "field"), WRONG)
def test_bad_configurations_are_rejected(fields: dict[str, float], field: str) -> None:
    with pytest.raises(UserError) as error:
        KTO(**fields)
    assert error.value.field == field and error.value.hint


# ---------------------------------------------------------------- through a model


def units(n: int = 6) -> list[Unit]:
    """Answers whose reference log-probabilities differ a little from the policy's."""
    g = torch.Generator().manual_seed(0)
    samples: list[Unit] = []
    for i in range(n):
        prompt, m = 3 + i // 2, int(torch.randint(1, 9, (1,), generator=g))
        mask = torch.cat([torch.zeros(prompt), torch.ones(1), (torch.rand(m, generator=g) > 0.2).float()]).bool()
        T = len(mask)
        cols = {"label": torch.full((T,), float(i % 2)), "kl_z0": torch.full((T,), 0.4)}
        sample = Sample(torch.randint(5, 90, (T,), generator=g), mask, cols)
        cols["ref_logps"] = fam.alone(fam.cached("llama", "eager"), sample.tokens.tolist())
        cols["ref_logps"] += torch.randn(T, generator=g) * 0.5
        samples.append(sample)
    return samples


def test_every_split_and_packing_gives_the_unpacked_gradient() -> None:
    loss, batch, model = LOSSES["weighted"], units(), fam.build("llama", implementation="eager")
    total = torch.zeros((), dtype=torch.float64)
    for s in batch:
        assert isinstance(s, Sample)
        log_probs = model(input_ids=s.tokens[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        logps = log_probs.gather(1, s.tokens[1:, None])[:, 0][s.mask[1:]].double()
        ref = s.cols["ref_logps"][s.mask].double().numpy()
        total = total + paper(loss, logps, Answer(ref, ref, float(s.cols["label"][0]), 0.4))
    (total / len(batch)).backward()
    want = {n: p.grad for n, p in model.named_parameters()}
    engine_options: list[dict[str, Any]] = [{"budget": 10_000}, {"budget": 20}, {"workers": 2}]
    for options in engine_options:
        engine, grads = Engine(fam.build("llama"), Optim(), **options), {}
        assert engine.optimizer is not None

        def step(engine: Engine = engine, grads: dict[str, Tensor] = grads) -> float:
            grads.update({n: p.grad.clone() for n, p in engine.trained.items() if p.grad is not None})
            return 0.0

        engine.optimizer.step = step
        figures = engine.update(batch, loss)
        assert figures["loss"] == pytest.approx(total.item() / len(batch), rel=1e-5)
        for key, grad in want.items():
            assert grad is not None
            assert float((grads[key] - grad).norm() / grad.norm()) < 1e-4, (options, key)


def test_missing_columns_wrong_units_and_wrong_labels_are_reported() -> None:
    engine, batch = Engine(fam.build("llama"), Optim()), units()
    first = batch[0]
    assert isinstance(first, Sample)
    for name in KTO().needs:
        without = replace(first, cols={k: v for k, v in first.cols.items() if k != name})
        with pytest.raises(ValueError, match=f"needs the column '{name}'"):
            engine.update([without], KTO())
    with pytest.raises(ValueError, match="KTO takes samples only"):
        engine.update([Pair(first, first)], KTO())
    half = replace(first, cols=first.cols | {"label": torch.full_like(first.cols["label"], 0.5)})
    with pytest.raises(NotFinite):
        engine.update([half], KTO())
