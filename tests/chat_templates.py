"""Chat templates of several model families, each with a small byte-level tokenizer, and a conversation to render."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ladder.contract.rollouts import Message

GOLDEN = Path(__file__).resolve().parent / "golden"
CORPUS = [
    "What is two and two? The answer is four.\n\nIt is so, because 1 + 3 = 4.",
    "system user assistant model You are a helpful assistant. Hello there, how are you?\n",
    "First line\nSecond line\n\n\nThird  line with  spaces",
]
# template -> (the special tokens of its family, BOS, EOS, the turn's end)
FAMILIES: dict[str, tuple[list[str], str | None, str, str]] = {
    "chatml": (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], None, "<|endoftext|>", "<|im_end|>"),
    "chatml_marked": (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], None, "<|endoftext|>", "<|im_end|>"),
    "llama3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    "gemma": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", "<end_of_turn>"),
    "mistral": (["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", "</s>"),
    "qwen3": (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], None, "<|im_end|>", "<|im_end|>"),
    # its BOS is what opens every turn
    "smollm2": (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], "<|im_start|>", "<|im_end|>", "<|im_end|>"),
}
NAMES = sorted(FAMILIES)
KEEPS_TURNS = [n for n in NAMES if n != "qwen3"]


@cache
def bytelevel(specials: tuple[str, ...], bos: str | None) -> Tokenizer:
    t = Tokenizer(models.BPE())
    # the pattern of GPT-4's kind, which merges newlines: "\n" before an answer that begins with "\n" is one token
    pattern = r"[A-Za-z]+| ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]+[\r\n]*|\s*[\r\n]+|\s+"
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(CORPUS * 4, trainer)
    if bos:  # the tokenizer itself puts a BOS before every text, as Llama's does: the classic way to two of them
        t.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, t.token_to_id(bos))]
        )
    return t


def tokenizer(name: str, *, template: str | None = None, add_bos: bool = True) -> Any:
    specials, bos, eos, _ = FAMILIES[name]
    adds = bos if add_bos and name != "smollm2" else None
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytelevel(tuple(specials), adds), bos_token=bos, eos_token=eos, pad_token=eos
    )
    made.chat_template = (GOLDEN / f"{name}.jinja").read_text() if template is None else template
    return made


@cache
def shared(name: str) -> Any:
    return tokenizer(name)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def bot(text: str) -> Message:
    return {"role": "assistant", "content": text}


TALK = [user("What is two and two?"), bot("The answer is four."), user("Are you sure?"), bot("1 + 3 = 4. Hello ☃!")]
