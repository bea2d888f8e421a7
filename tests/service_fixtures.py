"""Fixtures of the service's tests; a test module asks for them by `pytest_plugins`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from shared.catalog import CatalogStore
from shared.config import Settings
from shared.types import DomainId
from tests.service_follower import Follower, following
from tests.service_support import ITEMS, SHOP, Running, serving
from tests.tiny_base import write_base, write_weights


@pytest.fixture
def service_settings(redis_settings: Settings, tmp_path: Path) -> Settings:
    """A base of which nothing but the weights is missing, a registry looked at often, and patience with rankings."""
    base = write_base(tmp_path / "base")
    return redis_settings.model_copy(
        update={
            "base_model": str(base),
            "registry_poll_s": 0.2,
            "max_model_len": 1024,
            "default_domain": SHOP,
            "rank_timeout_ms": 60_000,
        }
    )


@pytest.fixture
async def shop(redis: Redis) -> DomainId:
    """A domain with 30 items."""
    await CatalogStore(redis).put(SHOP, ITEMS)
    return SHOP


@pytest.fixture
async def running(service_settings: Settings, redis: Redis, shop: DomainId) -> AsyncIterator[Running]:
    """The service with a fake engine, ready, over the shop; no version is published yet."""
    async with serving(service_settings, redis) as service:
        await service.ready()
        yield service


@pytest.fixture
async def follower(service_settings: Settings, redis: Redis, shop: DomainId) -> AsyncIterator[Follower]:
    async with following(service_settings, redis) as follower:
        yield follower


@pytest.fixture
def service_process(service_settings: Settings, unused_tcp_port: int) -> Iterator[tuple[psutil.Process, str]]:
    """`evorec serve` with a real engine over a tiny base, and its URL; killed with all its children."""
    write_weights(Path(service_settings.base_model))
    values = {
        "STATE_DIR": service_settings.state_dir,
        "REDIS_URL": service_settings.redis_url,
        "BASE_MODEL": service_settings.base_model,
        "MAX_MODEL_LEN": service_settings.max_model_len,
        "ENGINE_SILENT_S": 12,
        "DEFAULT_DOMAIN": SHOP,
        "PORT": unused_tcp_port,
    }
    environment = {**os.environ, **{f"EVOREC_{name}": str(value) for name, value in values.items()}}
    with subprocess.Popen([sys.executable, "-m", "service.main"], env=environment, start_new_session=True) as child:
        started = psutil.Process(child.pid)
        yield started, f"http://127.0.0.1:{unused_tcp_port}"
        family = [*started.children(recursive=True), started] if started.is_running() else []
        for each in family:
            each.kill()
