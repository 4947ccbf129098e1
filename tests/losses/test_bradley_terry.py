"""Bradley-Terry and the critic's loss, which read a scalar head, against numbers worked by hand, the papers' formulas
in float64, and a tiny model with a head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import families as fam
from ladder.attention.packed import PackedPlan
from ladder.contract.batch import Batch, Out
from ladder.contract.training import Loss, Pair, Sample, Unit
from ladder.losses import BradleyTerry, ValueClip
from ladder.packing.pack import Packed, count, pack, sequences
from ladder.signals.preferences import at_end

LN2, LN3 = math.log(2), math.log(3)


def near(x: list[float]) -> object:
    return pytest.approx(x, abs=1e-12)


# ---------------------------------------------------------------- Bradley-Terry


def end_positions(scores: Sequence[float], margins: Sequence[float] | None = None) -> tuple[Tensor, Batch]:
    """One trained position per sequence: chosen, rejected, chosen, ... margins: one per pair."""
    n = len(scores)
    cols = {} if margins is None else {"margins": torch.tensor(margins, dtype=torch.float64).repeat_interleave(2)}
    return torch.tensor(scores, dtype=torch.float64), Batch(torch.arange(n), torch.ones(n, dtype=torch.int64), cols)


def bradley_terry(
    loss: BradleyTerry, scores: Sequence[float], margins: Sequence[float] | None = None
) -> tuple[list[float], list[float], dict[str, list[float]]]:
    """The losses, their gradient by the scores, and the metrics."""
    values, batch = end_positions(scores, margins)
    losses, metrics = loss(Out(torch.full_like(values, math.nan), values=values.requires_grad_()), batch)
    losses.sum().backward()
    assert values.grad is not None
    return losses.tolist(), values.grad.tolist(), {k: v.tolist() for k, v in metrics.items()}


def test_bradley_terry_by_hand() -> None:
    # scores 1 + ln 3 and 1: s(ln 3) = 3/4, so ln(4/3), gradient -+1/4
    losses, grad, metrics = bradley_terry(BradleyTerry(), [1 + LN3, 1.0])
    assert (losses, grad) == (near([math.log(4 / 3)]), near([-0.25, 0.25]))
    assert metrics == {"accuracy": [1.0], "margin": near([LN3]), "score/mean": near([1 + LN3, 1.0])}
    # a margin of ln 3 cancels the difference
    assert bradley_terry(BradleyTerry(margins=True), [1 + LN3, 1.0, 1.0, 1.0], [LN3, 0.0])[0] == near([LN2, LN2])
    # centring: + 0.5 (2 + ln 3)^2
    losses, grad, _ = bradley_terry(BradleyTerry(centring=0.5), [1 + LN3, 1.0])
    assert losses == near([math.log(4 / 3) + 0.5 * (2 + LN3) ** 2])
    assert grad == near([-0.25 + 2 + LN3, 0.25 + 2 + LN3])
    assert bradley_terry(BradleyTerry(centring=0.5), [1.5, -1.5])[0] == bradley_terry(BradleyTerry(), [1.5, -1.5])[0]
    assert bradley_terry(BradleyTerry(), [2.0, 2.0, 1.0, 3.0])[2]["accuracy"] == [0.5, 0.0]


@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("centring", [0.0, 0.01])
def test_bradley_terry_oracle(margins: bool, centring: float) -> None:
    """Bradley and Terry: P(chosen preferred over rejected) = e^a / (e^a + e^b)."""
    loss, rng = BradleyTerry(margins=margins, centring=centring), np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(1, 5))
        scores, m = rng.normal(0, 2, (n, 2)), rng.exponential(size=n)
        x = torch.tensor(scores, requires_grad=True)
        a, b = x[:, 0] - (torch.tensor(m) if margins else 0), x[:, 1]
        want = -torch.log(a.exp() / (a.exp() + b.exp())) + centring * (x[:, 0] + x[:, 1]) ** 2
        want.sum().backward()
        losses, grad, _ = bradley_terry(loss, scores.ravel().tolist(), m.tolist() if margins else None)
        assert losses == pytest.approx(want.tolist(), rel=1e-9)
        assert x.grad is not None and grad == pytest.approx(x.grad.ravel().tolist(), rel=1e-9)


def test_bradley_terry_gradients_by_finite_differences() -> None:
    values, batch = end_positions([0.3, -1.0, 2.0, 1.0], [0.5, 1.0])
    loss = BradleyTerry(margins=True, centring=0.1)
    torch.autograd.gradcheck(lambda v: loss(Out(v, values=v), batch)[0], values.requires_grad_())


def test_scores_of_any_size_stay_finite() -> None:
    assert bradley_terry(BradleyTerry(), [1e4, -1e4, -1e4, 1e4])[:2] == ([0.0, 2e4], [0.0, 0.0, -1.0, 1.0])


# ---------------------------------------------------------------- values


def value_clip(
    loss: ValueClip, values: list[float], old: list[float], returns: list[float]
) -> tuple[list[float], list[float], dict[str, list[float]]]:
    """The losses, their gradient by the values, and the metrics."""
    v = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    cols = {"returns": torch.tensor(returns, dtype=torch.float64), "old_values": torch.tensor(old, dtype=torch.float64)}
    n = len(values)
    batch = Batch(torch.zeros(n, dtype=torch.int64), torch.tensor([n]), {k: cols[k] for k in loss.needs})
    losses, metrics = loss(Out(torch.full((n,), math.nan), values=v), batch)
    losses.sum().backward()
    assert v.grad is not None
    return losses.tolist(), v.grad.tolist(), {k: x.tolist() for k, x in metrics.items()}


def test_value_clip_by_hand() -> None:
    # old 0, return 1, clip .5.  v = .3: (.7)^2/2, gradient -.7;  v = .8: clipped at .5, (.5)^2/2, no
    # gradient;  v = -.8: moved away, (1.8)^2/2 exceeds the clipped (1.5)^2/2, gradient -1.8;  v = 2: 1/2, gradient 1
    losses, grad, metrics = value_clip(ValueClip(clip=0.5), [0.3, 0.8, -0.8, 2.0], [0.0] * 4, [1.0] * 4)
    assert losses == near([0.245, 0.125, 1.62, 0.5])
    assert grad == near([-0.7, 0.0, -1.8, 1.0])
    assert metrics["values/clipped"] == [0, 1, 0, 0]
    assert metrics["values/error"] == near([0.49, 0.04, 3.24, 1.0])
    assert (metrics["values/mean"], metrics["returns/mean"]) == (near([0.3, 0.8, -0.8, 2.0]), [1.0] * 4)
    losses, grad, metrics = value_clip(ValueClip(clip=None), [0.8], [0.0], [1.0])
    assert (losses, grad) == (near([0.02]), near([-0.2]))
    assert "values/clipped" not in metrics


def test_value_clip_oracle() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        clip = float(rng.choice([0.1, 0.2, 1.0]))
        v, old, R = rng.normal(size=(3, 7))
        want, slope = [], []
        for a, o, r in zip(v, old, R, strict=True):
            clipped = min(max(a, o - clip), o + clip)
            inside = clipped == a
            want.append(0.5 * max((a - r) ** 2, (clipped - r) ** 2))
            slope.append(a - r if inside or (a - r) ** 2 > (clipped - r) ** 2 else 0.0)
        losses, grad, _ = value_clip(ValueClip(clip=clip), v.tolist(), old.tolist(), R.tolist())
        assert losses == pytest.approx(want, rel=1e-12) and grad == pytest.approx(slope, rel=1e-12)


def test_a_value_within_the_clip_range_is_not_clipped() -> None:
    """Also where adding and subtracting the old value would round."""
    rng = np.random.default_rng(0)
    v, old, R = *rng.uniform(-0.1, 0.1, (2, 2000)), rng.normal(size=2000)
    losses, _, metrics = value_clip(ValueClip(), v.tolist(), old.tolist(), R.tolist())
    assert not any(metrics["values/clipped"]) and losses == (0.5 * (v - R) ** 2).tolist()


# ---------------------------------------------------------------- both


@pytest.mark.parametrize(
    ("loss", "needs", "unit"),
    [
        (BradleyTerry(), (), "pair"),
        (BradleyTerry(margins=True), ("margins",), "pair"),
        (ValueClip(), ("returns", "old_values"), "token"),
        (ValueClip(clip=None), ("returns",), "token"),
    ],
)
def test_columns_units_and_metrics(loss: Loss, needs: tuple[str, ...], unit: str) -> None:
    assert (loss.needs, loss.unit, loss.entropy) == (needs, unit, False)
    cols = {name: torch.zeros(4) for name in needs}
    batch = Batch(torch.arange(4), torch.ones(4, dtype=torch.int64), cols)
    losses, metrics = loss(Out(torch.zeros(4), values=torch.zeros(4, requires_grad=True)), batch)
    assert len(losses) == (2 if unit == "pair" else 4) and losses.requires_grad
    assert all(x.ndim == 1 and not x.requires_grad for x in metrics.values())
    with pytest.raises(AssertionError, match="no scalar head"):
        loss(Out(torch.zeros(4)), batch)
    for name in needs:
        with pytest.raises(AssertionError, match=name):
            loss(Out(torch.zeros(4), values=torch.zeros(4)), replace(batch, cols=cols | {name: torch.zeros(1)}))


WRONG: list[tuple[type, dict[str, object], str]] = [
    (BradleyTerry, {"centring": -0.01}, "centring"),
    (BradleyTerry, {"centring": math.nan}, "centring"),
    (ValueClip, {"clip": 0.0}, "clip"),
    (ValueClip, {"clip": -1.0}, "clip"),
    (ValueClip, {"clip": math.inf}, "clip"),
]


@pytest.mark.parametrize(("kind", "fields", "field"), WRONG)
def test_bad_configurations_are_rejected(kind: type, fields: dict[str, object], field: str) -> None:
    fam.refuses(kind, fields, field)


# ---------------------------------------------------------------- through a model with a head


HEAD = torch.randn(32, generator=torch.Generator().manual_seed(9))


def values_of(model: Any, packed: Packed) -> Tensor:
    """The scalar head's outputs at the trained positions, [N]."""
    hidden = model.get_decoder()(
        input_ids=packed.tokens_T[None],
        position_ids=packed.positions_T[None],
        use_cache=False,
        plan=PackedPlan.of(packed.segments, len(packed.tokens_T)),
    )[0][0]
    return hidden.index_select(0, packed.src_N) @ HEAD


def step(units: Sequence[Unit], loss: Loss, budget: int, share: bool) -> tuple[float, Tensor]:
    """The loss of one step and its gradient by a weight of the first layer."""
    model, total = fam.build("llama"), 0.0
    for packed in pack(units, loss.needs, budget, share):
        values = values_of(model, packed)
        losses, _ = loss(Out(torch.full_like(values, math.nan), values=values), packed.batch)
        value = losses.sum() / count(units, loss)
        value.backward()
        total += value.item()
    return total, model.model.layers[0].mlp.up_proj.weight.grad


def pairs(n: int = 5) -> list[Pair]:
    g = torch.Generator().manual_seed(1)

    def side(prompt: Tensor, margin: float) -> Sample:
        m = int(torch.randint(2, 9, (1,), generator=g))
        tokens = torch.cat([prompt, torch.randint(5, 90, (m,), generator=g)])
        mask = torch.arange(len(tokens)) >= len(prompt)
        names = ("returns", "old_values")
        cols = {name: torch.randn(len(tokens), generator=g) for name in names}
        return Sample(tokens, mask, cols | {"margins": torch.full((len(tokens),), margin)})

    prompts = [torch.randint(5, 90, (4 + i,), generator=g) for i in range(n)]
    return [Pair(side(p, i / 4), side(p, i / 4)) for i, p in enumerate(prompts)]


def test_the_score_is_read_at_the_last_token() -> None:
    """`at_end` trains the position after the last token; the token that it appends there has no influence."""
    model = fam.cached("llama")
    units = pairs()
    with torch.no_grad():
        got = torch.cat([values_of(model, p) for p in pack([at_end(p) for p in units], (), 60)])
        other_token = torch.cat([values_of(model, p) for p in pack([at_end(p, 7) for p in units], (), 60)])
        plain = fam.cached("llama", "eager").get_decoder()
        want = [plain(input_ids=s.tokens[None], use_cache=False)[0][0, -1] @ HEAD for s in sequences(units)]
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-4, atol=1e-4)
    assert torch.equal(got, other_token)


@pytest.mark.parametrize("margins", [False, True])
def test_bradley_terry_is_equal_for_every_split(margins: bool) -> None:
    loss = BradleyTerry(margins=margins, centring=0.01)
    units: list[Unit] = []
    for i, p in enumerate(pairs()):
        trained_at_end = at_end(p)
        assert isinstance(trained_at_end, Pair)
        for s in (trained_at_end.chosen, trained_at_end.rejected):
            s.cols["margins"] = torch.full((len(s.tokens),), i / 4)
        units.append(trained_at_end)
    value, grad = step(units, loss, 10_000, True)
    for budget, share in ((40, True), (10_000, False), (1, False)):
        split_value, split_grad = step(units, loss, budget, share)
        assert split_value == pytest.approx(value, rel=1e-5)
        assert float((split_grad - grad).norm() / grad.norm()) < 1e-4


@pytest.mark.parametrize("clip", [0.2, None])
def test_value_clip_is_equal_for_every_split(clip: float | None) -> None:
    samples: list[Unit] = list(sequences(pairs()))
    value, grad = step(samples, ValueClip(clip=clip), 10_000, True)
    for budget, share in ((30, True), (10_000, False)):
        split_value, split_grad = step(samples, ValueClip(clip=clip), budget, share)
        assert split_value == pytest.approx(value, rel=1e-5)
        assert float((split_grad - grad).norm() / grad.norm()) < 1e-4
