"""The archive's files: ranges of a partition's stream as Parquet, in the artifact store.

Layout: `<domain>/archive/<partition>/<after>_<until>.parquet` (stream ids: after exclusive, until inclusive) and
`<domain>/archive/items.jsonl`. A file's name says what it holds, so the list of names says what is archived.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from shared.artifacts import ARCHIVE, ArtifactStore
from shared.errors import EvorecError, InvalidArtifact, Unavailable
from shared.stream import APPEND_CHUNK
from shared.types import STREAM_START, DomainId, Interaction, Item, ItemId, UserId, order_of

ITEMS = "items.jsonl"
ROW_GROUP = 10_000
BATCH = APPEND_CHUNK

_NAME = re.compile(r"(\d+-\d+)_(\d+-\d+)\.parquet", re.ASCII)
_PARTITIONS = b"evorec.partitions"


@dataclass(frozen=True, slots=True)
class Span:
    """A range of a stream: `after` (exclusive) to `until` (inclusive)."""

    after: str
    until: str

    @property
    def file(self) -> str:
        return f"{self.after}_{self.until}.parquet"


def gaps(spans: Sequence[Span], until: str) -> list[Span]:
    """What no span covers, from the stream's start up to `until`.

    >>> gaps([Span("0-0", "5-0"), Span("7-0", "9-0")], "12-0")
    [Span(after='5-0', until='7-0'), Span(after='9-0', until='12-0')]
    """
    found, reached = [], STREAM_START
    for span in [*_ordered(spans), Span(until, until)]:
        end = min(span.after, until, key=order_of)
        if order_of(reached) < order_of(end):
            found.append(Span(reached, end))
        reached = max(reached, span.until, key=order_of)
    return found


def covered_to(spans: Sequence[Span], first: str) -> str | None:
    """How far spans without a gap reach from the entry `first` on; None where they do not hold `first` itself.

    >>> covered_to([Span("0-0", "5-0"), Span("5-0", "9-0"), Span("10-0", "11-0")], "3-0")
    '9-0'
    """
    reached: str | None = None
    for span in _ordered(spans):
        if reached is None:
            reached = span.until if order_of(span.after) < order_of(first) <= order_of(span.until) else None
        elif order_of(span.after) <= order_of(reached):
            reached = max(reached, span.until, key=order_of)
    return reached


def _ordered(spans: Sequence[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: (order_of(span.after), order_of(span.until)))


@dataclass(frozen=True, slots=True)
class Header:
    """`partitions`: how many the domain's streams had when the file was written."""

    rows: int
    partitions: int


class ArchiveFiles:
    """Synchronous file I/O, as `ArtifactStore`. Every file appears or changes in one step."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    def partitions(self, domain: DomainId) -> list[int]:
        """The partitions that the archive has files of."""
        return sorted(int(name) for name in self._artifacts.files(domain, ARCHIVE) if name.isdecimal())

    def spans(self, domain: DomainId, partition: int) -> list[Span]:
        """What is archived of a partition, in the stream's order."""
        names = map(_NAME.fullmatch, self._artifacts.files(domain, ARCHIVE, str(partition)))
        return _ordered([Span(name[1], name[2]) for name in names if name is not None])

    def write(self, domain: DomainId, partition: int, span: Span, events: Sequence[Interaction], of: int) -> None:
        """Archives the entries of a span; `of`: the number of partitions. Writing the same again changes nothing."""
        import pyarrow as pa

        columns = zip(*map(_row, events), strict=True) if events else [()] * len(_schema())
        schema = _schema().with_metadata({_PARTITIONS: str(of).encode()})
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        self._put(domain, partition, span, pa.Table.from_arrays(arrays, schema=schema))

    def header(self, domain: DomainId, partition: int, span: Span) -> Header:
        """InvalidArtifact for a damaged file, Unavailable where the store does not give it, as all that reads."""
        with self._reading(domain, partition, span) as file:
            partitions = (file.schema_arrow.metadata or {}).get(_PARTITIONS, b"0")
            return Header(file.metadata.num_rows, int(partitions))

    def read(self, domain: DomainId, partition: int, span: Span) -> Iterator[list[Interaction]]:
        """The entries in the stream's order, at most `BATCH` at a time."""
        with self._reading(domain, partition, span) as file:
            for batch in file.iter_batches(BATCH):
                yield [_interaction(*row) for row in zip(*(column.to_pylist() for column in batch), strict=True)]

    def find(
        self, domain: DomainId, partition: int, span: Span, chosen: Callable[[UserId, str], bool]
    ) -> frozenset[str]:
        """Stream ids of the entries whose (user, stream id) are `chosen`."""
        with self._reading(domain, partition, span) as file:
            table = file.read(columns=["stream_id", "user_id"])
        rows = zip(table["stream_id"].to_pylist(), table["user_id"].to_pylist(), strict=True)
        return frozenset(stream_id for stream_id, user in rows if chosen(UserId(user), stream_id))

    def remove(self, domain: DomainId, partition: int, span: Span, stream_ids: Set[str]) -> None:
        """Rewrites the file without these entries."""
        with self._reading(domain, partition, span) as file:
            table = file.read()
        kept = [stream_id not in stream_ids for stream_id in table["stream_id"].to_pylist()]
        self._put(domain, partition, span, table.filter(kept))

    def put_items(self, domain: DomainId, items: Sequence[Item]) -> None:
        """Replaces the catalog's copy."""
        with self._artifacts.write(domain, ARCHIVE, ITEMS) as staged, staged.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)

    def items(self, domain: DomainId) -> list[Item]:
        """The catalog's copy, empty where there is none; InvalidArtifact where it is damaged."""
        try:
            return [Item(**json.loads(line)) for line in self._artifacts.read(domain, ARCHIVE, ITEMS).splitlines()]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:
            raise InvalidArtifact(f"the copy of the catalog of {domain} cannot be read: {error}") from error

    def _put(self, domain: DomainId, partition: int, span: Span, table: Any) -> None:
        import pyarrow.parquet as pq

        with self._artifacts.write(domain, ARCHIVE, str(partition), span.file) as staged:
            pq.write_table(table, staged, compression="zstd", row_group_size=ROW_GROUP, write_page_checksum=True)

    @contextmanager
    def _reading(self, domain: DomainId, partition: int, span: Span) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = f"{domain}/{ARCHIVE}/{partition}/{span.file}"
        try:
            with (
                self._artifacts.open(domain, ARCHIVE, str(partition), span.file) as raw,
                pq.ParquetFile(raw, page_checksum_verification=True) as file,
            ):
                yield file
        except EvorecError:
            raise
        except Exception as error:
            # Arrow's own word for damage is a plain OSError without a number; any other is of the store, and may pass.
            damaged = type(error) is OSError and error.errno is None
            if damaged or isinstance(error, pa.ArrowException | KeyError | ValueError | TypeError):
                raise InvalidArtifact(f"archive file {path} cannot be read: {error!r}") from error
            raise Unavailable(f"archive file {path} cannot be read; try again: {error!r}") from error


def _schema() -> Any:
    import pyarrow as pa

    types = {"timestamp": pa.float64(), "value": pa.float64(), "event_type": pa.dictionary(pa.int32(), pa.string())}
    return pa.schema([(name, types.get(name, pa.string())) for name in _COLUMNS])


_COLUMNS = ("stream_id", "event_id", "user_id", "item_id", "timestamp", "event_type", "value", "recommendation_id")


def _row(event: Interaction) -> tuple[object, ...]:
    return tuple(getattr(event, name) for name in _COLUMNS)


def _interaction(
    stream_id: str,
    event_id: str,
    user_id: str,
    item_id: str,
    timestamp: float,
    event_type: str,
    value: float | None,
    recommendation_id: str | None,
) -> Interaction:
    return Interaction(
        event_id, UserId(user_id), ItemId(item_id), timestamp, event_type, value, recommendation_id, stream_id
    )
