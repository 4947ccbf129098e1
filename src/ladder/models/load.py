"""Loading a model and its tokenizer, and saving them.

Sources: a hub id, a local Hugging Face directory, a GGUF file (dequantised), `preset:NAME` (random weights). A model is
saved as a plain Hugging Face directory that any other tool loads: safetensors, config, tokenizer, chat template, and a
generation config with every token that ends an answer.
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

transformers_logging.disable_progress_bar()  # a run shows its own progress

DROPOUTS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "resid_dropout")
Scalar = Literal[False, True, "trained"]
"""Whether to load a score head instead of a language-model head: no; yes, a new one if the model has none; "trained":
yes, and the model must have one."""
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
    """Loads a model and its tokenizer from a source (see the top of this file).

    tokenizer: required for presets, which have none; for other sources it replaces the source's own. seed: of a
    preset's random weights. config: configuration fields to change, for presets only. revision, trust_remote_code: as
    in transformers. scalar: load a score head, one number per position, instead of the language-model head
    (transformers' sequence classifier with one label); a source without one gets a score head of zeros, and "trained"
    requires that the source has one. Raises UserError naming what is missing or broken.
    """
    torch_dtype = _torch_dtype(dtype)
    _select_device(device)
    if source.startswith("preset:"):
        if tokenizer is None:
            raise UserError(
                "a preset has no tokenizer, and the task does not provide one",
                field="model",
                hint="use a task that provides a tokenizer",
            )
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        changes = special | (config or {})
        model = presets.build(source.removeprefix("preset:"), len(tokenizer), seed, IMPLEMENTATION, changes)
        return _finish_loading(model, tokenizer, source, torch_dtype, device)
    if config:
        raise UserError(
            "only a preset's configuration can be changed", field="model.config", hint="leave model.config out"
        )
    location, extra = _locate(source)
    options = {"revision": revision, "trust_remote_code": trust_remote_code, **extra}
    try:
        source_tokenizer = None if tokenizer else AutoTokenizer.from_pretrained(location, **options)
        loader: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
        labels = {"num_labels": 1} if scalar else {}
        if scalar:
            _check_labels(AutoConfig.from_pretrained(location, **options), scalar, source)
        with _no_warnings():
            model_and_info: Any = loader.from_pretrained(
                location,
                attn_implementation=IMPLEMENTATION,
                dtype=torch_dtype,
                output_loading_info=True,
                **labels,
                **options,
            )
        model, info = model_and_info
    except UserError:
        raise
    except ImportError as err:
        if "gguf" in str(err).lower():
            raise missing_extra("gguf", "gguf", "reading a GGUF file") from err
        raise
    except Exception as err:  # transformers, safetensors and the hub raise dozens of types for an unreadable model
        raise _unreadable(source, err) from err
    if scalar is True:
        info["missing_keys"] = _init_missing_score(model, set(info["missing_keys"]))
    if info["missing_keys"]:  # transformers fills them with random numbers and only warns
        raise UserError(
            f"the model's files lack {len(info['missing_keys'])} of its weights ({min(info['missing_keys'])}, ...)",
            file=source,
            field="model",
            hint="give a complete sequence classifier with one label"
            if scalar == "trained"
            else "give a complete causal language model, not its base, an adapter or a classifier",
        )
    if source_tokenizer is not None and "gguf_file" in extra:
        _drop_surplus_tokens(source_tokenizer, model.get_input_embeddings().weight.shape[0])
    loaded = _finish_loading(model, tokenizer or source_tokenizer, source, torch_dtype, device)
    if scalar:
        model.config.pad_token_id = _non_eos_pad(loaded)
    return loaded


def _check_labels(config: Any, scalar: Scalar, source: str) -> None:
    """Raises UserError for a classifier with several labels, and when a trained score head is required and the model is
    not a classifier."""
    is_classifier = any("ForSequenceClassification" in str(name) for name in config.architectures or ())
    if is_classifier and config.num_labels != 1:
        raise UserError(
            f"the model {source} is a classifier with {config.num_labels} labels; a score head gives one number",
            field="model",
            hint="give a sequence classifier with one label",
        )
    if scalar == "trained" and not is_classifier:
        raise UserError(
            f"the model {source} has no score head",
            field="model",
            hint="give a sequence classifier with one label",
        )


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Suppresses transformers' table of missing and unused weights; `load_model` raises an error for missing ones."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _init_missing_score(model: Any, missing: set[str]) -> set[str]:
    """Sets a score head that the files lack to 0, so that training starts from equal scores. Returns the other missing
    weights."""
    if "score.weight" in missing:
        torch.nn.init.zeros_(model.score.weight)
    return missing - {"score.weight"}


def _non_eos_pad(loaded: LoadedModel) -> int:
    """A pad token that does not end an answer: transformers reads the score at the last token that is not padding; with
    pad = EOS that would be the token before the terminator. Raises UserError when the tokenizer has none."""
    tokenizer = loaded.tokenizer
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids):
        if token is not None and token not in loaded.eos:
            return int(token)
    raise UserError(
        "every special token of the tokenizer ends an answer, so none can serve as the pad token",
        field="model",
        hint="add a pad_token to the tokenizer",
    )


def _drop_surplus_tokens(tokenizer: Any, rows: int) -> None:
    """Removes added tokens beyond the `rows` rows of the embedding.

    transformers adds GPT-2's <|endoftext|> to every byte-level tokenizer of a GGUF file; where the file has no such
    token (Llama 3), that is one token more than the model has.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] < rows]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))


def _torch_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"there is no dtype {name!r}", field="model.dtype", hint=f"use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _select_device(device: str) -> None:
    """Makes a CUDA device with an index the current one. Raises UserError for a device that cannot be used."""
    try:
        torch.empty(0, device=device)
        if (torch_device := torch.device(device)).type == "cuda" and torch_device.index is not None:
            torch.cuda.set_device(torch_device)  # Triton launches kernels and CUDA graphs are captured on this device
    except (RuntimeError, AssertionError) as err:  # an unknown name, or a torch built without this device
        text = str(err).splitlines()[0]
        raise UserError(f"{device!r} cannot be used ({text})", field="model.device", hint="use cpu") from err


def _locate(source: str) -> tuple[str, dict[str, Any]]:
    """What to give transformers as the model's name, and further options: the GGUF file's name, or no hub access for a
    directory. Raises UserError for a path without a model."""
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
                hint="give the directory that contains config.json, the tokenizer and the .safetensors files",
            )
        return str(path), {"local_files_only": True}
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(
            "there is no such model directory or GGUF file", file=source, field="model", hint="check the path"
        )
    return source, {}


def _unreadable(source: str, err: Exception) -> UserError:
    """The message to the user for an exception while a model is loaded."""
    text = " ".join(str(err).split())
    if Path(source).expanduser().exists():
        return UserError(
            f"the model cannot be read ({type(err).__name__}: {text[:300]})",
            file=source,
            field="model",
            hint="copy or download it again: a file is missing, cut short or damaged",
        )
    reason = f"({type(err).__name__}: {text[:200]})"
    return UserError(
        f"the model {source!r} is neither a local directory nor reachable on the hub {reason}",
        field="model",
        hint="give a directory, a .gguf file, preset:NAME, or a hub id that this machine can reach",
    )


def _finish_loading(model: nn.Module, tokenizer: Any, source: str, dtype: torch.dtype, device: str) -> LoadedModel:
    """Turns dropout off, checks the tokenizer against the embedding, and moves the model to its device and dtype."""
    config: Any = model.config
    for name in DROPOUTS:
        if config.to_dict().get(name):
            setattr(config, name, 0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # many attention layers store the rate and have no nn.Dropout
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    embedding: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    if len(tokenizer) > embedding.weight.shape[0]:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's embedding has {embedding.weight.shape[0]}",
            field="model",
            hint="use the tokenizer that belongs to the model",
        )
    model = model.to(device=device, dtype=dtype).eval()
    return LoadedModel(model, tokenizer, source, _eos_ids(model, tokenizer))


def _eos_ids(model: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer: of the tokenizer, its chat template and the generation configuration."""
    eos_ids = _turn_end_ids(tokenizer)
    generation: Any = vars(model).get("generation_config")  # a classifier has none
    for value in (tokenizer.eos_token_id, generation.eos_token_id if generation else None):
        eos_ids.update([value] if isinstance(value, int) else value or ())
    if not eos_ids:
        raise UserError(
            "neither the tokenizer nor the model names a token that ends an answer",
            field="model",
            hint="set eos_token in tokenizer_config.json or eos_token_id in generation_config.json",
        )
    return tuple(sorted(eos_ids))


def _turn_end_ids(tokenizer: Any) -> set[int]:
    """Tokens with which the chat template ends a turn.

    A template that ends turns without a special token gives none. That is no error here, since the model may be used
    without its template; encoding a conversation with it raises the error.
    """
    try:
        return set(stop_ids(tokenizer))
    except UserError:
        return set()


def wrap_tokenizer(tokenizer: Any, *, bos: str, eos: str, pad: str) -> PreTrainedTokenizerFast:
    """Wraps a `tokenizers.Tokenizer` in transformers' tokenizer class."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, clean_up_tokenization_spaces=False
    )


def save_model(loaded: LoadedModel, directory: Path) -> None:
    """Writes a plain Hugging Face directory, without any trace of the program that trained the model."""
    model: Any = loaded.model
    config = model.config
    # a dequantised GGUF model is still marked as quantised, and transformers would refuse to save it
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if name in vars(config):
            delattr(config, name)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    _set_generation_eos(model, loaded.eos)
    model.save_pretrained(directory)
    loaded.tokenizer.save_pretrained(directory)


def _set_generation_eos(model: Any, eos: Sequence[int]) -> None:
    """Writes the tokens that end an answer into the generation config, if the model has one."""
    generation = vars(model).get("generation_config")
    if generation is not None:
        generation.eos_token_id = list(eos) if len(eos) > 1 else eos[0]
