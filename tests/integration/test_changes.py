"""Who listens for changes hears of all of them, as long as there is a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.artifacts import ArtifactStore
from shared.catalog import CatalogStore
from shared.changes import changes
from shared.config import Settings
from shared.redis_keys import CHANGES_CHANNEL
from shared.registry import Registry
from shared.types import DomainId
from tests.factories import BEAUTY, commit, manifest, register


@asynccontextmanager
async def listening(redis: Redis) -> AsyncIterator[asyncio.Queue[DomainId]]:
    """What a listener hears."""
    heard: asyncio.Queue[DomainId] = asyncio.Queue()

    async def listen() -> None:
        async for domain in changes(redis):
            heard.put_nowait(domain)

    listener = asyncio.create_task(listen())
    try:
        yield heard
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


async def told_until(redis: Redis, condition: Callable[[], bool]) -> None:
    """Messages are sent again and again: those before a subscription are lost."""
    async with asyncio.timeout(30):
        while not condition():
            await redis.publish(CHANGES_CHANNEL, "another")
            await asyncio.sleep(0.01)


async def test_every_change_is_heard(redis: Redis, redis_settings: Settings) -> None:
    artifacts = ArtifactStore(redis_settings)
    registry, catalog = Registry(redis, artifacts), CatalogStore(redis)
    version, other = commit(artifacts, manifest(1)), commit(artifacts, manifest(2))
    async with listening(redis) as heard:

        async def hears(change: Awaitable[object]) -> None:
            await change
            async with asyncio.timeout(30):
                while await heard.get() != BEAUTY:
                    pass

        await told_until(redis, lambda: not heard.empty())
        await hears(registry.publish(version, expected=None, fencing_token=0))
        await hears(catalog.put(BEAUTY, []))
        await hears(registry.set_paused(BEAUTY, True))
        await hears(registry.set_trial(BEAUTY, version.name, 0.5))
        await register(redis, other)
        await hears(registry.promote(BEAUTY, other.name, expected=version.name))


@pytest.mark.parametrize("message", [b"Not a domain", b"\xff"])
async def test_a_message_of_somebody_else_ends_nothing(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, message: bytes
) -> None:
    monkeypatch.setattr("shared.changes.RECONNECT_S", 0.05)
    async with listening(redis) as heard:
        for _ in range(2):
            so_far = heard.qsize()
            await told_until(redis, lambda before=so_far: heard.qsize() > before)  # type: ignore[misc]
            await redis.publish(CHANGES_CHANNEL, message)


async def test_a_lost_connection_is_made_anew(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.changes.RECONNECT_S", 0.05)
    lost = asyncio.Event()

    async def lose_connection(*_: object, **__: object) -> None:
        lost.set()
        raise RedisConnectionError

    async with listening(redis) as heard:

        async def hears_more() -> None:
            so_far = heard.qsize()
            await told_until(redis, lambda: heard.qsize() > so_far)

        await hears_more()
        await redis.client_kill_filter(_type="pubsub")  # redis-py itself connects again
        await hears_more()
        with monkeypatch.context() as patched:
            patched.setattr(PubSub, "get_message", lose_connection)
            await told_until(redis, lost.is_set)
        await hears_more()
