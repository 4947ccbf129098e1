"""The command line `ladder`. A user's mistake prints one paragraph and exits with code 2; tracebacks need --debug.

Each command imports its implementation when it is called, so that --help does not load torch.
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

Overrides = Annotated[list[str] | None, typer.Argument(help="overrides of the recipe: stage.field=value")]
OutOption = Annotated[Path | None, typer.Option("--out", help="the run's directory [default: runs/RECIPE]")]
Model = Annotated[str, typer.Option("--model", "-m", help="hub id, directory, .gguf file, or a run's stage directory")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print errors only")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="name of a recipe (see: ladder recipes) or a YAML file")],
    overrides: Overrides = None,
    out: OutOption = None,
    seed: Annotated[int | None, typer.Option(help="replaces the recipe's seed")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="replaces the recipe's model.source")] = None,
    until: Annotated[str | None, typer.Option(help="name of the last stage to run")] = None,
    without: Annotated[str, typer.Option(help="stages to skip, e.g. pretrain when --model is given")] = "",
    plan: Annotated[bool, typer.Option("--plan", help="print which stages would run, and exit")] = False,
    quiet: Quiet = False,
) -> None:
    """Run the stages of a recipe that are not done yet. The same command resumes an interrupted run."""
    from ladder.commands.runs import run_recipe

    changes = [*(overrides or [])]
    changes += [] if seed is None else [f"seed={seed}"]
    changes += [] if model is None else [f"model.source={model}"]
    skipped_stages = [name.strip() for name in without.split(",") if name.strip()]
    run_recipe(recipe, changes, out, without=skipped_stages, until=until, plan=plan, quiet=quiet)


@app.command()
def recipes() -> None:
    """List the available recipes."""
    from ladder.commands.runs import list_recipes

    list_recipes()


@app.command()
def eval(
    model: Model,
    task: Annotated[str, typer.Option(help="a task as YAML, e.g. '{gsm8k: {train: a.jsonl, test: b.jsonl}}'")] = "",
    recipe: Annotated[str | None, typer.Option(help="evaluate on this recipe's sets, instead of --task")] = None,
    reward: Annotated[str | None, typer.Option(help="a reward as YAML, e.g. math")] = None,
    split: Annotated[str, typer.Option(help="split of the task")] = "test",
    n: Annotated[int | None, typer.Option(help="number of problems (default: all)")] = None,
    samples: Annotated[int, typer.Option(help="number of answers to each problem")] = 1,
    temperature: Annotated[float, typer.Option(help="sampling temperature; 0 is greedy")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="largest number of tokens of an answer")] = 256,
    pass_at: Annotated[str, typer.Option(help="values of k for pass@k, e.g. 1,4,16")] = "",
    chat_template: Annotated[bool, typer.Option(help="format prompts as a user turn of the chat template")] = False,
    stop: Annotated[list[str] | None, typer.Option(help="stop string: ends an answer")] = None,
    seed: Annotated[int, typer.Option(help="seed of the sampled answers")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures and answers")] = None,
) -> None:
    """Evaluate a model on a task: accuracy, pass@k, length, thinking share, with confidence intervals."""
    from ladder.commands.evaluate import eval_model

    options = {"split": split, "n": n, "samples": samples, "temperature": temperature, "max_tokens": max_tokens}
    options |= {"pass_at": pass_at, "chat_template": chat_template, "stop": tuple(stop or ()), "seed": seed}
    eval_model(model, task, recipe, reward, options, out)


@app.command()
def sample(
    model: Model,
    prompts: Annotated[list[str], typer.Argument(help="prompts; - reads one from standard input")],
    n: Annotated[int, typer.Option(help="number of answers to each prompt")] = 1,
    max_tokens: Annotated[int, typer.Option(help="largest number of tokens of an answer")] = 128,
    temperature: Annotated[float, typer.Option(help="sampling temperature; 0 is greedy")] = 1.0,
    top_p: Annotated[float, typer.Option(help="nucleus sampling: probability mass to sample from")] = 1.0,
    raw: Annotated[bool, typer.Option(help="continue the text, without the chat template")] = False,
    seed: Annotated[int, typer.Option(help="seed of the sampled answers")] = 0,
) -> None:
    """Sample answers to prompts from any model or checkpoint."""
    from ladder.commands.models import sample_model

    settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    sample_model(model, prompts, n, settings, raw=raw, seed=seed)


@app.command()
def chat(
    model: Model,
    system: Annotated[str, typer.Option(help="system message")] = "",
    max_tokens: Annotated[int, typer.Option(help="largest number of tokens of an answer")] = 256,
    temperature: Annotated[float, typer.Option(help="sampling temperature; 0 is greedy")] = 0.7,
    top_p: Annotated[float, typer.Option(help="nucleus sampling: probability mass to sample from")] = 0.95,
    seed: Annotated[int, typer.Option(help="seed of the sampled answers")] = 0,
) -> None:
    """Chat with a model. An empty line or Ctrl-D ends the chat."""
    from ladder.commands.models import chat_with

    chat_with(model, system, {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}, seed)


@app.command()
def inspect(
    data: Annotated[str, typer.Argument(help="a .jsonl or .parquet file, or hub:NAME")],
    model: Model,
    rows: Annotated[int, typer.Option("--rows", "-n", help="number of rows to show")] = 3,
    layout: Annotated[str | None, typer.Option(help="layout of the columns (default: recognised)")] = None,
    chat_template: Annotated[bool, typer.Option(help="format texts as turns of the chat template")] = False,
) -> None:
    """Show which tokens of a data set's rows are trained, in colour."""
    from ladder.commands.models import inspect_data

    inspect_data(data, model, rows, layout, chat_template=chat_template)


@app.command()
def lineage(
    run: Annotated[Path, typer.Argument(help="a run's directory")],
    check: Annotated[bool, typer.Option(help="recompute and compare the hash of every result")] = True,
) -> None:
    """Print the inputs and outputs of every stage of a run, with hashes."""
    from ladder.pipeline.lineage import lines

    for line in lines(run, check):
        typer.echo(line)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="a run's directory")]) -> None:
    """Write a run's report.html again."""
    from ladder.report.page import write

    typer.echo(str(write(run)))


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="a run's directory")],
    json: Annotated[bool, typer.Option("--json", help="print findings and their curves as JSON")] = False,
) -> None:
    """Check a run's reinforcement-learning stages with the alarms. Exit code 1 if any alarm fired."""
    from ladder.commands.diagnose import diagnose_run

    if diagnose_run(run, as_json=json):
        raise typer.Exit(1)


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="a directory that does not exist yet")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
) -> None:
    """Write a model as a plain Hugging Face directory, reload it and compare the weights and logits."""
    from ladder.commands.models import export_model

    export_model(model, out, dtype)


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="a run's directory")],
    trackers: Annotated[list[str], typer.Argument(help="tensorboard, wandb, mlflow, trackio")],
) -> None:
    """Send the metrics of a run's metrics.jsonl files to trackers."""
    from ladder.commands.runs import replay_run

    replay_run(run, trackers)


@app.command()
def lab(
    experiment: Annotated[str | None, typer.Argument(help="name of an experiment [default: list them]")] = None,
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="at least two seeds, e.g. 0,1,2")] = "0,1,2",
    out: Annotated[Path, typer.Option("--out", help="directory for runs, figures and verdicts")] = Path("runs/lab"),
    quiet: Quiet = False,
) -> None:
    """Test a claim of the literature over several seeds: an effect with its interval, a figure and a verdict."""
    from ladder.commands.lab import list_experiments, perform_experiment

    if experiment is None:
        list_experiments()
    else:
        perform_experiment(experiment, overrides or [], seeds, out, quiet=quiet)


def main() -> None:
    """The entry point. Any exception becomes a message and an exit code; with --debug, also a traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except SystemExit:
        raise
    except KeyboardInterrupt:
        _print_error("interrupted; saved checkpoints are kept, and the same command resumes from them")
        sys.exit(130)
    except Exception as err:  # noqa: BLE001  outermost handler: every exception must become a message and an exit code
        if debug:
            traceback.print_exc()
        sys.exit(_report(err))


def _report(err: Exception) -> int:
    """Prints the message of an exception; returns the exit code."""
    from ladder.base.errors import UserError

    if isinstance(err, UserError):
        _print_error(str(err))
        return 2
    if type(err).__name__ == "Interrupted":
        _print_error("stopped; the same command resumes from here")
        return 130
    _print_error(f"{type(err).__name__}: {err}\nRun the command again with --debug for the traceback.")
    return 1


def _print_error(text: str) -> None:
    # a message may quote a file's content (e.g. a column name): control characters must not reach the terminal
    safe = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    typer.echo(typer.style("ladder: ", fg="red", bold=True) + safe, err=True)


if __name__ == "__main__":
    main()
