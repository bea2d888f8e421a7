"""The follower itself, sync by sync, over a real registry; the engine is the fake one, and time is the test's."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from service.slot_filling import FIRST_RETRY_S
from service.slots import SlotState
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.errors import UnknownDomain
from shared.types import AdapterName, DomainId
from tests.service_follower import Follower, following, running, until, waiting_for
from tests.service_support import ITEMS, SHOP, Publisher

pytest_plugins = ["tests.service_fixtures"]

ANOTHER_BASE = "f" * 64


async def test_refused_versions_are_tried_again_ever_more_seldom_where_nothing_serves(follower: Follower) -> None:
    parent, champion = [await follower.publisher.publish(base_model_hash=ANOTHER_BASE) for _ in range(2)]
    for tries in (1, 2, 3):
        for _ in range(3):
            await follower.manager.sync(SHOP)
        assert follower.loads == {champion: tries, parent: tries}
        assert follower.states() == {champion: SlotState.refused, parent: SlotState.refused}
        follower.now += FIRST_RETRY_S * 2 ** (tries - 1)
    sound = await follower.publisher.publish()
    await follower.manager.sync(SHOP)
    assert follower.states()[sound] is SlotState.serving
    await until(lambda: follower.states() == {sound: SlotState.serving})


async def test_copies_of_a_remote_stores_versions_go_with_their_registration(
    service_settings: Settings, redis: Redis, shop: DomainId, tmp_path: Path
) -> None:
    """The worker that prunes is on another machine; what still answers somebody here stays."""
    settings = service_settings.model_copy(update={"artifacts_url": f"memory://{tmp_path.name}/artifacts"})
    worker = Publisher(redis, settings.model_copy(update={"state_dir": tmp_path / "worker"}))
    async with following(settings, redis) as follower:
        copies = partial(follower.publisher.artifacts.copies, SHOP)
        first = await worker.publish()
        await follower.manager.sync(SHOP)
        with follower.manager.lease(SHOP, None):
            second = await worker.publish()
            await follower.manager.sync(SHOP)
            assert copies() == [first, second]
            third = await worker.publish()
            assert await worker.retention.prune(SHOP, keep=1) == [first, second]
            await follower.manager.sync(SHOP)
            await until(lambda: copies() == [first, third])
            assert follower.states() == {first: SlotState.draining, third: SlotState.serving}
        await until(lambda: copies() == [third])


async def test_domains_that_do_not_exist_leave_nothing_behind(follower: Follower) -> None:
    def locks() -> int:
        gc.collect()
        return sum(type(each) is asyncio.Lock for each in gc.get_objects())

    await follower.catalogs.get(SHOP)
    before = locks()
    for number in range(100):
        with pytest.raises(UnknownDomain):
            await follower.catalogs.get(DomainId(f"nowhere{number}"))
    assert locks() < before + 10


async def test_a_swap_is_timed_from_when_its_champion_was_wanted(follower: Follower) -> None:
    """Not from when a challenger's trial began, or when the version that a rollback goes back to first came."""
    first = await follower.publisher.publish()
    await follower.manager.sync(SHOP)
    challenger = await follower.publisher.publish(champion=False)
    registry = follower.publisher.registry
    await registry.set_trial(SHOP, challenger, 0.5)
    await follower.manager.sync(SHOP)
    follower.now += 1000.0
    await registry.promote(SHOP, challenger, expected=first)
    with follower.manager.lease(SHOP, None):
        await follower.manager.sync(SHOP)
        follower.now += 1000.0
        await registry.rollback(SHOP)
        await follower.manager.sync(SHOP)
    assert follower.swaps() == {"ok": 3.0}
    assert follower.metrics.registry.get_sample_value("evorec_adapter_swap_seconds_sum") == 0.0


async def test_a_change_of_champion_fails_once_and_nothing_else_counts_as_one(follower: Follower) -> None:
    sound = await follower.publisher.publish()
    await follower.manager.sync(SHOP)
    challenger = await follower.publisher.publish(champion=False, base_model_hash=ANOTHER_BASE)
    await follower.publisher.registry.set_trial(SHOP, challenger, 0.5)
    await follower.manager.sync(SHOP)
    assert follower.swaps() == {"ok": 1.0}
    refused = await follower.publisher.publish(base_model_hash=ANOTHER_BASE)
    for tries in (1, 2, 3):
        await follower.manager.sync(SHOP)
        assert follower.loads[refused] == tries
        assert follower.swaps() == {"ok": 1.0, "failed": 1.0}
        follower.now += 1000.0
    await follower.publisher.registry.rollback(SHOP)
    await follower.manager.sync(SHOP)
    with follower.manager.lease(SHOP, None) as version:
        assert version is not None
        assert version.name == sound
    assert follower.swaps() == {"ok": 1.0, "failed": 1.0}, "it has served all along"


async def test_an_adapter_counts_as_loaded_while_the_engine_that_holds_it_lives(follower: Follower) -> None:
    name = await follower.publisher.publish()
    await follower.manager.sync(SHOP)
    assert follower.figure("adapter_loaded", adapter=name) == 1.0
    follower.engines.gate = asyncio.Event()
    follower.engines.last.die()
    await follower.manager.sync(SHOP)
    assert follower.figure("adapter_loaded", adapter=name) == 0.0
    follower.engines.gate.set()
    await until(lambda: follower.host.current is not None)
    files = follower.publisher.artifacts.fetch(SHOP, name)
    weights = (files / "adapter_model.safetensors").rename(files / "aside")
    await follower.manager.sync(SHOP)
    assert follower.states() == {name: SlotState.refused}
    assert follower.figure("adapter_loaded", adapter=name) == 0.0
    weights.rename(files / "adapter_model.safetensors")
    follower.now += FIRST_RETRY_S
    await follower.manager.sync(SHOP)
    assert follower.states() == {name: SlotState.serving}
    assert follower.figure("adapter_loaded", adapter=name) == 1.0


async def test_a_domain_whose_artifacts_cannot_be_had_stops_no_other(follower: Follower) -> None:
    """A new engine holds nothing, and no message says so."""
    toys, stalled = DomainId("toys"), threading.Event()
    await CatalogStore(follower.redis).put(toys, ITEMS)
    name = await follower.publisher.publish()
    await follower.publisher.publish(toys)

    follower.before_load = waiting_for(stalled, toys)
    async with running(follower):
        try:
            await until(lambda: follower.states() == {name: SlotState.serving})
            follower.engines.last.die()
            await until(lambda: len(follower.engines.built) == 2 and bool(follower.engines.last.loaded))
            assert [lora.name for lora in follower.engines.last.loaded.values()] == [name]
        finally:
            stalled.set()


async def test_a_domains_first_champion_takes_no_replica_out_of_service(follower: Follower) -> None:
    """All of them load it at the same time, and till then they answer as before."""
    toys = DomainId("toys")
    await follower.publisher.publish()
    async with running(follower) as readiness:
        await until(lambda: readiness().ready)
        await CatalogStore(follower.redis).put(toys, ITEMS)
        await follower.publisher.publish(toys, base_model_hash=ANOTHER_BASE)
        await until(lambda: readiness().domains.get(toys) == "refused")
        assert readiness().ready
        await follower.publisher.publish(toys)
        await until(lambda: readiness().domains[toys] == "serving")
    started_later = Follower(follower.settings, follower.redis)
    hosting = asyncio.create_task(started_later.host.run())
    await follower.publisher.registry.promote(
        toys, first := AdapterName("toys-v000001"), expected=AdapterName("toys-v000002")
    )
    async with running(started_later) as readiness:
        await until(lambda: readiness().domains == {SHOP: "serving", toys: "refused"})
        assert not readiness().ready, f"{first} is all that it could answer with"
    hosting.cancel()
    await asyncio.gather(hosting, return_exceptions=True)
    await started_later.host.close()


async def test_it_follows_more_domains_than_redis_py_has_connections(follower: Follower) -> None:
    names = [DomainId(f"shop-{number}") for number in range(150)]
    for name in names:
        await CatalogStore(follower.redis).put(name, ())
    async with running(follower) as readiness:
        await until(lambda: set(readiness().domains.values()) == {"no_champion"} and readiness().ready)
        assert readiness().domains.keys() == {SHOP, *names}


async def test_a_new_engine_is_given_no_files_that_were_damaged_meanwhile(follower: Follower) -> None:
    """Nor is it refused for ever: once they are sound again it serves."""
    name = await follower.publisher.publish()
    await follower.manager.sync(SHOP)
    folder = follower.publisher.artifacts.fetch(SHOP, name)
    weights = folder / "adapter_model.safetensors"
    sound = weights.read_bytes()

    async def another_engine(number: int) -> None:
        follower.engines.last.die()
        await until(lambda: len(follower.engines.built) == number and follower.host.current is not None)
        follower.now += 1000.0
        await follower.manager.sync(SHOP)

    await another_engine(2)
    assert (follower.states(), follower.loads[name]) == ({name: SlotState.serving}, 1)
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    await another_engine(3)
    assert follower.states() == {name: SlotState.refused}
    assert not follower.engines.last.loaded
    weights.write_bytes(sound)
    follower.now += 1000.0
    await follower.manager.sync(SHOP)
    assert follower.states() == {name: SlotState.serving}


async def test_a_champion_goes_on_serving_while_a_lost_registry_is_rebuilt(follower: Follower) -> None:
    """The catalog comes back first, and with it the domain."""
    name = await follower.publisher.publish()
    await follower.manager.sync(SHOP)
    await follower.redis.flushdb()
    await CatalogStore(follower.redis).put(SHOP, ITEMS)
    await follower.manager.sync(SHOP)
    with follower.manager.lease(SHOP, None) as version:
        assert version is not None
        assert version.name == name
    assert follower.states() == {name: SlotState.serving}
