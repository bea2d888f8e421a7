"""Settings that the data in Redis were written by."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

import evolver.worker
import service.main
from evolver.backend import open_backend
from service.redis_watch import RedisWatch
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.errors import Conflict
from shared.fixed_settings import require_fixed_settings, require_fixed_settings_at_start
from shared.types import DomainId, Item, ItemId

DOMAIN = DomainId("shop")


def other(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update=values)


async def has_a_domain(redis: Redis, settings: Settings) -> None:
    await require_fixed_settings(redis, settings)
    await CatalogStore(redis).put(DOMAIN, [Item(ItemId("i1"), "a mug")])


async def test_they_may_change_until_there_is_a_domain(redis: Redis, redis_settings: Settings) -> None:
    await require_fixed_settings(redis, redis_settings)
    await has_a_domain(redis, other(redis_settings, partitions=3))
    await require_fixed_settings(redis, other(redis_settings, partitions=3))
    with pytest.raises(Conflict, match="EVOREC_PARTITIONS is 1 here and was 3"):
        await require_fixed_settings(redis, redis_settings)


async def test_each_that_differs_is_named(redis: Redis, redis_settings: Settings) -> None:
    await has_a_domain(redis, redis_settings)
    changed = other(redis_settings, partitions=2, popularity_half_life_days=7.0)
    with pytest.raises(Conflict, match=r"_PARTITIONS is 2 .*_POPULARITY_HALF_LIFE_DAYS is 7\.0 .* was 60\.0"):
        await require_fixed_settings(redis, changed)
    await require_fixed_settings(redis, redis_settings)


async def test_with_data_of_an_earlier_release_the_first_process_decides(
    redis: Redis, redis_settings: Settings
) -> None:
    await CatalogStore(redis).put(DOMAIN, [Item(ItemId("i1"), "a mug")])
    await require_fixed_settings(redis, other(redis_settings, partitions=3))
    with pytest.raises(Conflict):
        await require_fixed_settings(redis, redis_settings)


async def test_neither_service_nor_worker_starts_with_others(redis: Redis, redis_settings: Settings) -> None:
    await has_a_domain(redis, redis_settings)
    changed = other(redis_settings, partitions=2)
    with pytest.raises(Conflict, match="EVOREC_PARTITIONS"):
        await asyncio.to_thread(service.main.run, changed)
    with pytest.raises(Conflict, match="EVOREC_PARTITIONS"):
        await asyncio.to_thread(evolver.worker.run, changed)
    with pytest.raises(Conflict, match="EVOREC_PARTITIONS"):
        async with open_backend(changed):
            pytest.fail("the evolver works on data that it would look for elsewhere")


async def test_a_start_does_not_wait_for_redis(settings: Settings, tmp_path: Path) -> None:
    await require_fixed_settings_at_start(other(settings, redis_url=f"unix://{tmp_path}/nobody.sock"))


async def test_a_service_that_started_before_redis_warns(
    redis: Redis, redis_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.redis_watch.LOOK_S", 0.05)
    await has_a_domain(redis, redis_settings)
    watch = RedisWatch(redis, other(redis_settings, partitions=2))
    task = asyncio.create_task(watch.run())
    async with asyncio.timeout(20):
        while not any("EVOREC_PARTITIONS" in warning for warning in watch.warnings):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    task.cancel()
