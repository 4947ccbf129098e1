"""The step that is captured on CUDA is the modules' decoding: same tokens and log-probabilities whatever the schedule,
run as it stands and replayed from a recording; in halves it is as exact as they are; and the processor never takes it.

None of this runs on CUDA: `recorded.py` stands for the graph, `tiles.py` for the kernels, and `capture` itself meets a
torch.cuda that is made up. `test_cuda.py` is the same where there is a GPU.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import families as fam
import recorded
import tiles
from drawn import TOKENIZER, draw, requests, same
from ladder.base.errors import UserError
from ladder.decoding import llama, llama_cuda
from ladder.decoding.llama import Llama
from ladder.decoding.llama_cuda import Graphed, bucket
from ladder.decoding.modules import Modules
from ladder.decoding.prefill import Prompts
from ladder.decoding.sampler import NativeSampler
from ladder.kernels import dispatch
from ladder.models.head import Head
from ladder.models.lora import LoRA, attach

ALL = sum(r.n for r in requests())
BIASED = {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1, "tie_word_embeddings": False}
MODELS = [
    ("llama", {}), ("llama", BIASED), ("llama", {"num_key_value_heads": 4}), ("qwen2", {}), ("qwen3", {}),
    ("mistral", {"sliding_window": None}),
]  # fmt: skip


def build(name: str, **changes: Any) -> Any:
    return fam.build(name, **changes).requires_grad_(False)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Graphed]:
    """The sampler takes this path, as it does on CUDA; every state that it makes."""
    states: list[Graphed] = []
    plain = Graphed.__init__

    def init(self: Any, *args: Any) -> None:
        plain(self, *args)
        states.append(self)

    monkeypatch.setattr(Graphed, "__init__", init)
    monkeypatch.setattr(llama_cuda, "fits", lambda device: True)
    tiles.in_place(monkeypatch)
    return states


# ------------------------------------------------------------ against the modules


@pytest.mark.parametrize("options", [{}, {"slots": 5}, {"slots": 1}], ids=str)
@pytest.mark.parametrize(("name", "changes"), MODELS)
def test_it_is_what_the_modules_draw(
    name: str, changes: dict[str, Any], options: dict[str, Any], chosen: list[Graphed]
) -> None:
    model = build(name, **changes)
    oracle = draw(model, packed=False)
    assert not chosen
    same(draw(model, **options), oracle, model)
    assert [s.slots for s in chosen] == [min(ALL, options.get("slots", ALL))] and not chosen[0].captures


@pytest.mark.parametrize("name", sorted(set(fam.NAMES) - {"llama", "qwen2", "qwen3"}))
def test_other_families_go_through_the_modules(name: str, chosen: list[Graphed]) -> None:
    draw(fam.cached(name), slots=4)
    assert not chosen


@pytest.mark.parametrize("slots", [3, 11, 100])
def test_a_recorded_step_draws_the_same(slots: int, chosen: list[Graphed], monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[recorded.Graph] = []
    oracle = draw(fam.cached("qwen3"), packed=False)
    recorded.devices(monkeypatch, llama_cuda, graphs)
    same(draw(fam.cached("qwen3"), slots=slots), oracle, fam.cached("qwen3"))
    assert len(graphs) >= 2  # numbers of rows
    assert sum(g.replays for g in graphs) > 2 * len(graphs)


def test_graphs_outlive_the_call_and_meet_the_weights_as_they_are(
    chosen: list[Graphed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that a call copies: queries, keys and values in one matrix, and whatever has an adapter."""
    graphs: list[recorded.Graph] = []
    recorded.devices(monkeypatch, llama_cuda, graphs)
    wrapped = attach(fam.build("qwen2"), LoRA(rank=4, targets=("k_proj", "gate_proj")), seed=1)
    sampler = NativeSampler(wrapped, TOKENIZER, eos=[fam.EOS])
    first = sampler.generate(requests())
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "norm" not in name:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.03)
    another = NativeSampler(copy.deepcopy(wrapped), TOKENIZER, eos=[fam.EOS])
    old, new = sampler.generate(requests()), another.generate(requests())
    assert [[c.tokens for c in group] for group in old] == [[c.tokens for c in group] for group in new]
    assert [c.tokens for c in old[0]] != [c.tokens for c in first[0]]
    assert chosen == [sampler.backend.state, chosen[1]]
    assert set(map(id, chosen[0].graphs.values())) <= set(map(id, graphs))


def test_a_call_that_needs_more_room_gets_it(chosen: list[Graphed]) -> None:
    sampler = NativeSampler(fam.cached("llama"), TOKENIZER, eos=[fam.EOS])
    some = requests()
    few, short = some[:1], [replace(r, sampling=replace(r.sampling, max_tokens=1)) for r in some]
    for asked, states in ((few, 1), (few, 1), (some, 2), (short, 2), (few, 2)):
        sampler.generate(asked)
        assert len(chosen) == states
    assert llama_cuda.roomy(1) == 64 and llama_cuda.roomy(64) == 128 and llama_cuda.roomy(1000) == 1152


def test_an_adapter_that_is_switched_off_is_another_state(
    chosen: list[Graphed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(llama.TYPES, "cpu", llama.TYPES["cuda"])
    wrapped = attach(build("qwen2").to(torch.bfloat16), LoRA(rank=2, targets="all-linear"), seed=1)
    sampler = NativeSampler(wrapped, TOKENIZER, eos=[fam.EOS])
    sampler.generate(requests())
    with wrapped.disable_adapter():
        sampler.generate(requests())
        sampler.generate(requests())
    assert len(chosen) == 2


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.clone() for n, p in model.named_parameters()}


def test_a_model_that_is_another_one_at_the_next_call_is_not_written_to(chosen: list[Graphed]) -> None:
    """In float32 an adapter is added to the weights, so with it switched off some are the model's own."""
    wrapped = attach(build("qwen2"), LoRA(rank=2, targets="all-linear"), seed=1)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            p.data.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.3)
    before, sampler = weights(wrapped), NativeSampler(wrapped, TOKENIZER, eos=[fam.EOS])
    for _ in range(2):
        with wrapped.disable_adapter():
            sampler.generate(requests())
        drawn = sampler.generate(requests())
    assert all(before[n].equal(p) for n, p in wrapped.named_parameters())
    fresh = NativeSampler(wrapped, TOKENIZER, eos=[fam.EOS]).generate(requests())
    assert [[c.tokens for c in g] for g in drawn] == [[c.tokens for c in g] for g in fresh]


def test_parameters_that_are_exchanged_keep_what_they_hold(chosen: list[Graphed]) -> None:
    """Averaged weights for a measurement, and back."""
    model = build("llama")
    sampler = NativeSampler(model, TOKENIZER, eos=[fam.EOS])
    first = sampler.generate(requests())
    own = {n: p.data for n, p in model.named_parameters()}
    before = {n: x.clone() for n, x in own.items()}
    for p in model.parameters():
        p.data = p.data * 1.1
    sampler.generate(requests())
    for n, p in model.named_parameters():
        p.data = own[n]
    again = sampler.generate(requests())
    assert all(x.equal(before[n]) for n, x in own.items())
    assert [[c.tokens for c in g] for g in first] == [[c.tokens for c in g] for g in again]


def test_room_stays_within_the_bound(chosen: list[Graphed]) -> None:
    some = requests()
    longest = max(len(r.prompt) + r.sampling.max_tokens for r in some)
    NativeSampler(fam.cached("llama"), TOKENIZER, eos=[fam.EOS], slots=4, cache_tokens=4 * longest).generate(some)
    assert [(s.slots, s.length) for s in chosen] == [(4, longest)]


def test_halves_go_through_the_modules_where_no_step_is_captured(
    chosen: list[Graphed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(llama.TYPES, "cpu", llama.TYPES["cuda"])
    monkeypatch.setattr(llama_cuda, "fits", lambda device: False)
    assert draw(build("llama").to(torch.bfloat16)) and not chosen


def test_samplers_of_one_model_share_a_state_while_one_holds_it(chosen: list[Graphed]) -> None:
    """Drawing for training and measuring: one store of keys, one capture of each step."""
    model = build("llama")
    drawing, measuring = (NativeSampler(model, TOKENIZER, eos=[fam.EOS]) for _ in range(2))
    first = drawing.generate(requests())
    assert measuring.generate(requests())[0][0].tokens == first[0][0].tokens
    assert len(chosen) == 1 and drawing.backend.state is measuring.backend.state
    NativeSampler(build("llama"), TOKENIZER, eos=[fam.EOS]).generate(requests())
    assert len(chosen) == 2
    del drawing, measuring
    chosen.clear()
    NativeSampler(model, TOKENIZER, eos=[fam.EOS]).generate(requests())
    assert len(chosen) == 1


def test_a_call_that_fails_leaves_no_state_behind(chosen: list[Graphed], monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = NativeSampler(fam.cached("llama"), TOKENIZER, eos=[fam.EOS])
    sampler.generate(requests())
    monkeypatch.setattr(Llama, "refresh", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampler.generate(requests())
    assert sampler.backend.state is None


def test_graphs_of_different_rows_take_turns(chosen: list[Graphed], monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that was captured before another still reads and writes where everything lies."""
    model = build("llama")
    base, head = model.get_decoder(), Head.of(model)
    graphs: list[recorded.Graph] = []
    recorded.devices(monkeypatch, llama_cuda, graphs)
    states = Graphed(Llama.of(base, head, 64, pack=False), 6, 64), Modules(base, head, 6, 64)
    for state in states:
        state.read(Prompts.of([[30, 31, 32], [40, 41]], np.array([0, 0, 1, 1])), 0)
    for i, rows in enumerate((4, 2, 4, 1, 4, 2)):
        inputs = np.array([50, 51, 52, 53])[:rows] + i, np.array([3, 3, 2, 2])[:rows] + i
        mine, theirs = (state.step(*inputs)[0] for state in states)  # the only row that never misses a place
        assert torch.allclose(mine, theirs, atol=1e-4), i
    assert [g.replays for g in graphs] == [3, 2, 1]


def test_the_step_waits_for_nothing_and_a_recorder_would_see_it() -> None:
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        recorded.Graph(lambda: print(torch.ones(1).item()))


# ------------------------------------------------------------ numbers of rows


def test_rows_are_few_numbers_none_far_too_large() -> None:
    assert [bucket(n, 999) for n in (1, 2, 3, 5, 8, 9, 12, 13, 17, 25, 33, 49, 65)] == [
        1, 2, 4, 8, 8, 12, 12, 16, 24, 32, 48, 64, 96,
    ]  # fmt: skip
    for slots in (1, 7, 48, 300):
        sizes = [bucket(n, slots) for n in range(1, slots + 1)]
        assert all(n <= b <= min(slots, 2 * n) for n, b in enumerate(sizes, 1)) and sizes == sorted(sizes)
    assert len({bucket(n, 256) for n in range(1, 257)}) == 14


def test_steps_shrink_with_the_rows(chosen: list[Graphed], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(llama_cuda, "bucket", lambda rows, slots: seen.append(rows) or bucket(rows, slots))
    computed: list[int] = []
    plain = Graphed._compute
    monkeypatch.setattr(Graphed, "_compute", lambda self, rows: computed.append(rows) or plain(self, rows))
    draw(fam.cached("llama"))
    assert computed == [bucket(n, ALL) for n in seen] and min(computed) < 8 < max(computed)


# ------------------------------------------------------------ types


HALVES = (torch.bfloat16, torch.float16)


def logits(state: Any, steps: int = 12) -> torch.Tensor:
    """Of two prompts with two rows each, and of steps behind them."""
    g = torch.Generator().manual_seed(1)
    prompts, owner = [[30, 31, 32, 33, 34], [40, 41]], np.array([0, 0, 1, 1])
    out = [state.read(Prompts.of(prompts, owner), 0)[owner]]
    for i in range(steps):
        tokens = torch.randint(20, fam.VOCAB, (4,), generator=g).numpy()
        out.append(state.step(tokens, np.array([5, 5, 2, 2]) + i).clone())
    return torch.stack(out).double()


@pytest.mark.parametrize("kind", HALVES, ids=str)
@pytest.mark.parametrize(("name", "changes"), [("llama", {"num_hidden_layers": 1}), ("qwen3", {}), ("qwen2", {})])
@pytest.mark.usefixtures("chosen")
def test_halves_are_as_exact_as_the_modules_halves(name: str, changes: dict[str, Any], kind: torch.dtype) -> None:
    """Against the same weights in float32. Head widths of 8 and 12: scales that are no powers of two."""
    model = build(name, **changes).to(kind)
    base, head = model.get_decoder(), Head.of(model)
    mine = logits(Graphed(Llama.of(base, head, 64, pack=False), 6, 64))
    theirs = logits(Modules(base, head, 6, 64))
    exact = build(name, **changes).to(kind).float()
    truth = logits(Modules(exact.get_decoder(), Head.of(exact), 6, 64))
    error, allowed = ((x - truth).pow(2).mean().sqrt().item() for x in (mine, theirs))
    assert 0 < error < 1.2 * allowed, (error, allowed)


@pytest.mark.usefixtures("chosen")
def test_float32_is_exact() -> None:
    model = build("llama")
    base, head = model.get_decoder(), Head.of(model)
    mine = logits(Graphed(Llama.of(base, head, 64, pack=False), 6, 64))
    assert torch.allclose(mine, logits(Modules(base, head, 6, 64)), atol=1e-4)


@pytest.mark.parametrize("kind", HALVES, ids=str)
def test_halves_are_drawn_where_the_device_is_said_to_have_them(
    kind: torch.dtype, chosen: list[Graphed], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama").to(kind)
    draw(model)
    assert not chosen  # the processor's halves go through the modules
    monkeypatch.setitem(llama.TYPES, "cpu", llama.TYPES["cuda"])
    drawn = draw(model)
    assert len(chosen) == 1 and chosen[0].logits.dtype == kind
    assert all(len(c.tokens) and max(c.logps) <= 0 for c in drawn)


@pytest.mark.parametrize("kind", HALVES, ids=str)
@pytest.mark.parametrize("own", [torch.float32, None], ids=str)
def test_an_adapter_stands_apart_from_halves(
    kind: torch.dtype, own: torch.dtype | None, chosen: list[Graphed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose change is lost when added to the weights; whatever its own type."""
    monkeypatch.setitem(llama.TYPES, "cpu", llama.TYPES["cuda"])

    def make(by: float) -> Any:
        wrapped = attach(build("qwen2").to(kind), LoRA(rank=2, alpha=4, targets="all-linear"), seed=1)
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.data.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.05 * by)
            if "lora_" in name and own is not None:
                p.data = p.data.to(own)
        return wrapped.eval()

    def outcome(model: Any) -> torch.Tensor:
        base, head = model.get_decoder(), Head.of(model)
        assert llama.fits(base, head, 64)
        return logits(Graphed(Llama.of(base, head, 64, pack=False), 6, 64))

    exact = make(1.0).float()
    truth = logits(Modules(exact.get_decoder(), Head.of(exact), 6, 64))
    mine, without = outcome(make(1.0)), outcome(make(0.0))
    error, change = ((x - truth).pow(2).mean().sqrt().item() for x in (mine, without))
    assert error < 0.3 * change
    off = make(1.0)
    with off.disable_adapter():
        assert torch.equal(outcome(off), without)


def test_halves_are_not_rounded_again() -> None:
    model = build("llama").to(torch.bfloat16)
    packed = Llama.of(model.get_decoder(), Head.of(model), 8, pack=False).layers[0].qkv.weight
    plain = model.get_decoder().layers[0].self_attn.q_proj.weight
    assert torch.equal(packed[: len(plain)], plain)


# ------------------------------------------------------------ when


def test_the_processor_never_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("chosen on a processor")

    monkeypatch.setattr(Graphed, "__init__", never)
    for kind in (torch.float32, torch.bfloat16):
        draw(build("llama").to(kind))
    monkeypatch.delenv("LADDER_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "tiled", lambda: tiles)
    assert not llama_cuda.fits(torch.device("cpu")) and llama_cuda.fits(torch.device("cuda", 1))
    monkeypatch.setenv("LADDER_KERNELS", "0")
    assert not llama_cuda.fits(torch.device("cuda"))


def test_several_workers_are_refused(chosen: list[Graphed]) -> None:
    sampler = NativeSampler(fam.cached("llama"), TOKENIZER, eos=[fam.EOS], workers=2)
    with pytest.raises(UserError, match="one worker"):
        sampler.generate(requests())


def test_adapters_are_drawn_with_and_weights_are_fresh(chosen: list[Graphed]) -> None:
    wrapped = attach(fam.build("qwen2"), LoRA(rank=4, targets="all-linear"), seed=1)
    before = draw(wrapped)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.1)
    after = draw(wrapped)
    assert [c.tokens for c in after] != [c.tokens for c in before] and len(chosen) == 1
    same(after, draw(wrapped, packed=False), wrapped)


# ------------------------------------------------------------ the capture itself, on a torch.cuda that is made up


def test_a_capture_warms_up_beside_and_shares_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            said.append((self.name, "waits for", other.name))

    class CUDAGraph:
        def pool(self) -> str:
            return "pool"

    @contextmanager
    def on(stream: Stream) -> Any:
        said.append(stream.name)
        yield
        said.append("back")

    @contextmanager
    def graph(_: CUDAGraph, pool: Any) -> Any:
        said.append(("captures in", pool))
        yield
        said.append("captured")

    for name, thing in (("Stream", Stream), ("stream", on), ("CUDAGraph", CUDAGraph), ("graph", graph)):
        monkeypatch.setattr(torch.cuda, name, thing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    first = llama_cuda.capture(lambda: said.append("step"), [])
    steps = ["step"] * llama_cuda.WARM_UP
    warm = [("side", "waits for", "main"), "side", *steps, "back", ("main", "waits for", "side")]
    assert said == [*warm, ("captures in", None), "step", "captured"]
    said.clear()
    llama_cuda.capture(lambda: said.append("step"), [first])
    assert said == [*warm, ("captures in", "pool"), "step", "captured"]
