"""Log-probabilities and gradients of packed sequences with shared prefixes equal those of each sequence alone."""

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
    """Groups of samples that share a prompt, with holes in the masks and answers of one token and more."""
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
    """Samples with common prefixes that branch off at several depths; some are prefixes of others."""
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
    """Log-probabilities of one sequence with transformers' eager attention: [T], 0 where the mask is False."""
    logits = model(input_ids=sample.tokens[None], use_cache=False).logits[0, :-1].float()
    logps = logits.log_softmax(-1).gather(1, sample.tokens[1:, None])[:, 0]
    return torch.where(sample.mask, torch.cat([logps.new_zeros(1), logps]), 0.0)


def turns(seed: int = 0) -> list[Sample]:
    """Neighbours of which one trains tokens that are prompt in the other: they share less than their common prefix."""
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
def test_packed_logps_equal_those_of_each_sequence_alone(budget: int, share: bool, rows: str) -> None:
    samples = ROWS[rows]()
    engine = Engine(tiny("ladder"), budget=budget, share_prefix=share)
    eager = tiny("eager")
    with torch.no_grad():
        for got, sample in zip(engine.forward(samples), samples, strict=True):
            torch.testing.assert_close(got["logps"], alone(eager, sample), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("share", [False, True])
def test_sliding_window_packed_equals_alone(share: bool, rows: str) -> None:
    window = {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
    samples = ROWS[rows]()[:14]
    engine = Engine(tiny("ladder", **window), share_prefix=share)
    eager = tiny("eager", **window)
    with torch.no_grad():
        for got, sample in zip(engine.forward(samples), samples, strict=True):
            torch.testing.assert_close(got["logps"], alone(eager, sample), atol=2e-5, rtol=1e-5)


def test_shared_prompts_are_stored_once() -> None:
    samples = ragged(16, group=8)
    shared = sum(p.tokens_T.numel() for p in pack(samples, (), 10_000, True))
    apart = sum(p.tokens_T.numel() for p in pack(samples, (), 10_000, False))
    firsts = [int(s.mask.to(torch.uint8).argmax()) for s in samples]
    assert apart - shared == sum(firsts[1:8]) + sum(firsts[9:16])


def nodes(samples: list[Sample]) -> int:
    """The number of distinct prefixes of the tokens to be read: the smallest possible size of a packed row."""
    rows = [s.tokens.tolist()[: int(s.mask.nonzero()[-1])] for s in samples]
    firsts = [int(s.mask.to(torch.uint8).argmax()) for s in samples]
    shared = {tuple(r[:n]) for r, first in zip(rows, firsts, strict=True) for n in range(1, min(first, len(r)) + 1)}
    return len(shared) + sum(max(0, len(r) - first) for r, first in zip(rows, firsts, strict=True))


def test_common_prefixes_of_neighbours_are_stored_once() -> None:
    samples = conversations()
    ordered = sorted(samples, key=lambda s: s.tokens.tolist())
    (packed,) = pack(ordered, (), 10_000)
    short = MIN_SHARED * len(samples)  # common prefixes too short for a segment
    assert nodes(samples) <= len(packed.tokens_T) <= nodes(samples) + short
    depth = max(len(list(s.chain())) for s in packed.segments)
    assert depth >= 4
    assert len(packed.tokens_T) < len(pack(samples, (), 10_000)[0].tokens_T)  # only neighbours are compared


def test_micro_batches_of_a_step_are_of_about_equal_size() -> None:
    samples = [answer(torch.tensor([i]), torch.arange(20)) for i in range(21)]
    assert [len(p.tokens_T) for p in pack(samples, (), 20 * 20)] == [220, 200]
    assert [len(p.tokens_T) for p in pack(samples, (), 420)] == [420]
    assert [len(p.tokens_T) for p in pack(samples, (), 419, lanes=2)] == [220, 200]
    assert [len(p.tokens_T) for p in pack(samples, (), 10_000, lanes=4)] == [120, 120, 120, 60]
    assert [len(p.tokens_T) for p in pack(samples[:1], (), 10_000, lanes=4)] == [20]
    assert [len(p.tokens_T) for p in pack(samples[:3], (), 1)] == [20, 20, 20]
    assert [len(p.tokens_T) for p in pack(samples, (), 7 * 20, lanes=2)] == [120, 120, 120, 60]
    for budget in range(20, 430, 7):
        packs = pack(samples, (), budget)
        assert max(len(p.tokens_T) for p in packs) <= budget
        assert len(packs) == -(-21 // (budget // 20)), "as few as the budget allows"


def test_equal_sizes_never_exceed_the_budget() -> None:
    units = [answer(torch.tensor([i]), torch.zeros(n).long()) for i, n in enumerate((31, 69, 2, 50))]
    assert [len(p.tokens_T) for p in pack(units, (), 100)] == [100, 52]  # at 102, the first would hold three


def test_a_shared_prefix_counts_once_towards_the_budget() -> None:
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


def test_trained_positions_of_a_pair_and_of_masks_with_holes() -> None:
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


def test_a_pair_is_never_split_over_micro_batches() -> None:
    units: list[Unit] = [Pair(*ragged(2, seed=i, group=2)) for i in range(6)]
    for packed in pack(units, (), 50):
        assert packed.batch.n_seqs % 2 == 0


def test_samples_that_cannot_be_trained_raise_value_error() -> None:
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


def test_sample_checks_dtypes_and_lengths() -> None:
    """A column passed as the mask, or a mask as a column, is an error."""
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


def test_minibatches_of_samples_without_shared_prompts_are_even() -> None:
    samples = ragged(10, group=1)
    assert [len(p) for p in _minibatches(samples, 3, shuffle=None)] in ([3, 4, 3], [4, 3, 3], [3, 3, 4])
    with pytest.raises(ValueError, match="cannot be split"):
        _minibatches(samples, 11, shuffle=None)


def answered(tokens: Tensor) -> Sample:
    return Sample(tokens, torch.arange(len(tokens)) > 0)


@pytest.mark.parametrize("budget", [1, 90, 10_000])
def test_sides_of_a_pair_trained_at_their_last_token_share_their_prefix(budget: int) -> None:
    """Pairs for a reward model: the prompt and the common prefix of the two answers are stored once."""
    g = torch.Generator().manual_seed(1)
    pairs: list[Unit] = []
    for common in (0, MIN_SHARED - 1, MIN_SHARED, 25, 30):
        start = torch.randint(0, 60, (common,), generator=g)
        chosen, rejected = torch.cat([start, torch.arange(5)]), torch.cat([start, 50 - torch.arange(common % 7 + 1)])
        pairs.append(Pair(*map(answered, (chosen, rejected))))
    whole = torch.randint(0, 60, (20,), generator=g)  # one side is a prefix of the other
    pairs.append(Pair(*map(answered, (whole, whole[:15]))))
    units = [at_end(p) for p in pairs]
    packs = pack(units, (), budget)
    packed_tokens, all_tokens = sum(len(p.tokens_T) for p in packs), sum(len(s.tokens) - 1 for s in sequences(units))
    assert all_tokens - packed_tokens == MIN_SHARED + 25 + 30 + 15
    model = tiny("ladder")
    shared, apart = (Engine(model, budget=budget, share_prefix=share).forward(units) for share in (True, False))
    for a, b in zip(shared, apart, strict=True):
        assert torch.allclose(a["logps"], b["logps"], atol=1e-5) and a["logps"].any()


def test_a_prefix_short_relative_to_its_sequence_is_not_shared() -> None:
    opening = torch.arange(10)
    for longest, saved in ((300, 10), (330, 0)):
        samples = [answer(torch.cat([opening, torch.tensor([i])]), torch.zeros(longest - 10).long()) for i in (20, 21)]
        (packed,) = pack(samples, (), 10_000)
        assert len(packed.tokens_T) == 2 * longest - saved


def test_an_existing_fork_is_reused_rather_than_adding_one_close_to_it() -> None:
    """A common prefix a little longer than an existing one adds no fork, and a long sequence does not end a fork."""

    def opened(n: int, last: int, length: int = 30) -> Sample:
        """A sample that begins with n tokens common to all, and then differs."""
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
def test_segments_that_do_not_tile_the_row_raise(segments: list[Segment]) -> None:
    with pytest.raises(AssertionError):
        PackedPlan.of(segments, 5)
