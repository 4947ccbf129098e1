"""The native sampler draws what the model says: right log-probabilities for every family, the right distribution,
the same tokens under any scheduling, and an end where one is due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import families as fam
from drawn import TOLERANCE, gap, same
from families import CLOSE, DOUBLE, EOS, OPEN, VOCAB
from ladder.base.errors import UserError
from ladder.contract.rollouts import Completion, Request, Sampling, Task
from ladder.credit.base import to_sample
from ladder.decoding import module_cache
from ladder.decoding.draw import draw, inverse_cdf, stream, uniforms
from ladder.decoding.prefill import Prompts
from ladder.decoding.sampler import NativeSampler
from ladder.decoding.scheduler import Job, Scheduler
from ladder.engine.engine import Engine
from ladder.models.load import wrap_tokenizer
from ladder.rollout.collect import to_rollout

TOKENIZER = fam.tokenizer()
ENDS = (EOS, 11, 12)
"""Several ending tokens, so that random models end their answers at different times."""


def requests(sampling: Sampling | None = None) -> list[Request]:
    """Prompts from one token to several windows, one to four samples each."""
    g = torch.Generator().manual_seed(5)
    shapes = ((1, 3), (5, 1), (19, 2), (2, 4), (33, 2), (9, 3))
    return [
        Request(torch.randint(20, VOCAB, (length,), generator=g).tolist(), n, sampling or Sampling(24), 7 * i)
        for i, (length, n) in enumerate(shapes)
    ]


def native(model: Any, eos: Sequence[int] = ENDS, **options: Any) -> NativeSampler:
    return NativeSampler(model, TOKENIZER, eos=eos, **options)


# ------------------------------------------------------------ log-probabilities


def check_parity(name: str, asked: list[Request], temperature: float = 1.0, **options: Any) -> list[list[Completion]]:
    """The sampler's log-probabilities against the engine's and against transformers' own."""
    drawn = native(fam.cached(name), **options).generate(asked)
    rollouts = [
        to_rollout(Task(str(i), ""), r.prompt, c, i)
        for i, (r, group) in enumerate(zip(asked, drawn, strict=True))
        for c in group
    ]
    engine = Engine(fam.cached(name), budget=200, temperature=temperature)
    columns = engine.forward([to_sample(r) for r in rollouts])
    eager = fam.cached(name, "eager")
    for r, column in zip(rollouts, columns, strict=True):
        assert gap(r.logps, column["logps"]) < TOLERANCE
        assert gap(r.logps, fam.alone(eager, r.tokens, temperature) * torch.tensor(r.mask)) < TOLERANCE
    assert {c.stop for group in drawn for c in group} == {"eos", "length"}
    return drawn


@pytest.mark.parametrize("name", fam.NAMES)
def test_logps_are_the_engines_and_transformers(name: str) -> None:
    drawn = check_parity(name, requests(), slots=4)
    assert [len(group) for group in drawn] == [3, 1, 2, 4, 2, 3]
    assert len({len(c.tokens) for group in drawn for c in group}) > 3


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_logps_at_another_temperature_are_of_the_tempered_distribution(name: str) -> None:
    check_parity(name, requests(Sampling(24, temperature=0.7)), 0.7, slots=5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_both_ways_to_attend_over_the_cache_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_cache, "SHORT", 10)  # most rows now take the fused kernel
    check_parity(name, requests(), slots=6)


def test_reading_prompts_in_many_passes_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladder.decoding.stepper.PREFILL_TOKENS", 8)
    check_parity("gemma3", requests())


def few_shot() -> list[Request]:
    """Prompts that open alike, fork twice, and end within each other; the last one has nothing in common with them."""
    g = torch.Generator().manual_seed(6)

    def some(n: int) -> list[int]:
        return torch.randint(20, VOCAB, (n,), generator=g).tolist()

    shots = some(31)
    longer = shots + some(12)
    prompts = [shots + some(5), shots + some(1), longer + some(6), longer, longer + some(2), shots, shots, some(9)]
    return [Request(p, 1 + i % 3, Sampling(24), 5 * i) for i, p in enumerate(prompts)]


@pytest.mark.parametrize("name", fam.NAMES)
def test_what_prompts_open_with_is_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Prompts] = []
    plain = Prompts.of
    monkeypatch.setattr(Prompts, "of", lambda *a: seen.append(plain(*a)) or seen[-1])
    asked = few_shot()
    check_parity(name, asked)
    (prompts,) = seen
    assert len(prompts.tokens) == 31 + 12 + 5 + 1 + 6 + 2 + 9 and prompts.plan.shared
    assert prompts.lengths.tolist() == [len(r.prompt) for r in asked]
    for r, line in zip(asked, prompts.line, strict=True):
        assert prompts.tokens[line[: len(r.prompt)]].tolist() == r.prompt


def test_prompts_with_little_in_common_are_read_as_they_are() -> None:
    alike = [[*range(5), *range(20 + i, 70 + i)] for i in range(4)]  # 15 of 220 tokens
    assert not Prompts.of(alike, np.arange(4)).plan.shared
    assert Prompts.of([p[:12] for p in alike], np.arange(4)).plan.shared


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral"])
def test_the_window_shows_in_these_models(name: str) -> None:
    """Else the tests above could not tell a window from none."""
    tokens = torch.arange(20, 60).tolist()
    wider = fam.build(name, "eager", sliding_window=fam.WINDOW + 1)
    assert gap(fam.alone(fam.cached(name, "eager"), tokens), fam.alone(wider, tokens)) > 0.01


# ------------------------------------------------------------ scheduling


SCHEDULES: list[dict[str, Any]] = [
    {"slots": 1},
    {"slots": 3},
    {"slots": 64},
    {"slots": 3, "workers": 2},
    {"slots": 64, "workers": 2},
    {"cache_tokens": 150},
    {"cache_tokens": 1},
]


@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
def test_scheduling_changes_no_token(name: str) -> None:
    asked = requests()
    asked[1].sampling = Sampling(9, temperature=0.8, top_k=7)
    asked[3].sampling = Sampling(30, temperature=0)
    first: list[Completion] = []
    for options in SCHEDULES:
        drawn = [c for group in native(fam.cached(name), **options).generate(asked) for c in group]
        first = first or drawn
        same(drawn, first, fam.cached(name), asked)


def test_draws_depend_on_the_key_not_on_the_company() -> None:
    sampler, asked = native(fam.cached("llama")), requests()
    together = sampler.generate(asked)
    backwards = sampler.generate(asked[::-1])[::-1]
    same(*([c for g in groups for c in g] for groups in (together, backwards)), sampler.model, asked)
    assert len({tuple(c.tokens) for c in together[3]}) == 4  # the samples of one request differ
    for r in asked:
        r.key += 1
    other = sampler.generate(asked)
    assert all(a[0].tokens != b[0].tokens for a, b in zip(together, other, strict=True))


def test_an_ended_row_that_keeps_its_slot_never_writes_into_anothers() -> None:
    """The longest row ends while others that began later go on, too many of them for its slot to be cleared."""
    long, brief, late = Request([20] * 30, 1, Sampling(10)), Request([21], 31, Sampling(2)), Request([22] * 5, 31)
    late.sampling = Sampling(20)
    drawn = native(fam.cached("llama"), eos=[fam.PAD], slots=32).generate([long, brief, late])
    assert drawn[0][0].stop == "length" and sum(c.stop == "length" for c in drawn[2]) > 20
    for c in drawn[2]:
        assert gap(c.logps, fam.alone(fam.cached("llama", "eager"), late.prompt + c.tokens)[5:]) < TOLERANCE


def test_progress_counts_up_to_the_total() -> None:
    told: list[tuple[int, int]] = []
    native(fam.cached("llama"), slots=3, progress=lambda done, total: told.append((done, total))).generate(requests())
    assert told[-1] == (15, 15) and told == sorted(told)


# ------------------------------------------------------------ the distribution


def table(seed: int = 0) -> torch.Tensor:
    return 1.5 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """How many standard deviations the statistic lies above its mean; rare outcomes are put together."""
    n = counts.sum()
    common = p * n >= 8
    seen, expected = counts[common], p[common] * n
    if p[~common].sum() * n > 1:
        seen, expected = np.append(seen, counts[~common].sum()), np.append(expected, p[~common].sum() * n)
    df = len(seen) - 1
    return float((((seen - expected) ** 2 / expected).sum() - df) / np.sqrt(2 * df))


def many(logits: torch.Tensor, sampling: Sampling, n: int = 6000) -> list[Completion]:
    """n answers to the prompt [7] of the model that draws from softmax(logits[last])."""
    sampler = NativeSampler(fam.bigram(logits), TOKENIZER, eos=[EOS], slots=2000)
    return sampler.generate([Request([7], n, sampling, key=1)])[0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = table()
    logits[:, EOS] = -30.0
    p = (logits.double() / temperature).softmax(-1).numpy()
    drawn = many(logits, Sampling(2, temperature=temperature))
    first, second = (np.bincount([c.tokens[i] for c in drawn], minlength=VOCAB) for i in (0, 1))
    assert abs(chi_square(first, p[7])) < 4
    assert abs(chi_square(second, p[7] @ p)) < 4
    # the test itself can tell: the other temperature is far off
    other = (logits.double() / (1.7 - temperature)).softmax(-1).numpy()
    assert chi_square(first, other[7]) > 20
    for c in drawn[:50]:
        assert gap(c.logps, [np.log(p[7, c.tokens[0]]), np.log(p[c.tokens[0], c.tokens[1]])]) < TOLERANCE


def truncated(logits: torch.Tensor, s: Sampling) -> np.ndarray:
    """The distribution that should be drawn from, token by token: temperature, top-k, top-p, min-p."""
    p = (logits.double() / s.temperature).softmax(-1).numpy()
    kept = sorted(range(len(p)), key=lambda i: -p[i])
    if s.top_k:
        kept = kept[: s.top_k]
    nucleus, mass = [], 0.0
    for i in kept:
        if mass >= s.top_p * p[kept].sum():
            break
        nucleus.append(i)
        mass += p[i]
    nucleus = [i for i in nucleus if p[i] >= s.min_p * p.max()]
    q = np.zeros_like(p)
    q[nucleus] = p[nucleus] / p[nucleus].sum()
    return q


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1, top_k=1),
        Sampling(1, top_k=9),
        Sampling(1, top_p=0.5),
        Sampling(1, top_p=1e-6),
        Sampling(1, min_p=0.1),
        Sampling(1, top_p=0.6, temperature=1.5),
        Sampling(1, top_k=12, top_p=0.7, min_p=0.12, temperature=0.8),
    ],
    ids=str,
)
def test_truncation_keeps_exactly_its_support(sampling: Sampling) -> None:
    logits = table(3)
    q = truncated(logits[7], sampling)
    support = np.flatnonzero(q)
    assert 0 < len(support) < VOCAB // 2
    drawn = many(logits, sampling, n=3000)
    counts = np.bincount([c.tokens[0] for c in drawn], minlength=VOCAB)
    assert set(np.flatnonzero(counts)) == set(support)
    if len(support) > 1:
        assert abs(chi_square(counts, q)) < 4
    for c in drawn:
        assert abs(c.logps[0] - np.log(q[c.tokens[0]])) < TOLERANCE


def test_greedy_is_the_argmax_with_the_models_own_logp() -> None:
    logits = table(4)
    drawn = many(logits, Sampling(6, temperature=0), n=3)
    at, tokens, logps = 7, [], []
    while len(tokens) < 6 and at != EOS:
        logps.append(float(logits[at].log_softmax(-1).max()))
        at = int(logits[at].argmax())
        tokens.append(at)
    for c in drawn:
        assert c.tokens == tokens and gap(c.logps, logps) < TOLERANCE


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    """Across samples of a request, positions of a sample, and requests with neighbouring keys."""
    keys = [np.array([stream(key, j) for j in range(60)], np.uint64) for key in (3, 4)]
    grids = [np.stack([uniforms(s, np.full(60, at)).numpy() for at in range(60)]) for s in keys]
    for u in grids:
        assert abs(chi_square(np.bincount((u.ravel() * 50).astype(int), minlength=50), np.full(50, 0.02))) < 4
    pairs = [(grids[0], grids[1]), (grids[0][1:], grids[0][:-1]), (grids[0][:, 1:], grids[0][:, :-1])]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.06
    assert len({float(x) for u in grids for x in u.ravel()}) == 2 * 3600


@pytest.mark.parametrize("V", [5, 128, 300])
def test_the_inverse_cdf_by_blocks_is_the_plain_one(V: int) -> None:
    g = torch.Generator().manual_seed(V)
    weights = torch.rand(200, V, generator=g) * (torch.rand(200, V, generator=g) < 0.1)
    weights[:, 3] += 0.5
    weights[50:, 3] = 0
    weights[50:, V - 1] += 1e-3
    uniform = torch.rand(200, generator=g, dtype=torch.float64)
    uniform[::9] = 0.0
    uniform[::11] = 1 - 2**-53
    tokens, total = inverse_cdf(weights, uniform)
    w = weights.double().numpy()
    plain = [int(np.searchsorted(w[i].cumsum(), float(uniform[i]) * w[i].sum(), side="right")) for i in range(200)]
    differ = [i for i in range(200) if tokens[i] != min(plain[i], V - 1)]
    assert len(differ) < 5  # rounding at a boundary (the extreme numbers above) only
    assert (weights.gather(1, tokens[:, None]) > 0).all()
    assert gap(total, weights.sum(-1)) < 1e-4


def test_half_precision_logits_are_drawn_from_in_float32() -> None:
    logits = table()[:5].bfloat16()
    tokens, logps = draw(logits.clone(), torch.full((5,), 0.4, dtype=torch.float64), Sampling(temperature=0.9))
    exact = (logits.float() / 0.9).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert logps.dtype == torch.float32 and gap(logps, exact) < 1e-5


# ------------------------------------------------------------ how an answer ends


def walk(
    edges: dict[int, int],
    sampling: Sampling,
    prompt: list[int] | None = None,
    eos: Sequence[int] = (EOS,),
    **options: Any,
) -> Completion:
    """The answer of a model that can only follow `edges`, to a prompt that ends in token 20 unless given."""
    sampler = NativeSampler(fam.chain(edges), TOKENIZER, eos=eos, **options)
    return sampler.generate([Request(prompt or [30, 20], 1, sampling)])[0][0]


LINE = {i: i + 1 for i in range(20, 40)}


def test_an_answer_ends_with_eos_which_is_kept() -> None:
    done = walk({20: 21, 21: 22}, Sampling(10))
    assert (done.tokens, done.stop, done.text) == ([21, 22, EOS], "eos", "w21 w22")
    assert done.forced == [False] * 3 and gap(done.logps, [0.0] * 3) < TOLERANCE
    at_once = walk({}, Sampling(10))
    assert (at_once.tokens, at_once.stop, at_once.text) == ([EOS], "eos", "")
    at_the_limit = walk({20: 21}, Sampling(2))
    assert (at_the_limit.tokens, at_the_limit.stop) == ([21, EOS], "eos")


def test_any_of_several_eos_tokens_ends_it_and_no_other_special_does() -> None:
    done = walk({20: fam.BOS, fam.BOS: 23, 23: 24}, Sampling(10), eos=[EOS, 24])
    assert (done.tokens, done.stop, done.text) == ([fam.BOS, 23, 24], "eos", "<s> w23")


def test_an_answer_ends_at_its_limit_or_the_contexts() -> None:
    done = walk(LINE, Sampling(4))
    assert (done.tokens, done.stop, done.text) == ([21, 22, 23, 24], "length", "w21 w22 w23 w24")
    assert walk(LINE, Sampling(40), [31, 30, 20], context=8).tokens == [21, 22, 23, 24, 25]


@pytest.mark.parametrize(
    ("stop", "tokens", "text"),
    [
        (("w23 w24",), [21, 22, 23, 24], "w21 w22 "),  # over two tokens
        (("2 w23 w24 w2",), [21, 22, 23, 24, 25], "w21 w2"),  # from within one token to within another
        (("w21",), [21], ""),  # the first token
        (("w29", "3 w24", "w24"), [21, 22, 23, 24], "w21 w22 w2"),  # the one that begins first
        (("w20 w21", "w26"), [21, 22, 23, 24, 25, 26], "w21 w22 w23 w24 w25 "),  # the prompt does not count
    ],
)
def test_stop_strings_end_an_answer_and_are_cut_from_its_text(
    stop: tuple[str, ...], tokens: list[int], text: str
) -> None:
    done = walk(LINE, Sampling(12, stop=stop))
    assert (done.tokens, done.stop, done.text) == (tokens, "stop", text)
    last = walk(LINE, Sampling(len(tokens), stop=stop))
    assert (last.tokens, last.stop, last.text) == (tokens, "stop", text), "a stop string at the limit is a stop"
    short = walk(LINE, Sampling(len(tokens) - 1, stop=stop)) if len(tokens) > 1 else None
    assert short is None or (short.stop, short.tokens) == ("length", tokens[:-1])


def test_an_answer_without_its_stop_string_ends_as_ever() -> None:
    assert walk({20: 21}, Sampling(9, stop=("w22",))).stop == "eos"


def feed(scheduler: Scheduler, answers: list[list[int]]) -> list[Completion]:
    """Hands the answers' tokens to the bookkeeping, one row at a time side by side, as the sampler would draw them."""
    scheduler.resize(len(answers))
    jobs, _ = scheduler.admit(len(answers), 10_000)
    for at in range(max(map(len, answers))):
        tokens = np.array([a[min(at, len(a) - 1)] for a in answers])
        scheduler.accept(np.arange(len(answers)), tokens, np.full(len(answers), -1.0, np.float32))
        if scheduler.over[: scheduler.active].all():
            break
        scheduler.position[: scheduler.active] += 1
    return [c for job in jobs for c in job.completions if c is not None]


def test_a_stop_string_of_many_bytes_is_found_when_each_byte_is_a_token() -> None:
    bytes_only = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(False)  # pyright: ignore[reportAttributeAccessIssue]
    bytes_only.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = wrap_tokenizer(bytes_only, bos="<s>", eos="</s>", pad="<pad>")
    stop = "停止停止停止停止"
    ids = tokenizer.encode("a停止 b" + stop + " c", add_special_tokens=False)
    scheduler = Scheduler(tokenizer, [len(tokenizer) - 1])
    scheduler.add(Job(0, [0], Sampling(60, stop=(stop,)), 1, 60, 0))
    (done,) = feed(scheduler, [ids])
    assert (done.stop, done.text) == ("stop", "a停止 b")
    assert done.tokens == ids[:-2]


# ------------------------------------------------------------ thinking budgets


THINK = {20: OPEN, OPEN: 21, 21: 22, 22: 23, 23: 22, CLOSE: 30, 41: 30}
"""Opens a thinking block, never closes it by itself, and ends two tokens after it was closed."""


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_thinking_is_closed_after_its_budget(budget: int) -> None:
    done = walk(THINK, Sampling(20, think_budget=budget))
    inside = [21, 22, 23, 22, 23][:budget]
    assert done.tokens == [OPEN, *inside, CLOSE, 30, EOS]
    assert done.forced == [t == CLOSE for t in done.tokens]
    assert done.logps[done.tokens.index(CLOSE)] == 0.0 and done.stop == "eos"
    rollout = to_rollout(Task("a", ""), [30, 20], done, 0)
    assert rollout.mask == [False, False] + [t != CLOSE for t in done.tokens]
    assert rollout.length == len(done.tokens) - 1


def test_a_block_that_the_prompt_opened_has_the_same_budget() -> None:
    done = walk(THINK, Sampling(20, think_budget=3), [20, OPEN])
    assert done.tokens == [21, 22, 23, CLOSE, 30, EOS] and done.forced.index(True) == 3


def test_a_closing_tag_of_several_tokens_is_forced_whole() -> None:
    done = walk(THINK, Sampling(20, think_budget=3, think_close="w40 w41"))
    assert done.tokens == [OPEN, 21, 22, 23, 40, 41, 30, EOS]
    assert done.forced == [False] * 4 + [True] * 2 + [False] * 2


@pytest.mark.parametrize("edges", [THINK | {21: CLOSE}, {20: 21, 21: 22}])
def test_thinking_within_its_budget_is_left_alone(edges: dict[int, int]) -> None:
    done = walk(edges, Sampling(20, think_budget=3))
    assert not any(done.forced) and done.stop == "eos"


def test_every_block_has_its_own_budget() -> None:
    again = THINK | {30: 31, 31: OPEN}
    done = walk(again, Sampling(11, think_budget=2))
    assert done.tokens == [OPEN, 21, 22, CLOSE, 30, 31, OPEN, 21, 22, CLOSE, 30]
    assert [i for i, f in enumerate(done.forced) if f] == [3, 9]


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [
        (Sampling(5, think_budget=3, think_close="w40 w41 w42"), [OPEN, 21, 22, 23, 40]),  # cut by the limit
        (Sampling(20, think_budget=3, think_close="w40 w41 w42", stop=("w41",)), [OPEN, 21, 22, 23, 40, 41]),
    ],
)
def test_an_answer_that_ends_amid_its_forced_tag_stays_ended(sampling: Sampling, tokens: list[int]) -> None:
    """Beside others that began later, whose company keeps its slot in use for a while after its end."""
    sampler = NativeSampler(fam.chain(THINK | {50: 51, 51: 50, 60: 61}), TOKENIZER, eos=[EOS], slots=32)
    brief, late = (Request([30] * 7 + [at], 31, Sampling(sampling.max_tokens)) for at in (60, 50))
    done = sampler.generate([Request([20], 1, sampling), brief, late])[0][0]
    assert done.tokens == tokens
    assert done.forced == [i >= 4 for i in range(len(tokens))]


def test_forced_tokens_are_context_for_what_follows() -> None:
    prompts = [Request([*r.prompt, OPEN], r.n, Sampling(20, think_budget=4), r.key) for r in requests()]
    drawn = native(fam.cached("llama")).generate(prompts)
    engine = Engine(fam.cached("llama"))
    assert Counter(f for g in drawn for c in g for f in c.forced)[True] > 5
    for r, group in zip(prompts, drawn, strict=True):
        for c in group:
            rollout = to_rollout(Task("a", ""), r.prompt, c, 0)
            assert gap(engine.forward([to_sample(rollout)])[0]["logps"], rollout.logps) < TOLERANCE


# ------------------------------------------------------------ what cannot be asked


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request([], 1), "no tokens"),
        (Request([7] * 12, 1), "leaves no room in a context of 12"),
        (Request([7], 1, Sampling(max_tokens=0)), "at most 0 tokens"),
        (Request([7], 0), "0 samples"),
        (Request([7], 1, Sampling(stop=("w8", ""))), "stop"),
        (Request([7], 1, Sampling(think_budget=2, think_close="</unknown>")), "think_close"),
        (Request([7], 1, Sampling(think_budget=2, think_close=" ")), "think_close"),
        (Request([7], 1, Sampling(think_budget=2, think_open="")), "think_open"),
    ],
)
def test_requests_that_cannot_be_met_are_the_users_error(request_: Request, why: str) -> None:
    sampler = native(fam.cached("llama"), context=12)
    with pytest.raises(UserError, match=why):
        sampler.generate([Request([7] * 11, 1), request_])


def test_a_sampler_needs_a_token_that_ends_an_answer() -> None:
    with pytest.raises(UserError, match="eos"):
        native(fam.cached("llama"), eos=())


def test_no_requests_no_answers_and_load_is_accepted() -> None:
    sampler = native(fam.cached("llama"))
    assert sampler.generate([]) == []
    sampler.load(lambda: iter(()), 3)
    assert sampler.version == 3


def test_text_is_decoded_from_the_drawn_tokens() -> None:
    done = walk({20: DOUBLE, DOUBLE: 6}, Sampling(9))
    assert (done.tokens, done.text) == ([DOUBLE, 6, EOS], "w5 w6 w6")
