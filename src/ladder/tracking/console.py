"""What people see while a run goes on: a bar with the key figures on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console as Rich
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

EVERY = 10.0
"""Seconds between lines where there is no terminal."""

SHOWN = ("reward/mean", "length/mean", "mixed", "entropy", "loss", "kept", "kl_base", "tokens_per_s")


class Console:
    """Speaks to the terminal. quiet: says nothing but what must be said."""

    def __init__(self, rich: Rich | None = None, quiet: bool = False) -> None:
        self.rich = rich or Rich()
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            self.rich.print(text, highlight=False, soft_wrap=True)

    def plain(self, text: str) -> None:
        """Text that may hold anything, e.g. what a model wrote."""
        self.say(escape(text))

    @contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
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
        """A few (mark, prompt, answer)."""
        for mark, prompt, answer in pairs:
            self.say(f"    {mark} [dim]{escape(shorten(prompt, 60, tail=True))}[/dim] {escape(shorten(answer, 90))}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> None:
        """texts: how many columns, from the left, hold words; the others hold numbers."""
        if self.quiet:
            return
        table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i < texts else "right")
        for row in rows:
            table.add_row(*row)
        self.rich.print(table)


class Bar:
    """One stage's progress."""

    def __init__(self, progress: Progress | None, name: str, total: int, console: Console) -> None:
        self.progress, self.name, self.total, self.console = progress, name, total, console
        self.spoke = time.monotonic()
        self.done = 0

    def update(self, done: int, figures: Mapping[str, float]) -> None:
        self.done = done
        text = "  ".join(f"{k.split('/')[0]} {figures[k]:.3g}" for k in SHOWN if k in figures)
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=done, figures=text)
        elif time.monotonic() - self.spoke > EVERY or done == self.total:
            self.spoke = time.monotonic()
            self.console.say(f"  {self.name} {done}/{self.total}  {text}")

    def note(self, text: str) -> None:
        """What goes on inside the present step."""
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], figures=text)


def shorten(text: str, width: int, *, tail: bool = False) -> str:
    """One line of at most `width` characters: the beginning of the text, or its end."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    return "…" + text[1 - width :] if tail else text[: width - 1] + "…"
