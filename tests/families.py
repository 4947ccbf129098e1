"""Tiny random models of every family the house is tested on, and a word-level tokenizer, for tests to share.

Token i reads "w<i>" except for the few special ones below, so that ids can be told from texts at sight. Weights are
drawn large enough for attention, windows and soft caps to show in the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import threads
from ladder.attention.plan import IMPLEMENTATION
from ladder.base.errors import UserError
from ladder.contract.training import Loss, Unit
from ladder.engine.engine import Engine
from ladder.models.load import wrap_tokenizer

threads.settle()

PAD, BOS, EOS, OPEN, CLOSE = range(5)
DOUBLE = 99
"""Reads "w5 w6", which is encoded as [5, 6]: whoever tokenises a text again is found out."""
SPECIAL = {PAD: "<pad>", BOS: "<s>", EOS: "</s>", OPEN: "<thinking>", CLOSE: "</thinking>", DOUBLE: "w5 w6"}
VOCAB = 100
WINDOW = 8
CONTEXT = 256


def tokenizer() -> Any:
    """One word, one token; texts are words joined by spaces; nothing is put before or behind them."""
    t = Tokenizer(models.WordLevel({SPECIAL.get(i, f"w{i}"): i for i in range(VOCAB)}, unk_token="<pad>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return wrap_tokenizer(t, bos="<s>", eos="</s>", pad="<pad>")


@dataclass(frozen=True)
class Family:
    """A configuration class, its model class, and what makes the family what it is."""

    config: type
    model: type
    changes: dict[str, Any] = field(default_factory=dict)


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
HEADS = {"head_dim": 12, "query_pre_attn_scalar": 12}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
UNTIED = {"tie_word_embeddings": False}

FAMILIES: dict[str, Family] = {
    "llama": Family(tf.LlamaConfig, tf.LlamaForCausalLM, UNTIED),
    "qwen2": Family(tf.Qwen2Config, tf.Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": Family(tf.Qwen3Config, tf.Qwen3ForCausalLM, {"head_dim": 12, "tie_word_embeddings": True}),
    "gemma2": Family(
        tf.Gemma2Config,
        tf.Gemma2ForCausalLM,
        {**HEADS, **MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": Family(tf.Gemma3TextConfig, tf.Gemma3ForCausalLM, {**HEADS, **MIXED}),
    "mistral": Family(tf.MistralConfig, tf.MistralForCausalLM, {**UNTIED, "sliding_window": WINDOW}),
    "phi3": Family(tf.Phi3Config, tf.Phi3ForCausalLM, UNTIED),
    "gpt2": Family(tf.GPT2Config, tf.GPT2LMHeadModel),
    "smollm3": Family(tf.SmolLM3Config, tf.SmolLM3ForCausalLM, {"no_rope_layer_interval": 2}),
}
NAMES = tuple(FAMILIES)
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
DROPOUTS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def build(name: str, implementation: str = IMPLEMENTATION, seed: int = 0, **changes: Any) -> Any:
    """A family's tiny model with fixed random weights; equal arguments give equal weights whatever reads them."""
    family = FAMILIES[name]
    sizes: dict[str, Any] = dict(SIZES)
    if name == "gpt2":
        sizes = {GPT2_NAMES.get(k, k): v for k, v in sizes.items() if k != "num_key_value_heads"} | DROPOUTS
    config = family.config(**(sizes | family.changes | changes))
    config._attn_implementation = implementation
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = family.model(config)
    _weights(model, seed)
    return model.eval()


@cache
def cached(name: str, implementation: str = IMPLEMENTATION) -> Any:
    """`build`, once per process, for tests that change nothing."""
    return build(name, implementation).requires_grad_(False)


def _weights(model: nn.Module, seed: int) -> None:
    """Matrices at 1.5 / sqrt(fan in), tables so that what enters stays small beside what the layers add, and
    vectors (norms, biases) a little off their start."""
    g = torch.Generator().manual_seed(seed)
    table = 0.2 if "Gemma" in type(model).__name__ else 0.5  # Gemma multiplies its embeddings by sqrt(width)
    with torch.no_grad():
        for p in model.parameters():
            x = torch.randn(p.shape, generator=g)
            if p.ndim < 2:
                p.add_(0.1 * x)
            else:
                p.copy_(x * (table if VOCAB in p.shape or CONTEXT in p.shape else 1.5 * p.shape[-1] ** -0.5))


def alone(model: Any, tokens: list[int], temperature: float = 1.0) -> Tensor:
    """log p(tokens[t] | tokens[:t]) by transformers itself: one sequence, no cache. [T], 0 at the first."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1].float()
    logps = (logits / temperature).log_softmax(-1)
    return torch.cat([torch.zeros(1), logps.gather(1, ids[0, 1:, None])[:, 0]])


def bigram(logits_VV: Tensor) -> Any:
    """A Llama whose next-token logits are exactly logits_VV[last token]: what it should draw is known by hand."""
    width = 128
    model = build("llama", hidden_size=width, tie_word_embeddings=False, rms_norm_eps=1e-12)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight[:, :VOCAB] = torch.eye(VOCAB)
        model.lm_head.weight[:, :VOCAB] = logits_VV.T * width**-0.5  # the norm makes the one hot sqrt(width)
    return model.requires_grad_(False)


def chain(edges: Mapping[int, int]) -> Any:
    """A model that always goes from token a to token edges[a] (and from any other to EOS)."""
    logits = torch.full((VOCAB, VOCAB), -20.0)
    for a in range(VOCAB):
        logits[a, edges.get(a, EOS)] = 20.0
    return bigram(logits)


def gradients(e: Engine, units: Sequence[Unit], loss: Loss) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What the engine hands its optimiser, and the update's figures."""
    seen: dict[str, Tensor] = {}
    optimizer = e.optimizer
    assert optimizer is not None

    def step() -> float:
        seen.update({n: p.grad.clone() for n, p in optimizer.stepped.items() if p.grad is not None})
        return 0.0

    optimizer.step = step
    return seen, e.update(units, loss)


def refuses(kind: type, fields: dict[str, object], blamed: str) -> None:
    """What cannot be meant names the field, and how to mend it."""
    with pytest.raises(UserError) as error:
        kind(**fields)
    assert error.value.field == blamed and error.value.hint
