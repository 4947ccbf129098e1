"""The sizes of the models that a GPU is compared on: those of Qwen2.5-0.5B and -1.5B, and one for a processor."""

from __future__ import annotations

VOCABULARY = 151936
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 50176,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "vocab_size": VOCABULARY,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "vocab_size": VOCABULARY,
    },
}


def folder(size: str) -> str:
    """Of a size's model, in the directory of inputs; beside it ..._adapter and ..._scorer."""
    return f"qwen-{size}"
