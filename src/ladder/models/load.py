"""Where a model comes from and how it goes back to disk.

Sources: a hub id, a local Hugging Face directory, a GGUF file (dequantised), `preset:NAME` (random weights). Saved as
a plain Hugging Face directory that any other tool loads: safetensors, config, tokenizer, chat template, generation
config with every token that ends an answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from ladder.attention.plan import IMPLEMENTATION
from ladder.base.errors import UserError, missing_extra
from ladder.data.chat import stop_ids
from ladder.models import presets

transformers_logging.disable_progress_bar()  # a run has bars of its own

DROPOUTS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "resid_dropout")
Scalar = Literal[False, True, "trained"]
"""Whether a model has a score for a head: no, yes (a new one where it has none), or one that was trained."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(slots=True)
class LoadedModel:
    """A model ready for the engine, its tokenizer, and the token ids that end an answer."""

    model: nn.Module
    tokenizer: Any
    source: str
    eos: tuple[int, ...] = field(default=())

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def load_model(
    source: str,
    *,
    tokenizer: Any = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    config: dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    scalar: Scalar = False,
) -> LoadedModel:
    """Loads a model and tokenizer. tokenizer: required for presets, which have none of their own; else optional.

    scalar: with a head of one number a position instead of the vocabulary's (transformers' sequence classifier with
    one label); it starts at 0 when the source has none, and "trained" asks that it has one. config: fields to change in
    a preset. Raises UserError naming what is missing or broken.
    """
    kind = _dtype(dtype)
    _take_device(device)
    if source.startswith("preset:"):
        if tokenizer is None:
            raise UserError("a preset has no tokenizer of its own", field="model", hint="use a task that brings one")
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        changes = special | (config or {})
        model = presets.build(source.removeprefix("preset:"), len(tokenizer), seed, IMPLEMENTATION, changes)
        return _ready(model, tokenizer, source, kind, device)
    if config:
        raise UserError(
            "only a preset's configuration can be changed", field="model.config", hint="leave model.config out"
        )
    where, extra = _place(source)
    options = {"revision": revision, "trust_remote_code": trust_remote_code, **extra}
    try:
        its_own = None if tokenizer else AutoTokenizer.from_pretrained(where, **options)
        loader: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
        labels = {"num_labels": 1} if scalar else {}
        if scalar:
            _check_labels(AutoConfig.from_pretrained(where, **options), scalar, source)
        with _quietly():
            both: Any = loader.from_pretrained(
                where, attn_implementation=IMPLEMENTATION, dtype=kind, output_loading_info=True, **labels, **options
            )
        model, info = both
    except UserError:
        raise
    except ImportError as err:
        if "gguf" in str(err).lower():
            raise missing_extra("gguf", "gguf", "reading a GGUF file") from err
        raise
    except Exception as err:  # transformers, safetensors and the hub raise dozens of kinds; all mean one thing here
        raise _unreadable(source, err) from err
    if scalar is True:
        info["missing_keys"] = _fresh_score(model, set(info["missing_keys"]))
    if info["missing_keys"]:  # transformers fills them with random numbers and a warning
        raise UserError(
            f"the model's files lack {len(info['missing_keys'])} of its weights ({min(info['missing_keys'])}, ...)",
            file=source,
            field="model",
            hint="give a complete sequence classifier with one label"
            if scalar == "trained"
            else "give a complete causal language model, not its base, an adapter or a classifier",
        )
    if its_own is not None and "gguf_file" in extra:
        _drop_invented(its_own, model.get_input_embeddings().weight.shape[0])
    loaded = _ready(model, tokenizer or its_own, source, kind, device)
    if scalar:
        model.config.pad_token_id = _pad_apart(loaded)
    return loaded


def _check_labels(config: Any, scalar: Scalar, source: str) -> None:
    """Raises UserError for a classifier of several labels, and for what is none where a trained score is wanted."""
    classifies = any("ForSequenceClassification" in str(name) for name in config.architectures or ())
    if classifies and config.num_labels != 1:
        raise UserError(
            f"the model {source} tells {config.num_labels} labels apart, and a score is one number",
            field="model",
            hint="give a sequence classifier with one label",
        )
    if scalar == "trained" and not classifies:
        raise UserError(
            f"the model {source} has no score",
            field="model",
            hint="give a sequence classifier with one label",
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' table of missing and left-over weights: what is missing is an error of ours."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _fresh_score(model: Any, missing: set[str]) -> set[str]:
    """Sets a score that the files do not hold to 0, so that training starts from equal scores; what else is missing."""
    if "score.weight" in missing:
        torch.nn.init.zeros_(model.score.weight)
    return missing - {"score.weight"}


def _pad_apart(loaded: LoadedModel) -> int:
    """A pad token that ends no answer: transformers reads a score at the last token that is no pad, and with pad = EOS
    that would be the one before the terminator. Raises UserError when the tokenizer has none."""
    tokenizer = loaded.tokenizer
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids):
        if token is not None and token not in loaded.eos:
            return int(token)
    raise UserError(
        "the tokenizer has no special token apart from those that end an answer, so nothing can stand for padding",
        field="model",
        hint="add a pad_token to the tokenizer",
    )


def _drop_invented(tokenizer: Any, rows: int) -> None:
    """transformers gives every byte-level tokenizer out of a GGUF file GPT-2's <|endoftext|>; where the file has none
    (Llama 3), that is one token more than the model knows."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] < rows]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"there is no {name!r}", field="model.dtype", hint=f"one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _take_device(device: str) -> None:
    """Makes it the current one of its kind, if it names one. Raises UserError for a device that cannot be used."""
    try:
        torch.empty(0, device=device)
        if (place := torch.device(device)).type == "cuda" and place.index is not None:
            torch.cuda.set_device(place)  # where kernels of Triton's are launched and graphs are captured
    except (RuntimeError, AssertionError) as err:  # an unknown name, and a torch built without it
        text = str(err).splitlines()[0]
        raise UserError(f"{device!r} cannot be used ({text})", field="model.device", hint="use cpu") from err


def _place(source: str) -> tuple[str, dict[str, Any]]:
    """Where transformers should look, and the GGUF file's name if it is one."""
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            raise UserError("there is no such file", file=path, field="model", hint="check the path")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                "this directory holds no model: config.json is missing",
                file=path,
                field="model",
                hint="give the directory that holds config.json, the tokenizer and the .safetensors files",
            )
        return str(path), {"local_files_only": True}
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(
            "there is no such model directory or GGUF file", file=source, field="model", hint="check the path"
        )
    return source, {}


def _unreadable(source: str, err: Exception) -> UserError:
    text = " ".join(str(err).split())
    if Path(source).expanduser().exists():
        return UserError(
            f"the model cannot be read ({type(err).__name__}: {text[:300]})",
            file=source,
            field="model",
            hint="copy or download it again: a file is missing, cut short or damaged",
        )
    why = f"({type(err).__name__}: {text[:200]})"
    return UserError(
        f"the model {source!r} is neither a local directory nor reachable on the hub {why}",
        field="model",
        hint="give a directory, a .gguf file, preset:NAME, or a hub id that this machine can reach",
    )


def _ready(model: nn.Module, tokenizer: Any, source: str, dtype: torch.dtype, device: str) -> LoadedModel:
    config: Any = model.config
    for name in DROPOUTS:
        if config.to_dict().get(name):
            setattr(config, name, 0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # many attention layers keep the number and no nn.Dropout
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    table: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    if len(tokenizer) > table.weight.shape[0]:
        raise UserError(
            f"the tokenizer knows {len(tokenizer)} tokens and the model {table.weight.shape[0]}",
            field="model",
            hint="use the tokenizer that belongs to the model",
        )
    model = model.to(device=device, dtype=dtype).eval()
    return LoadedModel(model, tokenizer, source, _eos(model, tokenizer))


def _eos(model: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer: of the tokenizer, its chat template and the generation configuration."""
    found = _turn_ends(tokenizer)
    generation: Any = vars(model).get("generation_config")  # a classifier has none
    for value in (tokenizer.eos_token_id, generation.eos_token_id if generation else None):
        found.update([value] if isinstance(value, int) else value or ())
    if not found:
        raise UserError(
            "neither the tokenizer nor the model names a token that ends an answer",
            field="model",
            hint="set eos_token in tokenizer_config.json or eos_token_id in generation_config.json",
        )
    return tuple(sorted(found))


def _turn_ends(tokenizer: Any) -> set[int]:
    """What the chat template ends a turn with. One that does not say it in a token adds nothing here, since the model
    may be used without it; whoever encodes conversations with it is told."""
    try:
        return set(stop_ids(tokenizer))
    except UserError:
        return set()


def wrap_tokenizer(tokenizer: Any, *, bos: str, eos: str, pad: str) -> PreTrainedTokenizerFast:
    """A `tokenizers.Tokenizer` as transformers' own class."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, clean_up_tokenization_spaces=False
    )


def save_model(loaded: LoadedModel, directory: Path) -> None:
    """Writes a plain Hugging Face directory: nothing in it says which program trained it."""
    model: Any = loaded.model
    config = model.config
    # a dequantised GGUF still carries the note that it was quantised, and transformers would refuse to save it
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if name in vars(config):
            delattr(config, name)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    _say_what_ends(model, loaded.eos)
    model.save_pretrained(directory)
    loaded.tokenizer.save_pretrained(directory)


def _say_what_ends(model: Any, eos: Sequence[int]) -> None:
    generation = vars(model).get("generation_config")
    if generation is not None:
        generation.eos_token_id = list(eos) if len(eos) > 1 else eos[0]
