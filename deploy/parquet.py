"""Rows of Parquet files, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from shared.errors import InvalidInput, NotFound

T = TypeVar("T")


def read_parquet(
    path: Path,
    required: Sequence[str],
    parse: Callable[[Mapping[str, object]], T],
    bad: Callable[[int, str, bytes], None],
) -> Iterator[T]:
    """The rows as `parse` makes them; one that it refuses (ValueError) goes to `bad`: its number, the reason, the row.

    NotFound without the file, InvalidInput where it is no Parquet file or lacks a required column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in required if name not in file.schema_arrow.names]
            if missing:
                raise InvalidInput(f"{path} has no column {', '.join(missing)}; it has {file.schema_arrow.names}")
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    try:
                        yield parse(row)
                    except ValueError as error:
                        bad(number, str(error), repr(row).encode())
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"{path} cannot be read as Parquet: {error}") from error
