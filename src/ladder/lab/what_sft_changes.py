"""What SFT changes: which weights move, how much adapters of equal parameter count learn, and the cost of merging them.

    change of a layer's attention (or MLP) = ||W' - W||_F / ||W||_F over its matrices together

LoRA adapters on attention, on the MLPs and on all linear layers have ranks 7, 5 and 3 here, which makes 10,440 to
10,872 parameters (4% apart), alpha twice the rank, and three learning rates of which the best counts. "LoRA Without
Regret" (Schulman et al. 2025, Thinking Machines) finds adapters on attention alone worse at equal parameters; Biderman
et al. 2024 (arXiv:2405.09673) find that adapters learn less and forget less. Learned: the loss on unseen documents of
the SFT corpus. Forgotten: the rise of the loss on documents like those the base model was pretrained on.

Left out: DoRA and other adapters; ranks large enough to match full fine-tuning.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from ladder.base.files import read_json
from ladder.contract.training import Sample
from ladder.lab.experiment import Experiment, Measured, Verdict
from ladder.lab.stats import Effect, difference, effect
from ladder.models.lora import attach_saved
from ladder.pipeline import recipe as recipes
from ladder.pipeline.build import models as build_models
from ladder.pipeline.kinds.supervised import WebData, web_samples
from ladder.pipeline.recipe import Recipe
from ladder.report.figure import COLOURS, SOFT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"full": "all weights", "attention": "attention", "mlp": "MLPs", "linear": "all linear"}
ADAPTERS = ("attention", "mlp", "linear")
RATES = ("low", "mid", "high")
UNSEEN = 1_000_003
"""Added to a run's seed to generate documents that none of its stages trained on."""
DOCUMENTS = 1000
ROUNDS = 40
"""Number of timed forward passes of each model."""
SPREAD = 1.05
"""Largest ratio of two adapters' parameter counts that counts as equal."""


def measure(run: Path) -> Measured:
    """{kind: the figures of its stage with the least loss on unseen documents, of the three learning rates}.

    "learned", "forgot": losses, nats a token. "change": {"attention" | "mlp": one value a layer}. Adapters also:
    "logits" (largest difference of merged and unmerged), "moved" (largest difference from the base's logits), "time"
    (of a forward pass relative to the base's: {"merged", "apart"}). "base": its losses. "all": figures of every stage.
    """
    recipe, _ = recipes.load(str(run / "recipe.yaml"))
    sft_data = WebData.model_validate(next(iter(recipe.stages.values()))["data"])
    base_data = WebData(web={"documents": DOCUMENTS, "worked": 0.2, "worked_lengths": [1] * 12})
    seed = recipe.seed + UNSEEN
    sft_samples, base_samples = (web_samples(data, seed, "")[:DOCUMENTS] for data in (sft_data, base_data))
    base_losses = {
        "learned": loss(recipe, recipe.model.source, sft_samples),
        "forgot": loss(recipe, recipe.model.source, base_samples),
    }
    by_stage: dict[str, Any] = {}
    for name in (f"{kind}_{rate}" for kind in KINDS for rate in RATES):
        model = str(run / name / "model")
        by_stage[name] = {
            "learned": loss(recipe, model, sft_samples),
            "forgot": loss(recipe, model, base_samples) - base_losses["forgot"],
            "accuracy": read_json(run / name / "summary.json")["easy"]["accuracy"],
        }
    figures: Measured = {"base": base_losses, "all": by_stage}
    for kind in KINDS:
        name = min((f"{kind}_{rate}" for rate in RATES), key=lambda n: by_stage[n]["learned"])
        figures[kind] = {"stage": name} | by_stage[name] | _weight_figures(Path(recipe.model.source), run / name)
    return figures


def loss(recipe: Recipe, source: str, samples: Sequence[Sample]) -> float:
    """The cross-entropy of a model on samples, nats per trained token. source: of the model."""
    columns = build_models.frozen(recipe, build_models.load(recipe, source), 1.0).forward(samples)
    return -sum(float(c["logps"].sum()) for c in columns) / sum(int(s.mask.sum()) for s in samples)


# ---------------------------------------------------------------- weights


def _weight_figures(base: Path, stage: Path) -> dict[str, Any]:
    """The change of a stage's weights, its number of trained parameters and, for an adapter, the cost of merging."""
    before, after = (load_file(d / "model.safetensors") for d in (base, stage / "model"))
    change: dict[str, Any] = {"change": relative_change(before, after)}
    adapter = stage / "adapter"
    if not adapter.exists():
        return change | {"parameters": sum(p.numel() for p in after.values())}
    count = sum(p.numel() for p in load_file(adapter / "adapter_model.safetensors").values())
    return change | {"parameters": count} | merging(base, adapter, stage / "model")


def relative_change(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """The relative change of the weights: {"attention" | "mlp": one value a layer, in order}."""
    changes: dict[str, list[float]] = {}
    for kind, part in (("attention", ".self_attn."), ("mlp", ".mlp.")):
        names_of_layer: dict[int, list[str]] = {}
        for name in before:
            if part in name:
                names_of_layer.setdefault(int(name.split(".layers.")[1].split(".")[0]), []).append(name)
        changes[kind] = [
            float(_norm(after[n] - before[n] for n in names) / _norm(before[n] for n in names))
            for _, names in sorted(names_of_layer.items())
        ]
    return changes


def _norm(tensors: Any) -> torch.Tensor:
    """The Frobenius norm of several matrices together, float64."""
    return torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt()


def merging(base: Path, adapter: Path, merged: Path) -> dict[str, Any]:
    """Compares the merged model with the base model plus adapter ("apart"), in plain transformers and PEFT."""
    from transformers import AutoModelForCausalLM

    base_model, merged_model = (AutoModelForCausalLM.from_pretrained(d).eval() for d in (base, merged))
    apart = attach_saved(AutoModelForCausalLM.from_pretrained(base), adapter)
    tokens = torch.arange(32 * 64).reshape(32, 64) % base_model.config.vocab_size  # [B, T]
    models = {"base": base_model, "merged": merged_model, "apart": apart}
    with torch.no_grad():
        logits = {n: m(input_ids=tokens).logits for n, m in models.items()}
        times = slower({n: lambda m=m: m(input_ids=tokens) for n, m in models.items()}, ROUNDS)
    return {
        "logits": float((logits["merged"] - logits["apart"]).abs().max()),
        "moved": float((logits["merged"] - logits["base"]).abs().max()),
        "time": {n: times[n] for n in ("merged", "apart")},
    }


def slower(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Time of each call relative to the first: the median over rounds.

    Every round times all calls in turn, so that other load on the machine affects them equally.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    return {n: statistics.median(x / y for x, y in zip(times, first, strict=True)) for n, times in seconds.items()}


# ---------------------------------------------------------------- verdict


def verdict(measured: Sequence[Measured]) -> Verdict:
    """Holds when, at equal parameters, the adapter on attention ends with a higher loss than the one on the MLPs."""

    def each(kind: str, figure: str = "learned") -> list[float]:
        """A figure of a kind of training, one value a seed."""
        return [m[kind][figure] for m in measured]

    counts = [m[kind]["parameters"] for m in measured for kind in ADAPTERS]
    if max(counts) > SPREAD * min(counts):
        raise ValueError(f"adapters of {min(counts):,} and {max(counts):,} parameters are not of equal size")
    gap = difference(each("attention"), each("mlp"))
    moved = {part: [_mean(m["full"]["change"][part]) for m in measured] for part in ("attention", "mlp")}
    more = {
        "loss, attention - all linear": difference(each("attention"), each("linear")),
        "loss, all linear - MLPs": difference(each("linear"), each("mlp")),
        "loss, all linear - all weights": difference(each("linear"), each("full")),
        "accuracy, MLPs - attention": difference(each("mlp", "accuracy"), each("attention", "accuracy")),
        "forgotten, all weights - all linear": difference(each("full", "forgot"), each("linear", "forgot")),
        "change under full SFT, attention - MLPs": difference(moved["attention"], moved["mlp"]),
        "logits of merged and not, largest difference": effect(
            [max(m[kind]["logits"] for kind in ADAPTERS) for m in measured]
        ),
        "time of a forward pass, merged / base": _mean_times(measured, "merged"),
        "time of a forward pass, apart / base": _mean_times(measured, "apart"),
    }
    base = _mean([m["base"]["learned"] for m in measured])
    ends = {k: f"{_mean(each(k)):.4f} ({_mean(each(k, 'accuracy')):.0%} right)" for k in KINDS}
    sentence = (
        f"With {min(counts):,} to {max(counts):,} parameters, an adapter on attention brings the loss from {base:.3f} "
        f"nats a token to {ends['attention']}, one on the MLPs to {ends['mlp']}, {gap.text('.4f')} less; one on all "
        f"linear layers to {ends['linear']}, and all weights to {ends['full']}. Full SFT moves attention by "
        f"{_mean(moved['attention']):.1%} and the MLPs by {_mean(moved['mlp']):.1%} of their norm."
    )
    return Verdict(gap.positive, gap, sentence, more, _table(measured))


def _mean_times(measured: Sequence[Measured], how: str) -> Effect:
    """The relative time of a forward pass, mean over the adapters. how: "merged" or "apart"."""
    return effect([_mean([m[kind]["time"][how] for kind in ADAPTERS]) for m in measured])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _table(measured: Sequence[Measured]) -> list[list[str]]:
    head = ["trained", "parameters", "loss, unseen", "right", "forgotten", "attention moved", "MLPs moved"]
    rows = [[*head, "logits, merged", "time, merged", "time, apart"]]
    for kind, label in KINDS.items():
        seeds = [m[kind] for m in measured]
        moved = [_mean([_mean(s["change"][part]) for s in seeds]) for part in ("attention", "mlp")]
        row = [label, f"{seeds[0]['parameters']:,}", f"{_mean([s['learned'] for s in seeds]):.4f}"]
        row += [f"{_mean([s['accuracy'] for s in seeds]):.1%}", f"{_mean([s['forgot'] for s in seeds]):+.3f}"]
        row += [f"{x:.1%}" for x in moved]
        if kind in ADAPTERS:
            times = [_mean([s["time"][t] for s in seeds]) for t in ("merged", "apart")]
            row += [f"{max(s['logits'] for s in seeds):.1e}", *(f"{t:.2f}" for t in times)]
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    return rows


def draw(measured: Sequence[Measured], figure: Figure) -> None:
    """Panels: relative change of the weights by layer, loss on unseen documents, rise of the old loss."""
    moved, learned, forgot = figure.subplots(1, 3, width_ratios=[1.1, 1, 1])
    layers = range(len(measured[0]["full"]["change"]["mlp"]))
    for part, colour, part_label in (("attention", COLOURS[1], "attention"), ("mlp", COLOURS[0], "MLP")):
        for kind, line in (("full", "-"), ("linear", "--")):
            means = [100 * _mean([m[kind]["change"][part][i] for m in measured]) for i in layers]
            label = f"{part_label}, {'all weights' if kind == 'full' else 'adapter'}"
            moved.plot(layers, means, f"o{line}", color=colour, markersize=4, label=label)
    moved.set_xticks(layers, [str(i + 1) for i in layers])
    moved.set_xlabel("layer")
    moved.set_ylim(0)
    moved.set_title("relative change, %", loc="left", fontsize=9.5)
    moved.legend(frameon=False, fontsize=7, handlelength=3.5)
    colours = dict(zip(KINDS, (SOFT, COLOURS[1], COLOURS[0], COLOURS[2]), strict=True))
    panels = ((learned, "learned", "loss on unseen documents"), (forgot, "forgot", "rise of the old loss"))
    for axes, name, title in panels:
        for i, kind in enumerate(KINDS):
            values = [m[kind][name] for m in measured]
            axes.bar(i, _mean(values), 0.6, color=colours[kind], alpha=0.85)
            axes.plot([i] * len(values), values, ".", color="black", markersize=4)
        axes.set_xticks(range(len(KINDS)), [w.replace(" ", "\n") for w in KINDS.values()])
        axes.set_title(f"{title}, nats a token", loc="left", fontsize=9.5)


EXPERIMENT = Experiment(
    name="what_sft_changes",
    claim=(
        "At equal parameters an adapter on attention learns less than one on the MLPs (Schulman et al. 2025, LoRA "
        "Without Regret, Thinking Machines)"
    ),
    measure=measure,
    verdict=verdict,
    draw=draw,
    size=(10.5, 3.3),
)
