"""The source of a stage's rows and the treatment of bad rows: the `data` block of a recipe.

`path` is a file (`.jsonl`, `.ndjson`, `.json` with one object per line, `.parquet`) or `hub:NAME`. A bad row is an
error that names it. If the recipe asks for it, bad rows are counted and reported instead (`skip`), or also written to a
separate file with the reason (`quarantine`).
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
from ladder.data.kinds import ExampleKind
from ladder.data.rows import Bad, Row

NAMED = 5
"""Number of places that a report names for each count."""


@dataclass(slots=True)
class Report:
    """Counts of what happened to the rows of a source, and the first places of each.

    layout: of the rows. counts: by event ("rows", "bad rows", "over-long, dropped", ...). where: its first places.
    """

    layout: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    where: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, place: object = None, n: int = 1) -> None:
        """Counts n events of the name `what`; place: where one happened."""
        self.counts[what] = self.counts.get(what, 0) + n
        if place is not None and len(self.where.setdefault(what, [])) < NAMED:
            self.where[what].append(str(place))

    def lines(self) -> list[str]:
        """The report as text: one line per count, with its first places."""
        lines = [f"layout: {self.layout}"] if self.layout else []
        for what, n in self.counts.items():
            places = self.where.get(what, [])
            more = ", ..." if n > len(places) else ""
            lines.append(f"{what}: {n:,}" + (f" ({'; '.join(places)}{more})" if places else ""))
        return lines


class Data(Config):
    """The `data` block of a recipe.

    path: a file or `hub:NAME`. layout: one of `layouts.LAYOUTS`; if left out, it is recognised by the columns of the
    first row. columns: column name of the layout -> its name in the data. subset, split: of a hub data set. limit:
    maximum number of rows to read. on_bad_row: "error", "skip", or "quarantine" (write them to the file `quarantine`).
    max_row_bytes: maximum length of a JSON line.
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
    def _consistent(self) -> Data:
        layouts.check_layout(self.layout)
        if (self.on_bad_row == "quarantine") != (self.quarantine is not None):
            raise ValueError("quarantine (a file) and on_bad_row: quarantine must be given together or not at all")
        if self.quarantine is not None and Path(self.quarantine).resolve() == Path(self.path).resolve():
            raise ValueError("quarantine is the same file as path, which it would overwrite")
        if not self.path.startswith("hub:") and (self.subset or self.split):
            raise ValueError("subset and split are for hub data sets only (path: hub:NAME)")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("columns: two entries name the same column of the data")
        return self

    def rows(self) -> Iterator[Row | Bad]:
        """Rows with the column names of the data. Raises UserError if the source cannot be read."""
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
        raise UserError(f"the file name extension {path.suffix!r} is not supported", file=path, hint=hint)

    def examples(self, report: Report | None = None) -> Iterator[ExampleKind]:
        """The examples of all rows, in order; `report` is filled as rows are read.

        Raises UserError on the first bad row (unless bad rows are skipped), and if no row is usable.
        """
        report = Report() if report is None else report
        with ExitStack() as stack:
            quarantine = self._quarantine_file(stack)
            n_examples = 0
            for row in self.rows():
                report.add("rows")
                examples = self._examples(row, report)
                if isinstance(examples, Bad):
                    if self.on_bad_row == "error":
                        raise examples.error
                    report.add("bad rows", examples.error)
                    if quarantine is not None:
                        quarantine.write(_quarantined(examples))
                    continue
                n_examples += len(examples)
                report.add("examples", n=len(examples))
                yield from examples
        if not n_examples:
            bad_rows = report.where.get("bad rows", [])
            hint = "correct the rows, or check layout and columns" if bad_rows else "check the file"
            first = f"; {bad_rows[0]}" if bad_rows else ""
            raise UserError(f"holds no usable row{first}", file=self.path, hint=hint)

    def _examples(self, row: Row | Bad, report: Report) -> list[ExampleKind] | Bad:
        """The examples of a row, or the error that makes it bad, which uses the column names of the data."""
        if isinstance(row, Bad):
            return row
        try:
            renamed = self._renamed(row, first=not report.layout)
            if not report.layout:
                report.layout = self.layout or layouts.recognise(renamed)
            return layouts.convert(renamed, report.layout)
        except UserError as err:
            return Bad(row.origin, self._in_data_names(err), row.raw)

    def _renamed(self, row: Row, *, first: bool) -> Row:
        """The row with the column names of the layout. first: check that the data has the columns."""
        if not self.columns:
            return row
        fields = dict(row.fields)
        renamed = {name: fields.pop(source, None) for name, source in self.columns.items()}
        if first:
            for name, source in self.columns.items():
                if source not in row.fields:
                    known = ", ".join(row.fields)
                    raise row.error(f"is mapped to {source!r}, which is no column of the data ({known})", field=name)
        return replace(row, fields=fields | renamed)

    def _in_data_names(self, err: UserError) -> UserError:
        """The error with the column's name in the data."""
        name = (err.field or "").split("[")[0].split(".")[0]
        if err.field is None or name not in self.columns or "no column" in err.message:
            return err
        field = self.columns[name] + err.field[len(name) :]
        return UserError(err.message, file=err.file, line=err.line, column=err.column, field=field, hint=err.hint)

    def _quarantine_file(self, stack: ExitStack) -> IO[str] | None:
        """The open file for bad rows; None without one."""
        if self.quarantine is None:
            return None
        try:
            return stack.enter_context(open(self.quarantine, "w", encoding="utf-8"))
        except OSError as err:
            raise UserError(f"cannot be written: {err.strerror}", file=self.quarantine, field="quarantine") from err


def _quarantined(bad: Bad) -> str:
    """The JSON line of a bad row in the quarantine file."""
    raw = bad.raw.decode("utf-8", "backslashreplace")
    return json.dumps({"file": bad.origin.file, "line": bad.origin.line, "why": str(bad.error), "row": raw}) + "\n"
