from __future__ import annotations

import pytest
from redis.asyncio import Redis

from shared.config import Settings
from shared.dead_letters import DeadLetters
from shared.history import ERASED_IDS_KEPT_S, HistoryStore
from shared.redis_keys import PartitionKeys
from shared.stream import InteractionLog
from shared.types import UserId
from tests.factories import BEAUTY, interaction

U1, U2 = UserId("u1"), UserId("u2")


@pytest.fixture
def small(redis_settings: Settings) -> Settings:
    return redis_settings.model_copy(update={"max_history": 3})


async def test_unknown_users_have_empty_histories(redis: Redis, redis_settings: Settings) -> None:
    history = HistoryStore(redis, redis_settings)
    assert await history.get(BEAUTY, U1) == ()
    assert await history.get_many(BEAUTY, [U1, U2]) == {U1: (), U2: ()}
    assert await history.get_many(BEAUTY, []) == {}
    assert await history.users(BEAUTY) == []


async def test_the_newest_are_kept(redis: Redis, small: Settings) -> None:
    log, history = InteractionLog(redis, small), HistoryStore(redis, small)
    await log.append(BEAUTY, [interaction(item=f"i{n}", at=n) for n in (4, 1, 3, 0, 2)])
    assert [event.item_id for event in await history.get(BEAUTY, U1)] == ["i2", "i3", "i4"]
    await log.append(BEAUTY, [interaction(item="late", at=-1)])
    assert [event.item_id for event in await history.get(BEAUTY, U1)] == ["i2", "i3", "i4"]
    assert await log.count(BEAUTY, {}) == 6


async def test_views_push_no_purchase_out(redis: Redis, small: Settings) -> None:
    log, history = InteractionLog(redis, small), HistoryStore(redis, small)
    await log.append(BEAUTY, [interaction(item=f"bought{n}", at=n) for n in range(2)])
    await log.append(BEAUTY, [interaction(item=f"seen{n}", at=n + 0.5, event_type="view") for n in range(9)])
    found = [event.item_id for event in await history.get(BEAUTY, U1)]
    assert found == ["bought0", "bought1", "seen6", "seen7", "seen8"]
    await log.append(BEAUTY, [interaction(item=f"later{n}", at=7 + n) for n in range(3)])
    found = [event.item_id for event in await history.get(BEAUTY, U1)]
    assert found == ["seen6", "later0", "seen7", "later1", "seen8", "later2"]  # in the order of their times


async def test_kinds_of_equal_times_follow_the_stream(redis: Redis, redis_settings: Settings) -> None:
    events = [interaction(item=f"i{n}", event_type="view" if n % 2 else "purchase") for n in range(30)]
    await InteractionLog(redis, redis_settings).append(BEAUTY, events)
    found = await HistoryStore(redis, redis_settings).get(BEAUTY, U1)
    assert [event.item_id for event in found] == [event.item_id for event in events]


async def test_what_older_versions_kept_in_one_history_is_read_as_it_was(
    redis: Redis, redis_settings: Settings
) -> None:
    log, history = InteractionLog(redis, redis_settings), HistoryStore(redis, redis_settings)
    keys = PartitionKeys(BEAUTY, 0)
    await log.append(BEAUTY, [interaction(item=f"i{n}", at=n, event_type="view") for n in range(3)])
    await redis.rename(keys.seen(U1), keys.history(U1))
    await log.append(BEAUTY, [interaction(item="i3", at=3), interaction(item="i4", at=4, event_type="view")])
    assert [event.item_id for event in await history.get(BEAUTY, U1)] == [f"i{n}" for n in range(5)]
    assert len(await history.erase(BEAUTY, U1)) == 5
    assert not await redis.exists(keys.seen(U1), keys.history(U1))


async def test_equal_times_follow_the_stream(redis: Redis, redis_settings: Settings) -> None:
    items = [f"i{n}" for n in range(30)]
    await InteractionLog(redis, redis_settings).append(BEAUTY, [interaction(item=item) for item in items])
    assert [event.item_id for event in await HistoryStore(redis, redis_settings).get(BEAUTY, U1)] == items


@pytest.mark.parametrize("partitions", [1, 4])
async def test_users_come_newest_first(redis: Redis, redis_settings: Settings, partitions: int) -> None:
    settings = redis_settings.model_copy(update={"partitions": partitions})
    history = HistoryStore(redis, settings)
    await InteractionLog(redis, settings).append(
        BEAUTY, [*(interaction(f"u{n}", at=n) for n in range(20)), interaction("u0", at=100), interaction("u19", at=-5)]
    )
    expected = ["u0", *(f"u{n}" for n in range(19, 0, -1))]
    assert await history.users(BEAUTY) == expected


async def test_erasure_leaves_nothing_of_the_user(redis: Redis, small: Settings) -> None:
    log, history = InteractionLog(redis, small), HistoryStore(redis, small)
    # Five of u1, of which the history keeps three: the others are in the stream alone. As many views.
    await log.append(BEAUTY, [interaction("u1", f"i{n}", n) for n in range(5)] + [interaction("u2", "i9", 9)])
    await log.append(BEAUTY, [interaction("u1", f"i{n}", n, event_type="view") for n in range(5)])
    theirs = {event.stream_id async for event in log.read(BEAUTY, {}, await log.tail(BEAUTY)) if event.user_id == U1}
    assert len(theirs) == 10
    assert await history.erase(BEAUTY, U1) == theirs
    assert await history.get(BEAUTY, U1) == ()
    assert await history.users(BEAUTY) == [U2]
    assert [event.user_id async for event in log.read(BEAUTY, {}, await log.tail(BEAUTY))] == [U2]
    assert await redis.scard(PartitionKeys(BEAUTY, 0).capped) == 0
    assert await history.erase(BEAUTY, U1) == theirs, "who repeats a call whose answer got lost learns the same"


async def test_an_erased_user_can_come_back(redis: Redis, redis_settings: Settings) -> None:
    log, history = InteractionLog(redis, redis_settings), HistoryStore(redis, redis_settings)
    await log.append(BEAUTY, [interaction(item="old")])
    await history.erase(BEAUTY, U1)
    assert 0 < await redis.ttl(PartitionKeys(BEAUTY, 0).erased_ids(U1)) <= ERASED_IDS_KEPT_S
    await log.append(BEAUTY, [interaction(item="old"), interaction(item="new")])
    assert [event.item_id for event in await history.get(BEAUTY, U1)] == ["new"]


async def test_what_cannot_be_read_is_left_out_and_does_not_stop_an_erasure(
    redis: Redis, redis_settings: Settings
) -> None:
    letters = DeadLetters(redis)
    log, history = InteractionLog(redis, redis_settings), HistoryStore(redis, redis_settings, letters)
    await log.append(BEAUTY, [interaction("u1", "good")])
    key = PartitionKeys(BEAUTY, 0).history(U1)
    garbage: dict[str | bytes, float] = {"garbage": 1, b"000001-0000001|{\xff": 2, '000001-1|{"id":"e"}': 3}
    await redis.zadd(key, garbage)  # type: ignore[type-var]
    for _ in range(2):
        assert [event.item_id for event in await history.get(BEAUTY, U1)] == ["good"]
    found = await letters.newest(BEAUTY, 10)
    assert sorted((letter.user_id, letter.raw) for letter in found) == [
        (U1, "000001-0000001|{\\udcff"),
        (U1, '000001-1|{"id":"e"}'),
        (U1, "garbage"),
    ]
    assert "1-1" in await history.erase(BEAUTY, U1)
    assert not await redis.exists(key)
    assert not await letters.newest(BEAUTY, 10)
