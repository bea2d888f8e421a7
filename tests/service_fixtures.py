"""Fixtures of the service's tests; a test module asks for them by `pytest_plugins`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.catalog import CatalogStore
from shared.config import Settings
from shared.types import DomainId
from tests.service_support import ITEMS, SHOP, Running, serving
from tests.tiny_base import write_base


@pytest.fixture
def service_settings(redis_settings: Settings, tmp_path: Path) -> Settings:
    """A base of which nothing but the weights is missing, and a registry that is looked at often."""
    base = write_base(tmp_path / "base")
    return redis_settings.model_copy(
        update={"base_model": str(base), "registry_poll_s": 0.2, "max_model_len": 1024, "default_domain": SHOP}
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
