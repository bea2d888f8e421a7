"""The canonical files: `items.jsonl[.gz]` and `interactions.csv[.gz]`, and interactions as Parquet.

Bad lines are counted, the first ones are kept to be shown, and the rest is used.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from deploy.parquet import read_parquet
from shared.categories import leaf
from shared.errors import InvalidInput, NotFound
from shared.types import Interaction, Item, ItemId, UserId

T = TypeVar("T")

SHOWN_BAD_LINES = 5
_SHOWN_TEXT = 100
_MAX_LINE = 1 << 20  # bytes; no sane record is longer, and one bad file must not fill the memory
_REQUIRED_COLUMNS = ("user_id", "item_id", "timestamp")
_FAR_FUTURE = 1e11  # seconds; larger numbers are milliseconds
_DATE_WITHOUT_DASHES = re.compile(r"((?:19|20)\d\d)(\d\d)(\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class BadLine:
    """`number` counts from 1, as editors do."""

    number: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """The usable rows of a file, and what was left out. `first_bad`: at most `SHOWN_BAD_LINES`."""

    rows: tuple[T, ...]
    n_bad: int
    first_bad: tuple[BadLine, ...]
    n_outside: int = 0  # good lines before `since` or from `until` on


class _Tally:
    """Bad lines while a file is read."""

    def __init__(self) -> None:
        self.n_bad = 0
        self.first: list[BadLine] = []

    def add(self, number: int, reason: str, line: bytes) -> None:
        self.n_bad += 1
        if len(self.first) < SHOWN_BAD_LINES:
            text = line.decode("utf-8", "replace").strip()
            self.first.append(BadLine(number, reason, text[:_SHOWN_TEXT]))


def parse_date(text: str) -> float:
    """Unix seconds of an ISO 8601 date or time; without a zone it is UTC. Raises InvalidInput."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(f"{text!r} is no ISO date such as 2014-03-07 or 2014-03-07T12:00:00+00:00") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def read_items(path: Path) -> Loaded[Item]:
    """One JSON object per line: item_id, title, and optionally category, brand, available; null means empty."""
    tally = _Tally()
    items = tuple(_parsed(_numbered_lines(path, tally), _item, tally))
    return Loaded(items, tally.n_bad, tuple(tally.first))


def read_interactions(
    path: Path, *, since: float | None = None, until: float | None = None, seed: int = 0
) -> Loaded[Interaction]:
    """Rows with since <= timestamp < until, oldest first.

    Published data often orders the events of one day by item id, which gives a next-item model the answer. Events
    with equal timestamps therefore come in an order given by a hash of (seed, user, item), never in the file's.
    """
    tally = _Tally()
    if path.suffix == ".parquet":
        interactions = list(read_parquet(path, _REQUIRED_COLUMNS, _interaction, tally.add))
    else:
        lines = _numbered_lines(path, tally)
        interactions = list(_parsed(lines, _interaction_parser(path, lines, tally), tally))
    low = -math.inf if since is None else since
    high = math.inf if until is None else until
    inside = [event for event in interactions if low <= event.timestamp < high]
    inside.sort(key=lambda event: (event.timestamp, _tie_break(event, seed)))
    return Loaded(tuple(inside), tally.n_bad, tuple(tally.first), len(interactions) - len(inside))


def _tie_break(event: Interaction, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{event.user_id}\0{event.item_id}".encode(), digest_size=8).digest()


def _numbered_lines(path: Path, tally: _Tally) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers. A damaged gzip file ends early; what came before it counts."""
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            while line := file.readline(_MAX_LINE):
                number += 1
                if line.strip():
                    yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            tally.add(number + 1, f"the file ends here: {error}", b"")


def _parsed(lines: Iterator[tuple[int, bytes]], parse: Callable[[str], T], tally: _Tally) -> Iterator[T]:
    for number, line in lines:
        try:
            yield parse(line.decode("utf-8-sig").rstrip("\r\n"))  # the first line may begin with a byte order mark
        except UnicodeDecodeError:
            tally.add(number, "not UTF-8", line)
        except ValueError as error:
            tally.add(number, str(error), line)


def _item(line: str) -> Item:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("not an item: nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    available = record.get("available", True)
    if not isinstance(available, bool):
        raise ValueError("available is neither true nor false")
    category, brand = _text(record, "category"), _text(record, "brand")
    return Item(
        item_id=ItemId(_identifier(record.get("item_id"), "item_id")),
        title=_text(record, "title").strip() or _stand_in_title(category, brand),
        category=category,
        brand=brand,
        available=available,
    )


def _stand_in_title(category: str, brand: str) -> str:
    """Real catalogs have a few items without a title, which still have interactions worth learning from.

    >>> _stand_in_title("Beauty > Skin Care > Eyes", "Acme")
    'Acme Eyes'
    """
    return f"{brand} {leaf(category)}".strip() or "Untitled"


def has_stand_in_title(item: Item) -> bool:
    """Whether the file had no title for this item (or one that says no more than its brand and category)."""
    return item.title == _stand_in_title(item.category, item.brand)


def _identifier(value: object, name: str) -> str:
    """Ids are strings; whole numbers are taken as what they look like."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is missing")
    if not value.isprintable():
        raise ValueError(f"{name} contains control characters")
    return value.strip()


def _text(record: Mapping[str, object], name: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a text")
    return value.encode("utf-8", "replace").decode()  # a JSON escape can smuggle in half a surrogate pair


def _interaction_parser(path: Path, lines: Iterator[tuple[int, bytes]], tally: _Tally) -> Callable[[str], Interaction]:
    """Reads the header; columns may come in any order, unknown ones are ignored."""
    first = next(lines, None)
    if first is None:
        raise InvalidInput(f"{path} has no header: {tally.first[0].reason if tally.first else 'the file is empty'}")
    header = first[1].decode("utf-8-sig", "replace")
    columns = [name.strip() for name in _cells(header)]
    missing = [name for name in _REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise InvalidInput(
            f"{path} has no column {', '.join(missing)}; its first line is {header.strip()[:_SHOWN_TEXT]!r}"
        )
    user, item, time = (columns.index(name) for name in _REQUIRED_COLUMNS)
    kind = columns.index("event_type") if "event_type" in columns else None

    def parse(line: str) -> Interaction:
        cells = _cells(line)
        if len(cells) != len(columns):
            raise ValueError(f"{len(cells)} columns instead of {len(columns)}")
        return Interaction(
            event_id="",  # the log derives it from user, item, type and time
            user_id=UserId(_identifier(cells[user], "user_id")),
            item_id=ItemId(_identifier(cells[item], "item_id")),
            timestamp=_timestamp(cells[time].strip()),
            event_type=(cells[kind].strip() if kind is not None else "") or "purchase",
        )

    return parse


def _interaction(row: Mapping[str, object]) -> Interaction:
    """A row of a table with typed columns: those of the canonical file, and what else the log keeps of an event."""
    value = row.get("value")
    if value is not None and not isinstance(value, int | float):
        raise ValueError("value is not a number")
    if value is not None and not math.isfinite(value):
        raise ValueError("value is not finite")  # neither JSON nor the service has such numbers; missing is null
    recommendation = row.get("recommendation_id")
    return Interaction(
        event_id="" if row.get("event_id") is None else _identifier(row["event_id"], "event_id"),
        user_id=UserId(_identifier(row["user_id"], "user_id")),
        item_id=ItemId(_identifier(row["item_id"], "item_id")),
        timestamp=_moment(row["timestamp"]),
        event_type=_text(row, "event_type").strip() or "purchase",
        value=None if value is None else float(value),
        recommendation_id=None if recommendation is None else _identifier(recommendation, "recommendation_id"),
    )


def _moment(value: object) -> float:
    """Unix seconds of a number or a text."""
    if not isinstance(value, int | float | str):
        raise ValueError("timestamp is missing")
    return _timestamp(str(value))


def _cells(line: str) -> Sequence[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from error


def _timestamp(text: str) -> float:
    """Unix seconds, or ISO 8601."""
    if date := _DATE_WITHOUT_DASHES.fullmatch(text):  # as seconds it would be a day of 1970
        raise ValueError(f"timestamp {text} looks like a date; write {'-'.join(date.groups())}")
    try:
        seconds = float(text)
    except ValueError:
        try:
            return parse_date(text)
        except InvalidInput as error:
            raise ValueError(f"timestamp {text[:40]!r} is neither unix seconds nor ISO 8601") from error
    if not math.isfinite(seconds):
        raise ValueError(f"timestamp {text!r} is not finite")
    if abs(seconds) > _FAR_FUTURE:
        raise ValueError(f"timestamp {text} is not in seconds (milliseconds?)")
    return seconds
