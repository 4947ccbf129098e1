"""Where rows come from and what a bad one costs: the `data` block of a recipe.

`path` is a file (`.jsonl`, `.ndjson`, `.json` with one object a line, `.parquet`) or `hub:NAME`. A bad row is an error
that names it, or, where the recipe asks for that, it is counted and reported (`skip`), or also written to a file of
its own with the reason (`quarantine`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Literal

from pydantic import Field, model_validator

from ladder.base.config import Config
from ladder.base.errors import UserError
from ladder.data import hub, jsonl, layouts, parquet
from ladder.data.kinds import Kind
from ladder.data.rows import Bad, Row

NAMED = 5
"""How many rows of each sort a report names."""


@dataclass(slots=True)
class Report:
    """What became of the rows. Counts by what happened, and where it happened first."""

    layout: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    where: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, place: object = None, n: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + n
        if place is not None and len(self.where.setdefault(what, [])) < NAMED:
            self.where[what].append(str(place))

    def lines(self) -> list[str]:
        """One line a count, with the first places."""
        made = [f"layout: {self.layout}"] if self.layout else []
        for what, n in self.counts.items():
            first = self.where.get(what, [])
            more = ", ..." if n > len(first) else ""
            made.append(f"{what}: {n:,}" + (f" ({'; '.join(first)}{more})" if first else ""))
        return made


class Data(Config):
    """path: a file or `hub:NAME`. layout: one of `layouts.LAYOUTS`; recognised by the first row's columns if left out.
    columns: our name of a column -> its name in the data. subset, split: of a data set of the hub. limit: read no
    more rows than this. on_bad_row: "error", "skip", or "quarantine" (to the file `quarantine`). max_row_bytes: of a
    line of JSON.
    """

    path: str
    layout: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    subset: str | None = None
    split: str | None = None
    limit: int | None = Field(default=None, ge=1)
    on_bad_row: Literal["error", "skip", "quarantine"] = "error"
    quarantine: str | None = None
    max_row_bytes: int = Field(default=jsonl.MAX_BYTES, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> Data:
        layouts.check_layout(self.layout)
        if (self.on_bad_row == "quarantine") != (self.quarantine is not None):
            raise ValueError("quarantine names the file for bad rows: give it with on_bad_row: quarantine, only then")
        if self.quarantine is not None and Path(self.quarantine).resolve() == Path(self.path).resolve():
            raise ValueError("quarantine is the data's own file, which it would overwrite")
        if not self.path.startswith("hub:") and (self.subset or self.split):
            raise ValueError("subset and split belong to a data set of the hub (path: hub:NAME)")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("columns: two of them are the same column of the data")
        return self

    def rows(self) -> Iterator[Row | Bad]:
        """Rows as they stand, unrenamed. Raises UserError when the source cannot be read."""
        return islice(self._read(), self.limit)

    def _read(self) -> Iterator[Row | Bad]:
        if self.path.startswith("hub:"):
            return hub.read(self.path.removeprefix("hub:"), subset=self.subset, split=self.split or "train")
        path = Path(self.path)
        if path.is_dir():
            raise UserError("is a directory", file=path, hint="give a file, or hub:NAME")
        if path.suffix == ".parquet":
            return parquet.read(path)
        if path.suffix in (".jsonl", ".ndjson", ".json"):
            return jsonl.read(path, max_bytes=self.max_row_bytes)
        hint = "use .jsonl, .ndjson, .json or .parquet, or hub:NAME"
        raise UserError(f"the ending {path.suffix!r} is not known", file=path, hint=hint)

    def examples(self, report: Report | None = None) -> Iterator[Kind]:
        """The rows in their normal form, in order; the report is filled as they are read.

        Raises UserError at the first bad row (unless they are skipped), and when no row is left.
        """
        report = Report() if report is None else report
        with ExitStack() as stack:
            aside = self._aside(stack)
            kept = 0
            for row in self.rows():
                report.add("rows")
                made = self._examples(row, report)
                if isinstance(made, Bad):
                    if self.on_bad_row == "error":
                        raise made.error
                    report.add("bad rows", made.error)
                    if aside is not None:
                        aside.write(_quarantined(made))
                    continue
                kept += len(made)
                report.add("examples", n=len(made))
                yield from made
        if not kept:
            hint = "see the bad rows above" if report.counts.get("bad rows") else "check the file"
            bad = "".join(f"; {w}" for w in report.where.get("bad rows", [])[:1])
            raise UserError(f"holds no usable row{bad}", file=self.path, hint=hint)

    def _examples(self, row: Row | Bad, report: Report) -> list[Kind] | Bad:
        """The examples of a row, or what is wrong with it, in the words of the data."""
        if isinstance(row, Bad):
            return row
        try:
            renamed = self._renamed(row, first=not report.layout)
            if not report.layout:
                report.layout = self.layout or layouts.recognise(renamed)
            return layouts.convert(renamed, report.layout)
        except UserError as err:
            return Bad(row.origin, self._in_its_words(err), row.raw)

    def _renamed(self, row: Row, *, first: bool) -> Row:
        if not self.columns:
            return row
        fields = dict(row.fields)
        taken = {ours: fields.pop(theirs, None) for ours, theirs in self.columns.items()}
        if first:
            for ours, theirs in self.columns.items():
                if theirs not in row.fields:
                    there = ", ".join(row.fields)
                    message = f"is to be read from {theirs!r}, which is no column (there are: {there})"
                    raise row.error(message, field=ours)
        return replace(row, fields=fields | taken)

    def _in_its_words(self, err: UserError) -> UserError:
        """The error with the name that the column has in the data."""
        ours = (err.field or "").split("[")[0].split(".")[0]
        if err.field is None or ours not in self.columns or "no column" in err.message:
            return err
        named = self.columns[ours] + err.field[len(ours) :]
        return UserError(err.message, file=err.file, line=err.line, column=err.column, field=named, hint=err.hint)

    def _aside(self, stack: ExitStack) -> IO[str] | None:
        if self.quarantine is None:
            return None
        try:
            return stack.enter_context(open(self.quarantine, "w", encoding="utf-8"))
        except OSError as err:
            raise UserError(f"cannot be written: {err.strerror}", file=self.quarantine, field="quarantine") from err


def _quarantined(bad: Bad) -> str:
    raw = bad.raw.decode("utf-8", "backslashreplace")
    return json.dumps({"file": bad.origin.file, "line": bad.origin.line, "why": str(bad.error), "row": raw}) + "\n"
