from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.config import Settings
from shared.popularity import PAGE, SNAPSHOT_S, Answer, PopularityStore, shares_of
from shared.redis_keys import PartitionKeys
from shared.stream import InteractionLog
from shared.types import ItemId
from tests.factories import BEAUTY, interaction

DAY = 86400.0


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a count may take longer than a request waits for it."""
    monkeypatch.setattr("shared.popularity.RENEWAL_WAITED_S", 60.0)


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("half_life_days", [1.0, 60.0, 3650.0])
async def test_shares_are_those_of_the_definition(
    redis: Redis, redis_settings: Settings, partitions: int, half_life_days: float
) -> None:
    settings = redis_settings.model_copy(update={"partitions": partitions, "popularity_half_life_days": half_life_days})
    rng = random.Random(5)
    events = [
        interaction(f"u{n}", f"i{rng.randrange(6)}", -rng.random() * 30 * DAY, event_id=f"e{n}") for n in range(200)
    ]
    await InteractionLog(redis, settings).append(BEAUTY, events)

    newest = max(event.timestamp for event in events)
    masses: dict[ItemId, float] = {}
    for event in events:
        weight = math.pow(2, -(newest - event.timestamp) / (half_life_days * DAY))
        masses[event.item_id] = masses.get(event.item_id, 0.0) + weight
    expected = {item: mass / sum(masses.values()) for item, mass in masses.items()}

    popularity = PopularityStore(redis, settings)
    assert dict(await popularity.counted(BEAUTY)) == pytest.approx(expected, rel=1e-6)
    best = max(expected, key=lambda item: expected[item])
    assert await popularity.shares(BEAUTY, [best, ItemId("never")]) == [
        pytest.approx(expected[best], rel=1e-6),
        0.0,  # the blend makes it finite under its logarithm
    ]


async def test_a_snapshot_is_renewed_in_time(redis: Redis, redis_settings: Settings) -> None:
    now = 0.0
    log, popularity = InteractionLog(redis, redis_settings), PopularityStore(redis, redis_settings, clock=lambda: now)
    assert await popularity.counted(BEAUTY) == {}
    await log.append(BEAUTY, [interaction(item="i1")])
    assert list(await popularity.counted(BEAUTY)) == ["i1"]
    await log.append(BEAUTY, [interaction(item="i2", at=DAY)])
    assert list(await popularity.counted(BEAUTY)) == ["i1"]
    now = SNAPSHOT_S
    assert list(await popularity.counted(BEAUTY)) == ["i2", "i1"]


async def _count_one_before_another(popularity: PopularityStore, log: InteractionLog) -> None:
    """`i1` has been counted, `i2` came since and is to be ahead of it."""
    await log.append(BEAUTY, [interaction(item="i1")])
    await popularity.counted(BEAUTY)
    await log.append(BEAUTY, [interaction(item="i2", at=DAY)])


async def test_what_takes_long_to_count_is_counted_less_often(redis: Redis, redis_settings: Settings) -> None:
    now = 0.0

    async def read_slowly(ask: Callable[[], Awaitable[Answer]]) -> Answer:
        nonlocal now
        now += 1.0
        return await ask()

    popularity = PopularityStore(redis, redis_settings, clock=lambda: now, read=read_slowly)
    await _count_one_before_another(popularity, InteractionLog(redis, redis_settings))
    now = 20.5  # counted at 1, for 20 seconds
    assert list(await popularity.counted(BEAUTY)) == ["i1"]
    now = 21.0
    assert list(await popularity.counted(BEAUTY)) == ["i2", "i1"]


async def test_counting_is_no_part_of_what_redis_is_waited_for(
    redis: Redis, redis_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard would take a large domain for a store that is away."""
    waiting = False

    async def read(ask: Callable[[], Awaitable[Answer]]) -> Answer:
        nonlocal waiting
        waiting = True
        answers = await ask()
        waiting = False
        return answers

    def count(masses: Sequence[tuple[str, float]]) -> dict[ItemId, float]:
        assert not waiting
        return shares_of(masses)

    monkeypatch.setattr("shared.popularity.shares_of", count)
    await InteractionLog(redis, redis_settings).append(BEAUTY, [interaction(item="i1")])
    assert await PopularityStore(redis, redis_settings, read=read).counted(BEAUTY) == {"i1": 1.0}


async def test_a_large_domain_is_read_in_pages(redis: Redis, redis_settings: Settings) -> None:
    """What is asked for at once is bounded, so that the largest domain does not look like a store that is away."""
    read: list[Answer] = []

    async def noting(ask: Callable[[], Awaitable[Answer]]) -> Answer:
        read.append(await ask())
        return read[-1]

    n = 2 * PAGE
    await redis.zadd(PartitionKeys(BEAUTY, 0).popularity, {f"i{item}": 0.0 for item in range(n)})
    shares = await PopularityStore(redis, redis_settings, read=noting).counted(BEAUTY)
    assert len(shares) == n
    assert set(shares.values()) == {1 / n}
    assert max(map(len, read)) < 0.75 * sum(map(len, read))


async def test_many_who_ask_at_once_make_one_read(redis: Redis, redis_settings: Settings) -> None:
    item = 'ü "/\\\n\x00'
    await InteractionLog(redis, redis_settings).append(BEAUTY, [interaction(item=item)])
    popularity = PopularityStore(redis, redis_settings)
    await redis.config_resetstat()
    answers = await asyncio.gather(*(popularity.counted(BEAUTY) for _ in range(50)))
    assert answers == [{item: 1.0}] * 50
    assert (await redis.info("commandstats"))["cmdstat_zscan"]["calls"] == 1


async def test_a_slow_count_keeps_no_request_waiting_that_has_an_older_one(
    redis: Redis, redis_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, answered = 0.0, asyncio.Event()
    answered.set()

    async def read_slowly(ask: Callable[[], Awaitable[Answer]]) -> Answer:
        await answered.wait()
        return await ask()

    popularity = PopularityStore(redis, redis_settings, clock=lambda: now, read=read_slowly)
    await _count_one_before_another(popularity, InteractionLog(redis, redis_settings))
    now = SNAPSHOT_S
    answered.clear()
    monkeypatch.setattr("shared.popularity.RENEWAL_WAITED_S", 0.01)
    assert [list(await popularity.counted(BEAUTY)) for _ in range(2)] == [["i1"], ["i1"]]
    answered.set()
    monkeypatch.setattr("shared.popularity.RENEWAL_WAITED_S", 60.0)
    assert list(await popularity.counted(BEAUTY)) == ["i2", "i1"]


async def test_a_first_count_goes_on_without_the_request_that_began_it(redis: Redis, redis_settings: Settings) -> None:
    reads, answered = 0, asyncio.Event()

    async def read_slowly(ask: Callable[[], Awaitable[Answer]]) -> Answer:
        nonlocal reads
        reads += 1
        await answered.wait()
        return await ask()

    await InteractionLog(redis, redis_settings).append(BEAUTY, [interaction(item="i1")])
    popularity = PopularityStore(redis, redis_settings, read=read_slowly)
    impatient = asyncio.create_task(popularity.counted(BEAUTY))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    answered.set()
    assert await popularity.counted(BEAUTY) == {"i1": 1.0}
    assert reads == 1


async def test_what_goes_wrong_is_said_to_who_asks(redis: Redis, redis_settings: Settings) -> None:
    await redis.set(PartitionKeys(BEAUTY, 0).popularity, "no sorted set")
    popularity = PopularityStore(redis, redis_settings)
    for _ in range(2):
        with pytest.raises(ResponseError):
            await popularity.counted(BEAUTY)
