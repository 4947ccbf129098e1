"""What the commands do, once their words are read. Everything here is also a few lines of the Python API."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from rich.console import Console as Rich

from ladder import rng, trackers
from ladder.chat import encode_prompt
from ladder.data.samples import Encoding
from ladder.data.source import Data
from ladder.engine.checkpoint import write_directory, write_json
from ladder.engine.model import LoadedModel, load_model, save_model
from ladder.errors import UserError
from ladder.head import Head, hidden
from ladder.inspection import inspect_file
from ladder.lab.experiments import EXPERIMENTS
from ladder.lab.experiments import find as find_experiment
from ladder.lab.run import perform
from ladder.pipeline import lineage, parts
from ladder.pipeline import recipe as recipes
from ladder.pipeline.evaluate import line, measure, number
from ladder.pipeline.progress import Console
from ladder.pipeline.recipe import Recipe, SamplingSpec
from ladder.pipeline.run import plan as plan_run
from ladder.pipeline.run import run as start
from ladder.report import page
from ladder.rollout.native import NativeSampler
from ladder.types import Request, Sampling

STATUS = {"done": "[green]done[/green]", "resume": "[yellow]goes on[/yellow]", "new": "to do", "stale": "to do again"}


def run_recipe(
    name: str,
    changes: Sequence[str],
    out: Path | None,
    *,
    without: Sequence[str] = (),
    until: str | None,
    plan: bool,
    quiet: bool,
) -> None:
    recipe, document = recipes.load(name, changes, without)
    wanted = recipe.first(until)
    directory = out or Path("runs") / recipe.name
    console = Console(quiet=quiet)
    if plan:
        planned = plan_run(recipe, document, directory)[:wanted]
        rows = [[p.name, p.config.kind, p.key[:12], STATUS[p.status], p.why] for p in planned]
        console.table(f"{recipe.name} in {directory}", ["stage", "kind", "identity", "status", ""], rows, 5)
        return
    if recipe.about:
        console.say(f"[dim]{recipe.about.strip()}[/dim]")
    console.say(f"{recipe.name}: {wanted} stages, seed {recipe.seed}, in {directory}")
    start(recipe, document, directory, console, until=until)
    finish(directory, console)


def finish(directory: Path, console: Console) -> None:
    """The table and the page that a run ends with."""
    summary = lineage.read_json(directory / "summary.json")
    rows = []
    for name, stage in summary["stages"].items():
        for i, (set_name, figures) in enumerate(
            (k, v) for k, v in stage.items() if isinstance(v, dict) and "length" in v
        ):
            greedy = figures.get("greedy", {}).get("accuracy")
            rows.append(
                [
                    name if i == 0 else "",
                    set_name,
                    number(figures["accuracy"], figures),
                    number(greedy, figures) if greedy is not None else "",
                    f"{figures['length']:.1f}",
                    f"{figures['mixed']:.1%}" if "mixed" in figures else "",
                    f"{stage['seconds']:.0f}" if i == 0 else "",
                ]
            )
    console.table("", ["stage", "set", "right", "greedy", "length", "mixed", "seconds"], rows, 2)
    path = page.write(directory)
    console.say(f"{summary['seconds']:.0f} seconds in all. The report: [bold]{path}[/bold]")


def list_recipes() -> None:
    console = Console()
    rows = []
    for name, path in recipes.available().items():
        about = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("about", "")
        rows.append([name, about.strip().split("\n")[0]])
    console.table("", ["recipe", "what it does"], rows, 2)


# ---------------------------------------------------------------- one model


def load(source: str, *, dtype: str = "float32") -> LoadedModel:
    """A model by any name a user may give, a stage of a run among them."""
    path = Path(source)
    if (path / "model" / "config.json").is_file():
        source = str(path / "model")
    if source.startswith("preset:"):
        raise UserError("a preset has random weights: there is nothing to see in it", field="--model")
    return load_model(source, dtype=dtype)


def evaluate_model(
    model: str, task: str, recipe: str | None, reward: str | None, options: dict[str, Any], out: Path | None
) -> None:
    """ladder eval. With a recipe: its sets, rewards and settings; else one task as given."""
    spec = _asked(model, task, recipe, reward, options)
    assert spec.eval is not None
    torch.set_num_threads(spec.threads or os.cpu_count() or 1)
    loaded = load(model)
    sampler = parts.sampler(spec, loaded)
    written: dict[str, Any] = {"model": model, "results": []}
    console = Console()
    for name in spec.eval.sets:
        for temperature in spec.eval.temperatures:
            with _as_options():
                result = measure(spec, loaded, sampler, name, temperature)
            figures = result.figures()
            console.say(f"[bold]{name}[/bold] T={temperature:g}, {result.n} problems: {line(figures)}")
            extra = {
                k: v for k, v in figures.items() if k.startswith("pass@") or k in ("thinking", "truncated", "unjudged")
            }
            console.say("  " + "  ".join(f"{k} {v:.4g}" for k, v in extra.items()))
            written["results"].append({"set": name, **figures, "answers": result.records})
    if out is not None:
        write_json(out, written)
        console.say(f"written to {out}")


def _asked(model: str, task: str, recipe: str | None, reward: str | None, options: dict[str, Any]) -> Recipe:
    """What is to be measured, and how, as a recipe of no stages."""
    if (recipe is None) == (not task):
        raise UserError("say what to measure on", field="--task", mend="give --task or --recipe, one of the two")
    if recipe is not None:
        spec, _ = recipes.load(recipe)
        if spec.eval is None:
            raise UserError("this recipe measures nothing", field="--recipe", mend="give --task instead")
        return spec.model_copy(update={"seed": options["seed"]})
    given = _yaml(reward, "--reward") if reward is not None else None
    asked = {"task": _yaml(task, "--task"), "split": options["split"], "n": options["n"]}
    sampling = {k: options[k] for k in ("max_tokens", "temperature", "stop")}
    made = {
        "sets": {"test": asked},
        "temperatures": (options["temperature"],),
        "samples": options["samples"],
        "pass_at": _ks(options),
        "sampling": sampling,
    }
    base = {"model": {"source": model}, "reward": given, "as_turn": options["as_turn"], "stages": {"none": {}}}
    base |= {"seed": options["seed"]}
    try:
        return Recipe.model_validate(base | {"eval": made})
    except ValidationError as err:
        raise _option(err) from err


@contextmanager
def _as_options() -> Iterator[None]:
    """Errors about the one set that the options describe name the option."""
    try:
        yield
    except UserError as err:
        if err.field and err.field.startswith("eval.sets.test."):
            err = UserError(err.message, field="--" + err.field.split(".")[3], mend=err.mend)
        raise err from None


def _ks(options: dict[str, Any]) -> tuple[int, ...]:
    """The k of --pass-at. Raises UserError."""
    words = [w.strip() for w in options["pass_at"].split(",") if w.strip()]
    samples = options["samples"] if options["temperature"] > 0 else 1
    for word in words:
        if not word.isdigit() or int(word) < 1:
            raise UserError(f"{word!r} is no number of answers", field="--pass-at", mend="write e.g. 1,4,16")
        if int(word) > samples:
            raise UserError(
                f"pass@{word} needs at least {word} answers to each problem, and there are {samples}",
                field="--pass-at",
                mend=f"add --samples {word}" if options["temperature"] > 0 else "set a temperature above 0",
            )
    return tuple(map(int, words))


def _option(err: ValidationError) -> UserError:
    """A value that an option cannot have."""
    first = err.errors()[0]
    names = [str(p) for p in first["loc"] if str(p) in ("n", "samples", "temperature", "max_tokens", "task", "top_p")]
    field = f"--{names[-1].replace('_', '-')}" if names else ".".join(map(str, first["loc"]))
    return UserError(f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}", field=field)


def _yaml(text: str, field: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise UserError(f"{text!r} is not YAML", field=field) from err


def sample_model(model: str, prompts: Sequence[str], n: int, settings: dict[str, Any], *, raw: bool, seed: int) -> None:
    """ladder sample."""
    loaded = load(model)
    console = Console()
    sampler = NativeSampler(loaded.model, loaded.tokenizer, eos=loaded.eos)
    as_turn = not raw and bool(loaded.tokenizer.chat_template)
    texts = [sys.stdin.read() if p == "-" else p for p in prompts]
    requests = [
        Request(
            encode_prompt(loaded.tokenizer, text, as_turn=as_turn), n, _sampling(settings), rng.key(seed, "sample", i)
        )
        for i, text in enumerate(texts)
    ]
    for text, group in zip(texts, sampler.generate(requests), strict=True):
        console.say("[bold]>[/bold] [dim]" + _safe(text) + "[/dim]")
        for c in group:
            console.plain(c.text + ("" if c.stop != "length" else " …"))


def _sampling(settings: dict[str, Any]) -> Sampling:
    try:
        return Sampling(**SamplingSpec(**settings).model_dump())
    except ValidationError as err:
        raise _option(err) from err


def _safe(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def chat_with(model: str, system: str, settings: dict[str, Any], seed: int) -> None:
    """ladder chat."""
    loaded = load(model)
    if not loaded.tokenizer.chat_template:
        raise UserError("this model has no chat template", field="--model", mend="use ladder sample")
    rich = Rich()
    sampler = NativeSampler(loaded.model, loaded.tokenizer, eos=loaded.eos)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    turn = 0
    while True:
        try:
            said = rich.input("[bold]> [/bold]")
        except EOFError:
            return
        if not said.strip():
            return
        messages.append({"role": "user", "content": said})
        prompt = encode_prompt(loaded.tokenizer, messages)
        answer = sampler.generate([Request(prompt, 1, _sampling(settings), rng.key(seed, "chat", turn))])[0][0]
        rich.print(answer.text, markup=False, highlight=False)
        messages.append({"role": "assistant", "content": answer.text})
        turn += 1


def inspect_data(data: str, model: str, rows: int, layout: str | None, *, as_turn: bool) -> None:
    """ladder inspect. Needs the tokenizer alone."""
    tokenizer = load(model).tokenizer
    inspect_file(Data(path=data, layout=layout), tokenizer, rows, Rich(), Encoding(as_turn=as_turn))


def export_model(model: str, out: Path, dtype: str) -> None:
    """ladder export: written, loaded again by plain transformers, compared."""
    from transformers import AutoModelForCausalLM

    if out.exists():
        raise UserError("is there already", file=out, mend="choose another directory")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"{dtype!r} is no dtype to export", field="--dtype")
    loaded = load(model, dtype=dtype)
    write_directory(out, lambda d: save_model(loaded, d))
    again = AutoModelForCausalLM.from_pretrained(out, dtype=getattr(torch, dtype), local_files_only=True)
    difference = _compare(loaded, again)
    Console().say(
        f"{out}: {loaded.n_parameters:,} parameters, reloaded; largest difference of a logit {difference:.2g}"
    )


def _compare(loaded: LoadedModel, again: Any) -> float:
    """The largest difference between the logits of the two on some tokens. Raises UserError beyond rounding."""
    ours = dict(loaded.model.named_parameters())
    for name, p in again.named_parameters():
        if name not in ours or not torch.equal(p, ours[name]):
            raise UserError(f"the exported weights differ in {name}", mend="this is a bug: please report it")
    g = rng.generator(0, "export")
    tokens = torch.randint(0, len(loaded.tokenizer), (16,), generator=g)
    with torch.no_grad():
        logits = again(input_ids=tokens[None]).logits
        own = Head.of(loaded.model).logits(hidden(loaded.model, tokens))
    difference = float((own - logits[0]).abs().max())
    if difference > 0.05 * float(logits.abs().max()) + 1e-3:
        raise UserError(f"the exported model's logits differ by {difference:.3g}")
    return difference


def replay_run(run: Path, names: Sequence[str]) -> None:
    """ladder replay."""
    console = Console()
    for stage in lineage.stages(run):
        n = trackers.replay(run / stage["name"], run.name, stage["name"], names)
        console.say(f"{stage['name']}: {n} steps to {', '.join(names)}")


# ---------------------------------------------------------------- the lab


def list_experiments() -> None:
    """ladder lab, without a name."""
    rows = [[e.name, e.claim] for e in EXPERIMENTS.values()]
    Console().table("", ["experiment", "the claim"], rows, 2)


def perform_experiment(name: str, changes: Sequence[str], seeds: str, out: Path, *, quiet: bool) -> None:
    """ladder lab NAME."""
    words = [w.strip() for w in seeds.split(",")]
    if not all(w.isdigit() for w in words):
        raise UserError(f"{seeds!r} is no list of numbers", field="--seeds", mend="write e.g. 0,1,2")
    experiment = find_experiment(name)
    verdict = perform(experiment, [int(w) for w in words], out, Console(quiet=quiet), changes)
    console = Console()
    if verdict.table:
        console.table("", verdict.table[0], verdict.table[1:])
    console.say(f"[dim]The claim: {experiment.claim}[/dim]")
    console.say(f"[bold]{'Holds here' if verdict.holds else 'Does not hold here'}.[/bold] {verdict.sentence}")
    console.say(f"Figures and the picture: [bold]{out / name}[/bold]")
