from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

import shared.evolutions
from shared.catalog import CatalogStore
from shared.errors import Conflict, EvolutionRunning, NotFound
from shared.evolutions import Evolution, EvolutionStatus, EvolutionStore
from shared.redis_keys import DomainKeys
from shared.types import DomainId, EvolutionId
from tests import factories
from tests.factories import BEAUTY

TOYS = DomainId("toys")


@pytest.fixture
def evolutions(redis: Redis) -> EvolutionStore:
    ticks = iter(range(1000))
    return EvolutionStore(redis, clock=lambda: float(next(ticks)))


async def finish(store: EvolutionStore, evolution: Evolution, status: EvolutionStatus) -> Evolution:
    done = evolution.model_copy(update={"status": status, "finished_at": 9.0})
    await store.update(done)
    return done


async def test_a_record_survives_with_all_it_says(evolutions: EvolutionStore) -> None:
    created = await evolutions.create(BEAUTY, force=True, dry_run=True)
    assert created.status is EvolutionStatus.queued
    assert (created.force, created.dry_run, created.requested_at) == (True, True, 0.0)
    manifest = factories.manifest()
    changed = created.model_copy(
        update={
            "status": EvolutionStatus.running,
            "stage": "locate",
            "progress": 0.25,
            "metrics": manifest.metrics,
            "gate": manifest.gate,
            "located_layers": (1, 2),
            "adapter": manifest.name,
        }
    )
    await evolutions.update(changed)
    assert await evolutions.get(created.id) == changed
    assert await evolutions.active(BEAUTY) == changed


async def test_one_at_a_time_puts_an_evolution_into_the_queue(evolutions: EvolutionStore, redis: Redis) -> None:
    evolution = await evolutions.create(BEAUTY)
    claim = DomainKeys(BEAUTY).enqueued(evolution.id)
    async with evolutions.enqueueing(evolution) as first, evolutions.enqueueing(evolution) as second:
        assert (first, second) == (True, False)
        assert 0 < await redis.ttl(claim) <= shared.evolutions.SENDING_S  # whoever sends may die of it
    assert await redis.ttl(claim) > shared.evolutions.SENDING_S
    await evolutions.taken(evolution.id, BEAUTY)
    async with evolutions.enqueueing(evolution) as again:
        assert again
        await evolutions.taken(evolution.id, BEAUTY)  # faster than the sender
    assert not await redis.exists(claim)


async def test_one_at_a_time_per_domain(evolutions: EvolutionStore) -> None:
    attempts = await asyncio.gather(*(evolutions.create(BEAUTY) for _ in range(10)), return_exceptions=True)
    created = [attempt for attempt in attempts if isinstance(attempt, Evolution)]
    assert len(created) == 1
    assert sum(isinstance(attempt, EvolutionRunning) for attempt in attempts) == 9
    assert (await evolutions.create(TOYS)).domain == TOYS


@pytest.mark.parametrize("status", [status for status in EvolutionStatus if status.final])
async def test_the_next_may_come_once_one_has_ended(evolutions: EvolutionStore, status: EvolutionStatus) -> None:
    first = await evolutions.create(BEAUTY)
    await finish(evolutions, first, status)
    assert await evolutions.active(BEAUTY) is None
    second = await evolutions.create(BEAUTY)
    assert second.id != first.id
    assert await evolutions.active(BEAUTY) == second


async def test_nothing_brings_an_ended_run_back(evolutions: EvolutionStore) -> None:
    first = await evolutions.create(BEAUTY)
    done = await finish(evolutions, first, EvolutionStatus.failed)
    second = await evolutions.create(BEAUTY)
    with pytest.raises(Conflict, match="ended"):
        await evolutions.update(first.model_copy(update={"status": EvolutionStatus.running}))
    await evolutions.update(done)  # a retry of the client
    assert await evolutions.get(first.id) == done
    assert await evolutions.active(BEAUTY) == second


async def test_list_is_newest_first(evolutions: EvolutionStore, redis: Redis) -> None:
    for domain in (BEAUTY, TOYS):
        await CatalogStore(redis).put(domain, [])
    made = []
    for domain in (BEAUTY, TOYS, BEAUTY):
        made.append(await finish(evolutions, await evolutions.create(domain), EvolutionStatus.dry))
    assert await evolutions.list() == made[::-1]
    assert await evolutions.list(BEAUTY) == [made[2], made[0]]
    assert await evolutions.list(limit=1) == [made[2]]
    assert await evolutions.list(BEAUTY, limit=0) == []
    assert await evolutions.list(DomainId("none")) == []


async def test_the_oldest_are_dropped(
    evolutions: EvolutionStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.evolutions, "KEPT", 2)
    for _ in range(4):
        await finish(evolutions, await evolutions.create(BEAUTY), EvolutionStatus.rejected)
    assert [evolution.id for evolution in await evolutions.list(BEAUTY)] == ["beauty-e000004", "beauty-e000003"]
    assert await redis.hlen(DomainKeys(BEAUTY).evolutions) == 2


async def test_cancelling(evolutions: EvolutionStore) -> None:
    evolution = await evolutions.create(BEAUTY)
    assert not await evolutions.cancel_requested(evolution.id)
    await evolutions.request_cancel(evolution.id)
    assert await evolutions.cancel_requested(evolution.id)
    await finish(evolutions, evolution, EvolutionStatus.cancelled)
    assert not await evolutions.cancel_requested(evolution.id)
    with pytest.raises(Conflict):
        await evolutions.request_cancel(evolution.id)


@pytest.mark.parametrize("evolution_id", ["beauty-e000099", "nonsense", "", "UPPER-e000001"])
async def test_unknown_ids(evolutions: EvolutionStore, evolution_id: str) -> None:
    with pytest.raises(NotFound):
        await evolutions.get(evolution_id)
    with pytest.raises(NotFound):
        await evolutions.request_cancel(evolution_id)
    stranger = Evolution(id=EvolutionId("beauty-e000099"), domain=BEAUTY, requested_at=0.0)
    with pytest.raises(NotFound):
        await evolutions.update(stranger)
