"""vLLM as a sampler: the handshake without it, and with it (skipped where it is not installed) the whole contract."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import families as fam
import small_run
from ladder.base.errors import UserError
from ladder.contract.rollouts import Request, Sampling
from ladder.contract.training import Sample
from ladder.engine.engine import Engine
from ladder.models.load import LoadedModel, save_model
from ladder.pipeline import recipe as recipes
from ladder.pipeline.plan import plan
from ladder.rollout import vllm
from ladder.rollout.vllm import VLLMSampler, check_arrived, check_names, checksum, how_it_ended, saved_shapes
from ladder.signals.rewards import rescored
from sampler_contract import PROMISES, Case

TOKENIZER = fam.tokenizer()
ENDS = (fam.EOS, *range(5, 11))
PROMPTS = [[20], [21, 22, 23, 24, 25, 26, 27, 28, 29, 30], [31, 32, 33], [34, 35, 36, 37, 38]]
INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")


def score(model: Any) -> Callable[[list[int]], Tensor]:
    def logps(tokens: list[int]) -> Tensor:
        mask = torch.ones(len(tokens), dtype=torch.bool)
        mask[0] = False
        return Engine(model).forward([Sample(torch.tensor(tokens), mask, {}, {})])[0]["logps"]

    return logps


def sampler(model: Any, **options: Any) -> VLLMSampler:
    loaded = LoadedModel(model, TOKENIZER, "memory", ENDS)
    options = {"eos": ENDS, "score": score(model), "context": 128, "cache_gb": 1} | options
    return VLLMSampler(lambda directory: save_model(loaded, directory), TOKENIZER, **options)


# ------------------------------------------------------------ the handshake


def test_a_checksum_sees_every_bit() -> None:
    x = torch.randn(5, 7)
    assert checksum(x) == checksum(x.clone()) == checksum(x.T.contiguous().T)
    other = x.clone()
    other.view(torch.int32)[3, 2] ^= 1
    assert checksum(other) != checksum(x) and checksum(x.bfloat16()) != checksum(x)


@pytest.mark.parametrize(
    ("arrived", "why"),
    [({"a": 1}, "did not take 1 of 2 tensors"), ({"a": 1, "b": 3}, "holds 1 others"), ({}, "did not take 2")],
)
def test_what_was_sent_must_be_what_was_loaded(arrived: dict[str, int], why: str) -> None:
    check_arrived({"a": 1, "b": 2}, {"a": 1, "b": 2})
    with pytest.raises(UserError, match=why):
        check_arrived({"a": 1, "b": 2}, arrived)


@pytest.mark.parametrize("sent", [{}, {"a": [2, 3], "lora_A": [1]}, {"a": [3, 2]}, {"b": [2, 3]}], ids=str)
def test_exactly_the_models_tensors_are_sent(sent: dict[str, list[int]]) -> None:
    check_names({"a": [2, 3]}, {"a": [2, 3]})
    with pytest.raises(UserError, match="not those that it started with"):
        check_names(sent, {"a": [2, 3]})


def test_the_saved_model_names_what_the_engine_sends(tmp_path: Path) -> None:
    for name in ("llama", "qwen3"):
        model = fam.build(name)
        save_model(LoadedModel(model, TOKENIZER, "memory", ENDS), tmp_path / name)
        sent = {n: list(t.shape) for n, t in Engine(model).weights()}
        check_names(sent, saved_shapes(tmp_path / name))
        assert ("lm_head.weight" in sent) == (name == "llama")


def test_how_an_answer_ended() -> None:
    assert how_it_ended([7, fam.EOS], ENDS, fam.EOS) == "eos"
    assert how_it_ended([7, 30], ENDS, None) == "length"
    assert how_it_ended([7, 30], ENDS, "w30") == "stop"


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named() -> None:
    with pytest.raises(UserError, match=r"signal-ladder\[vllm\]"):
        sampler(fam.cached("llama")).generate([Request([7])])


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request([]), "0 of prompt"),
        (Request([7] * 128), "leaves no room"),
        (Request([7], 1, Sampling(stop=("",))), "stop"),
        (Request([7], 1, Sampling(think_budget=3)), "think_budget"),
    ],
)
def test_what_cannot_be_asked_is_the_users_error(request_: Request, why: str) -> None:
    with pytest.raises(UserError, match=why):
        sampler(fam.cached("llama")).generate([request_])


# ------------------------------------------------------------ with vLLM


@cache
def started(name: str) -> tuple[Any, VLLMSampler]:
    """One engine of vLLM a family: it takes ten seconds to start."""
    model = fam.build(name, head_dim=32).requires_grad_(False)
    return model, sampler(model)


def case() -> Case:
    model, made = started("qwen3")
    return Case("vllm", lambda: made, PROMPTS, ENDS, TOKENIZER.decode, weights=model.named_parameters)


@needs_vllm
@pytest.mark.parametrize("promise", PROMISES, ids=lambda p: p.__name__)
def test_the_contract(promise: Callable[[Case], None]) -> None:
    promise(case())


@needs_vllm
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_new_weights_are_drawn_with(name: str) -> None:
    """Tensor by tensor; qwen3's head is its embedding, llama's is its own."""
    model, made = started(name)
    asked = [Request([20, 21, 22], 3, Sampling(8), 1)]
    for version, weight in enumerate(dict(model.named_parameters()).values(), 1):
        before = made.generate(asked)
        weight.mul_(1.1).add_(0.02)
        made.load(model.named_parameters, version)
        after = made.generate(asked)
        assert [c.logps for g in before for c in g] != [c.logps for g in after for c in g]
        for c in after[0]:
            own = score(model)([20, 21, 22, *c.tokens])[3:]
            assert float((own - torch.tensor(c.logps)).abs().max()) < 1e-4
        assert made.version == version and made.canary < 1e-4


@needs_vllm
def test_stale_weights_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap: without packing the tied head again, everything arrives and the canary dies."""
    model, made = started("qwen3")
    made.generate([Request([20], 1, Sampling(4))])
    monkeypatch.setattr(vllm, "_pack_tied_head", lambda *_: None)
    model.model.embed_tokens.weight.mul_(1.2).add_(0.05)
    with pytest.raises(UserError, match="draws with other weights"):
        made.load(model.named_parameters, 1)
    monkeypatch.undo()
    made.load(model.named_parameters, 2)
    with pytest.raises(UserError, match="not those that it started with"):
        made.load(lambda: iter(()), 3)


@needs_vllm
def test_stop_strings_temperature_and_cuts() -> None:
    model, made = started("qwen3")
    (plain,) = made.generate([Request([20, 21], 1, Sampling(8, temperature=0.7), 4)])[0]
    assert len(plain.tokens) > 2
    words = TOKENIZER.decode(plain.tokens).split()
    (done,) = made.generate([Request([20, 21], 1, Sampling(8, temperature=0.7, stop=(words[1],)), 4)])[0]
    assert (done.stop, done.tokens) == ("stop", plain.tokens[:2]) and done.text == words[0] + " "
    greedy = made.generate([Request([20, 21], 2, Sampling(4, temperature=0), 4)])[0]
    own = score(model)([20, 21, *greedy[0].tokens])[2:]
    assert greedy[0].tokens == greedy[1].tokens
    assert float((own - torch.tensor(greedy[0].logps)).abs().max()) < 1e-4


# ------------------------------------------------------------ in a recipe


def test_the_engines_logps_replace_the_samplers_and_the_mismatch_is_a_figure() -> None:
    def unit(drawn: list[float]) -> Sample:
        logps = torch.tensor([0.0, *drawn])
        mask = torch.arange(len(logps)) > 0
        return Sample(torch.arange(len(logps)), mask, {"old_logps": logps, "sampler_logps": logps}, {})

    units = [unit([-1.0, -2.0]), unit([-3.0])]
    own = [torch.tensor([9.0, -1.0, -2.3]), torch.tensor([9.0, -2.9])]
    figures = rescored(units, lambda _: [{"logps": x} for x in own])
    assert [u.cols["old_logps"].tolist() for u in units] == [x.tolist() for x in own]
    assert units[0].cols["sampler_logps"].tolist() == [0, -1, -2]
    k3 = (0 + math.exp(-0.3) - 1 + 0.3 + math.exp(0.1) - 1 - 0.1) / 3
    assert figures == pytest.approx({"mismatch/mean": 0.4 / 3, "mismatch/max": 0.3, "mismatch/kl": k3}, abs=1e-6)


RL = "stages: {rl: {kind: rl, loss: {kind: PolicyClip, importance_cap: 2.0}, %s}}"
HEAD = "model: {source: preset:chain}\ntask: chain\nreward: chain\nsampler: {kind: %s}\n"


@pytest.mark.parametrize(
    ("kind", "more", "blamed"),
    [
        ("vllm", "steps: 1", None),
        ("native", "steps: 1", "loss.importance_cap"),
        ("vllm", "lag: 2", "rl.lag"),
        ("vllm", "rollouts: start", "rl.rollouts"),
    ],
)
def test_only_vllm_is_corrected_for_and_only_own_answers_are_its(
    kind: str, more: str, blamed: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(HEAD % kind + RL % more, encoding="utf-8")
    recipe, document = recipes.load(str(path))
    if blamed is None:
        assert plan(recipe, document, tmp_path / "out")
        return
    with pytest.raises(UserError, match=blamed):
        plan(recipe, document, tmp_path / "out")


@needs_vllm
def test_a_stage_is_trained_on_what_vllm_draws(tmp_path: Path) -> None:
    """Two steps from random weights: the second draws with weights that were handed over."""
    path = tmp_path / "a.yaml"
    head = HEAD.replace("preset:chain}", "preset:chain, config: {num_attention_heads: 2, num_key_value_heads: 2}}")
    more = "steps: 2, prompts_per_step: 4, group_size: 4, measure_kl: false, drop_zero_variance: false, "
    more += "sampling: {max_tokens: 12}"
    path.write_text(head % "vllm, cache_gb: 1" + RL % more, encoding="utf-8")
    small_run.run(tmp_path / "out", recipe=path)
    rows = [json.loads(line) for line in next((tmp_path / "out").rglob("metrics.jsonl")).read_text().splitlines()]
    apart = [row["mismatch/max"] for row in rows if "mismatch/max" in row]
    assert len(apart) == 2 and max(apart) < 1e-4
