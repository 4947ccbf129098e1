"""Console output of a run: a progress bar with the key metrics on a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console as Rich
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

EVERY = 10.0
"""Seconds between progress lines where the output is not a terminal."""

SHOWN = ("reward/mean", "length/mean", "mixed", "entropy", "loss", "kept", "kl_base", "tokens_per_s")
"""Metrics shown beside the progress, in this order, where a step has them."""


class Console:
    """Writes messages, tables and progress bars. quiet: writes nothing."""

    def __init__(self, rich: Rich | None = None, quiet: bool = False) -> None:
        self.rich = rich or Rich()
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Prints a message, with rich markup."""
        if not self.quiet:
            self.rich.print(text, highlight=False, soft_wrap=True)

    def plain(self, text: str) -> None:
        """Prints text without interpreting rich markup, e.g. a model's answer."""
        self.say(escape(text))

    @contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A context with the progress of stage `name`: `done` of `total` steps are complete at its start."""
        if self.quiet or not self.rich.is_terminal:
            yield Bar(None, name, total, self)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        )
        with Progress(*columns, console=self.rich, transient=True, expand=True) as progress:
            progress.add_task(name, total=total, completed=done, figures="")
            yield Bar(progress, name, total, self)

    def samples(self, pairs: Sequence[tuple[str, str, str]]) -> None:
        """Prints a few samples, each (mark, prompt, answer)."""
        for mark, prompt, answer in pairs:
            self.say(f"    {mark} [dim]{escape(shorten(prompt, 60, tail=True))}[/dim] {escape(shorten(answer, 90))}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> None:
        """Prints a table. texts: the number of columns from the left that contain text; the others contain numbers."""
        if self.quiet:
            return
        table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i < texts else "right")
        for row in rows:
            table.add_row(*row)
        self.rich.print(table)


class Bar:
    """The progress of one stage: a bar on a terminal, else lines."""

    def __init__(self, progress: Progress | None, name: str, total: int, console: Console) -> None:
        self.progress, self.name, self.total, self.console = progress, name, total, console
        self.last_line = time.monotonic()
        self.done = 0

    def update(self, done: int, figures: Mapping[str, float]) -> None:
        """Shows that `done` steps are complete, with those of the step's metrics that SHOWN names."""
        self.done = done
        text = "  ".join(f"{k.split('/')[0]} {figures[k]:.3g}" for k in SHOWN if k in figures)
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=done, figures=text)
        elif time.monotonic() - self.last_line > EVERY or done == self.total:
            self.last_line = time.monotonic()
            self.console.say(f"  {self.name} {done}/{self.total}  {text}")

    def note(self, text: str) -> None:
        """Shows text about the current step beside the bar; nothing without a terminal."""
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], figures=text)


def shorten(text: str, width: int, *, tail: bool = False) -> str:
    """The text on one line of at most `width` characters: its beginning, or its end if `tail`."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    return "…" + text[1 - width :] if tail else text[: width - 1] + "…"
