"""LoRA: target layers, only the adapter is trained, the model with the adapter off is the reference, and saving."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import families as fam
from ladder.base.errors import UserError
from ladder.contract.rollouts import Request, Sampling
from ladder.contract.training import Sample, Unit
from ladder.decoding.sampler import NativeSampler
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import CrossEntropy, PolicyClip
from ladder.models.head import Head
from ladder.models.load import LoadedModel, load_model, save_model
from ladder.models.lora import LoRA, adapter_off, attach, merge, save_adapter, save_merged

IDS = torch.arange(5, 25)
SAMPLES: list[Unit] = [Sample(IDS + i, torch.tensor([False] * 6 + [True] * 14)) for i in (0, 0, 7, 30)]


def attached(family: str = "llama", **fields: Any) -> PeftModel:
    return attach(fam.build(family), LoRA(rank=4, **fields), seed=1)


def trained(family: str = "llama", **options: Any) -> Engine:
    """An engine after three optimiser steps on the adapter."""
    wrapped = attached(family)
    e = Engine(wrapped, Optim(lr=0.02), without=lambda: adapter_off(wrapped), **options)
    for _ in range(3):
        e.update(SAMPLES, CrossEntropy())
    return e


def logps(model: Any) -> torch.Tensor:
    return torch.cat([c["logps"] for c in Engine(model).forward(SAMPLES)])


def plain_logits(model: Any) -> torch.Tensor:
    """Logits of transformers' (or PEFT's) own forward pass."""
    with torch.no_grad():
        return model(input_ids=IDS[None], use_cache=False).logits


def layers(wrapped: PeftModel) -> set[str]:
    """The names of the layers that have an adapter."""
    return {n.split(".lora_")[0].rsplit(".", 1)[-1] for n, p in wrapped.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("family", "attention", "mlp", "every"),
    [
        (
            "llama",
            {"q_proj", "k_proj", "v_proj", "o_proj"},
            {"gate_proj", "up_proj", "down_proj"},
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
        ("gpt2", {"c_attn"}, {"c_fc"}, {"c_attn", "c_fc", "c_proj"}),
        (
            "phi3",
            {"qkv_proj", "o_proj"},
            {"gate_up_proj", "down_proj"},
            {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
        ),
    ],
)
def test_targets_of_each_family(family: str, attention: set[str], mlp: set[str], every: set[str]) -> None:
    assert layers(attached(family)) == attention
    assert layers(attached(family, targets="mlp")) == mlp
    assert layers(attached(family, targets="all-linear")) == every
    one = sorted(every)[0]
    assert layers(attached(family, targets=one)) == layers(attached(family, targets=(one,))) == {one}


@pytest.mark.parametrize("targets", ["q_porj", ("q_proj", "q_porj"), ("lm_head",)])
def test_unknown_targets(targets: Any) -> None:
    with pytest.raises(UserError) as caught:
        attached(targets=targets)
    text = str(caught.value)
    assert text.startswith("model.lora.targets: the model has no linear layer called ") and "Hint: " in text
    assert ("q_porj" in text or "lm_head" in text.split("(")[0]) and "called q_proj" not in text
    assert "it has: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in text


def test_shapes_scale_and_seed() -> None:
    where = "base_model.model.model.layers.0.self_attn.k_proj.lora_{}.default.weight"
    named = dict(attached(alpha=12).named_parameters())
    a, b = named[where.format("A")], named[where.format("B")]
    assert a.shape == (4, 32) and b.shape == (16, 4) and not b.any() and a.any()
    layer: Any = attached(alpha=12).get_submodule("base_model.model.model.layers.0.self_attn.k_proj")
    assert layer.scaling == {"default": 3.0}
    before = torch.get_rng_state()
    again, other = attached(alpha=12), attach(fam.build("llama"), LoRA(rank=4), seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(again.get_parameter(where.format("A")), a)
    assert not torch.equal(other.get_parameter(where.format("A")), a)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_new_adapter_changes_no_logps(family: str) -> None:
    assert torch.equal(logps(attached(family)), logps(fam.cached(family)))


@pytest.mark.parametrize(("family", "workers"), [("llama", 1), ("llama", 2), ("gpt2", 1), ("phi3", 1)])
def test_only_the_adapter_trains(family: str, workers: int) -> None:
    e = trained(family, workers=workers)
    assert all("lora_" in n for n in e.trained) and len(e.trained) >= 4
    fresh = dict(attached(family).named_parameters())
    for name, p in e.weights():
        moved = not torch.equal(p, fresh[name])
        assert moved == ("lora_" in name), name
    assert (logps(e.model) - logps(fam.cached(family))).abs().max() > 0.05


def test_the_head_is_frozen_with_an_adapter() -> None:
    head = Head.of(attached())
    assert not head.weight.requires_grad


def test_activation_checkpointing_and_splits_change_no_gradient() -> None:
    final_logps = []
    splits: list[dict[str, Any]] = [{}, {"checkpointing": True}, {"budget": 20, "share_prefix": False}, {"workers": 2}]
    for options in splits:
        e = trained(**options)
        final_logps.append(torch.cat([c["logps"] for c in e.forward(SAMPLES)]))
    for other in final_logps[1:]:
        torch.testing.assert_close(other, final_logps[0], atol=2e-4, rtol=1e-4)


def test_with_the_adapter_off_the_model_is_the_reference_exactly() -> None:
    e = trained()
    want = Engine(fam.cached("llama")).forward(SAMPLES, entropy=True)
    for got, ref in zip(e.forward(SAMPLES, entropy=True, reference=True), want, strict=True):
        assert torch.equal(got["logps"], ref["logps"]) and torch.equal(got["entropy"], ref["entropy"])
    for got, ref in zip(e.forward(SAMPLES), want, strict=True):
        assert not torch.equal(got["logps"], ref["logps"])
    assert {n for n, p in e.model.named_parameters() if p.requires_grad} == set(e.trained)


def test_training_continues_after_reference_logps_were_computed() -> None:
    """After the adapter was off and on again, the model must still hold the parameters that the optimiser steps."""
    plain, switched = trained(), trained()
    switched.forward(SAMPLES, reference=True)
    for e in (plain, switched):
        e.update(SAMPLES, CrossEntropy())
    a, b = dict(plain.weights()), dict(switched.weights())
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_the_adapter_is_on_again_after_an_error() -> None:
    wrapped = attached()
    with pytest.raises(RuntimeError, match="in between"), adapter_off(wrapped):
        raise RuntimeError("in between")
    assert layers(wrapped) == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_no_reference_when_something_else_is_trained() -> None:
    wrapped = attached()
    wrapped.get_parameter("base_model.model.model.norm.weight").requires_grad_(True)
    with pytest.raises(UserError, match=r"norm\.weight is trained outside the adapter"), adapter_off(wrapped):
        pass


def test_kl_to_the_reference_is_zero_at_step_0() -> None:
    wrapped = attached()
    e = Engine(wrapped, Optim(), without=lambda: adapter_off(wrapped))
    units = copy.deepcopy(SAMPLES)
    for s, ref, old in zip(units, e.forward(units, reference=True), e.forward(units), strict=True):
        assert isinstance(s, Sample)
        s.cols |= {"ref_logps": ref["logps"], "old_logps": old["logps"], "advantages": torch.ones(len(IDS))}
    figures = e.update(units, PolicyClip(kl_coef=0.1))
    assert figures["first/kl"] == pytest.approx(0, abs=1e-9)
    assert figures["first/ratio/mean"] == pytest.approx(1, abs=1e-5)


def test_freeze_keeps_the_adapter() -> None:
    e = trained()
    frozen = e.freeze()
    assert torch.equal(logps(frozen.model), logps(e.model))
    e.update(SAMPLES, CrossEntropy())
    assert not torch.equal(logps(frozen.model), logps(e.model))


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    straight = trained()
    straight.save(tmp_path)
    wrapped = attach(fam.build("llama"), LoRA(rank=4), seed=77)
    resumed = Engine(wrapped, Optim(lr=0.02))
    resumed.load(tmp_path)
    for e in (straight, resumed):
        e.update(SAMPLES, CrossEntropy())
    a, b = dict(straight.weights()), dict(resumed.weights())
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert (tmp_path / "trained.safetensors").stat().st_size < 12_000  # the adapter, not the model


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_the_sampler_samples_from_the_adapted_model(family: str) -> None:
    e = trained(family)
    sampler = NativeSampler(e.model, fam.tokenizer(), eos=[fam.EOS])
    (answers,) = sampler.generate([Request(IDS[:6].tolist(), 3, Sampling(max_tokens=8), key=4)])
    for answer in answers:
        tokens = torch.tensor(IDS[:6].tolist() + answer.tokens)
        mask = torch.arange(len(tokens)) >= 6
        (columns,) = e.forward([Sample(tokens, mask)])
        torch.testing.assert_close(columns["logps"][6:], torch.tensor(answer.logps), atol=3e-5, rtol=1e-5)
    head, base = Head.of(e.model), Head.of(fam.build(family))
    assert torch.equal(head.weight, base.weight) and (head.scale, head.softcap) == (base.scale, base.softcap)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_merged_model_is_plain_and_has_equal_logps(family: str) -> None:
    e = trained(family)
    want = logps(e.model)
    merged = merge(copy.deepcopy(e.model))  # pyright: ignore[reportArgumentType]
    assert type(merged) is type(fam.cached(family))
    names = dict(fam.cached(family).named_parameters()).keys()
    assert dict(merged.named_parameters()).keys() == names and all(p.requires_grad for p in merged.parameters())
    torch.testing.assert_close(logps(merged), want, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_peft_without_ladder_loads_the_adapter(family: str, tmp_path: Path) -> None:
    e = trained(family)
    assert isinstance(e.model, PeftModel)
    save_adapter(e.model, tmp_path / "adapter")
    save_model(LoadedModel(fam.build(family), fam.tokenizer(), "memory", (fam.EOS,)), tmp_path / "base")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (tmp_path / "adapter").iterdir()}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 32, "CAUSAL_LM")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager", local_files_only=True)
    untouched = plain_logits(base)
    both = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    got = plain_logits(both)[0, :-1].log_softmax(-1).gather(1, IDS[1:, None])[:, 0]
    torch.testing.assert_close(got[5:], e.forward(SAMPLES)[0]["logps"][6:], atol=3e-5, rtol=1e-5)
    assert not torch.allclose(plain_logits(both), untouched, atol=0.01)


def test_a_merged_directory_is_a_plain_model_and_training_continues(tmp_path: Path) -> None:
    e = trained()
    want = logps(e.model)
    save_merged(LoadedModel(e.model, fam.tokenizer(), "memory", (fam.EOS,)), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", local_files_only=True)
    assert "lora" not in str(list(dict(plain.named_parameters())))
    got = plain_logits(plain)[0, :-1].log_softmax(-1).gather(1, IDS[1:, None])[:, 0]
    torch.testing.assert_close(got[5:], e.forward(SAMPLES)[0]["logps"][6:], atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(logps(load_model(str(tmp_path)).model), want, atol=3e-5, rtol=1e-5)
    assert torch.equal(logps(e.model), want) and isinstance(e.model, PeftModel)
    e.update(SAMPLES, CrossEntropy())
    assert not torch.equal(logps(e.model), want)


def test_saving_an_adapter_sends_no_request_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default PEFT asks the hub whether the base model's vocabulary grew, and a run would wait for the network."""
    import peft.utils.save_and_load as inner

    def hub_request(*_: Any, **__: Any) -> bool:
        raise AssertionError("a request to the hub")

    monkeypatch.setattr(inner, "check_file_exists_on_hf_hub", hub_request)
    wrapped = attached()
    wrapped.peft_config["default"].base_model_name_or_path = "somebody/some-model"
    save_adapter(wrapped, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somebody/some-model"


def test_a_small_bfloat16_adapter_survives_merging() -> None:
    """The adapter's change is below bfloat16's precision for most weights; merged in float32, nothing of it is lost."""
    wrapped = attach(fam.build("llama").bfloat16(), LoRA(rank=2, targets="all-linear"), seed=1)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.fill_(1e-4)
    layer: Any = wrapped.get_base_model().model.layers[0].self_attn.q_proj  # pyright: ignore
    before = layer.base_layer.weight.detach().float().clone()
    change = layer.get_delta_weight("default").detach().float()
    merged = merge(wrapped)
    after = merged.model.layers[0].self_attn.q_proj.weight.detach()
    assert after.dtype == torch.float32 and 0 < float(change.abs().max()) < 1e-3
    torch.testing.assert_close(after - before, change, atol=1e-7, rtol=0.02)
