"""Losses on pairs against numbers worked by hand, the papers' formulas in float64, and the gradients of a tiny model.

The oracle follows the papers, one pair at a time, with products of probabilities and the logistic function as printed;
it shares no code with the losses.
"""

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
from ladder.contract.batch import Batch, Out
from ladder.contract.training import Loss, Pair, Sample, Unit
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import DPO, IPO, ORPO, Hinge, SimPO
from ladder.losses.preference import log_odds
from ladder.packing.pack import count, pack

PairLoss = DPO | IPO | Hinge | SimPO | ORPO
LN2, LN3 = math.log(2), math.log(3)


@dataclass
class Side:
    logps: np.ndarray  # [N]
    ref: np.ndarray


@dataclass
class PairData:
    chosen: Side
    rejected: Side
    margin: float = 0.0


def draw(rng: np.random.Generator, n: int) -> list[PairData]:
    """Random pairs of answers of different lengths."""

    def side() -> Side:
        logps = -rng.exponential(0.7, rng.integers(1, 6)) - 0.01
        return Side(logps, logps + rng.normal(0, 0.5, len(logps)))

    return [PairData(side(), side(), rng.exponential()) for _ in range(n)]


def batch_of(pairs: Sequence[PairData], needs: Sequence[str]) -> tuple[Tensor, Batch]:
    """The trained positions as passed to a loss, in float64."""
    sides = [s for p in pairs for s in (p.chosen, p.rejected)]
    lengths = torch.tensor([len(s.logps) for s in sides])
    margins = [np.full(len(s.logps), p.margin) for p in pairs for s in (p.chosen, p.rejected)]
    cols = {"ref_logps": np.concatenate([s.ref for s in sides]), "margins": np.concatenate(margins)}
    batch = Batch(
        torch.arange(len(sides)).repeat_interleave(lengths), lengths, {n: torch.tensor(cols[n]) for n in needs}
    )
    return torch.tensor(np.concatenate([s.logps for s in sides])), batch


def ours(loss: Loss, pairs: Sequence[PairData]) -> tuple[list[float], list[float], dict[str, list[float]]]:
    """The losses of the pairs, the gradient of their sum by the log-probabilities, and the metrics."""
    logps, batch = batch_of(pairs, loss.needs)
    losses, metrics = loss(Out(logps.requires_grad_()), batch)
    losses.sum().backward()
    assert logps.grad is not None
    return losses.tolist(), logps.grad.tolist(), {k: v.tolist() for k, v in metrics.items()}


# ---------------------------------------------------------------- the oracle


def logistic(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def one_pair(loss: PairLoss, yw: Tensor, yl: Tensor, pair: PairData) -> Tensor:
    """The papers' formulas with probabilities of whole answers: pi(y) is the product over the tokens of y."""
    pi_w, pi_l = torch.exp(yw).prod(), torch.exp(yl).prod()
    ref_w, ref_l = math.prod(np.exp(pair.chosen.ref)), math.prod(np.exp(pair.rejected.ref))
    if isinstance(loss, DPO):
        x = loss.beta * torch.log(pi_w / ref_w) - loss.beta * torch.log(pi_l / ref_l)
        x = x - (pair.margin if loss.margins else 0.0)
        eps = loss.label_smoothing
        return -(1 - eps) * torch.log(logistic(x)) - eps * torch.log(1 - logistic(x))
    if isinstance(loss, IPO):
        h = torch.log(pi_w * ref_l / (pi_l * ref_w))
        if loss.log_ratio == "mean":
            h = torch.log((pi_w / ref_w) ** (1 / len(yw))) - torch.log((pi_l / ref_l) ** (1 / len(yl)))
        return (h - 1 / loss.beta / 2) ** 2
    if isinstance(loss, Hinge):
        x = torch.log(pi_w / ref_w) - torch.log(pi_l / ref_l) if loss.reference else torch.log(pi_w) - torch.log(pi_l)
        return torch.maximum(torch.zeros((), dtype=torch.float64), 1 - loss.beta * x)
    if isinstance(loss, SimPO):
        x = loss.beta / len(yw) * torch.log(pi_w) - loss.beta / len(yl) * torch.log(pi_l) - loss.gamma
        return -torch.log(logistic(x))
    assert isinstance(loss, ORPO)
    p_w, p_l = pi_w ** (1 / len(yw)), pi_l ** (1 / len(yl))
    odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    return -torch.log(p_w) - loss.odds_coef * torch.log(logistic(torch.log(odds_ratio)))


def oracle(loss: PairLoss, pairs: Sequence[PairData]) -> tuple[list[float], list[float]]:
    """The oracle's losses and their gradient by the log-probabilities."""
    values, grads = [], []
    for pair in pairs:
        sides = [torch.tensor(s.logps, requires_grad=True) for s in (pair.chosen, pair.rejected)]
        value = one_pair(loss, sides[0], sides[1], pair)
        value.backward()
        values.append(value.item())
        for s in sides:
            assert s.grad is not None
            grads += s.grad.tolist()
    return values, grads


LOSSES: dict[str, PairLoss] = {
    "dpo": DPO(),
    "dpo_sharp": DPO(beta=2.0),
    "cdpo": DPO(beta=0.7, label_smoothing=0.2),
    "dpo_margins": DPO(beta=0.5, margins=True),
    "ipo": IPO(),
    "ipo_mean": IPO(beta=0.4, log_ratio="mean"),
    "hinge": Hinge(beta=0.8),
    "slic": Hinge(beta=0.6, reference=False),
    "simpo": SimPO(),
    "simpo_wide": SimPO(beta=2.5, gamma=0.3),
    "orpo": ORPO(),
    "orpo_strong": ORPO(odds_coef=2.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_oracle(name: str) -> None:
    """Values and gradients on 60 batches of pairs of different lengths."""
    rng = np.random.default_rng(len(name))
    for _ in range(60):
        pairs = draw(rng, int(rng.integers(1, 5)))
        values, grads, _ = ours(LOSSES[name], pairs)
        want_values, want_grads = oracle(LOSSES[name], pairs)
        assert values == pytest.approx(want_values, rel=1e-9, abs=1e-9)
        assert grads == pytest.approx(want_grads, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(name: str) -> None:
    logps, batch = batch_of(draw(np.random.default_rng(3), 4), LOSSES[name].needs)
    torch.autograd.gradcheck(lambda x: LOSSES[name](Out(x), batch)[0], logps.requires_grad_())


# ---------------------------------------------------------------- worked by hand


def pair(chosen: list[float], rejected: list[float], ref: float = -2.0, margin: float = 0.0) -> PairData:
    """A pair from the log-ratios of its sides to a reference whose log-probabilities are all `ref`."""
    a, b = (np.array(x) for x in (chosen, rejected))
    return PairData(Side(a + ref, np.full(len(a), ref)), Side(b + ref, np.full(len(b), ref)), margin)


def near(x: list[float]) -> object:
    return pytest.approx(x, abs=1e-12)


def test_dpo_by_hand() -> None:
    # log-ratios: chosen ln 3 + 1, rejected 1: d = ln 3, s(d) = 3/4, so -log s = ln(4/3), gradient -(1 - 3/4)
    losses, grad, metrics = ours(DPO(beta=1.0), [pair([LN3, 1.0], [1.0])])
    assert (losses, grad) == (near([math.log(4 / 3)]), near([-0.25, -0.25, 0.25]))
    assert metrics == {
        "rewards/chosen": near([LN3 + 1]),
        "rewards/rejected": near([1.0]),
        "rewards/margin": near([LN3]),
        "accuracy": [1.0],
        "logps/chosen": near([LN3 + 1 - 4]),
        "logps/rejected": near([-1.0]),
    }
    # beta scales d: 1/2 of 2 ln 3
    assert ours(DPO(beta=0.5), [pair([2 * LN3], [0.0])])[0] == near([math.log(4 / 3)])
    # a margin of ln 3 cancels the difference
    assert ours(DPO(beta=1.0, margins=True), [pair([LN3], [0.0], margin=LN3)])[0] == near([LN2])


def test_label_smoothing_by_hand() -> None:
    # eps = 1/4, d = ln 3: 3/4 ln(4/3) + 1/4 ln 4. Here s(d) = 1 - eps, the optimum: no gradient
    losses, grad, _ = ours(DPO(beta=1.0, label_smoothing=0.25), [pair([LN3], [0.0])])
    assert losses == near([0.75 * math.log(4 / 3) + 0.25 * math.log(4)])
    assert grad == near([0.0, 0.0])
    # beyond the optimum the gradient changes sign
    assert ours(DPO(beta=1.0, label_smoothing=0.25), [pair([2.0], [0.0])])[1][0] > 0


def test_ipo_by_hand() -> None:
    # beta = 1/4: the target is 2. Log-ratios 1 + 2 and -1: sums 4 - 2 = 2, squared; means 1.5 + 1 - 2 = 1/2, squared
    p = [pair([1.0, 2.0], [-1.0])]
    assert ours(IPO(beta=0.25), p)[:2] == (near([4.0]), near([4.0, 4.0, -4.0]))
    losses, grad, metrics = ours(IPO(beta=0.25, log_ratio="mean"), p)
    assert (losses, grad) == (near([0.25]), near([0.5, 0.5, -1.0]))
    assert (metrics["rewards/chosen"], metrics["rewards/rejected"]) == (near([0.375]), near([-0.25]))


def test_hinge_by_hand() -> None:
    # log-ratios differ by 4: beta 1/10: 1 - .4; beta 1/4: exactly 0; beta 1: no gradient
    p = [pair([1.0, 2.0], [-1.0])]
    assert ours(Hinge(), p)[:2] == (near([0.6]), near([-0.1, -0.1, 0.1]))
    assert ours(Hinge(beta=0.25), p)[0] == near([0.0])
    assert ours(Hinge(beta=1.0), p)[:2] == (near([0.0]), near([0.0, 0.0, 0.0]))
    # without a reference: log-probabilities -1 + 0 and -3, which differ by 2
    assert ours(Hinge(reference=False), p)[0] == near([0.8])


def test_simpo_by_hand() -> None:
    # mean log-probabilities (-1 - 2)/2 and -3: d = 2 * 1.5 = 3, less gamma 1
    p = [PairData(Side(np.array([-1.0, -2.0]), np.zeros(2)), Side(np.array([-3.0]), np.zeros(1)))]
    losses, grad, metrics = ours(SimPO(), p)
    s = 1 / (1 + math.exp(2))
    assert (losses, grad) == (near([math.log(1 + math.exp(-2))]), near([-s, -s, 2 * s]))
    assert (metrics["rewards/chosen"], metrics["logps/chosen"]) == (near([-3.0]), near([-3.0]))


def test_orpo_by_hand() -> None:
    # chosen: tokens 1/4 and 1, p = 1/2, odds 1. rejected: p = 1/5, odds 1/4. The ratio is 4, s(log 4) = 4/5
    sides = [np.log(np.array(x)) for x in ([0.25, 1.0], [0.2])]
    chosen, rejected = (Side(x, x) for x in sides)
    losses, _, metrics = ours(ORPO(odds_coef=0.5), [PairData(chosen, rejected)])
    assert losses == near([LN2 + 0.5 * math.log(5 / 4)])
    assert (metrics["nll"], metrics["rewards/margin"]) == (near([LN2]), near([math.log(4)]))


@pytest.mark.parametrize("p", [1e-30, 1e-8, 0.3, 0.5, 0.9, 0.9999, 0.999999])
def test_log_odds_is_accurate(p: float) -> None:
    """In float32 against float64; also its derivative 1 / (1 - p)."""
    x = torch.tensor([math.log(p)], dtype=torch.float32, requires_grad=True)
    exact = float(x.detach().double())
    log_odds(x).sum().backward()
    assert log_odds(x).item() == pytest.approx(exact - math.log(-math.expm1(exact)), rel=1e-6, abs=1e-6)
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(-1 / math.expm1(exact), rel=1e-6)


def test_an_answer_of_probability_1_has_finite_odds_and_a_gradient() -> None:
    for value in (0.0, 1e-7):  # a rounded log-probability can even be above 0
        x = torch.tensor([value], requires_grad=True)
        odds = log_odds(x)
        odds.sum().backward()
        assert 15 < odds.item() < 17
        assert x.grad is not None and 1e6 < x.grad.item() < 1e8


def test_ties_count_one_half() -> None:
    pairs = [pair([0.0], [0.0]), pair([1.0], [0.0]), pair([0.0], [1.0]), pair([0.0, 0.0], [0.0])]
    assert ours(DPO(), pairs)[2]["accuracy"] == [0.5, 1.0, 0.0, 0.5]


def test_scores_of_any_size_stay_finite() -> None:
    p = [pair([5000.0], [-5000.0]), pair([-5000.0], [5000.0])]
    for loss in (DPO(beta=1.0), DPO(beta=1.0, label_smoothing=0.1), SimPO(), Hinge()):
        losses, grad, _ = ours(loss, p)
        assert np.isfinite(losses).all() and np.isfinite(grad).all()
    assert ours(DPO(beta=1.0), p)[0] == [0.0, 10000.0]


# ---------------------------------------------------------------- behaviour


def test_every_option_changes_the_loss() -> None:
    pairs = draw(np.random.default_rng(1), 5)
    variants = [
        *LOSSES.values(),
        replace(DPO(), label_smoothing=0.1),
        IPO(log_ratio="mean"),
        IPO(beta=0.2),
        ORPO(odds_coef=0.2),
    ]
    values = [round(sum(ours(loss, pairs)[0]), 10) for loss in variants]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("name", LOSSES)
def test_needs_lists_exactly_the_columns_that_are_read(name: str) -> None:
    class RecordingDict(dict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            read.add(key)
            return super().__getitem__(key)

    read: set[str] = set()
    logps, batch = batch_of(draw(np.random.default_rng(0), 2), ("ref_logps", "margins"))
    batch.cols = RecordingDict(batch.cols)
    LOSSES[name](Out(logps), batch)
    assert tuple(sorted(read)) == tuple(sorted(LOSSES[name].needs))


@pytest.mark.parametrize("name", LOSSES)
def test_one_number_per_pair_and_detached_metrics(name: str) -> None:
    logps, batch = batch_of(draw(np.random.default_rng(0), 3), LOSSES[name].needs)
    losses, metrics = LOSSES[name](Out(logps.requires_grad_()), batch)
    assert losses.shape == (3,) and losses.requires_grad
    assert {"rewards/chosen", "rewards/rejected", "rewards/margin", "accuracy"} <= set(metrics)
    assert all(x.shape == (3,) and not x.requires_grad for x in metrics.values())


def test_single_samples_are_rejected() -> None:
    logps = torch.zeros(3)
    batch = Batch(torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.int64), {"ref_logps": logps})
    with pytest.raises(ValueError, match="single samples"):
        DPO()(Out(logps), batch)


WRONG: list[tuple[type, dict[str, object], str]] = [
    *[(cls, {"beta": b}, "beta") for cls in (DPO, IPO, Hinge, SimPO) for b in (0.0, -0.1, math.nan, math.inf)],
    (DPO, {"label_smoothing": 0.5}, "label_smoothing"),
    (DPO, {"label_smoothing": -0.1}, "label_smoothing"),
    (DPO, {"label_smoothing": math.nan}, "label_smoothing"),
    (DPO, {"label_smoothing": 0.1, "margins": True}, "margins"),
    (IPO, {"log_ratio": "max"}, "log_ratio"),
    (SimPO, {"gamma": -1.0}, "gamma"),
    (SimPO, {"gamma": math.inf}, "gamma"),
    (ORPO, {"odds_coef": -0.1}, "odds_coef"),
    (ORPO, {"odds_coef": math.nan}, "odds_coef"),
]


@pytest.mark.parametrize(("kind", "fields", "field"), WRONG)
def test_bad_configurations_are_rejected(kind: type, fields: dict[str, object], field: str) -> None:
    fam.refuses(kind, fields, field)


# ---------------------------------------------------------------- through a model


def units(seed: int = 0, n: int = 6) -> list[Pair]:
    """Pairs with shared prompts of several lengths and gaps in the masks."""
    g = torch.Generator().manual_seed(seed)

    def side(prompt: Tensor) -> Sample:
        m = int(torch.randint(1, 10, (1,), generator=g))
        tokens = torch.cat([prompt, torch.randint(5, 90, (m + 1,), generator=g)])
        mask = torch.cat([torch.zeros(len(prompt)), torch.ones(1), (torch.rand(m, generator=g) > 0.2).float()]).bool()
        return Sample(tokens, mask)

    pairs = []
    for i in range(n):
        prompt = torch.randint(5, 90, (2 + 2 * i,), generator=g)
        pairs.append(Pair(side(prompt), side(prompt)))
    return pairs


def with_columns(pairs: Sequence[Pair], logps: Sequence[Tensor]) -> list[Unit]:
    """The pairs with their columns; logps: of the reference, for each side in order."""
    remaining = iter(logps)

    def filled(s: Sample) -> Sample:
        return replace(s, cols={"ref_logps": next(remaining), "margins": torch.full((len(s.tokens),), 0.3)})

    return [Pair(filled(p.chosen), filled(p.rejected)) for p in pairs]


def unpacked_gradients(model: Any, batch: Sequence[Unit], loss: PairLoss) -> dict[str, Tensor]:
    """Gradients of the oracle's loss, one sequence at a time with transformers' eager attention."""
    total = torch.zeros((), dtype=torch.float64)
    for unit in batch:
        assert isinstance(unit, Pair)
        logps, refs = [], []
        for s in (unit.chosen, unit.rejected):
            log_probs = model(input_ids=s.tokens[None], use_cache=False).logits[0, :-1].log_softmax(-1)
            logps.append(log_probs.gather(1, s.tokens[1:, None])[:, 0][s.mask[1:]].double())
            refs.append(s.cols["ref_logps"][s.mask].double().numpy())
        empty = np.zeros(0)
        total = total + one_pair(loss, logps[0], logps[1], PairData(Side(empty, refs[0]), Side(empty, refs[1]), 0.3))
    (total / len(batch)).backward()
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["cdpo", "dpo_margins", "ipo_mean", "hinge", "simpo", "orpo"])
def test_every_split_and_packing_gives_the_unpacked_gradient(name: str) -> None:
    loss, pairs = LOSSES[name], units()
    reference = Engine(fam.build("llama", seed=1))
    batch = with_columns(pairs, [c["logps"] for c in reference.forward(pairs)])
    want = unpacked_gradients(fam.build("llama", implementation="eager"), batch, loss)
    engine_options: list[dict[str, Any]] = [
        {"budget": 10_000},
        {"budget": 40},
        {"budget": 10_000, "share_prefix": False},
        {"workers": 2},
    ]
    for options in engine_options:
        got, figures = fam.gradients(Engine(fam.build("llama"), Optim(lr=1e-2), **options), batch, loss)
        for key, grad in want.items():
            assert float((got[key] - grad).norm() / grad.norm()) < 1e-4, (options, key)
        assert 0 <= figures["accuracy"] <= 1


@pytest.mark.parametrize("name", ["dpo", "cdpo", "ipo", "hinge"])
@pytest.mark.parametrize("budget", [10_000, 40])
def test_the_loss_at_the_reference_is_the_declared_constant(name: str, budget: int) -> None:
    """ln 2 for DPO within 1e-6, with a frozen copy as reference; one step then increases the margin."""
    loss, pairs = LOSSES[name], units(n=8)
    engine = Engine(fam.build("llama"), Optim(lr=1e-2, weight_decay=0.0), budget=budget, share_prefix=budget > 40)
    batch = with_columns(pairs, [c["logps"] for c in engine.freeze().forward(pairs)])
    figures = engine.update(batch, loss)
    if name.endswith("dpo"):
        assert figures["first/loss"] == pytest.approx(LN2, abs=1e-6)
    assert loss.at_reference is not None
    assert figures["first/loss"] == pytest.approx(loss.at_reference, rel=1e-6)
    assert figures["first/rewards/margin"] == pytest.approx(0, abs=1e-5)
    assert engine.update(batch, loss)["first/rewards/margin"] > 0.01


def test_losses_without_a_constant_at_the_reference() -> None:
    for loss in (DPO(margins=True), Hinge(reference=False), SimPO(), ORPO()):
        assert loss.at_reference is None


def test_a_missing_column_and_a_single_sample_are_reported() -> None:
    engine = Engine(fam.build("llama"), Optim())
    with pytest.raises(ValueError, match=r"needs the column 'ref_logps'"):
        engine.update(units(), DPO())
    with pytest.raises(ValueError, match="DPO takes pairs only"):
        engine.update([u.chosen for u in units()], DPO())


def test_packed_pairs_give_the_oracles_loss() -> None:
    """With `pack` into several micro-batches and float32 columns."""
    rng = np.random.default_rng(4)
    for name, loss in LOSSES.items():
        pairs = draw(rng, 5)
        samples: list[Unit] = []
        for p in pairs:
            sides = []
            for s in (p.chosen, p.rejected):
                cols = {"ref_logps": s.ref, "margins": np.full(len(s.ref), p.margin)}
                mask = torch.ones(len(s.ref) + 1, dtype=torch.bool)
                mask[0] = False
                aligned = {k: torch.cat([torch.zeros(1), torch.tensor(c).float()]) for k, c in cols.items()}
                sides.append(Sample(torch.randint(9, (len(mask),)), mask, aligned))
            samples.append(Pair(*sides))
        logps, start, value = batch_of(pairs, ())[0], 0, 0.0
        packs = pack(samples, loss.needs, budget=8)
        assert len(packs) > 1
        for packed in packs:
            n = len(packed.tgt_N)
            value += loss(Out(logps[start : start + n]), packed.batch)[0].sum().item() / count(samples, loss)
            start += n
        assert value == pytest.approx(np.mean(oracle(loss, pairs)[0]), rel=1e-5), name
