"""How cost grows: tokens/s of updates and rollouts against batch, context, group size, vocabulary, model size, threads.

    python benchmarks/growth.py measure growth.json [--threads 1] [--only context ...]
    python benchmarks/growth.py draw growth.json docs/figures/growth.svg

The models are Llamas with random weights, by default 6 layers of SmolLM2-135M's widths (hidden size 576, 9 heads, 3
key-value heads, MLP size 1536) and 49,152 vocabulary tokens; rates do not depend on the weights' values. One quantity
is varied at a time. Each point is the median of a few rounds. `share` is the rate times the operations that a token
needs (6 N or 2 N, plus attention's), divided by the processor's rate for matrix products, measured between the
points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ladder.attention.plan import IMPLEMENTATION
from ladder.contract.rollouts import Request, Sampling
from ladder.contract.training import Sample, Unit
from ladder.decoding.sampler import NativeSampler
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import PolicyGradient


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    layers: int = 6
    hidden: int = 576
    heads: int = 9
    key_heads: int = 3
    inner: int = 1536
    vocab: int = 49152


@dataclass(frozen=True)
class Update:
    """One optimiser step: `prompts` prompts of `prompt` tokens, `group` answers of `answer` tokens to each."""

    prompts: int = 8
    group: int = 1
    prompt: int = 1
    answer: int = 255
    shape: Shape = Shape()


@dataclass(frozen=True)
class Rollouts:
    """One sampler call: `prompts` prompts of `prompt` tokens, `group` answers of `answer` tokens to each."""

    prompts: int = 4
    group: int = 16
    prompt: int = 64
    answer: int = 64
    shape: Shape = Shape()


LONG = 5.0
"""Seconds from which on a round is so long that its warm-up is negligible and the first round counts."""

SIZES = (
    Shape(2, 64, 4, 4, 168), Shape(4, 128, 4, 2, 352), Shape(6, 256, 4, 2, 704), Shape(),
    Shape(4, 1024, 16, 4, 2816), Shape(2, 2048, 32, 8, 5632), Shape(30), Shape(32, 960, 15, 5, 2560),
)  # fmt: skip


def cases() -> Iterator[tuple[str, str, float, Update | Rollouts]]:
    """(quantity varied, "update" or "rollouts", its value, the workload)."""
    u, r = Update(), Rollouts()
    for n in (1, 2, 4, 8, 16, 32):
        yield "tokens of a step", "update", n * 256, replace(u, prompts=n)
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        yield "rows side by side", "rollouts", n, replace(r, prompts=max(1, n // 16), group=min(n, 16), answer=32)
    for n in (128, 512, 2048, 4096, 8192):
        yield "context", "update", n, replace(u, prompts=8192 // n, answer=n - 1)
        yield "context", "rollouts", n, replace(r, prompts=1, prompt=n - 32, answer=32)
    for n in (1, 2, 4, 8, 16, 32):
        yield "answers to a prompt", "update", n, replace(u, prompts=32 // n, group=n, prompt=192, answer=64)
        yield "answers to a prompt", "rollouts", n, replace(r, prompts=32 // n, group=n, prompt=192, answer=32)
    for n in (256, 4096, 16384, 49152, 131072):
        shape = replace(Shape(), vocab=n)
        yield "vocabulary", "update", n, replace(u, shape=shape)
        yield "vocabulary", "rollouts", n, replace(r, answer=32, shape=shape)
    for shape in SIZES:
        size = replace(shape, vocab=4096)
        yield "parameters", "update", parameters(size), replace(u, shape=size)
        yield "parameters", "rollouts", parameters(size), replace(r, answer=32, shape=size)


# ------------------------------------------------------------ the work


def build(shape: Shape) -> Any:
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
    )
    config._attn_implementation = IMPLEMENTATION
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def matrices(shape: Shape) -> int:
    """Number of weights in the layers' matrices."""
    width = shape.hidden // shape.heads
    attention = shape.hidden * width * (2 * shape.heads + 2 * shape.key_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.inner)


def parameters(shape: Shape) -> int:
    return matrices(shape) + shape.vocab * shape.hidden


def prompt(n: int, key: int, shape: Shape) -> list[int]:
    return torch.randint(0, shape.vocab, (n,), generator=torch.Generator().manual_seed(key)).tolist()


def updating(case: Update) -> tuple[Callable[[], None], int, float]:
    """(a function that runs one step, the tokens of all answers with their prompts, the step's operations)."""
    engine = Engine(build(case.shape), Optim(lr=1e-6), budget=8192)
    units: list[Unit] = []
    for p in range(case.prompts):
        start = prompt(case.prompt, p, case.shape)
        for g in range(case.group):
            tokens = torch.tensor(start + prompt(case.answer, 1000 * p + g + 7, case.shape))
            trained = torch.arange(len(tokens)) >= case.prompt
            units.append(Sample(tokens, trained, {"advantages": torch.ones(len(tokens))}))
    loss = PolicyGradient(entropy=False)
    answers = case.prompts * case.group * case.answer
    read = case.prompts * case.prompt + answers
    seen = _seen(case.prompts, case.group, case.prompt, case.answer) + case.prompts * case.prompt**2 / 2
    heads = 4 * case.shape.hidden * case.shape.layers * seen
    flops = 3 * (2 * matrices(case.shape) * read + 2 * case.shape.vocab * case.shape.hidden * answers + heads)
    whole = case.prompts * case.group * (case.prompt + case.answer)
    return lambda: _nothing(engine.update(units, loss)), whole, flops


def rolling(case: Rollouts) -> tuple[Callable[[], None], int, float]:
    """(a function that samples all answers, their tokens, the operations including prefill)."""
    sampler = NativeSampler(build(case.shape), _NoText(), eos=[case.shape.vocab + 1])  # this id is never sampled
    starts = [prompt(case.prompt, p, case.shape) for p in range(case.prompts)]
    asked = [Request(start, case.group, Sampling(case.answer), p) for p, start in enumerate(starts)]
    drawn = case.prompts * case.group * case.answer
    seen = _seen(case.prompts, case.group, case.prompt, case.answer) + case.prompts * case.prompt**2 / 2
    read = case.prompts * case.prompt + drawn
    heads = 4 * case.shape.hidden * case.shape.layers * seen
    flops = 2 * matrices(case.shape) * read + 2 * case.shape.vocab * case.shape.hidden * drawn + heads
    return lambda: _nothing(sampler.generate(asked)), drawn, flops


def _seen(prompts: int, group: int, prompt: int, answer: int) -> float:
    """Number of (query, key) pairs of the answers' tokens."""
    return prompts * group * (answer * prompt + answer**2 / 2)


def _nothing(_: Any) -> None:
    """Discards a result, so that the timed function returns None."""


class _NoText:
    """A tokenizer whose text is always empty: the answers' texts are not used."""

    def decode(self, *_: Any, **__: Any) -> str:
        return ""

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        return [""] * len(rows)


def peak() -> float:
    """GFLOP/s of a matrix product, the best of six."""
    x, w = torch.randn(1536, 1536), torch.randn(1536, 1536)
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        nn.functional.linear(x, w)
        times.append(time.perf_counter() - begun)
    return 2e-9 * 1536**3 / min(times)


def measure(case: Update | Rollouts, seconds: float) -> dict[str, Any]:
    work, tokens, flops = updating(case) if isinstance(case, Update) else rolling(case)
    begun = time.perf_counter()
    work()
    first = time.perf_counter() - begun
    times, begun = [first] if first > LONG else [], time.perf_counter()
    while not times or (time.perf_counter() - begun < seconds and len(times) < 30):
        at = time.perf_counter()
        work()
        times.append(time.perf_counter() - at)
    took = statistics.median(times)
    return {"tokens_per_s": tokens / took, "seconds": took, "share": flops / took / 1e9 / peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "draw"])
    parser.add_argument("file", type=Path)
    parser.add_argument("figure", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    rows = json.loads(args.file.read_text()) if args.file.exists() else []
    if args.what == "draw":
        draw(rows, args.figure)
        return
    torch.set_num_threads(args.threads)
    for varied, kind, value, case in cases():
        if args.only and varied not in args.only:
            continue
        place = {"varied": varied, "kind": kind, "value": value, "threads": args.threads}
        rows = [r for r in rows if {k: r[k] for k in place} != place]
        rows.append(place | {"work": asdict(case)} | measure(case, args.seconds))
        args.file.write_text(json.dumps(rows, indent=1) + "\n")
        print(place, f"{rows[-1]['tokens_per_s']:.0f} tokens/s, {rows[-1]['share']:.0%}", flush=True)


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """One panel per varied quantity: rates above, shares of the processor's rate below."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(r["varied"] for r in rows))
    colours = {"update": "#3465a4", "rollouts": "#c0561a"}
    figure, axes = plt.subplots(2, len(names), figsize=(2.9 * len(names), 5.2), layout="constrained", sharex="col")
    for column, name in zip(axes.T, names, strict=True):
        for kind, threads in dict.fromkeys((r["kind"], r["threads"]) for r in rows if r["varied"] == name):
            some = [r for r in rows if (r["varied"], r["kind"], r["threads"]) == (name, kind, threads)]
            some.sort(key=lambda r: r["value"])
            x, style = [r["value"] for r in some], {"color": colours[kind], "marker": "o", "markersize": 3}
            line = "-" if threads == 1 else "--"
            word = f"{kind}, {threads} thread{'s' * (threads > 1)}"
            column[0].plot(x, [r["tokens_per_s"] for r in some], line, label=word, **style)
            column[1].plot(x, [100 * r["share"] for r in some], line, **style)
        column[0].set_title(name, loc="left", fontsize=10)
        column[0].set_xscale("log", base=2)
        column[0].set_yscale("log")
        column[1].set_ylim(0, 105)
        for ax in column:
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(alpha=0.2)
            ax.tick_params(labelsize=8)
    axes[0, 0].set_ylabel("tokens/s")
    axes[1, 0].set_ylabel("% of the processor's rate")
    handles = {word: h for ax in axes[0] for h, word in zip(*ax.get_legend_handles_labels(), strict=True)}
    axes[0, 0].legend(list(handles.values()), list(handles), fontsize=7, frameon=False)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
