"""Data sets of the Hugging Face hub, or local ones that `datasets` loads (the extra `data`). Never runs their code."""

from __future__ import annotations

from collections.abc import Iterator

from ladder.base.errors import UserError, missing_extra
from ladder.data.kinds import Origin
from ladder.data.parquet import checked
from ladder.data.rows import Bad, Row


def read(name: str, *, subset: str | None = None, split: str = "train") -> Iterator[Row | Bad]:
    """The rows of one split, numbered from 1. Raises UserError if the data set cannot be found or reached."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as err:
        raise missing_extra("datasets", "data", "loading a data set by name") from err
    label = f"hub:{name}" + (f"/{subset}" if subset else "") + f"[{split}]"
    try:
        table = load_dataset(name, subset, split=split)
    except (OSError, ValueError, DatasetsError) as err:
        hint = "check name, subset, split and the network connection; or download the file and give its path"
        raise UserError(f"cannot be loaded: {err}", file=label, hint=hint) from err
    for number, fields in enumerate(table, 1):
        yield checked(dict(fields), Origin(label, number))
