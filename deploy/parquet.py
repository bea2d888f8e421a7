"""Rows of Parquet files, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import InvalidInput, NotFound

T = TypeVar("T")

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def read_parquet(
    path: Path,
    required: Sequence[str],
    parse: Callable[[Mapping[str, object]], T],
    bad: Callable[[int, str, bytes], None],
) -> Iterator[T]:
    """The rows as `parse` makes them; one that it refuses (ValueError) goes to `bad`: its number, the reason, the row.

    Times are unix seconds, and dates their midnight in UTC.
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
                columns = [_in_seconds(column) for column in batch.columns]
                for row in pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist():
                    number += 1
                    try:
                        yield parse(row)
                    except ValueError as error:
                        bad(number, str(error), repr(row).encode())
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"{path} cannot be read as Parquet: {error}") from error


def _in_seconds(column: Any) -> Any:
    """An Arrow array; of times, as numbers: Python's own times have neither nanoseconds nor a year 10,000."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if not pa.types.is_timestamp(column.type):
        return column
    ticks = column.cast(pa.int64()).cast(pa.float64(), safe=False)
    return pc.divide(ticks, float(_PER_SECOND[column.type.unit]))
