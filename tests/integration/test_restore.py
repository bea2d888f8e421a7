"""Interactions come back from the archive as they were: once, at their ids, with all that an append keeps in step."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from shared import archive
from shared.archive_files import Span
from shared.config import Settings
from shared.errors import Conflict, InvalidInput, NotFound
from shared.popularity import PopularityStore
from shared.rebuild import Rebuilder
from shared.redis_client import connect
from shared.redis_keys import PartitionKeys
from shared.restore import Restored, Restorer
from shared.types import STREAM_START, Interaction, UserId, order_of
from tests.factories import BEAUTY, commit, interaction, manifest
from tests.integration.test_archive import World

USERS = [UserId(f"u{n}") for n in range(7)]


@pytest.fixture(params=[1, 3], ids=["one partition", "three partitions"])
def world(
    redis: Redis, redis_settings: Settings, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> World:
    monkeypatch.setattr(archive, "PART_ROWS", 100)
    return World(redis, redis_settings.model_copy(update={"partitions": request.param, "max_history": 20}))


async def fill(world: World, n: int = 400) -> None:
    """Interactions of seven users, some not positive, all of them archived."""
    kinds = itertools.cycle(["purchase", "click", "purchase"])
    events = [interaction(f"u{i % 7}", f"i{i % 11}", float(i % 50), event_type=next(kinds)) for i in range(n)]
    await world.log.append(BEAUTY, events)
    tail = await world.log.tail(BEAUTY)
    await world.archive.extend(BEAUTY, [manifest(1, stream_ranges={p: (STREAM_START, end) for p, end in tail.items()})])


async def everything(world: World, redis: Redis) -> dict[str, Any]:
    """All that a Redis says of the domain's interactions, key by key but for the restore's own."""
    found: dict[str, Any] = {}
    for partition in range(world.settings.partitions):
        keys = PartitionKeys(BEAUTY, partition)
        found[f"stream {partition}"] = await redis.xrange(keys.stream)
        found[f"users {partition}"] = await redis.zrange(keys.users, 0, -1, withscores=True)
        found[f"capped {partition}"] = await redis.smembers(keys.capped)
        for user in USERS:
            for key in (keys.history(user), keys.seen(user)):
                found[key] = await redis.zrange(key, 0, -1, withscores=True)
        found[f"events {partition}"] = sorted(await redis.keys(keys.event("").rpartition(":")[0] + ":*"))
    popularity = await PopularityStore(redis, world.settings).counted(BEAUTY)
    found["popularity"] = {item: pytest.approx(share) for item, share in popularity.items()}
    return found


def newest_of(user: UserId, events: Sequence[Interaction]) -> tuple[Interaction, ...]:
    """The newest twenty of each kind, both in one order."""
    ordered = sorted((e for e in events if e.user_id == user), key=lambda e: (e.timestamp, order_of(e.stream_id)))
    bought, others = ([e for e in ordered if (e.event_type == "purchase") is kind] for kind in (True, False))
    kept = {e.event_id for e in (*bought[-20:], *others[-20:])}
    return tuple(e for e in ordered if e.event_id in kept)


def restorer(world: World, redis: Redis) -> Restorer:
    return Restorer(redis, world.settings, world.artifacts)


async def test_an_emptied_redis_has_everything_back(redis: Redis, world: World) -> None:
    await fill(world)
    before, n = await everything(world, redis), len(await world.streamed())
    await redis.flushdb()
    seen = list[int]()

    assert await restorer(world, redis).restore(BEAUTY, seen.append) == Restored(interactions=n)
    assert sum(seen) == restorer(world, redis).rows(BEAUTY) == n
    assert await everything(world, redis) == before
    assert await restorer(world, redis).restore(BEAUTY) == Restored()
    assert await everything(world, redis) == before


async def test_a_redis_that_was_not_lost_stays_as_it_is(redis: Redis, world: World) -> None:
    await fill(world)
    before = await everything(world, redis)
    assert await restorer(world, redis).restore(BEAUTY) == Restored()
    assert await everything(world, redis) == before


async def test_what_was_trimmed_is_not_taken_for_lost(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await fill(world)
    ids = [event.stream_id for event in await world.streamed()]
    await world.archive.trim(BEAUTY, [manifest(2, stream_ranges={0: (ids[-1], ids[-1])})])
    assert await world.streamed() == []
    before = await everything(world, redis)
    assert await restorer(world, redis).restore(BEAUTY) == Restored()
    assert await everything(world, redis) == before


async def test_interactions_that_arrive_meanwhile_come_behind(redis: Redis, world: World) -> None:
    await fill(world)
    archived = {p: world.archived(p) for p in range(world.settings.partitions)}
    await redis.flushdb()
    fresh = [interaction(f"u{n % 7}", "new", 1000.0 + n) for n in range(2500)]
    await world.log.append(BEAUTY, fresh[:1200])
    sending = iter(fresh[1200:])

    async def send() -> None:
        for _ in range(len(fresh) - 1200):
            await world.log.append(BEAUTY, [next(sending)])

    sent = asyncio.create_task(send())
    restored = await restorer(world, redis).restore(BEAUTY)
    await sent

    assert restored == Restored(interactions=sum(map(len, archived.values())))
    streamed = await world.streamed()
    for partition, events in archived.items():
        theirs = {event.user_id for event in events}
        of = [event for event in streamed if event.user_id in theirs]
        assert of[: len(events)] == events, partition
        assert {event.item_id for event in of[len(events) :]} <= {"new"}
    assert len(streamed) == restored.interactions + len(fresh)
    for user in USERS:
        assert await world.history.get(BEAUTY, user) == newest_of(user, streamed)


@pytest.mark.parametrize("early", [0, 50], ids=["rebuilt at once", "interactions before the rebuild"])
async def test_what_upkeeps_trim_behind_a_rebuild_is_no_obstacle(redis: Redis, world: World, early: int) -> None:
    """Nobody has to bring the archive back before the versions that follow are published."""
    await fill(world)
    old = await world.streamed()
    ends = [await world.log.tail(BEAUTY)]
    commit(world.artifacts, manifest(1, stream_ranges={p: (STREAM_START, end) for p, end in ends[0].items()}))
    await redis.flushdb()
    fresh = [interaction(f"u{n % 7}", "new", 25.0 + n) for n in range(350)]
    await world.log.append(BEAUTY, fresh[:early])
    await Rebuilder(redis, world.settings, world.artifacts).rebuild(BEAUTY)
    versions = []
    for number, start, end in ((2, early, 200), (3, 200, 350)):
        await world.log.append(BEAUTY, fresh[start:end])
        ends.append(await world.log.tail(BEAUTY))
        versions.append(manifest(number, stream_ranges={p: (ends[-2][p], to) for p, to in ends[-1].items()}))
    new = await world.streamed()
    await world.archive.extend(BEAUTY, versions)
    assert await world.archive.trim(BEAUTY, versions[1:]) == 200

    assert await restorer(world, redis).restore(BEAUTY) == Restored(interactions=len(old))
    assert await restorer(world, redis).restore(BEAUTY) == Restored()

    everything = sorted([*old, *new], key=lambda event: order_of(event.stream_id))
    archived = [event for p in range(world.settings.partitions) for event in world.archived(p)]
    assert sorted(archived, key=lambda event: order_of(event.stream_id)) == everything
    assert len(await world.streamed()) == len(old) + 150
    for user in USERS:
        assert await world.history.get(BEAUTY, user) == newest_of(user, everything)
    await world.archive.trim(BEAUTY, versions[1:])
    assert len(await world.streamed()) == 150


async def test_events_sent_again_since_the_loss_count_once(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    events = [interaction("u1", f"i{n}", float(n)) for n in range(10)]
    await world.log.append(BEAUTY, events)
    tail = (await world.log.tail(BEAUTY))[0]
    await world.archive.extend(BEAUTY, [manifest(1, stream_ranges={0: (STREAM_START, tail)})])
    await redis.flushdb()
    await world.log.append(BEAUTY, events[3:5])
    assert await restorer(world, redis).restore(BEAUTY) == Restored(interactions=8, known=2)
    assert sorted(event.item_id for event in await world.streamed()) == [f"i{n}" for n in range(10)]
    assert len(await world.history.get(BEAUTY, UserId("u1"))) == 10
    # And an archived event that is sent again is known.
    assert (await world.log.append(BEAUTY, events)).accepted == 0


class Died(Exception):
    pass


async def test_a_restore_that_dies_goes_on_where_it_was(redis: Redis, world: World) -> None:
    await fill(world)
    before = await everything(world, redis)
    await redis.flushdb()
    for deaths in itertools.count():
        calls = itertools.count()

        def die(_: int, at: int = deaths, calls: itertools.count[int] = calls) -> None:
            if next(calls) == at:
                raise Died

        try:
            await restorer(world, redis).restore(BEAUTY, die)
            break
        except Died:
            continue
    assert deaths >= 3
    assert await everything(world, redis) == before


async def test_two_restores_at_once_bring_nothing_twice(redis: Redis, world: World) -> None:
    await fill(world)
    before = await everything(world, redis)
    await redis.flushdb()
    ended = await asyncio.gather(*(restorer(world, redis).restore(BEAUTY) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, Restored | Conflict) for result in ended)
    await restorer(world, redis).restore(BEAUTY)
    assert await everything(world, redis) == before


async def test_who_is_erased_meanwhile_stays_erased(
    redis: Redis, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "PART_ROWS", 10_000)  # one file, still being read while it is rewritten
    await fill(world, 3000)
    before = [event for event in await world.streamed() if event.user_id not in ("u1", "u2")]
    await redis.flushdb()
    await world.eraser.erase(BEAUTY, UserId("u1"))  # before, and again in the middle
    begun = False

    async def erase() -> None:
        client = connect(world.settings)
        other = World(client, world.settings)
        await other.eraser.erase(BEAUTY, UserId("u2"))
        await other.log.append(BEAUTY, [interaction("u2", "back", 1e6)])
        await client.aclose()

    def at_the_first_batch(_: int) -> None:
        nonlocal begun
        if not begun:
            begun = True
            thread = threading.Thread(target=lambda: asyncio.run(erase()))
            thread.start()
            thread.join()

    await restorer(world, redis).restore(BEAUTY, at_the_first_batch)
    streamed = await world.streamed()
    assert [event for event in streamed if event.item_id != "back"] == before
    assert [event.item_id for event in await world.history.get(BEAUTY, UserId("u2"))] == ["back"]
    assert await world.history.get(BEAUTY, UserId("u1")) == ()


async def test_overlapping_files_bring_each_entry_once(redis: Redis, redis_settings: Settings) -> None:
    """As two upkeeps at once may write them."""
    world = World(redis, redis_settings)
    await fill(world, 100)
    events, before = await world.streamed(), await everything(world, redis)
    for start, end in ((10, 60), (40, 80)):
        span = Span(events[start - 1].stream_id, events[end - 1].stream_id)
        world.files.write(BEAUTY, 0, span, events[start:end], 1)
    await redis.flushdb()
    assert await restorer(world, redis).restore(BEAUTY) == Restored(interactions=100)
    assert await everything(world, redis) == before


async def test_ids_of_new_interactions_come_behind_a_late_clock(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    seconds, _ = await redis.time()
    future = [
        Interaction("e", UserId("u1"), interaction().item_id, 1.0, stream_id=f"{(seconds + 3600) * 1000}-{n}")
        for n in range(3)
    ]
    world.files.write(BEAUTY, 0, Span(STREAM_START, future[-1].stream_id), future[:1], 1)
    await restorer(world, redis).restore(BEAUTY)
    await world.log.append(BEAUTY, [interaction("u2")])
    assert [event.user_id for event in await world.streamed()] == ["u1", "u2"]
    assert order_of((await world.log.tail(BEAUTY))[0]) > order_of(future[-1].stream_id)


async def test_another_number_of_partitions_is_refused(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await fill(world)
    await redis.flushdb()
    more = redis_settings.model_copy(update={"partitions": 2})
    with pytest.raises(InvalidInput, match="EVOREC_PARTITIONS is 2"):
        await Restorer(redis, more, world.artifacts).restore(BEAUTY)
    assert await redis.keys() == []


async def test_without_an_archive(redis: Redis, redis_settings: Settings) -> None:
    with pytest.raises(NotFound):
        await restorer(World(redis, redis_settings), redis).restore(BEAUTY)
