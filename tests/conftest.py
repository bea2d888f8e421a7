"""Fixtures of every test: settings over a temporary state directory, and a real Redis."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.redis_client import connect
from shared.redis_urls import socket_url


def make_settings(**changes: object) -> Settings:
    """Settings that know nothing of the developer's environment or `.env`."""
    return Settings(_env_file=None, **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EVOREC_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """No Redis of its own: see `redis_settings`."""
    return make_settings(state_dir=tmp_path)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one real Redis for the whole session."""
    settings = make_settings(state_dir=tmp_path_factory.mktemp("redis"))
    with EmbeddedRedis(settings):
        yield socket_url(settings)


@pytest.fixture
def redis_settings(settings: Settings, redis_url: str) -> Settings:
    """Settings whose Redis is the session's; ask for `redis` as well where it has to be empty."""
    return settings.model_copy(update={"redis_url": redis_url})


@pytest.fixture
async def redis(redis_settings: Settings) -> AsyncIterator[Redis]:
    """A client of the session's Redis, emptied before the test."""
    client = connect(redis_settings)
    await client.flushall()
    yield client
    await client.aclose()
