"""A model so small that the program around it is what takes the time: a Llama of 886,400 random weights over bytes."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ladder.models.load import LoadedModel, load_model, wrap_tokenizer

SPECIAL = ("<pad>", "<s>", "</s>", "<turn>")
TEMPLATE = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def build(seed: int) -> LoadedModel:
    return load_model("preset:small", tokenizer=tokenizer(), seed=seed, config={"intermediate_size": 384})


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and four more: 260."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *alphabet])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    made.add_special_tokens(list(SPECIAL))
    wrapped = wrap_tokenizer(made, bos="<s>", eos="</s>", pad="<pad>")
    wrapped.chat_template = TEMPLATE
    return wrapped
