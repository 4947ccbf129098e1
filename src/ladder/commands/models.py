"""Commands on one model: `ladder sample`, `chat`, `inspect`, `export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console as Rich
from rich.markup import escape

from ladder.base import rng
from ladder.base.errors import UserError
from ladder.commands.options import load, sampling
from ladder.contract.rollouts import Request
from ladder.data.chat import encode_prompt
from ladder.data.inspection import inspect_file
from ladder.data.samples import Encoding
from ladder.data.source import Data
from ladder.decoding.sampler import NativeSampler
from ladder.engine.checkpoint import write_directory
from ladder.models.head import Head, hidden
from ladder.models.load import LoadedModel, save_model
from ladder.tracking.console import Console


def sample_model(model: str, prompts: Sequence[str], n: int, settings: dict[str, Any], *, raw: bool, seed: int) -> None:
    """`ladder sample`: prints n answers to each prompt. raw: continue the text without the chat template."""
    loaded = load(model)
    console = Console()
    sampler = NativeSampler(loaded.model, loaded.tokenizer, eos=loaded.eos)
    chat_template = not raw and bool(loaded.tokenizer.chat_template)
    texts = [sys.stdin.read() if p == "-" else p for p in prompts]
    requests = [
        Request(
            encode_prompt(loaded.tokenizer, text, chat_template=chat_template),
            n,
            sampling(settings),
            rng.key(seed, "sample", i),
        )
        for i, text in enumerate(texts)
    ]
    for text, completions in zip(texts, sampler.generate(requests), strict=True):
        console.say("[bold]>[/bold] [dim]" + escape(text) + "[/dim]")
        for completion in completions:
            console.plain(completion.text + ("" if completion.stop != "length" else " …"))


def chat_with(model: str, system: str, settings: dict[str, Any], seed: int) -> None:
    """`ladder chat`: a conversation at the terminal, until an empty line or the end of input."""
    loaded = load(model)
    if not loaded.tokenizer.chat_template:
        raise UserError("this model has no chat template", field="--model", hint="use ladder sample")
    rich = Rich()
    sampler = NativeSampler(loaded.model, loaded.tokenizer, eos=loaded.eos, frozen=True)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    turn = 0
    while True:
        try:
            user_text = rich.input("[bold]> [/bold]")
        except EOFError:
            return
        if not user_text.strip():
            return
        messages.append({"role": "user", "content": user_text})
        prompt = encode_prompt(loaded.tokenizer, messages)
        answer = sampler.generate([Request(prompt, 1, sampling(settings), rng.key(seed, "chat", turn))])[0][0]
        rich.print(answer.text, markup=False, highlight=False)
        messages.append({"role": "assistant", "content": answer.text})
        turn += 1


def inspect_data(data: str, model: str, rows: int, layout: str | None, *, chat_template: bool) -> None:
    """`ladder inspect`: shows which tokens of a data file's rows are trained. Uses the model's tokenizer only."""
    tokenizer = load(model).tokenizer
    inspect_file(Data(path=data, layout=layout), tokenizer, rows, Rich(), Encoding(chat_template=chat_template))


def export_model(model: str, out: Path, dtype: str) -> None:
    """`ladder export`: writes a Hugging Face directory, reloads it with transformers and compares the two models."""
    from transformers import AutoModelForCausalLM

    if out.exists():
        raise UserError("already exists", file=out, hint="choose another directory")
    dtypes = ("float32", "bfloat16", "float16")
    if dtype not in dtypes:
        raise UserError(f"{dtype!r} is not an export dtype", field="--dtype", hint=f"choose one of {', '.join(dtypes)}")
    loaded = load(model, dtype=dtype)
    write_directory(out, lambda d: save_model(loaded, d))
    reloaded = AutoModelForCausalLM.from_pretrained(out, dtype=getattr(torch, dtype), local_files_only=True)
    difference = _compare(loaded, reloaded)
    Console().say(f"{out}: {loaded.n_parameters:,} parameters, reloaded; largest logit difference {difference:.2g}")


def _compare(loaded: LoadedModel, reloaded: Any) -> float:
    """The largest absolute difference between the two models' logits on 16 random tokens.

    Raises UserError when a weight differs at all or the logits differ by more than rounding.
    """
    parameters = dict(loaded.model.named_parameters())
    for name, p in reloaded.named_parameters():
        if name not in parameters or not torch.equal(p, parameters[name]):
            raise UserError(f"the exported weights differ in {name}", hint="this is a bug: please report it")
    generator = rng.generator(0, "export")
    tokens = torch.randint(0, len(loaded.tokenizer), (16,), generator=generator)
    with torch.no_grad():
        reloaded_logits = reloaded(input_ids=tokens[None]).logits  # [1, T, V]
        logits = Head.of(loaded.model).logits(hidden(loaded.model, tokens))  # [T, V]
    difference = float((logits - reloaded_logits[0]).abs().max())
    if difference > 0.05 * float(reloaded_logits.abs().max()) + 1e-3:
        raise UserError(
            f"the exported model's logits differ by {difference:.3g}", hint="this is a bug: please report it"
        )
    return difference
