"""Models of random weights in Qwen 2.5's layout, made on the device and written once.

Speed does not depend on what the weights say, and a machine that reaches nothing cannot fetch them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import ours
from benchmarks.speed.gpu_sizes import SIZES, folder
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from ladder.models.lora import attach, save_adapter

COMMON = {"num_key_value_heads": 2, "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": True}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def make(work: Path, inputs: Path, size: str, device: str, wanted: set[str]) -> None:
    """Writes what is wanted ("adapter", "scorer") and the model itself, where they are not there yet."""
    path = work / folder(size)
    if not (path / "done").exists():
        write(causal(inputs, size, device), path, inputs)
    adapter, scorer = path.with_name(f"{path.name}_adapter"), path.with_name(f"{path.name}_scorer")
    if "adapter" in wanted and not adapter.exists():
        save_adapter(attach(causal(inputs, size, device), ours.ADAPTER, ours.SEED), adapter)
    if "scorer" in wanted and not (scorer / "done").exists():
        write(scoring(inputs, size, device), scorer, inputs)


def configuration(inputs: Path, size: str) -> Qwen2Config:
    tokenizer: Any = AutoTokenizer.from_pretrained(inputs)
    # what pads must end nothing and stand in no row: transformers makes its embedding 0, and the norms of every layer
    # multiply the gradient of a row of zeros by a thousand, until it is no number any more, here and there
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    apart = next(i for i in tokenizer.all_special_ids if i not in used)
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": apart}
    return Qwen2Config(**COMMON, **SIZES[size], **tokens)


def causal(inputs: Path, size: str, device: str) -> Any:
    return random(Qwen2ForCausalLM, configuration(inputs, size), device)


def scoring(inputs: Path, size: str, device: str) -> Any:
    config = configuration(inputs, size)
    config.num_labels = 1
    model = random(Qwen2ForSequenceClassification, config, device)
    with torch.no_grad():
        model.score.weight.normal_(0.0, 0.02)
    return model


def random(kind: Any, config: Qwen2Config, device: str) -> Any:
    """In bfloat16, as such models are published."""
    torch.manual_seed(ours.SEED)
    with torch.device(device):
        return kind(config).to(torch.bfloat16)


def write(model: Any, path: Path, inputs: Path) -> None:
    model.save_pretrained(path)
    for name in TOKENIZER:
        if (inputs / name).exists():
            shutil.copy(inputs / name, path / name)
    (path / "done").touch()
