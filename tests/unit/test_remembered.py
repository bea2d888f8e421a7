"""Histories that outlive the store, and erased ones that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError

from service.metrics import Metrics
from service.remembered import RememberedHistories
from service.store_guard import StoreGuard
from shared.history import HistoryStore
from shared.types import DomainId, Interaction, UserId
from tests.factories import interaction

SHOP, ADA, BOB = DomainId("shop"), UserId("ada"), UserId("bob")


class Store:
    """A history store that may be away, or slow."""

    def __init__(self, histories: Mapping[UserId, tuple[Interaction, ...]]) -> None:
        self.histories = histories
        self.away = False
        self.crowded = False
        self.slow: asyncio.Event | None = None

    async def get(self, domain: DomainId, user_id: UserId) -> tuple[Interaction, ...]:
        if self.away:
            raise RedisConnectionError
        if self.crowded:
            raise MaxConnectionsError
        found = self.histories.get(user_id, ())
        if self.slow is not None:
            await self.slow.wait()
        return found


def events(n: int) -> tuple[Interaction, ...]:
    return tuple(interaction(at=float(number)) for number in range(n))


def remembering(store: Store, limit: int = 100, timer: Callable[[], float] = lambda: 0.0) -> RememberedHistories:
    guard = StoreGuard(5.0, Metrics(), clock=lambda: 0.0)
    return RememberedHistories(cast("HistoryStore", store), guard, limit, timer)


async def test_the_last_known_history_is_there_while_the_store_is_away() -> None:
    store = Store({ADA: events(3)})
    remembered = remembering(store)
    assert (await remembered.get(SHOP, ADA)).current
    store.away = True
    known = await remembered.get(SHOP, ADA)
    assert (len(known.events), known.current) == (3, False)
    assert (await remembered.get(SHOP, BOB)).events == ()
    assert (await remembered.get(DomainId("other"), ADA)).events == ()


async def test_an_erased_user_is_remembered_no_longer() -> None:
    store = Store({ADA: events(3)})
    remembered = remembering(store)
    await remembered.get(SHOP, ADA)
    remembered.forget(SHOP, ADA)
    store.away = True
    assert (await remembered.get(SHOP, ADA)).events == ()


async def test_nobody_is_remembered_for_more_than_six_hours() -> None:
    """An erasure that another process has answered is not heard of."""
    store = Store({ADA: events(3)})
    now = 0.0
    remembered = remembering(store, timer=lambda: now)
    await remembered.get(SHOP, ADA)
    store.away = True
    now = 6 * 3600 - 1.0
    assert len((await remembered.get(SHOP, ADA)).events) == 3
    now = 6 * 3600.0
    assert (await remembered.get(SHOP, ADA)).events == ()


async def test_a_read_that_an_erasure_overtakes_is_not_remembered() -> None:
    store = Store({ADA: events(3)})
    store.slow = asyncio.Event()
    remembered = remembering(store)
    reading = asyncio.create_task(remembered.get(SHOP, ADA))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    remembered.forget(SHOP, ADA)
    store.slow.set()
    assert len((await reading).events) == 3
    store.away = True
    assert (await remembered.get(SHOP, ADA)).events == ()


async def test_memory_is_bounded_by_interactions() -> None:
    users = [UserId(f"u{n}") for n in range(10)]
    store = Store({user: events(30) for user in users} | {ADA: events(101)})
    remembered = remembering(store, limit=100)
    for user in [*users, ADA]:
        await remembered.get(SHOP, user)
    store.away = True
    kept = [user for user in [*users, ADA] if (await remembered.get(SHOP, user)).events]
    assert kept == users[-3:]


async def test_a_call_without_a_connection_degrades_alone() -> None:
    """The store is there: others' reads go on."""
    store = Store({ADA: events(1), BOB: events(2)})
    histories = remembering(store)
    await histories.get(SHOP, ADA)
    store.crowded = True
    assert not (await histories.get(SHOP, ADA)).current
    store.crowded = False
    assert (await histories.get(SHOP, BOB)).current
