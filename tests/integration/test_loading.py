"""Files into a domain without HTTP, against a real Redis: what goes in, what is refused, and that twice is once."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.files import parse_date, read_interactions, read_items
from deploy.loading import DirectLoader, in_words, load_interactions, load_items
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.errors import InvalidInput
from shared.history import HistoryStore
from shared.stream import InteractionLog
from shared.types import DomainId, Interaction, Item, ItemId, UserId

SHOP = DomainId("shop")
# Read before a fixture clears the environment.
DATA = os.environ.get("EVOREC_DATA_DIR")


def loader(redis: Redis, settings: Settings) -> DirectLoader:
    return DirectLoader(CatalogStore(redis), InteractionLog(redis, settings), settings.max_clock_skew_s)


async def test_rows_go_in_batches_and_unknown_items_are_refused(redis: Redis, redis_settings: Settings) -> None:
    to = loader(redis, redis_settings)
    items = [Item(ItemId(f"i{n}"), f"Item {n}") for n in range(1500)]
    steps: list[int] = []
    put = await load_items(to, SHOP, items, steps.append)
    assert (put.accepted, steps) == (1500, [1000, 500])
    events = [Interaction("", UserId("u"), ItemId(f"i{n % 1501}"), float(n)) for n in range(2001)]
    total = await load_interactions(to, SHOP, events, steps.append)
    assert (total.accepted, total.duplicates, total.rejected) == (2000, 0, 1)
    reason = "item_id: there is no item 'i1500' in domain 'shop'"
    assert total.first_rejected == (("user_id u, item_id i1500, event_type purchase, timestamp 1500", reason),)
    again = await load_interactions(to, SHOP, events, steps.append)
    assert (again.accepted, again.duplicates) == (0, 2000)


async def test_what_the_service_would_refuse_is_refused_without_it(redis: Redis, redis_settings: Settings) -> None:
    to = loader(redis, redis_settings)
    bad_items = [Item(ItemId("x" * 257), "long id"), Item(ItemId("b"), "\x01")]
    put = await load_items(to, SHOP, [*bad_items, Item(ItemId("a"), "A")], lambda n: n)
    assert (put.accepted, [row for row, _ in put.first_rejected]) == (1, [f"item_id {'x' * 100}", "item_id b"])
    now = time.time()
    in_time, too_late = now + redis_settings.max_clock_skew_s - 60, now + redis_settings.max_clock_skew_s + 60
    events = [
        Interaction("", UserId("u"), ItemId("a"), in_time),
        Interaction("", UserId("u"), ItemId("a"), too_late),
        Interaction("", UserId("u"), ItemId("a"), -1.0),
        Interaction("", UserId("u"), ItemId("a"), 5.0, event_type="Bought!"),
    ]
    total = await load_interactions(to, SHOP, events, lambda n: n)
    assert (total.accepted, total.rejected) == (1, 3)
    assert [row for row, _ in total.first_rejected] == [in_words(event) for event in events[1:]]
    assert total.first_rejected[0][1] == f"timestamp: {too_late:.0f} lies too far in the future"
    [kept] = await HistoryStore(redis, redis_settings).get(SHOP, UserId("u"))
    assert kept.timestamp == in_time


async def test_ties_enter_the_history_in_hash_order(redis: Redis, redis_settings: Settings, tmp_path: Path) -> None:
    ids = [f"{n:03d}" for n in range(30)]
    file = tmp_path / "c.csv"
    file.write_text("user_id,item_id,timestamp\n" + "".join(f"u,{i},86400\n" for i in ids))
    to = loader(redis, redis_settings)
    await load_items(to, SHOP, [Item(ItemId(i), i) for i in ids], lambda n: n)
    events = read_interactions(file, seed=1).rows
    await load_interactions(to, SHOP, events, lambda n: n)
    history = [event.item_id for event in await HistoryStore(redis, redis_settings).get(SHOP, UserId("u"))]
    assert history == [event.item_id for event in events]
    assert history != ids


async def test_the_ingest_command_with_direct_and_json(
    redis: Redis, redis_url: str, redis_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "title": "A"}\nnot json\n{"item_id": "b", "title": "B"}\n')
    rows = ["u,a,2026-01-01", "u,b,2026-01-02", "u,gone,2026-01-02", "u,b,2026-01-03", "broken"]
    (tmp_path / "c.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    command = "ingest --direct --json --domain shop --items items.jsonl c.csv --since 2026-01-02 --until 2026-01-03"
    result = subprocess.run(
        [sys.executable, "-m", "deploy.cli.main", *command.split()],
        cwd=tmp_path,
        env={**os.environ, "EVOREC_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert {name: answer[name] for name in ("accepted", "duplicates", "rejected", "bad_lines", "outside")} == {
        "accepted": 1,
        "duplicates": 0,
        "rejected": 1,
        "bad_lines": 1,
        "outside": 2,
    }
    assert "line 2: not JSON" in result.stderr
    [event] = await HistoryStore(redis, redis_settings).get(SHOP, UserId("u"))
    assert (event.item_id, event.timestamp) == ("b", parse_date("2026-01-02"))


async def test_a_redis_that_refuses_is_one_line_without_the_data(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"item_id": "secret-id", "title": "Secret title"}\n')
    (tmp_path / "c.csv").write_text("user_id,item_id,timestamp\nu,secret-id,2026-01-01\n")
    await redis.config_set("maxmemory", 1)
    try:
        result = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "deploy.cli.main", "ingest", "--direct", "--items", "items.jsonl", "c.csv"],
            cwd=tmp_path,
            env={**os.environ, "EVOREC_REDIS_URL": redis_url},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        await redis.config_set("maxmemory", 0)
    assert result.returncode == 1
    said = result.stderr.splitlines()[-1]
    assert said.startswith("Redis refused: OutOfMemoryError: command not allowed when used memory > 'maxmemory'; ")
    assert "Cut off: of 1 items 0 accepted, 0 duplicates, 0 rejected" in result.stderr
    assert "ecret" not in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ingest --domain Shop! c.csv", "domain"),
        ("ingest --since yesterday c.csv", "ISO date"),
        ("pretrain --out o --items items.jsonl", "come together"),
    ],
)
def test_wrong_options_are_readable_errors(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(InvalidInput, match=message):
        CliRunner().invoke(app, command.split(), catch_exceptions=False)


@pytest.mark.skipif(DATA is None, reason="EVOREC_DATA_DIR is unset: the real datasets are not here")
@pytest.mark.parametrize(("name", "users", "items", "interactions"), [("beauty2014", 22363, 12101, 198502)])
def test_the_real_files_are_read_whole(name: str, users: int, items: int, interactions: int) -> None:
    folder = Path(str(DATA)) / name
    catalog = read_items(folder / "items.jsonl.gz")
    events = read_interactions(folder / "interactions.csv.gz")
    assert (len(catalog.rows), catalog.n_bad) == (items, 0)
    assert (len(events.rows), events.n_bad) == (interactions, 0)
    assert len({event.user_id for event in events.rows}) == users
    assert all(item.title for item in catalog.rows)
    split = parse_date("2013-12-27")
    past = read_interactions(folder / "interactions.csv.gz", until=split)
    assert 0.69 < len(past.rows) / interactions < 0.71
    assert past.rows == events.rows[: len(past.rows)]
