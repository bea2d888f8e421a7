"""What Redis has when it answers: with a slow disk and SIGKILL, with a replica that stops, with wrong settings."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import httpx
import pytest
from redis.exceptions import RedisError

from service.durability import durability_warnings
from service.redis_watch import RedisWatch
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.errors import Unavailable
from shared.history import HistoryStore
from shared.redis_client import connect
from shared.stream import InteractionLog
from shared.types import UserId
from tests.factories import BEAUTY, interaction
from tests.faults.conftest import Tell
from tests.faults.redis_server import RedisServer, slow_syncs
from tests.log_reader import read_all
from tests.service_support import ITEMS, SHOP, serving
from tests.tiny_base import write_base


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_killed_redis_on_a_slow_disk_has_all_it_answered(
    settings: Settings, full: bool, rng: random.Random, outcome: Tell, partitions: int
) -> None:
    settings = settings.model_copy(update={"partitions": partitions})
    kills, answered, slowed = 20 if full else 3, [], 0
    server = EmbeddedRedis(settings)
    for kill in range(kills):
        server.start()
        assert server.pid is not None
        with slow_syncs(server.pid, delay_s=0.3) as is_slow:
            slowed += is_slow
            ending = asyncio.create_task(_kill_after(server.pid, rng.uniform(0.5, 1.5)))
            async with connect(settings) as client:
                answered += await _append_until_it_breaks(InteractionLog(client, settings), kill)
            await ending
        server.stop()
    with EmbeddedRedis(settings):
        async with connect(settings) as client:
            kept = [event.event_id for event in await read_all(InteractionLog(client, settings), BEAUTY)]
    assert len(kept) == len(set(kept))
    assert slowed == kills or not full, "strace is needed to slow the syncs of a disk"
    outcome(
        1,
        f"A killed Redis with a slow disk has every interaction that it answered ({partitions} partitions)",
        faults={"Redis killed": kills, "runs with a slow disk": slowed},
        cases=len(answered),
        lost=len(set(answered) - set(kept)),
    )


async def _kill_after(pid: int, seconds: float) -> None:
    await asyncio.sleep(seconds)
    os.kill(pid, signal.SIGKILL)


async def _append_until_it_breaks(log: InteractionLog, kill: int) -> list[str]:
    """Ids of the events that were appended, four at a time."""
    answered: list[str] = []

    async def client(number: int) -> None:
        for n in range(1_000_000):
            event_id = f"{kill}-{number}-{n}"
            try:
                await log.append(BEAUTY, [interaction(f"u{n % 50}", at=float(n), event_id=event_id)])
            except (RedisError, Unavailable, OSError):
                return
            answered.append(event_id)

    await asyncio.gather(*map(client, range(4)))
    return answered


async def test_accepted_means_that_the_replica_has_it(
    settings: Settings, tmp_path: Path, unused_tcp_port_factory: object, full: bool, outcome: Tell
) -> None:
    ports = [unused_tcp_port_factory() for _ in range(2)]  # type: ignore[operator]
    rounds, accepted, refused = 20 if full else 2, 0, 0
    with (
        RedisServer(tmp_path / "primary", ports[0]) as primary,
        RedisServer(tmp_path / "replica", ports[1], replicaof=f"127.0.0.1 {ports[0]}") as replica,
    ):
        settings = _over(settings, primary.url, tmp_path)
        async with connect(settings) as client, serving(settings, client) as service:
            await CatalogStore(client).put(SHOP, ITEMS)
            for round_ in range(rounds):
                body = _batch(round_)
                accepted += (await _post(service.http, body, until=202)).json()["accepted"]
                replica.signal(signal.SIGSTOP)
                body = _batch(rounds + round_)
                # The retry finds nothing but duplicates, and is not accepted for that.
                for _ in range(2):
                    answer = await service.http.post("/interactions", json=body)
                    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), answer.text
                    assert answer.json()["type"] == "urn:evorec:problem:too-few-replicas-have-the-write"
                    refused += 1
                replica.signal(signal.SIGCONT)
                answer = await _post(service.http, body, until=202)
                accepted += answer.json()["accepted"] + answer.json()["duplicates"]
        primary.kill()
        with replica.client() as other:
            other.execute_command("REPLICAOF", "NO", "ONE")
        missing = await _missing_at(_over(settings, replica.url, tmp_path), 2 * rounds)
    outcome(
        1,
        "With EVOREC_WAIT_REPLICAS, a replica that takes over has every accepted interaction once",
        faults={"replica stopped": rounds, "primary killed": 1, "refused with 503": refused},
        cases=accepted,
        lost=missing,
    )


def _over(settings: Settings, url: str, tmp_path: Path) -> Settings:
    base = write_base(tmp_path / "base")
    return settings.model_copy(
        update={"redis_url": url, "wait_replicas": 1, "wait_replicas_ms": 300, "base_model": str(base)}
    )


def _batch(number: int) -> dict[str, object]:
    events = [
        {"event_id": f"{number}-{n}", "user_id": f"u{n}", "item_id": "i1", "timestamp": 1000 + number} for n in range(5)
    ]
    return {"domain": SHOP, "interactions": events}


async def _post(http: httpx.AsyncClient, body: dict[str, object], until: int) -> httpx.Response:
    async with asyncio.timeout(60):
        while (answer := await http.post("/interactions", json=body)).status_code != until:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return answer


async def _missing_at(settings: Settings, batches: int) -> int:
    """How many of the batches' events are not once in stream and history."""
    async with connect(settings) as client:
        log = InteractionLog(client, settings)
        stream = [event.event_id for event in await read_all(log, SHOP)]
        assert len(stream) == await log.count(SHOP, {})
        histories = await HistoryStore(client, settings).get_many(SHOP, [UserId(f"u{n}") for n in range(5)])
        history = [event.event_id for events in histories.values() for event in events]
    expected = {f"{number}-{n}" for number in range(batches) for n in range(5)}
    return len(expected - set(stream)) + len(expected - set(history)) + abs(len(history) - len(stream))


async def test_a_redis_that_would_lose_interactions_is_warned_of(
    settings: Settings, tmp_path: Path, unused_tcp_port: int
) -> None:
    options = {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}
    with RedisServer(tmp_path / "redis", unused_tcp_port, **options) as server:
        settings = _over(settings, server.url, tmp_path).model_copy(update={"wait_replicas": 0})
        async with connect(settings) as client, serving(settings, client) as service:
            async with asyncio.timeout(20):
                while not (warnings := (await service.http.get("/health/ready")).json()["warnings"]):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await service.ready()
        assert len(warnings) == 2
        assert "append-only file" in warnings[0]
        assert "allkeys-lru" in warnings[1]


async def test_a_redis_that_syncs_when_the_system_likes_is_warned_of_where_it_tells(
    settings: Settings, tmp_path: Path, unused_tcp_port: int
) -> None:
    with RedisServer(tmp_path / "redis", unused_tcp_port, appendfsync="no") as server:
        async with connect(settings.model_copy(update={"redis_url": server.url})) as client:
            (warning,) = await durability_warnings(client)
            assert "appendfsync no" in warning
            await client.config_set("appendfsync", "everysec")
            assert await durability_warnings(client) == ()
            await client.config_set("appendfsync", "no")
            await client.acl_setuser("default", commands=["-config"])
            assert await durability_warnings(client) == ()


async def test_the_embedded_redis_is_not_warned_of(settings: Settings) -> None:
    with EmbeddedRedis(settings):
        async with connect(settings) as client:
            assert await durability_warnings(client) == ()


async def test_a_redis_that_comes_late_is_looked_at(
    settings: Settings, tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.redis_watch.RETRY_S", 0.05)
    server = RedisServer(tmp_path / "redis", unused_tcp_port, appendonly="no")
    async with connect(settings.model_copy(update={"redis_url": server.url})) as client:
        watch = RedisWatch(client, settings)
        task = asyncio.create_task(watch.run())
        await asyncio.sleep(0.2)
        before = watch.warnings
        with server:
            async with asyncio.timeout(20):
                while not watch.warnings:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            task.cancel()
    assert before == ()
