"""Reads Parquet files batch by batch with pyarrow (the extra `data`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ladder.base.errors import UserError, missing_extra
from ladder.data.kinds import Origin
from ladder.data.rows import Bad, Row, flaw


def read(path: str | Path) -> Iterator[Row | Bad]:
    """The rows of a file, numbered from 1. Raises UserError if pyarrow is missing or the file is not Parquet."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as err:
        raise missing_extra("pyarrow", "data", "reading Parquet") from err
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield checked(fields, Origin(str(path), number))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
        raise UserError(
            f"cannot be read as Parquet (after {number} rows): {err}", file=path, hint="the file may be truncated"
        ) from err


def checked(fields: dict[str, object], origin: Origin) -> Row | Bad:
    """A row of a typed table, in which null marks an absent column; null columns are removed."""
    present = {k: v for k, v in fields.items() if v is not None}
    problem = flaw(present)
    if problem is None:
        return Row(origin, present)
    field, message = problem
    return Bad(origin, UserError(message, file=origin.file, line=origin.line, field=field))
