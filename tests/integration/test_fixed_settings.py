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
from shared.config import Settings
from shared.errors import Conflict
from shared.fixed_settings import require_fixed_settings, require_fixed_settings_at_start
from shared.stream import InteractionLog
from tests.factories import BEAUTY, interaction


def other(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update=values)


async def write(redis: Redis, settings: Settings) -> None:
    await InteractionLog(redis, settings).append(BEAUTY, [interaction()])


async def test_the_first_interactions_decide_and_not_who_started_last(redis: Redis, redis_settings: Settings) -> None:
    three = other(redis_settings, partitions=3)
    writer, late = InteractionLog(redis, three), InteractionLog(redis, redis_settings)
    for settings in (three, redis_settings):
        await require_fixed_settings(redis, settings)
    await writer.append(BEAUTY, [interaction()])
    await require_fixed_settings(redis, three)
    with pytest.raises(Conflict, match="EVOREC_PARTITIONS is 1 here and was 3"):
        await require_fixed_settings(redis, redis_settings)
    with pytest.raises(Conflict, match="EVOREC_PARTITIONS"):
        await late.append(BEAUTY, [interaction("u2")])
    assert await writer.count(BEAUTY, {}) == 1


async def test_each_that_differs_is_named(redis: Redis, redis_settings: Settings) -> None:
    await write(redis, redis_settings)
    changed = other(redis_settings, partitions=2, popularity_half_life_days=7.0)
    with pytest.raises(Conflict, match=r"_PARTITIONS is 2 .*_POPULARITY_HALF_LIFE_DAYS is 7\.0 .* was 60\.0"):
        await require_fixed_settings(redis, changed)


async def test_neither_service_nor_worker_starts_with_others(redis: Redis, redis_settings: Settings) -> None:
    await write(redis, redis_settings)
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
    await write(redis, redis_settings)
    watch = RedisWatch(redis, other(redis_settings, partitions=2))
    task = asyncio.create_task(watch.run())
    async with asyncio.timeout(20):
        while not any("EVOREC_PARTITIONS" in warning for warning in watch.warnings):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    task.cancel()
