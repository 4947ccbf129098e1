"""Packed, prefix-shared and chunked log-probabilities equal those of each sequence alone, and so do gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from ladder.attention import plan  # noqa: F401  (registers the attention function)
from ladder.attention.packed import PackedPlan
from ladder.contract.training import Pair, Sample, Unit
from ladder.engine.engine import Engine, _minibatches
from ladder.losses import CrossEntropy
from ladder.packing.pack import count, pack, sequences
from ladder.packing.prefix_tree import MIN_SHARED, Segment
from ladder.signals.preferences import at_end


def tiny(implementation: str, **changes: object) -> nn.Module:
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=60, intermediate_size=48, **sizes, **changes)  # pyright: ignore
    config._attn_implementation = implementation
    model = Qwen2ForCausalLM(config).eval()
    for p in model.parameters():  # weights large enough that attention matters
        p.data = torch.randn_like(p) * 0.25
    return model


def ragged(n: int = 24, seed: int = 0, group: int = 4) -> list[Sample]:
    """Groups that share a prompt, with holes in the masks and answers from one token up."""
    g = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(n):
        if i % group == 0:
            prompt = torch.randint(0, 60, (int(torch.randint(1, 14, (1,), generator=g)),), generator=g)
        answer = torch.randint(0, 60, (int(torch.randint(1, 20, (1,), generator=g)),), generator=g)
        tail = torch.randint(0, 60, (int(torch.randint(0, 3, (1,), generator=g)),), generator=g)
        mask = torch.rand(len(answer), generator=g) > 0.2
        mask[0] = True
        tokens = torch.cat([prompt, answer, tail])
        full = torch.zeros(len(tokens), dtype=torch.bool)
        full[len(prompt) : len(prompt) + len(answer)] = mask
        samples.append(Sample(tokens, full, {"advantages": torch.randn(len(tokens), generator=g)}))
    return samples


def conversations(seed: int = 0) -> list[Sample]:
    """They open alike, fork at several depths, and some end where others go on."""
    g = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(0, 60, (n,), generator=g).tolist()

    opening, other = draw(11), draw(6)
    first, second = opening + draw(9), opening + draw(2)
    third = first + draw(7)
    rows = [(opening, 3), (first, 1), (first, 12), (third, 4), (third, 1), (third[:18], 5), (second, 2), (first, 8)]
    rows += [(opening[:9], 3), (opening[:2], 4), (other, 5), (other, 1), (other + draw(1), 2), (draw(1), 9), (third, 3)]
    return [answer(torch.tensor(prompt), torch.tensor(draw(n))) for prompt, n in rows]


def answer(prompt: Tensor, tokens: Tensor) -> Sample:
    whole = torch.cat([prompt, tokens])
    return Sample(whole, torch.arange(len(whole)) >= len(prompt), {"advantages": torch.randn(len(whole))})


def alone(model: nn.Module, sample: Sample) -> Tensor:
    """Log-probabilities of one sequence by transformers' eager path: [T], 0 off the mask."""
    logits = model(input_ids=sample.tokens[None], use_cache=False).logits[0, :-1].float()
    logps = logits.log_softmax(-1).gather(1, sample.tokens[1:, None])[:, 0]
    return torch.where(sample.mask, torch.cat([logps.new_zeros(1), logps]), 0.0)


def turns(seed: int = 0) -> list[Sample]:
    """What one trains, its neighbour only reads: they part later than where they stop sharing."""
    g = torch.Generator().manual_seed(seed)
    prompt, other, first, ending, question, second = (
        torch.randint(0, 60, (n,), generator=g) for n in (5, 9, 6, 3, 4, 7)
    )
    brief, long = answer(prompt, other), answer(prompt, torch.cat([first, ending]))
    return [brief, long, answer(torch.cat([prompt, first, question]), second), long, brief]


ROWS = {"groups": ragged, "forks": conversations, "turns": turns}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("budget", [1, 40, 10_000])
@pytest.mark.parametrize("share", [False, True])
def test_packed_equals_alone(budget: int, share: bool, rows: str) -> None:
    samples = ROWS[rows]()
    engine = Engine(tiny("ladder"), budget=budget, share_prefix=share)
    eager = tiny("eager")
    with torch.no_grad():
        for got, sample in zip(engine.forward(samples), samples, strict=True):
            torch.testing.assert_close(got["logps"], alone(eager, sample), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("share", [False, True])
def test_sliding_window(share: bool, rows: str) -> None:
    window = {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
    samples = ROWS[rows]()[:14]
    engine = Engine(tiny("ladder", **window), share_prefix=share)
    eager = tiny("eager", **window)
    with torch.no_grad():
        for got, sample in zip(engine.forward(samples), samples, strict=True):
            torch.testing.assert_close(got["logps"], alone(eager, sample), atol=2e-5, rtol=1e-5)


def test_shared_prompts_are_laid_down_once() -> None:
    samples = ragged(16, group=8)
    shared = sum(p.tokens_T.numel() for p in pack(samples, (), 10_000, True))
    apart = sum(p.tokens_T.numel() for p in pack(samples, (), 10_000, False))
    firsts = [int(s.mask.to(torch.uint8).argmax()) for s in samples]
    assert apart - shared == sum(firsts[1:8]) + sum(firsts[9:16])


def nodes(samples: list[Sample]) -> int:
    """Different beginnings of what has to be read of the samples: the least that could be laid down."""
    rows = [s.tokens.tolist()[: int(s.mask.nonzero()[-1])] for s in samples]
    firsts = [int(s.mask.to(torch.uint8).argmax()) for s in samples]
    shared = {tuple(r[:n]) for r, first in zip(rows, firsts, strict=True) for n in range(1, min(first, len(r)) + 1)}
    return len(shared) + sum(max(0, len(r) - first) for r, first in zip(rows, firsts, strict=True))


def test_beginnings_that_neighbours_have_in_common_are_laid_down_once() -> None:
    samples = conversations()
    ordered = sorted(samples, key=lambda s: s.tokens.tolist())
    (packed,) = pack(ordered, (), 10_000)
    short = MIN_SHARED * len(samples)  # what is too short for a segment of its own
    assert nodes(samples) <= len(packed.tokens_T) <= nodes(samples) + short
    depth = max(len(list(s.chain())) for s in packed.segments)
    assert depth >= 4
    assert len(packed.tokens_T) < len(pack(samples, (), 10_000)[0].tokens_T)  # only neighbours are compared


def test_packs_of_a_step_are_about_equal() -> None:
    samples = [answer(torch.tensor([i]), torch.arange(20)) for i in range(21)]
    assert [len(p.tokens_T) for p in pack(samples, (), 20 * 20)] == [220, 200]
    assert [len(p.tokens_T) for p in pack(samples, (), 420)] == [420]
    assert [len(p.tokens_T) for p in pack(samples, (), 419, lanes=2)] == [220, 200]
    assert [len(p.tokens_T) for p in pack(samples, (), 10_000, lanes=4)] == [120, 120, 120, 60]
    assert [len(p.tokens_T) for p in pack(samples[:1], (), 10_000, lanes=4)] == [20]
    assert [len(p.tokens_T) for p in pack(samples[:3], (), 1)] == [20, 20, 20]
    assert [len(p.tokens_T) for p in pack(samples, (), 7 * 20, lanes=2)] == [120, 120, 120, 60]
    for budget in range(20, 430, 7):
        made = pack(samples, (), budget)
        assert max(len(p.tokens_T) for p in made) <= budget
        assert len(made) == -(-21 // (budget // 20)), "as few as the budget allows"


def test_no_pack_is_larger_than_the_budget_to_be_even() -> None:
    units = [answer(torch.tensor([i]), torch.zeros(n).long()) for i, n in enumerate((31, 69, 2, 50))]
    assert [len(p.tokens_T) for p in pack(units, (), 100)] == [100, 52]  # at 102, the first would hold three


def test_what_is_shared_takes_up_the_budget_once() -> None:
    samples = [answer(torch.arange(50), torch.full((10,), i)) for i in range(4)]
    assert [len(p.tokens_T) for p in pack(samples, (), 50 + 4 * 9)] == [86]
    assert [len(p.tokens_T) for p in pack(samples, (), 50 + 4 * 9 - 1)] == [68, 68]


def gradients(model: nn.Module, units: list[Unit], **engine: object) -> dict[str, Tensor]:
    model = copy.deepcopy(model).requires_grad_(True)
    e = Engine(model, **engine)  # pyright: ignore
    loss = CrossEntropy()
    total = count(units, loss)
    for packed in pack(units, loss.needs, e.budget, e.share_prefix):
        each, _ = loss(e._out(packed, False), packed.batch)
        (each.sum() / total).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("budget", [1, 64, 10_000])
def test_every_split_gives_the_same_gradient(budget: int, share: bool, rows: str) -> None:
    samples = ROWS[rows]()
    eager = tiny("eager").requires_grad_(True)
    total = sum(int(s.mask.sum()) for s in samples)
    for s in samples:
        (-alone(eager, s).sum() / total).backward()
    want = {n: p.grad for n, p in eager.named_parameters()}
    got = gradients(tiny("ladder"), list(samples), budget=budget, share_prefix=share)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=2e-6, rtol=2e-4, msg=name)


def test_trained_positions_of_a_pair_and_of_holes() -> None:
    a, b = ragged(2, group=2)
    (packed,) = pack([Pair(a, b)], ["advantages"], 1000)
    assert packed.batch.n_seqs == 2
    assert packed.tgt_N.tolist() == a.tokens[a.mask].tolist() + b.tokens[b.mask].tolist()
    torch.testing.assert_close(
        packed.batch.cols["advantages"], torch.cat([a.cols["advantages"][a.mask], b.cols["advantages"][b.mask]])
    )
    x = torch.arange(len(packed.tgt_N), dtype=torch.float32)
    n = int(a.mask.sum())
    assert packed.batch.sum(x).tolist() == [x[:n].sum(), x[n:].sum()]
    assert packed.batch.first(x).tolist() == [0, n]
    assert packed.batch.spread(torch.tensor([5.0, 7.0])).tolist() == [5.0] * n + [7.0] * (len(x) - n)


def test_a_pair_is_never_split_over_packs() -> None:
    units: list[Unit] = [Pair(*ragged(2, seed=i, group=2)) for i in range(6)]
    for packed in pack(units, (), 50):
        assert packed.batch.n_seqs % 2 == 0


def test_what_cannot_be_trained_is_refused() -> None:
    tokens = torch.arange(5)
    with pytest.raises(ValueError, match="nothing to train"):
        pack([Sample(tokens, torch.zeros(5, dtype=torch.bool))], (), 100)
    with pytest.raises(ValueError, match=r"mask\[0\]"):
        Sample(tokens, torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="column 'ref_logps'"):
        pack(ragged(1), ["ref_logps"], 100)
    with pytest.raises(ValueError, match="samples only"):
        count([Pair(*ragged(2))], CrossEntropy())
    odd = CrossEntropy()
    object.__setattr__(odd, "unit", "batch")
    with pytest.raises(ValueError, match=r"CrossEntropy\.unit is 'batch'; it must be 'token'"):
        count(ragged(1), odd)


def test_masks_are_bool_columns_float32_and_all_of_one_length() -> None:
    """One cannot be handed in for the other."""
    tokens, mask = torch.arange(5), torch.arange(5) > 2
    column = torch.zeros(5)
    for wrong, message in [
        (lambda: Sample(tokens, column), "mask must be bool"),
        (lambda: Sample(tokens, mask[1:]), "mask must be bool"),
        (lambda: Sample(tokens.int(), mask), "tokens must be int64"),
        (lambda: Sample(tokens[None], mask[None]), "tokens must be int64"),
        (lambda: Sample(tokens, mask, {"advantages": mask}), "column 'advantages' must be float32"),
        (lambda: Sample(tokens, mask, {"advantages": column.double()}), "column 'advantages' must be float32"),
        (lambda: Sample(tokens, mask, {"advantages": column[:1]}), "column 'advantages' must be float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_minibatches_keep_prompts_together(n: int) -> None:
    samples = ragged(40, group=8)
    for shuffle in (None, 7):
        parts = _minibatches(samples, n, shuffle=shuffle)
        assert len(parts) == n and all(parts)
        flat = [id(s) for p in parts for s in sequences(p)]
        assert sorted(flat) == sorted(map(id, samples))
        where = {id(s): i for i, p in enumerate(parts) for s in sequences(p)}
        for i in range(0, 40, 8):
            assert len({where[id(s)] for s in samples[i : i + 8]}) == 1
    assert max(map(len, _minibatches(samples, 2, shuffle=None))) == 24


def test_minibatches_of_lone_samples_are_even() -> None:
    samples = ragged(10, group=1)
    assert [len(p) for p in _minibatches(samples, 3, shuffle=None)] in ([3, 4, 3], [4, 3, 3], [3, 3, 4])
    with pytest.raises(ValueError, match="cannot be split"):
        _minibatches(samples, 11, shuffle=None)


def answered(tokens: Tensor) -> Sample:
    return Sample(tokens, torch.arange(len(tokens)) > 0)


@pytest.mark.parametrize("budget", [1, 90, 10_000])
def test_sides_of_a_pair_that_are_asked_at_their_ends_share_their_beginning(budget: int) -> None:
    """What a reward model reads: the prompt and as much of the answers as is the same is laid down once."""
    g = torch.Generator().manual_seed(1)
    pairs: list[Unit] = []
    for common in (0, MIN_SHARED - 1, MIN_SHARED, 25, 30):
        start = torch.randint(0, 60, (common,), generator=g)
        chosen, rejected = torch.cat([start, torch.arange(5)]), torch.cat([start, 50 - torch.arange(common % 7 + 1)])
        pairs.append(Pair(*map(answered, (chosen, rejected))))
    whole = torch.randint(0, 60, (20,), generator=g)  # one side is the beginning of the other
    pairs.append(Pair(*map(answered, (whole, whole[:15]))))
    asked = [at_end(p) for p in pairs]
    packs = pack(asked, (), budget)
    laid, alone_ = sum(len(p.tokens_T) for p in packs), sum(len(s.tokens) - 1 for s in sequences(asked))
    assert alone_ - laid == MIN_SHARED + 25 + 30 + 15
    model = tiny("ladder")
    shared, apart = (Engine(model, budget=budget, share_prefix=share).forward(asked) for share in (True, False))
    for a, b in zip(shared, apart, strict=True):
        assert torch.allclose(a["logps"], b["logps"], atol=1e-5) and a["logps"].any()


def test_a_beginning_that_is_short_for_its_sequence_is_not_shared() -> None:
    opening = torch.arange(10)
    for longest, saved in ((300, 10), (330, 0)):
        samples = [answer(torch.cat([opening, torch.tensor([i])]), torch.zeros(longest - 10).long()) for i in (20, 21)]
        (packed,) = pack(samples, (), 10_000)
        assert len(packed.tokens_T) == 2 * longest - saved


def test_forks_that_are_there_are_shared_and_no_others_close_to_them() -> None:
    """Neither a common beginning little longer than one that is laid down, nor a long sequence, makes or ends one."""

    def opened(n: int, last: int, length: int = 30) -> Sample:
        """n tokens of one beginning, and others."""
        return answer(torch.cat([torch.arange(n), torch.tensor([last])]), torch.zeros(length - n).long())

    for common, saved in ((20, 20), (20 + MIN_SHARED - 1, 20), (20 + MIN_SHARED, 20 + MIN_SHARED)):
        samples = [opened(20, 58), opened(common, 59), opened(common, 57)]
        (packed,) = pack(samples, (), 10_000)
        assert len(packed.tokens_T) == 3 * 30 - 20 - saved
    (packed,) = pack([opened(10, 58), opened(10, 59), opened(10, 57, 400)], (), 10_000)
    assert len(packed.tokens_T) == 30 + 20 + 390


@pytest.mark.parametrize(
    "segments",
    [
        [Segment(0, 3), Segment(4, 1)],
        [Segment(0, 3), Segment(2, 3)],
        [Segment(0, 5), Segment(5, 0)],
        [Segment(0, 4)],
        [Segment(0, 6)],
        [(root := Segment(0, 2)), Segment(2, 1), Segment(3, 2, root)],
    ],
    ids=["gap", "overlap", "empty", "short", "long", "not behind"],
)
def test_segments_that_do_not_tile_the_row_are_no_plan(segments: list[Segment]) -> None:
    with pytest.raises(AssertionError):
        PackedPlan.of(segments, 5)
