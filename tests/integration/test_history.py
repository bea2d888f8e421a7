from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.config import Settings
from shared.dead_letters import DeadLetters
from shared.history import ERASED_IDS_KEPT_S, HistoryStore
from shared.redis_keys import PartitionKeys
from shared.stream import Appended, InteractionLog
from shared.types import UserId
from tests.factories import BEAUTY, interaction
from tests.log_reader import read_all

U1, U2 = UserId("u1"), UserId("u2")


def before_command(redis: Redis, patched: pytest.MonkeyPatch, number: int, act: Callable[[], Awaitable[None]]) -> None:
    """`act` comes once, before the client's command of this number, from 0 on."""
    numbers = count()
    send: Callable[..., Awaitable[Any]] = redis.execute_command

    async def interrupted(*args: Any, **options: Any) -> Any:
        if next(numbers) == number:
            await act()
        return await send(*args, **options)

    patched.setattr(redis, "execute_command", interrupted)


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
    theirs = {event.stream_id for event in await read_all(log, BEAUTY) if event.user_id == U1}
    assert len(theirs) == 10
    assert await history.erase(BEAUTY, U1) == theirs
    assert await history.get(BEAUTY, U1) == ()
    assert await history.users(BEAUTY) == [U2]
    assert [event.user_id for event in await read_all(log, BEAUTY)] == [U2]
    assert await redis.scard(PartitionKeys(BEAUTY, 0).capped) == 0
    assert await history.erase(BEAUTY, U1) == theirs, "who repeats a call whose answer got lost learns the same"


@pytest.mark.parametrize("late", [1, 5])
@pytest.mark.parametrize("there", [3, 5])
async def test_what_arrives_during_an_erasure_goes_or_stays_and_goes_with_the_next(
    redis: Redis, small: Settings, monkeypatch: pytest.MonkeyPatch, there: int, late: int
) -> None:
    """Before each command in turn. A history keeps three: what arrives pushes others out of it."""
    log, history = InteractionLog(redis, small), HistoryStore(redis, small)

    async def arrive() -> None:
        await log.append(BEAUTY, [interaction(at=9 + n) for n in range(late)])

    for number in count():
        await redis.flushdb()
        await log.append(BEAUTY, [interaction(at=n) for n in range(there)])
        with monkeypatch.context() as patched:
            before_command(redis, patched, number, arrive)
            erased = await history.erase(BEAUTY, U1)
        left = [event.stream_id for event in await read_all(log, BEAUTY)]
        assert [event.stream_id for event in await history.get(BEAUTY, U1)] == left[-3:]
        assert await history.erase(BEAUTY, U1) == erased | set(left)
        assert await log.count(BEAUTY, {}) == 0
        if len(erased) + len(left) == there:  # there are fewer commands
            break
        assert (len(erased), len(left)) in {(there + late, 0), (there, late)}
    assert number > 1


async def test_an_erasure_that_breaks_off_is_finished_by_the_next(
    redis: Redis, small: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, history = InteractionLog(redis, small), HistoryStore(redis, small)

    async def break_off() -> None:
        raise RedisConnectionError

    for number in count():
        await log.append(BEAUTY, [interaction(item=f"i{number}", at=n) for n in range(5)])
        theirs = {event.stream_id for event in await read_all(log, BEAUTY)}
        with monkeypatch.context() as patched, suppress(RedisConnectionError):
            before_command(redis, patched, number, break_off)
            assert theirs <= await history.erase(BEAUTY, U1)
            break
        assert theirs <= await history.erase(BEAUTY, U1)
        assert await log.count(BEAUTY, {}) == 0
    assert number > 1


async def test_an_erased_user_can_come_back(redis: Redis, redis_settings: Settings) -> None:
    log, history = InteractionLog(redis, redis_settings), HistoryStore(redis, redis_settings)
    await log.append(BEAUTY, [interaction(item="old")])
    await history.erase(BEAUTY, U1)
    assert 0 < await redis.ttl(PartitionKeys(BEAUTY, 0).erased_ids(U1)) <= ERASED_IDS_KEPT_S
    await log.append(BEAUTY, [interaction(item="old"), interaction(item="new")])
    assert [event.item_id for event in await history.get(BEAUTY, U1)] == ["new"]


async def test_of_an_erased_users_event_ids_no_text_stays_and_a_late_retry_is_a_duplicate(
    redis: Redis, redis_settings: Settings
) -> None:
    log, history = InteractionLog(redis, redis_settings), HistoryStore(redis, redis_settings)
    event = interaction("anna", event_id="order-77:anna@example.com")
    await log.append(BEAUTY, [event])
    await history.erase(BEAUTY, event.user_id)
    assert await redis.keys("*anna*") == []
    assert await log.append(BEAUTY, [event]) == Appended(0, 1)
    assert await history.get(BEAUTY, event.user_id) == ()


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
