"""hh-rlhf harmless-base on SmolLM2-135M: reward model and DPO, all weights and LoRA, compared with TRL's trainers.

    python benchmarks/preferences_real.py prepare WORK --data hh_harmless_pairs.jsonl --model SmolLM2-135M.gguf
    python benchmarks/preferences_real.py train WORK rm full          (rm or dpo; full or lora)
    .venv-peers/bin/python benchmarks/peers/trl_preferences.py WORK rm full
    python benchmarks/preferences_real.py table WORK                   evaluates the finished runs, prints the tables

Both sides read what `prepare` writes: token ids, their order, the held-out pairs, the initial weights of the score
head and of the adapters. They use the same AdamW, learning rate and gradient clipping, one thread, float32.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch

from ladder.base.files import read_json, write_json, write_lines
from ladder.base.jsonl import read_lines
from ladder.contract.training import Pair, Sample, Unit
from ladder.data.samples import Encoding, to_pairs
from ladder.data.source import Data, Report
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.evals.accuracy import wilson
from ladder.evals.ranking import ranking
from ladder.losses import DPO, BradleyTerry
from ladder.models.load import LoadedModel, load_model, save_model
from ladder.models.lora import LoRA, adapter_off, attach, merge, save_adapter
from ladder.signals.examples import Examples
from ladder.signals.preferences import Preferences, at_end
from ladder.train import Learner, train

LONGEST, HELD, BATCH, STEPS = 160, 300, 4, 32
RATES = {("rm", "full"): 1e-5, ("rm", "lora"): 1e-4, ("dpo", "full"): 5e-6, ("dpo", "lora"): 5e-5}
ADAPTER = LoRA(rank=16, alpha=32, targets="all-linear")
KINDS = [(k, w) for k in ("rm", "dpo") for w in ("full", "lora")]


def prepare(work: Path, data: str, model: str) -> None:
    """Writes token ids in training order, the held-out pairs, and the initial weights for both sides."""
    loaded = load_model(model)
    report = Report()
    rows = list(Data(path=data, layout="hh", on_bad_row="skip").examples(report))
    pairs = to_pairs(rows, loaded.tokenizer, Encoding(), report)
    short = [p for p in pairs if max(len(p.chosen.tokens), len(p.rejected.tokens)) <= LONGEST]
    held, rest = short[:HELD], short[HELD:]
    taken = [p for batch in _dealt(rest, STEPS) for p in batch]
    write_lines(work / "train.jsonl", map(row_of, taken))
    write_lines(work / "rest.jsonl", map(row_of, rest))
    write_lines(work / "held.jsonl", map(row_of, held))
    save_model(loaded, work / "policy")
    _adapter(loaded, work / "policy_adapter")
    scorer = load_model(str(work / "policy"), scalar=True)
    head: Any = scorer.model.score  # pyright: ignore
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.02)
    save_model(scorer, work / "scorer")
    _adapter(scorer, work / "scorer_adapter")
    counts = {"pairs": len(pairs), "short": len(short), "held": len(held), "trained": len(taken), "longest": LONGEST}
    write_json(work / "counts.json", counts)
    print(counts, *report.lines(), sep="\n")


def _dealt(pairs: list[Pair], steps: int) -> list[list[Any]]:
    """The first `steps` batches of an epoch, in the order of the signal `Examples`."""
    batches = Examples(pairs, BATCH, epochs=1, seed=0).batches()
    return [next(batches) for _ in range(steps)]


def _adapter(loaded: LoadedModel, directory: Path) -> None:
    loaded.model = attach(loaded.model, ADAPTER, seed=0)
    save_adapter(loaded.model, directory)


def row_of(pair: Pair) -> dict[str, Any]:
    n = int(pair.chosen.mask.int().argmax())
    return {
        "prompt_ids": pair.chosen.tokens[:n].tolist(),
        "chosen_ids": pair.chosen.tokens[n:].tolist(),
        "rejected_ids": pair.rejected.tokens[n:].tolist(),
    }


def pairs_of(path: Path) -> list[Pair]:
    return [Pair(_side(r, "chosen_ids"), _side(r, "rejected_ids")) for r in read_lines(path)]


def _side(row: dict[str, Any], name: str) -> Sample:
    tokens = torch.tensor([*row["prompt_ids"], *row[name]])
    return Sample(tokens, torch.arange(len(tokens)) >= len(row["prompt_ids"]))


def run(work: Path, kind: str, weights: str, data: str, name: str) -> None:
    """Trains one of the four variants and writes its model, losses and times."""
    scalar = kind == "rm"
    loaded = load_model(str(work / ("scorer" if scalar else "policy")), scalar=scalar)
    without = None
    if weights == "lora":
        loaded.model = attach(loaded.model, ADAPTER, seed=0)
        adapter = loaded.model
        without = lambda: adapter_off(adapter)  # noqa: E731
    optim = Optim(lr=RATES[kind, weights], betas=(0.9, 0.999), clip=1.0)
    engine = Engine(loaded.model, optim, budget=2048, without=without)
    found = pairs_of(work / data)
    units: list[Any] = list(found)
    begun = time.perf_counter()
    if scalar:
        filler = int(loaded.model.config.pad_token_id)  # pyright: ignore
        units = [at_end(p, filler) for p in units]
    else:
        reference = engine.freeze().forward if without is None else lambda u: engine.forward(u, reference=True)
        signal = Preferences(Examples(units, BATCH, epochs=1), reference)
        signal.keep(work / "reference" / name, name)
        units = list(signal.examples.units)
    asked = time.perf_counter() - begun
    rows: list[dict[str, float]] = []

    def on_step(step: int, figures: dict[str, float]) -> bool:
        rows.append({"loss": figures["loss"], "accuracy": figures["accuracy"], "seconds": figures["seconds/update"]})
        print(step, rows[-1], flush=True)
        return False

    steps = len(units) // BATCH
    loss = BradleyTerry() if scalar else DPO(beta=0.1)
    units = units[: steps * BATCH]
    in_order = Examples(units, BATCH, order=lambda _: range(len(units)))
    train(in_order, [Learner(engine, loss)], steps=steps, on_step=on_step)
    if weights == "lora":
        loaded.model = merge(loaded.model)
    save_model(loaded, work / name / "model")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pairs_a_second = BATCH * (steps - 1) / (sum(r["seconds"] for r in rows[1:]) + asked * (steps - 1) / steps)
    write_json(work / name / "run.json", {"steps": rows, "pairs_per_s": pairs_a_second, "peak_gb": peak})


# ---------------------------------------------------------------- evaluation


def evaluate(work: Path, name: str) -> dict[str, Any]:
    """Held-out accuracy of a trained model, ours or TRL's; cached in its directory."""
    path = work / name / "held_out.json"
    if path.exists():
        return read_json(path)
    held = pairs_of(work / "held.jsonl")
    if name.startswith("rm") or "_rm" in name:
        loaded = load_model(str(work / name / "model"), scalar=True)
        filler = int(loaded.model.config.pad_token_id)  # pyright: ignore
        columns = Engine(loaded.model, budget=2048).forward([at_end(p, filler) for p in held])
        scores = torch.stack([c["values"][-1] for c in columns]).double().numpy()
        lengths = [int(s.mask.sum()) for p in held for s in (p.chosen, p.rejected)]
        made: dict[str, Any] = ranking(scores, lengths, [float("nan")] * len(held)).details()
    else:
        before = torch.tensor(_base_logps(work, held))
        d = _logps(str(work / name / "model"), held) - before
        won = (d[0::2] > d[1::2]).double() + 0.5 * (d[0::2] == d[1::2]).double()
        low, high = wilson(float(won.mean()), len(held))
        made = {"accuracy": float(won.mean()), "low": low, "high": high, "n": len(held)}
    write_json(path, made)
    return made


def _logps(model: str, pairs: list[Pair]) -> torch.Tensor:
    units: list[Unit] = list(pairs)
    columns = Engine(load_model(model).model, budget=2048).forward(units)
    return torch.stack([c["logps"].sum() for c in columns]).double()


def _base_logps(work: Path, held: list[Pair]) -> list[float]:
    path = work / "base_logps.json"
    if not path.exists():
        write_json(path, _logps(str(work / "policy"), held).tolist())
    return read_json(path)


def table(work: Path) -> str:
    """The tables of losses and of results, in Markdown."""
    head = [f"{side} {k} {w}" for k, w in KINDS for side in ("ours", "TRL") if _run(work, side, k, w)]
    lines = ["| step | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    runs = [r for k, w in KINDS for side in ("ours", "TRL") if (r := _run(work, side, k, w))]
    for i in range(10):
        lines.append(f"| {i + 1} | " + " | ".join(f"{r['steps'][i]['loss']:.5f}" for r in runs) + " |")
    columns = ["", "largest difference of the first ten losses", "held-out accuracy, ours", "TRL"]
    columns += ["pairs/s, ours", "TRL", "peak GB, ours", "TRL"]
    lines += ["", "| " + " | ".join(columns) + " |"]
    lines.append("|---" * 8 + "|")
    for k, w in KINDS:
        ours, theirs = _run(work, "ours", k, w), _run(work, "TRL", k, w)
        if not ours or not theirs:
            continue
        pairs = zip(ours["steps"][:10], theirs["steps"][:10], strict=True)
        apart = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
        held = [evaluate(work, name) for name in (f"{k}_{w}", f"trl_{k}_{w}")]
        shown = [f"{h['accuracy']:.1%} ({h['low']:.1%} to {h['high']:.1%})" for h in held]
        speed = " | ".join(f"{r['pairs_per_s']:.3f}" for r in (ours, theirs))
        peak = " | ".join(f"{r['peak_gb']:.1f}" for r in (ours, theirs))
        lines.append(f"| {k} {w} | {apart:.1e} | {shown[0]} | {shown[1]} | {speed} | {peak} |")
    return "\n".join(lines)


def _run(work: Path, side: str, kind: str, weights: str) -> dict[str, Any] | None:
    path = work / f"{'trl_' if side == 'TRL' else ''}{kind}_{weights}" / "run.json"
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "train", "evaluate", "table"])
    parser.add_argument("work", type=Path)
    parser.add_argument("kind", nargs="?", default="")
    parser.add_argument("weights", nargs="?", default="full")
    parser.add_argument("--data", default="train.jsonl", help="for train: train.jsonl or rest.jsonl (all that is left)")
    parser.add_argument("--model")
    parser.add_argument("--name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "prepare":
        prepare(args.work, args.data, args.model)
    elif args.what == "train":
        run(args.work, args.kind, args.weights, args.data, args.name or f"{args.kind}_{args.weights}")
    elif args.what == "evaluate":
        print(evaluate(args.work, args.kind))
    else:
        print(table(args.work))


if __name__ == "__main__":
    main()
