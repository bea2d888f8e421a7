"""The canonical files: tolerant of bad lines, exact about ranges, and free of the order that leaks the answer."""

from __future__ import annotations

import gzip
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.files import SHOWN_BAD_LINES, parse_date, read_interactions, read_items
from shared.archive_files import ArchiveFiles, Span
from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.errors import InvalidInput, NotFound
from tests.factories import BEAUTY, interaction

HEADER = "user_id,item_id,timestamp\n"


def write(path: Path, content: str | bytes) -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["items.jsonl", "items.jsonl.gz"])
def test_items_plain_and_compressed(tmp_path: Path, name: str) -> None:
    path = write(
        tmp_path / name, '{"item_id": "a", "title": "Soap", "category": "Bath", "brand": null}\n\n{"item_id": 7}\n'
    )
    loaded = read_items(path)
    assert [(i.item_id, i.title, i.category, i.brand) for i in loaded.rows] == [
        ("a", "Soap", "Bath", ""),
        ("7", "Untitled", "", ""),
    ]
    assert loaded.n_bad == 0


def test_items_with_a_byte_order_mark(tmp_path: Path) -> None:
    loaded = read_items(write(tmp_path / "items.jsonl", '\ufeff{"item_id": "a"}\n{"item_id": "b"}\n'))
    assert [item.item_id for item in loaded.rows] == ["a", "b"]


def test_bad_item_lines_are_counted_and_the_rest_goes_in(tmp_path: Path) -> None:
    bad = [
        b"{",
        b"[]",
        b'{"title": "no id"}',
        b'{"item_id": true}',
        b'{"item_id": "x", "title": 5}',
        b"\xff\xfe",
        b"[" * 9999,
    ]
    path = write(tmp_path / "items.jsonl", b'{"item_id": "a"}\n' + b"\n".join(bad) + b'\n{"item_id": "b"}\n')
    loaded = read_items(path)
    assert [item.item_id for item in loaded.rows] == ["a", "b"]
    assert loaded.n_bad == len(bad)
    assert len(loaded.first_bad) == SHOWN_BAD_LINES
    assert (loaded.first_bad[0].number, loaded.first_bad[0].text) == (2, "{")
    assert loaded.first_bad[2].reason == "item_id is missing"


def test_interactions_since_is_inclusive_and_until_exclusive(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", HEADER + "u,a,100\nu,b,200\nu,c,300\n")
    loaded = read_interactions(path, since=100, until=300)
    assert [event.item_id for event in loaded.rows] == ["a", "b"]
    assert loaded.n_outside == 1


def test_bad_interaction_lines(tmp_path: Path) -> None:
    rows = ["u,a", ",a,1", "u,,1", "u,a,never", "u,a,nan", "u,a,1700000000000", 'u,"a,1', "u,a,2014-03-07", "u,b,5,6"]
    loaded = read_interactions(write(tmp_path / "c.csv", HEADER + "\n".join(rows)))
    assert [event.timestamp for event in loaded.rows] == [parse_date("2014-03-07")]
    assert loaded.n_bad == 8


def test_a_date_without_dashes_is_not_taken_for_seconds_of_1970(tmp_path: Path) -> None:
    rows = ["u,a,20260105", "u,b,19991231", "u,c,20260105.0", "u,d,21000000", "u,e,2026-01-05"]
    loaded = read_interactions(write(tmp_path / "c.csv", HEADER + "\n".join(rows)))
    assert {event.item_id for event in loaded.rows} == {"c", "d", "e"}
    assert loaded.first_bad[0].reason == "timestamp 20260105 looks like a date; write 2026-01-05"
    dates = parquet(tmp_path / "c.parquet", user_id=["u"], item_id=["a"], timestamp=[20260105])
    assert read_interactions(dates).n_bad == 1


def test_columns_in_any_order_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv.gz", '\ufefftimestamp,rating,item_id,user_id,event_type\r\n5,4.0,"a,b",u,view\r\n')
    [event] = read_interactions(path).rows
    assert (event.user_id, event.item_id, event.timestamp, event.event_type) == ("u", "a,b", 5.0, "view")


def test_without_the_columns_nothing_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no column item_id, timestamp"):
        read_interactions(write(tmp_path / "c.csv", "user_id,product\nu,a\n"))
    with pytest.raises(InvalidInput, match="no header: the file is empty"):
        read_interactions(write(tmp_path / "empty.csv", ""))
    plain = tmp_path / "plain.csv.gz"
    plain.write_text(HEADER)
    with pytest.raises(InvalidInput, match="no header: the file ends here: Not a gzipped file"):
        read_interactions(plain)
    with pytest.raises(NotFound):
        read_items(tmp_path / "absent.jsonl")


def test_a_truncated_gzip_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "c.csv.gz"
    content = HEADER + "".join(f"u{i},item{i * 7919 % 10007},{i}\n" for i in range(5000))
    path.write_bytes(gzip.compress(content.encode())[:-2000])
    loaded = read_interactions(path)
    assert 0 < len(loaded.rows) < 5000
    assert loaded.n_bad >= 1
    assert "ends here" in loaded.first_bad[-1].reason


def test_ties_lose_the_order_of_the_file(tmp_path: Path) -> None:
    ids = [f"{i:03d}" for i in range(50)]
    path = write(tmp_path / "c.csv", HEADER + "".join(f"u,{i},86400\n" for i in ids) + "u,first,1\n")
    order = [event.item_id for event in read_interactions(path, seed=1).rows]
    assert order[0] == "first"
    assert sorted(order[1:]) == ids
    assert order[1:] != ids
    assert order == [event.item_id for event in read_interactions(path, seed=1).rows]
    assert order != [event.item_id for event in read_interactions(path, seed=2).rows]


def test_dates_without_a_zone_are_utc() -> None:
    assert parse_date("1970-01-02") == 86400
    assert parse_date("1970-01-02T01:00:00+01:00") == 86400
    with pytest.raises(InvalidInput, match="ISO date"):
        parse_date("last week")


@given(st.binary(max_size=400))
def test_no_content_raises_anything_but_our_errors(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    read_items(write(folder / "items.jsonl", content))
    (folder / "items.jsonl.gz").write_bytes(content)
    read_items(folder / "items.jsonl.gz")
    loaded = read_interactions(write(folder / "c.csv", HEADER.encode() + content))
    assert all(event.user_id and event.item_id for event in loaded.rows)


def parquet(path: Path, **columns: list[object]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def test_interactions_as_parquet(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "interactions.parquet",
        item_id=["b", "a", "c"],
        user_id=[7, 8, 9],
        timestamp=[datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1), datetime(2027, 1, 1, tzinfo=UTC)],
        value=[1.5, None, None],
    )
    loaded = read_interactions(path, until=parse_date("2026-12-31"))
    assert [(e.user_id, e.item_id, e.value, e.event_type) for e in loaded.rows] == [
        ("8", "a", None, "purchase"),
        ("7", "b", 1.5, "purchase"),
    ]
    assert (loaded.n_bad, loaded.n_outside) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "stored", "seconds"),
    [
        ("date32", [1, None, 2], [86_400.0, 172_800.0]),
        ("date64", [86_400_000, None, 0], [0.0, 86_400.0]),
        ("timestamp[s]", [5, 2**50, 6], [5.0, 6.0]),
        ("timestamp[us]", [1, 2**62, -1], [-1e-6, 1e-6]),
        ("timestamp[ns]", [1_700_000_000_000_000_001, None, 1_500_000_000], [1.5, 1_700_000_000.0]),
    ],
)
def test_times_and_dates_of_parquet(tmp_path: Path, kind: str, stored: list[object], seconds: list[float]) -> None:
    import pyarrow as pa

    times = pa.array(stored, pa.int32() if kind == "date32" else pa.int64()).cast(pa.type_for_alias(kind))
    path = parquet(tmp_path / "interactions.parquet", user_id=["u"] * 3, item_id=["i"] * 3, timestamp=times)
    loaded = read_interactions(path)
    assert [event.timestamp for event in loaded.rows] == seconds
    assert loaded.n_bad == 3 - len(seconds)


def test_bad_parquet_rows_are_counted_and_the_rest_goes_in(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "interactions.parquet",
        user_id=["u", None, "u", "u", "u", "u"],
        item_id=["i", "i", "", "i", "i", "i"],
        timestamp=[5.0, 5.0, 5.0, float("nan"), 5.0, 5.0],
        value=[2.0, None, None, None, float("nan"), float("inf")],
    )
    loaded = read_interactions(path)
    assert [event.user_id for event in loaded.rows] == ["u"]
    assert (loaded.n_bad, [line.number for line in loaded.first_bad]) == (5, [2, 3, 4, 5, 6])
    assert loaded.first_bad[-1].reason == "value is not finite"


def test_archive_files_are_read_with_all_they_hold(settings: Settings) -> None:
    event = interaction(
        "u", "i", 3.0, event_id="e", event_type="click", value=2.0, recommendation_id="r", stream_id="5-0"
    )
    ArchiveFiles(ArtifactStore(settings)).write(BEAUTY, 0, Span("0-0", "5-0"), [event], 1)
    (path,) = settings.state_dir.rglob("*.parquet")
    assert read_interactions(path).rows == (replace(event, stream_id=""),)


@pytest.mark.parametrize("damage", ["not parquet", "no column"])
def test_parquet_files_that_are_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "interactions.parquet"
    if damage == "not parquet":
        path.write_text(HEADER)
    else:
        parquet(path, user_id=["u"])
    with pytest.raises(InvalidInput):
        read_interactions(path)
