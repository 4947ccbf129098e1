"""Loading models from every source and saving them as plain directories: bit for bit, and readable by other tools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import families as fam
from ladder.attention.plan import IMPLEMENTATION
from ladder.base.errors import UserError
from ladder.contract.training import Sample
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import CrossEntropy
from ladder.models.load import LoadedModel, load_model, save_model

IDS = torch.tensor([[5, 6, 7, 40, 41, 8]])
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}<thinking>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def loaded(family: str = "llama", **changes: Any) -> LoadedModel:
    return LoadedModel(fam.build(family, **changes), fam.tokenizer(), "memory", (fam.EOS,))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


# ---------------------------------------------------------------- presets


def test_the_chain_preset() -> None:
    from ladder.models.load import wrap_tokenizer
    from ladder.tasks.chain import words

    tokenizer = wrap_tokenizer(words.tokenizer(), bos="<s>", eos="</s>", pad="<pad>")
    got = load_model("preset:chain", tokenizer=tokenizer)
    V = len(tokenizer)
    # three layers of four 64 x 64 and three 64 x 168 matrices and two norms, the last norm, and two tables
    assert got.n_parameters == 3 * (4 * 64**2 + 3 * 64 * 168 + 2 * 64) + 64 + 2 * 64 * V == 152_896
    assert got.eos == (tokenizer.eos_token_id,) and got.source == "preset:chain"
    config: Any = got.model.config
    assert (config.bos_token_id, config.pad_token_id) == (tokenizer.bos_token_id, tokenizer.pad_token_id)
    assert not got.model.training


def test_a_preset_is_a_function_of_its_seed() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return list(load_model("preset:small", tokenizer=fam.tokenizer(), seed=seed).model.parameters())

    before = torch.get_rng_state()
    one, again, other = weights(1), weights(1), weights(2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a.ndim == 2)


def test_a_presets_configuration_can_be_changed() -> None:
    got = load_model("preset:chain", tokenizer=fam.tokenizer(), config={"hidden_size": 32}, dtype="bfloat16")
    embedding: Any = got.model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    assert embedding.weight.shape == (fam.VOCAB, 32) and embedding.weight.dtype == torch.bfloat16


# ---------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma2"])
def test_a_saved_model_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    first = loaded(family)
    save_model(first, tmp_path)
    assert first.model.config._attn_implementation == IMPLEMENTATION  # pyright: ignore
    second = load_model(str(tmp_path))
    assert second.model.config._attn_implementation == IMPLEMENTATION  # pyright: ignore
    a, b = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert second.tokenizer.encode("w5 w6 </s>") == [5, 6, fam.EOS]
    assert second.eos == (fam.EOS,) and second.source == str(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma2"])
def test_transformers_without_ladder_loads_a_saved_model(family: str, tmp_path: Path) -> None:
    save_model(loaded(family), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", local_files_only=True)
    assert torch.equal(logits(plain), logits(fam.cached(family, "eager")))
    assert AutoTokenizer.from_pretrained(tmp_path).encode("w5 w6 </s>") == [5, 6, fam.EOS]
    text = (tmp_path / "config.json").read_text() + (tmp_path / "tokenizer_config.json").read_text()
    assert "ladder" not in text and not json.loads((tmp_path / "config.json").read_text()).get("auto_map")
    default = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert default.config.use_cache and default.config._attn_implementation != IMPLEMENTATION


def test_saving_a_trained_model_again_gives_the_same_files(tmp_path: Path) -> None:
    first = loaded()
    sample = Sample(torch.arange(5, 12), torch.tensor([False] + [True] * 6))
    Engine(first.model, Optim(lr=0.1)).update([sample], CrossEntropy())
    save_model(first, tmp_path / "a")
    save_model(load_model(str(tmp_path / "a")), tmp_path / "b")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    for name in files:
        if name != "tokenizer_config.json":  # transformers notes in it that it was read from a directory
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "b", attn_implementation="eager")
    assert not torch.allclose(logits(plain), logits(fam.cached("llama", "eager")), atol=0.1)


# ---------------------------------------------------------------- end-of-answer tokens


def test_eos_is_of_tokenizer_template_and_generation_config(tmp_path: Path) -> None:
    first = loaded()
    first.tokenizer.chat_template = TEMPLATE
    save_model(replace(first, eos=(fam.EOS, 9)), tmp_path)
    second = load_model(str(tmp_path))
    assert second.eos == (fam.EOS, fam.OPEN, 9)
    save_model(second, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["eos_token_id"] == [2, 3, 9]


def test_a_template_whose_turn_end_is_no_single_token_is_no_error(tmp_path: Path) -> None:
    first = loaded()
    first.tokenizer.chat_template = TEMPLATE.replace("<thinking>", " </thinking> </s>")
    save_model(first, tmp_path)
    assert load_model(str(tmp_path)).eos == (fam.EOS,)


def test_transformers_generation_stops_at_every_eos_token(tmp_path: Path) -> None:
    model = fam.chain({5: 6, 6: 9, 9: 7, 7: 8})
    save_model(LoadedModel(model, fam.tokenizer(), "memory", (fam.EOS, 9)), tmp_path)
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    out = plain.generate(torch.tensor([[5]]), attention_mask=torch.ones(1, 1), max_new_tokens=10, do_sample=False)
    assert out.tolist() == [[5, 6, 9]]


def test_a_model_without_any_eos_token_raises(tmp_path: Path) -> None:
    save_model(loaded(), tmp_path)
    for name, key in (("tokenizer_config.json", "eos_token"), ("generation_config.json", "eos_token_id")):
        config = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({k: v for k, v in config.items() if k != key}))
    with pytest.raises(UserError, match=r"names a token that ends an answer\. Hint: "):
        load_model(str(tmp_path))


# ---------------------------------------------------------------- dropout


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"attention_dropout": 0.3}),
        ("gpt2", {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}),
        ("phi3", {"attention_dropout": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}),
    ],
)
def test_dropout_is_off_even_in_training(family: str, fields: dict[str, float], tmp_path: Path) -> None:
    save_model(loaded(family, **fields), tmp_path)
    for name, value in fields.items():
        assert json.loads((tmp_path / "config.json").read_text())[name] == value
    got = load_model(str(tmp_path))
    assert all(getattr(got.model.config, name) == 0 for name in fields)
    sample = Sample(torch.arange(5, 12), torch.tensor([False] + [True] * 6))
    (want,) = Engine(got.model).forward([sample])
    e = Engine(got.model, Optim(), checkpointing=True)
    assert got.model.training
    for _ in range(3):
        torch.testing.assert_close(e.forward([sample])[0]["logps"], want["logps"])


# ---------------------------------------------------------------- invalid sources


def refused(source: str, **options: Any) -> str:
    """The message of the UserError that loading raises."""
    with pytest.raises(UserError, match=r"Hint: ") as caught:
        load_model(source, **options)
    return str(caught.value)


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    assert "no such model directory" in refused(str(tmp_path / "nope"))
    assert "no such model directory" in refused("./nope") and "no such model directory" in refused("a/b/c")
    assert "config.json is missing" in refused(str(tmp_path))
    assert "there is no such file" in refused(str(tmp_path / "x.gguf"))
    text = refused("preset:huge", tokenizer=fam.tokenizer())
    assert "no preset is called 'huge'. Hint: one of chain, small" in text
    assert "a preset has no tokenizer" in refused("preset:chain")


def test_a_hub_id_that_cannot_be_reached() -> None:
    text = refused("nobody-here/no-such-model")
    assert "'nobody-here/no-such-model' is neither a local directory nor reachable on the hub" in text


@pytest.mark.parametrize("left", [0, 4, 200, 0.5, 0.999])
def test_truncated_weights(left: float, tmp_path: Path) -> None:
    save_model(loaded(), tmp_path)
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(left * len(raw)) if 0 < left < 1 else int(left)])
    text = refused(str(tmp_path))
    assert text.startswith(f"{tmp_path}: model: the model cannot be read (") and "cut short" in text


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    save_model(loaded(), tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config[:50])
    assert "cannot be read" in refused(str(tmp_path))
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").unlink()
    assert "no file named model.safetensors" in refused(str(tmp_path))


def test_missing_weights_are_not_filled_with_noise(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(loaded(), tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "lm_head" not in k}, path, {"format": "pt"})
    assert "lack 1 of its weights (lm_head.weight" in refused(str(tmp_path))


def test_invalid_options(tmp_path: Path) -> None:
    tokenizer = fam.tokenizer()
    assert "model.dtype: there is no dtype 'float12'" in refused("preset:chain", tokenizer=tokenizer, dtype="float12")
    assert "model.device: 'tpu9'" in refused("preset:chain", tokenizer=tokenizer, device="tpu9")
    with pytest.raises(UserError, match=r"model\.config: LlamaConfig has no field 'hiden_size'"):
        load_model("preset:chain", tokenizer=tokenizer, config={"hiden_size": 3})
    save_model(loaded(vocab_size=100), tmp_path)
    assert "only a preset's configuration" in refused(str(tmp_path), config={"hidden_size": 3})
    save_model(LoadedModel(fam.build("llama", vocab_size=50), tokenizer, "memory", (2,)), tmp_path / "small")
    assert "the tokenizer has 100 tokens, but the model's embedding has 50" in refused(str(tmp_path / "small"))


# ---------------------------------------------------------------- GGUF


def write_gguf(path: Path, model: Any) -> None:
    """Writes a tiny Llama in llama.cpp's layout: other names, and queries and keys in its rotary order."""
    gguf = pytest.importorskip("gguf")
    c = model.config
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(c.vocab_size)
    w.add_tokenizer_model("gpt2")
    w.add_token_list([*(fam.SPECIAL[i] for i in range(5)), *map(chr, range(33, 127)), "ab"])
    w.add_token_types([gguf.TokenType.CONTROL if i < 3 else gguf.TokenType.NORMAL for i in range(fam.VOCAB)])
    w.add_token_merges(["a b"])
    w.add_bos_token_id(fam.BOS)
    w.add_eos_token_id(fam.EOS)
    w.add_pad_token_id(fam.PAD)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }
    for name, p in model.named_parameters():
        x = p.detach()
        if "q_proj" in name or "k_proj" in name:
            heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
            x = x.view(heads, 2, -1, x.shape[1]).transpose(1, 2).reshape(x.shape)
        for hf_name, gguf_name in names.items():
            name = name.replace(hf_name, gguf_name)
        w.add_tensor(name, x.contiguous().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def test_a_gguf_file_is_loaded_saved_and_loaded_again(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = fam.build("llama")
    write_gguf(tmp_path / "tiny.gguf", model)
    first = load_model(str(tmp_path / "tiny.gguf"))
    assert first.eos == (fam.EOS,)
    (got,) = Engine(first.model).forward([Sample(IDS[0], torch.tensor([False] + [True] * 5))])
    torch.testing.assert_close(got["logps"], fam.alone(fam.cached("llama", "eager"), IDS[0].tolist()))
    save_model(first, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", attn_implementation="eager")
    torch.testing.assert_close(logits(plain), logits(fam.cached("llama", "eager")))
    second = load_model(str(tmp_path / "plain"))
    assert second.tokenizer.encode("abba") == [99, 70, 69] == first.tokenizer.encode("abba")
    assert second.eos == first.eos and second.tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_a_truncated_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, fam.build("llama"))
    path.write_bytes(path.read_bytes()[:3000])
    assert "cannot be read" in refused(str(path))
