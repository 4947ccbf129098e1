"""The command line. What a user did wrong is said in one paragraph, with exit code 2; tracebacks only with --debug.

Heavy imports wait inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="ladder",
    help="Train language models from examples, preferences and rewards, on one training step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Overrides = Annotated[list[str] | None, typer.Argument(help="stage.field=value, put in the recipe's place")]
Out = Annotated[Path | None, typer.Option("--out", help="the run's directory [default: runs/RECIPE]")]
Model = Annotated[str, typer.Option("--model", "-m", help="hub id, directory, .gguf file, or a run's stage directory")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="say only what must be said")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="a recipe's name (ladder recipes) or a YAML file")],
    overrides: Overrides = None,
    out: Out = None,
    seed: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="instead of the recipe's")] = None,
    until: Annotated[str | None, typer.Option(help="the last stage to run")] = None,
    without: Annotated[str, typer.Option(help="stages to leave out, e.g. pretrain when --model is given")] = "",
    plan: Annotated[bool, typer.Option("--plan", help="show what would be done, and do nothing")] = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe's stages: what is missing of them. Run it again after an interruption and it goes on."""
    from ladder.commands.runs import run_recipe

    changes = [*(overrides or [])]
    changes += [] if seed is None else [f"seed={seed}"]
    changes += [] if model is None else [f"model.source={model}"]
    left_out = [w.strip() for w in without.split(",") if w.strip()]
    run_recipe(recipe, changes, out, without=left_out, until=until, plan=plan, quiet=quiet)


@app.command()
def recipes() -> None:
    """List the recipes there are."""
    from ladder.commands.runs import list_recipes

    list_recipes()


@app.command()
def eval(
    model: Model,
    task: Annotated[str, typer.Option(help="a task as YAML, e.g. '{gsm8k: {train: a.jsonl, test: b.jsonl}}'")] = "",
    recipe: Annotated[str | None, typer.Option(help="measure as this recipe does, instead of --task")] = None,
    reward: Annotated[str | None, typer.Option(help="a reward as YAML, e.g. math")] = None,
    split: Annotated[str, typer.Option(help="of the task")] = "test",
    n: Annotated[int | None, typer.Option(help="problems (default: all)")] = None,
    samples: Annotated[int, typer.Option(help="answers to each problem")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="of an answer")] = 256,
    pass_at: Annotated[str, typer.Option(help="k of pass@k, e.g. 1,4,16")] = "",
    chat_template: Annotated[bool, typer.Option(help="put prompts as a user's turn of the chat template")] = False,
    stop: Annotated[list[str] | None, typer.Option(help="text that ends an answer")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path | None, typer.Option(help="also write figures and answers to this JSON file")] = None,
) -> None:
    """Measure a model on a held-out set: accuracy, pass@k, length, thinking share, with confidence intervals."""
    from ladder.commands.measure import evaluate_model

    options = {"split": split, "n": n, "samples": samples, "temperature": temperature, "max_tokens": max_tokens}
    options |= {"pass_at": pass_at, "chat_template": chat_template, "stop": tuple(stop or ()), "seed": seed}
    evaluate_model(model, task, recipe, reward, options, out)


@app.command()
def sample(
    model: Model,
    prompts: Annotated[list[str], typer.Argument(help="texts to answer; - reads one from standard input")],
    n: Annotated[int, typer.Option(help="answers to each")] = 1,
    max_tokens: Annotated[int, typer.Option()] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 1.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    raw: Annotated[bool, typer.Option(help="continue the text, without the chat template")] = False,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Answer prompts with any model or checkpoint."""
    from ladder.commands.models import sample_model

    settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    sample_model(model, prompts, n, settings, raw=raw, seed=seed)


@app.command()
def chat(
    model: Model,
    system: Annotated[str, typer.Option(help="a system message")] = "",
    max_tokens: Annotated[int, typer.Option()] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.7,
    top_p: Annotated[float, typer.Option()] = 0.95,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Talk to a model. An empty line or Ctrl-D ends the talk."""
    from ladder.commands.models import chat_with

    chat_with(model, system, {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}, seed)


@app.command()
def inspect(
    data: Annotated[str, typer.Argument(help=".jsonl, .parquet or hub:NAME")],
    model: Model,
    rows: Annotated[int, typer.Option("--rows", "-n", help="how many to show")] = 3,
    layout: Annotated[str | None, typer.Option(help="instead of recognising it")] = None,
    chat_template: Annotated[bool, typer.Option(help="put texts as turns of the chat template")] = False,
) -> None:
    """Show, in colour, which tokens of a file's rows are trained."""
    from ladder.commands.models import inspect_data

    inspect_data(data, model, rows, layout, chat_template=chat_template)


@app.command()
def lineage(
    run: Annotated[Path, typer.Argument(help="a run's directory")],
    check: Annotated[bool, typer.Option(help="hash every result again and compare")] = True,
) -> None:
    """Print what came from what in a run, with hashes."""
    from ladder.pipeline.lineage import lines

    for line in lines(run, check):
        typer.echo(line)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="a run's directory")]) -> None:
    """Write a run's report.html anew."""
    from ladder.report.page import write

    typer.echo(str(write(run)))


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="a run's directory")],
    json: Annotated[bool, typer.Option("--json", help="findings with their curves, for programs")] = False,
) -> None:
    """Say what went wrong in a run's stages of reinforcement learning. Exit code 1 when something did."""
    from ladder.commands.diagnose import diagnose_run

    if diagnose_run(run, as_json=json):
        raise typer.Exit(1)


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="a directory that does not exist yet")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
) -> None:
    """Write a model as a plain Hugging Face directory, reload it, and compare before saying done."""
    from ladder.commands.models import export_model

    export_model(model, out, dtype)


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="a run's directory")],
    trackers: Annotated[list[str], typer.Argument(help="tensorboard, wandb, mlflow, trackio")],
) -> None:
    """Tell trackers everything that a run's metrics.jsonl files hold."""
    from ladder.commands.runs import replay_run

    replay_run(run, trackers)


@app.command()
def lab(
    experiment: Annotated[str | None, typer.Argument(help="its name [default: list them]")] = None,
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="e.g. 0,1,2; two at least")] = "0,1,2",
    out: Annotated[Path, typer.Option("--out", help="where runs, figures and verdicts lie")] = Path("runs/lab"),
    quiet: Quiet = False,
) -> None:
    """Put a claim about the techniques to the test: several seeds, a figure, an effect with its interval, a verdict."""
    from ladder.commands.lab import list_experiments, perform_experiment

    if experiment is None:
        list_experiments()
    else:
        perform_experiment(experiment, overrides or [], seeds, out, quiet=quiet)


def main() -> None:
    """The entry point: errors of users become one paragraph, everything else a short notice."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except SystemExit:
        raise
    except KeyboardInterrupt:
        _say("interrupted; what was saved stays, and the same command goes on from there")
        sys.exit(130)
    except Exception as err:  # noqa: BLE001  the outermost place: everything must end in words and a code
        if debug:
            traceback.print_exc()
        sys.exit(_explain(err))


def _explain(err: Exception) -> int:
    """Says what went wrong; returns the exit code."""
    from ladder.base.errors import UserError

    if isinstance(err, UserError):
        _say(str(err))
        return 2
    if type(err).__name__ == "Interrupted":
        _say("stopped; the same command goes on from here")
        return 130
    _say(f"{type(err).__name__}: {err}\nRun it again with --debug for the traceback.")
    return 1


def _say(text: str) -> None:
    # what a file holds (a column's name, say) never reaches the terminal as a command
    safe = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    typer.echo(typer.style("ladder: ", fg="red", bold=True) + safe, err=True)


if __name__ == "__main__":
    main()
