"""Who gets a place in the engine, where there are fewer than versions: champions first, and challengers after them."""

from __future__ import annotations

import threading

from service.slot_filling import FIRST_RETRY_S
from service.slots import SlotState
from shared.catalog import CatalogStore
from shared.types import AdapterName, DomainId, UserId
from tests.service_follower import Follower, running, until, waiting_for
from tests.service_support import ITEMS, SHOP

pytest_plugins = ["tests.service_fixtures"]


async def test_a_new_engine_is_filled_with_champions_before_any_challenger(follower: Follower) -> None:
    """Else a service that was ready would never be ready again after a restart."""
    toys, slow = DomainId("toys"), threading.Event()
    await CatalogStore(follower.redis).put(toys, ITEMS)
    champions = [await follower.publisher.publish(), await follower.publisher.publish(toys)]
    challenger = await follower.publisher.publish(champion=False)
    await follower.publisher.registry.set_trial(SHOP, challenger, 0.5)

    follower.before_load, follower.engines.last.room = waiting_for(slow, toys), 2
    async with running(follower) as readiness:
        try:
            await until(lambda: readiness().domains.get(SHOP) == "serving")
            await follower.manager.sync(SHOP)
            assert [lora.name for lora in follower.engines.last.loaded.values()] == champions[:1]
            slow.set()
            await until(lambda: readiness().ready)
            await until(lambda: follower.states().get(challenger) is SlotState.refused)
            assert sorted(lora.name for lora in follower.engines.last.loaded.values()) == sorted(champions)
            assert readiness().ready
        finally:
            slow.set()


async def test_a_champion_without_a_place_gets_the_next_one_before_any_challenger(follower: Follower) -> None:
    toys = DomainId("toys")
    await CatalogStore(follower.redis).put(toys, ITEMS)
    first = await follower.publisher.publish()
    follower.engines.last.room = 1
    await follower.manager.sync(SHOP)
    challenger = await follower.publisher.publish(champion=False)
    await follower.publisher.registry.set_trial(SHOP, challenger, 0.5)
    waiting = await follower.publisher.publish(toys)
    await follower.manager.sync(toys)
    follower.engines.last.room, follower.now = 2, FIRST_RETRY_S
    await follower.manager.sync(SHOP)
    assert [lora.name for lora in follower.engines.last.loaded.values()] == [first]
    await follower.manager.sync(toys)
    assert [lora.name for lora in follower.engines.last.loaded.values()] == [first, waiting]


async def test_a_new_engine_answers_users_on_trial_by_the_champion_until_it_has_the_challenger(
    follower: Follower,
) -> None:
    toys, slow = DomainId("toys"), threading.Event()
    champion = await follower.publisher.publish()
    challenger = await follower.publisher.publish(champion=False)
    await follower.publisher.registry.set_trial(SHOP, challenger, 0.99)
    await follower.manager.sync(SHOP)
    users = [UserId(f"user {number}") for number in range(40)]

    def answering() -> set[AdapterName]:
        names = set()
        for user in users:
            with follower.manager.lease(SHOP, user) as version:
                assert version is not None
                names.add(version.name)
        return names

    assert challenger in answering()
    await CatalogStore(follower.redis).put(toys, ITEMS)
    await follower.publisher.publish(toys)

    follower.before_load = waiting_for(slow, toys)
    follower.engines.last.die()
    await until(lambda: len(follower.engines.built) == 2 and follower.host.current is not None)
    async with running(follower) as readiness:
        try:
            await until(lambda: readiness().domains.get(SHOP) == "serving")
            assert answering() == {champion}
        finally:
            slow.set()
        await until(lambda: challenger in answering())


async def test_a_champion_without_a_place_is_not_taken_for_a_damaged_one(follower: Follower) -> None:
    """Its ancestors would be loaded in vain, and one of them might take the place that it waits for."""
    toys = DomainId("toys")
    await CatalogStore(follower.redis).put(toys, ITEMS)
    await follower.publisher.publish(toys)
    await follower.manager.sync(toys)
    follower.engines.last.room = 1
    await follower.publisher.publish()
    champion = await follower.publisher.publish()
    await follower.manager.sync(SHOP)
    assert follower.states() == {champion: SlotState.refused}
    assert follower.manager.readiness().domains == {SHOP: "refused", toys: "serving"}
    follower.engines.last.room = 2
    follower.now += FIRST_RETRY_S
    await follower.manager.sync(SHOP)
    assert follower.states() == {champion: SlotState.serving}
    assert follower.loads[champion] == 1
