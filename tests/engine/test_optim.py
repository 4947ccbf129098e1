"""The optimiser: schedules by hand, one norm for the whole gradient, which parameters are decayed or orthogonalised."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import families as fam
from engine_units import LOSSES, units_of
from ladder.base.errors import UserError
from ladder.engine.engine import Engine
from ladder.engine.optim import NotFinite, Optim, Optimizer


def factors(total: int, **fields: Any) -> list[float]:
    optim = Optim(**fields)
    return [optim.factor(step, total) for step in range(total)]


def near(*values: float) -> Any:
    return pytest.approx(list(values), abs=1e-9)


def test_constant_with_warmup() -> None:
    # warmup over 0.3 of 10 steps: 1/4, 2/4, 3/4, so that the fourth step is the first at the peak
    assert factors(10, warmup=0.3) == near(0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1)
    assert factors(3) == [1, 1, 1]
    assert Optim().factor(17, 0) == 1


def test_linear() -> None:
    assert factors(4, schedule="linear") == near(1, 0.75, 0.5, 0.25)
    # of 6 steps two are warmup; over the other four it falls from 1 towards 0.2, a quarter of the way each
    assert factors(6, schedule="linear", warmup=1 / 3, final=0.2) == near(1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4)
    assert Optim(schedule="linear", final=0.2).factor(99, 4) == pytest.approx(0.2)


def test_cosine() -> None:
    half = math.sqrt(0.5)
    assert factors(4, schedule="cosine") == near(1, (1 + half) / 2, 0.5, (1 - half) / 2)
    assert factors(4, schedule="cosine", final=0.1)[2] == pytest.approx(0.55)
    # half of 4 steps are warmup (1/3, 2/3); two are left for the decay: cos(0), cos(pi / 2)
    assert factors(4, schedule="cosine", warmup=0.5) == near(1 / 3, 2 / 3, 1, 0.5)
    assert Optim(schedule="cosine", final=0.1).factor(99, 4) == pytest.approx(0.1)


def test_wsd() -> None:
    # the last 0.4 of 10 steps: 4/4, 3/4, 2/4, 1/4
    assert factors(10, schedule="wsd", decay=0.4) == near(1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25)
    assert factors(10, schedule="wsd", decay=0.4, final=0.2)[6:] == near(1, 0.8, 0.6, 0.4)
    assert factors(10, schedule="wsd", decay=0.4, warmup=0.1)[:2] == near(0.5, 1)
    assert factors(3, schedule="wsd", decay=0.0) == [1, 1, 1]
    assert Optim(schedule="wsd", final=0.2).factor(99, 10) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("muon_lr", 0.0),
        ("eps", 0.0),
        ("warmup", 1.1),
        ("warmup", -0.1),
        ("final", 2.0),
        ("decay", math.nan),
        ("clip", -1.0),
        ("clip", math.nan),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("kind", "sgd"),
        ("schedule", "cosin"),
    ],
)
def test_invalid_values(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^optim\.{name}: "):
        Optim(**{name: value})


@pytest.mark.parametrize("fields", [{"schedule": "linear"}, {"schedule": "wsd"}, {"warmup": 0.1}])
def test_a_schedule_needs_the_number_of_steps(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"optim.{next(iter(fields))}: .* needs the number of steps"):
        Optimizer({"w": nn.Parameter(torch.ones(2, 2))}, Optim(**fields), 0)


# ---------------------------------------------------------------- steps


def optimizer(gradients: dict[str, Tensor], optim: Optim, total: int = 0) -> Optimizer:
    """An optimiser of parameters that are 1, with these names and gradients."""
    params = {name: nn.Parameter(torch.ones_like(g)) for name, g in gradients.items()}
    for name, p in params.items():
        p.grad = gradients[name].clone()
    return Optimizer(params, optim, total)


def test_one_norm_over_all_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = {"a": torch.tensor([[3.0]]), "b": torch.tensor([4.0])}
    for clip, want in ((1.0, (0.6, 0.8)), (10.0, (3.0, 4.0)), (0.0, (3.0, 4.0))):
        o = optimizer(grads, Optim(clip=clip))
        seen: list[float] = []
        params = list(o.params.values())
        monkeypatch.setattr(o.parts[0][0], "step", lambda p=params, s=seen: s.extend(float(x.grad.sum()) for x in p))
        assert o.step() == pytest.approx(5.0)
        assert seen == pytest.approx(want, abs=1e-6)
        assert all(p.grad is None for p in o.params.values()) and o.step_count == 1


def test_adamw_by_hand() -> None:
    # after one step the corrected moments are g and g^2, so p moves by lr * sign(g); decay takes lr * 0.1 * p before
    o = optimizer({"hidden.weight": torch.tensor([[2.0, -3.0]])}, Optim(lr=0.5, weight_decay=0.1, clip=0))
    o.step()
    assert o.params["hidden.weight"].tolist()[0] == pytest.approx([0.95 - 0.5, 0.95 + 0.5], abs=1e-6)


def test_moments_are_allocated_at_the_start_and_equal_torchs() -> None:
    """Allocated at the first step, the moments would lie between gradients, whose memory is freed: activations do not
    fit into such holes."""
    w, plain = (nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    ladder_optimizer = Optimizer({"w": w}, Optim(weight_decay=0.1), 0)
    torch_optimizer = torch.optim.AdamW([plain], lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    (part, _), torch_state = ladder_optimizer.parts[0], torch_optimizer.state
    assert part.state[w].keys() == {"step", "exp_avg", "exp_avg_sq"} and not torch_state[plain]
    addresses = {key: value.data_ptr() for key, value in part.state[w].items()}
    for p in (w, plain):
        p.grad = torch.tensor([[0.1, 0.2], [0.3, -0.1], [0.0, 0.2]])
    ladder_optimizer.step()
    torch_optimizer.step()
    assert torch.equal(w, plain)
    assert part.state[w].keys() == torch_state[plain].keys()
    for key, value in torch_state[plain].items():
        moment = part.state[w][key]
        assert torch.equal(moment, value) and moment.dtype == value.dtype and moment.data_ptr() == addresses[key]


def test_the_schedule_moves_every_learning_rate() -> None:
    names = {"layers.0.q_proj.weight": torch.ones(4, 4), "norm.weight": torch.ones(4)}
    o = optimizer(names, Optim(lr=1e-3, muon_lr=0.1, kind="muon", schedule="linear"), total=4)
    rates = []
    for _ in range(4):
        for p in o.params.values():
            p.grad = torch.ones_like(p)
        o.step()
        rates.append((o.last_lr, *(g["lr"] for part, _ in o.parts for g in part.param_groups)))
    for i, got in enumerate(rates):
        share = 1 - i / 4
        assert list(got) == near(1e-3 * share, 0.1 * share, 1e-3 * share)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite(bad: float) -> None:
    o = optimizer({"a": torch.tensor([[bad]]), "b": torch.ones(2)}, Optim())
    with pytest.raises(NotFinite, match="optimiser step 0"):
        o.step()
    assert o.step_count == 0
    assert all(p.grad is None and bool((p == 1).all()) for p in o.params.values())


def decayed(model: nn.Module, kind: Any = "adamw") -> set[str]:
    """The parameters that shrink in a step with gradient 0."""
    params = dict(model.named_parameters())
    with torch.no_grad():
        for p in params.values():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    Optimizer(params, Optim(lr=0.1, muon_lr=0.1, weight_decay=0.5, kind=kind), 0).step()
    changed = {n: p.flatten()[0].item() for n, p in params.items() if not bool((p == 1).all())}
    assert all(value == pytest.approx(0.95) for value in changed.values())
    return set(changed)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_weight_decay_leaves_out_vectors_and_embeddings(family: str, kind: str) -> None:
    model = fam.build(family)
    tables = ("embed_tokens", "lm_head", "wte", "wpe")
    matrices = {n for n, p in model.named_parameters() if p.ndim == 2 and not any(t in n for t in tables)}
    assert len(matrices) >= 8
    assert decayed(model, kind) == matrices


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_muon_optimises_hidden_matrices_only(family: str) -> None:
    params = dict(fam.build(family).named_parameters())
    o = Optimizer(params, Optim(kind="muon"), 0)
    muon, adamw = (part for part, _ in o.parts)
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    name_of = {id(p): n for n, p in params.items()}
    by_muon = {name_of[id(p)] for g in muon.param_groups for p in g["params"]}
    by_adamw = {name_of[id(p)] for g in adamw.param_groups for p in g["params"]}
    assert by_muon | by_adamw == params.keys() and not by_muon & by_adamw
    assert all(params[n].ndim == 2 for n in by_muon)
    assert {n for n in by_adamw if params[n].ndim == 2} == {
        "llama": {"model.embed_tokens.weight", "lm_head.weight"},
        "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"},
    }[family]


def test_muon_steps_by_an_orthogonal_matrix() -> None:
    g = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    o = optimizer({"q_proj.weight": g}, Optim(kind="muon", muon_lr=1.0, clip=0))
    o.step()
    step = 1 - o.params["q_proj.weight"].detach()
    values = torch.linalg.svdvals(step)
    assert float(values.min()) > 0.3 and float(values.max()) < 1.5  # five Newton-Schulz steps get this close to 1
    u, _, vh = torch.linalg.svd(g)
    assert float((step * (u @ vh)).sum()) > 4


# ------------------------------------------------------------ bfloat16 weights


def bfloat16_optimizer(kind: str = "adamw", **fields: Any) -> tuple[Optimizer, nn.Parameter]:
    w = nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    return Optimizer({"w": w}, Optim(kind=kind, clip=0.0, **fields), 0), w  # pyright: ignore[reportArgumentType]


def test_steps_below_bfloat16_precision_add_up() -> None:
    """Between 0.5 and 1 bfloat16 has steps of 1/256; AdamW with a constant gradient steps by lr."""
    optimizer, w = bfloat16_optimizer(lr=1e-4)
    for n in range(1, 41):
        (w * 3.0).sum().backward()
        optimizer.step()
        assert w.grad is None
        assert optimizer.masters["w"].flatten().tolist() == pytest.approx([1 - n * 1e-4] * 4, abs=n * 2**-24)
        assert w[0, 0].item() == (1.0 if n < 20 else 1 - 1 / 256)  # rounded to the nearest


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    """256 + 1 + 1 is 256 in bfloat16, and 258 in float32."""
    optimizer, w = bfloat16_optimizer(lr=1e-4)
    for factor in (256.0, 1.0, 1.0):
        (w * factor).sum().backward()
        optimizer.gather()
        assert w.grad is None
    assert optimizer.step() == pytest.approx(258.0 * 2)  # of four equal entries


def test_bfloat16_gradients_of_micro_batches_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a step is split into many micro-batches, which add small gradients to a large sum."""
    units = units_of(LOSSES["token"])
    norms = []
    for budget in (9999, 30):
        engine = Engine(fam.build("llama").bfloat16(), Optim(lr=1e-4), budget=budget)
        seen: list[int] = []
        assert engine.optimizer is not None
        plain = engine.optimizer.gather
        monkeypatch.setattr(engine.optimizer, "gather", lambda p=plain, s=seen: s.append(1) or p())
        norms.append(engine.update(units, LOSSES["token"])["grad_norm"])
    assert len(seen) > 3 and norms[0] == pytest.approx(norms[1], rel=5e-3)


def test_a_second_optimiser_can_step_the_same_bfloat16_parameter() -> None:
    """The first optimiser leaves no state on the parameters."""
    first, w = bfloat16_optimizer(lr=1e-2)
    second = Optimizer({"w": w}, Optim(lr=1e-2, clip=0.0), 0)
    (w * 3.0).sum().backward()
    assert second.step() == pytest.approx(6.0) and not w.eq(1).any() and first.masters["w"].grad is None


def test_a_bfloat16_gradient_that_is_not_finite_changes_nothing() -> None:
    optimizer, w = bfloat16_optimizer(lr=1e-2)
    (w * math.inf).sum().backward()
    with pytest.raises(NotFinite):
        optimizer.step()
    assert optimizer.masters["w"].grad is None and w.eq(1).all() and optimizer.masters["w"].eq(1).all()
    (w * 2.0).sum().backward()
    optimizer.zero_grad()
    assert optimizer.masters["w"].grad is None


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_masters_are_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    (saved, v), (loaded, w) = (bfloat16_optimizer(kind, lr=1e-4, muon_lr=1e-4) for _ in range(2))

    def steps(optimizer: Optimizer, p: nn.Parameter, n: int) -> None:
        for _ in range(n):
            (p * torch.tensor([[3.0, 1.0], [-2.0, 0.5]])).sum().backward()
            optimizer.step()

    steps(saved, v, 5)
    saved.save(tmp_path)
    loaded.load(tmp_path)
    steps(saved, v, 45)
    steps(loaded, w, 45)
    assert saved.masters["w"].equal(loaded.masters["w"]) and v.equal(w) and not v.eq(1).all()


def test_a_checkpoint_of_another_dtype_raises(tmp_path: Path) -> None:
    bfloat16_optimizer()[0].save(tmp_path)
    float32_optimizer = Optimizer({"w": nn.Parameter(torch.ones(2, 2))}, Optim(), 0)
    with pytest.raises(UserError, match=r"another dtype: w has float32 master weights in the checkpoint only") as error:
        float32_optimizer.load(tmp_path)
    assert error.value.field == "model.dtype"
    float32_optimizer.save(tmp_path)
    with pytest.raises(UserError, match=r"another dtype: w has float32 master weights in this run only"):
        bfloat16_optimizer()[0].load(tmp_path)


def test_a_checkpoint_of_another_dtype_changes_nothing(tmp_path: Path) -> None:
    """Neither weights nor moments change when loading fails."""
    Optimizer({"w": nn.Parameter(torch.full((2, 2), 5.0))}, Optim(), 0).save(tmp_path)
    optimizer, w = bfloat16_optimizer()
    with pytest.raises(UserError, match="another dtype"):
        optimizer.load(tmp_path)
    assert w.eq(1).all() and optimizer.masters["w"].eq(1).all()


def test_float16_is_not_trained() -> None:
    with pytest.raises(UserError, match="too narrow") as error:
        Optimizer({"w": nn.Parameter(torch.ones(2, 2, dtype=torch.float16))}, Optim(), 0)
    assert error.value.field == "model.dtype" and "bfloat16" in str(error.value)


def test_the_engine_trains_bfloat16_like_float32() -> None:
    """With a learning rate whose steps are below bfloat16's precision."""
    units = units_of(LOSSES["token"])
    curves = []
    for dtype in (torch.float32, torch.bfloat16):
        engine = Engine(fam.build("llama").to(dtype), Optim(lr=3e-4), budget=60)
        curves.append([engine.update(units, LOSSES["token"])["loss"] for _ in range(25)])
    assert curves[0][-1] < curves[0][0] - 2.0
    assert all(abs(a - b) < 0.2 for a, b in zip(*curves, strict=True)), curves
