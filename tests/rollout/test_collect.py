"""From tasks to rollouts: one group per task, every token as it was drawn, and keys that never meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

import families as fam
from families import CLOSE, DOUBLE, EOS
from ladder.base import rng
from ladder.contract.rollouts import Completion, Request, Rollout, Sampling, Score, Task
from ladder.credit.base import to_sample
from ladder.data.chat import encode_prompt
from ladder.decoding.sampler import NativeSampler
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import CrossEntropy
from ladder.rollout.collect import Collector, to_rollout
from ladder.rollout.scripted import Answer, ScriptedSampler
from ladder.signals.rewards import Rewards

TOKENIZER = fam.tokenizer()
SAMPLING = Sampling(max_tokens=6)
TASKS = [Task("one", "w20"), Task("two", "w21 w22 w23"), Task("three", "w24 w25")]


def encode(prompt: object) -> list[int]:
    assert isinstance(prompt, str)
    return encode_prompt(TOKENIZER, prompt)


def collector(
    script: dict[str, list[Answer]] | None = None, n: int = 2, seed: int = 0, purpose: str = "train"
) -> tuple[Collector, ScriptedSampler]:
    script = script or {str(t.prompt): ["w40 w41", "w42"] for t in TASKS}
    sampler = ScriptedSampler(script, TOKENIZER)
    return Collector(sampler, encode, n, SAMPLING, seed, purpose), sampler


def test_one_group_per_task_in_order() -> None:
    collect, sampler = collector(n=3)
    sampler.load(lambda: iter(()), 9)
    groups = collect(TASKS, step=4, version=9)
    assert [[r.task for r in g] for g in groups] == [[t] * 3 for t in TASKS]
    assert [[r.group for r in g] for g in groups] == [[0] * 3, [1] * 3, [2] * 3]
    assert {r.version for g in groups for r in g} == {9}
    assert [r.text for r in groups[1]] == ["w40 w41", "w42", "w40 w41"]


def test_a_rollout_is_its_prompt_and_what_was_drawn() -> None:
    whole = Completion([40, 3, CLOSE, 41], [-0.5, -1.5, 0.0, -2.5], [False, False, True, False], "stop", "w40")
    collect, _ = collector({"w21 w22 w23": [whole]}, n=1)
    ((r,),) = collect(TASKS[1:2], step=0, version=0)
    bos = len(r.tokens) - 3 - 4  # whatever the encoder puts before a text
    assert r.tokens == [*encode("w21 w22 w23"), 40, 3, CLOSE, 41]
    assert r.mask == [False] * (bos + 3) + [True, True, False, True]
    assert r.logps == [0.0] * (bos + 3) + [-0.5, -1.5, 0.0, -2.5]
    assert (r.text, r.stop, r.length) == ("w40", "stop", 3)


def test_tokens_are_the_drawn_ids_and_never_the_texts() -> None:
    """DOUBLE reads as two other tokens do; EOS amid an answer and a pad token stay what they are."""
    drawn = [[DOUBLE, 5, 6, EOS], [fam.PAD, DOUBLE, fam.BOS], [5, EOS]]
    collect, _ = collector({"w20": list(drawn)}, n=3)
    (group,) = collect(TASKS[:1], step=0, version=0)
    assert TOKENIZER.encode(group[0].text) == [5, 6, 5, 6], "the text alone would be other tokens"
    for r, ids in zip(group, drawn, strict=True):
        sample = to_sample(r)
        assert r.tokens == encode("w20") + ids
        assert sample.tokens.tolist() == r.tokens and sample.mask.tolist() == r.mask
        assert sample.tokens[sample.mask].tolist() == ids


def test_a_request_asks_for_what_was_configured() -> None:
    collect, sampler = collector(n=5, seed=3, purpose="harvest")
    collect(TASKS, step=2, version=0)
    assert sampler.asked == [
        Request(encode(t.prompt), 5, SAMPLING, rng.key(3, "harvest", 2, i)) for i, t in enumerate(TASKS)
    ]


def test_keys_differ_by_place_step_purpose_and_seed() -> None:
    keys: list[int] = []
    for seed in (0, 1):
        for purpose in ("train", "eval"):
            collect, sampler = collector(seed=seed, purpose=purpose)
            for step in range(12):
                collect(TASKS, step=step, version=step)
            keys += [r.key for r in sampler.asked]
    assert len(keys) == len(set(keys)) == 2 * 2 * 12 * 3


def test_the_version_changes_no_draw() -> None:
    """A resumed run counts its versions as before, yet draws must not hang on it."""
    collect, sampler = collector()
    collect(TASKS, step=1, version=1)
    collect(TASKS, step=1, version=7)
    assert sampler.asked[:3] == sampler.asked[3:]


def test_a_resumed_signal_tells_the_sampler_its_version() -> None:
    """The weights are restored where they lie, so nothing but the version is handed over."""
    collect, sampler = collector()
    again = Rewards(lambda _: TASKS, collect, lambda group: [Score(float(i)) for i, _ in enumerate(group)])
    again.load = sampler.load
    again.restore({"step": 3, "version": 3, "credit": {}})
    units = next(again.batches())
    assert {unit.meta["version"] for unit in units} == {3}


def test_messages_reach_the_encoder_as_they_are() -> None:
    seen: list[object] = []

    def note(prompt: object) -> list[int]:
        seen.append(prompt)
        return [20]

    task = Task("chat", [{"role": "user", "content": "w20"}])
    Collector(ScriptedSampler({"w20": ["w30"]}, TOKENIZER), note, 1, SAMPLING, 0, "x")([task], step=0, version=0)
    assert seen == [task.prompt]


def test_a_sampler_that_loses_a_group_is_noticed() -> None:
    class Loses(ScriptedSampler):
        def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
            return super().generate(requests)[1:]

    sampler = Loses({str(t.prompt): ["w30"] for t in TASKS}, TOKENIZER)
    with pytest.raises(ValueError, match="shorter"):
        Collector(sampler, encode, 1, SAMPLING, 0, "x")(TASKS, step=0, version=0)


def test_to_rollout_masks_forced_tokens_only() -> None:
    c = Completion([40, 41, EOS], [-1.0, 0.0, -3.0], [False, True, False], "eos", "w40 w41")
    r = to_rollout(TASKS[0], (20, 21), replace(c, version=2), 5)
    assert r == Rollout(
        TASKS[0], [20, 21, 40, 41, EOS], [False, False, True, False, True], [0.0, 0.0, -1.0, 0.0, -3.0],
        "w40 w41", "eos", 5, 2,
    )  # fmt: skip
    assert to_rollout(TASKS[0], (20,), replace(c, forced=[False] * 3), 0).length == 3


def test_after_an_update_the_same_prompt_is_answered_by_the_new_weights() -> None:
    """No key outlives a call: nothing of the old policy is left in the sampler that drew from it."""
    engine = Engine(fam.build("llama"), Optim(lr=0.05))
    sampler = NativeSampler(engine.model, TOKENIZER, eos=[EOS], slots=4)
    collect = Collector(sampler, encode, 4, Sampling(max_tokens=9), 1, "train")
    drawn = []
    for version in range(3):
        samples = [to_sample(r) for g in collect(TASKS, step=0, version=version) for r in g]
        for sample, column in zip(samples, engine.forward(samples), strict=True):
            assert float((sample.cols["old_logps"] - column["logps"]).abs().max()) < 1e-4
        drawn.append([s.tokens.tolist() for s in samples])
        figures = engine.update(samples, CrossEntropy())
        assert figures["grad_norm"] > 0
        sampler.load(engine.weights, version + 1)
    assert drawn[0] != drawn[1] != drawn[2]


def test_what_the_native_sampler_drew_trains_at_a_ratio_of_one() -> None:
    """The columns that training reads are the engine's own log-probabilities of the same tokens."""
    model = fam.cached("smollm3")
    sampler = NativeSampler(model, TOKENIZER, eos=[EOS, 11, 12], slots=5)
    collect = Collector(sampler, encode, 4, Sampling(max_tokens=20, think_budget=2), 1, "train")
    groups = collect([*TASKS, Task("open", "w30 <thinking>")], step=0, version=0)
    samples = [to_sample(r) for g in groups for r in g]
    assert any(CLOSE in r.tokens and not r.mask[r.tokens.index(CLOSE)] for r in groups[3]), "some were forced"
    for sample, column in zip(samples, Engine(model).forward(samples), strict=True):
        assert float((sample.cols["old_logps"] - column["logps"]).abs().max()) < 1e-4
