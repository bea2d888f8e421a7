from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

import shared.redis_client
from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.redis_client import connect
from tests.conftest import make_settings


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_no_cancellation_is_lost(redis: Redis, redis_settings: Settings, steps: int) -> None:
    """Cancelled at any of its steps, while it connects, sends or reads, a task ends."""
    async with connect(redis_settings) as client:
        await client.ping()

        async def work() -> None:
            while True:
                await client.get("key")
                await asyncio.sleep(0.05)

        occupant = asyncio.create_task(_ask(client))  # takes the open connection, so that `work` makes one
        for extra in range(3):
            task = asyncio.create_task(work())
            for _ in range(steps + extra):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=1.0)
            assert done, "the cancellation was lost"
        await occupant


async def test_nobody_is_refused_a_connection(redis: Redis, redis_settings: Settings) -> None:
    """As many as the service lets in at once: one too few would pass for a Redis that is away."""
    at_once = redis_settings.max_concurrent_requests + redis_settings.max_concurrent_batches
    async with connect(redis_settings) as client:
        assert await asyncio.gather(*(client.ping() for _ in range(at_once))) == [True] * at_once


async def _ask(client: Redis) -> None:
    for _ in range(20):
        await client.ping()


@pytest.mark.parametrize("size", [1, 10_000_000], ids=["no answer", "full buffer"])
async def test_a_redis_that_hangs_is_noticed(settings: Settings, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(shared.redis_client, "SOCKET_TIMEOUT_S", 0.2)
    with EmbeddedRedis(settings) as server:
        assert server.pid is not None
        async with connect(settings) as client:
            await client.ping()
            os.kill(server.pid, signal.SIGSTOP)
            try:
                with pytest.raises((RedisTimeoutError, RedisConnectionError)):
                    await asyncio.wait_for(client.set("key", "x" * size), 20)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert await client.ping()


async def test_a_restarted_redis_is_found_again(settings: Settings) -> None:
    async with connect(settings) as client:
        with EmbeddedRedis(settings):
            assert await client.ping()
        with EmbeddedRedis(settings):
            assert await client.ping()


async def test_a_server_that_hangs_up_is_given_up(tmp_path: Path) -> None:
    """As a Redis at its limit of clients, or a proxy without a Redis behind it, does."""
    connections = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(hang_up, tmp_path / "s")
    async with connect(make_settings(redis_url=f"unix://{tmp_path}/s")) as client:
        with pytest.raises(RedisConnectionError):
            await asyncio.wait_for(client.get("key"), 20)
    assert connections < 30
    server.close()
    await server.wait_closed()
