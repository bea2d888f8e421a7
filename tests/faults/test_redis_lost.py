"""Promise 4: Redis lost altogether. What the artifact store holds comes back, once, wherever a process is killed.

And of promise 5: streams and artifacts stay bounded, and nothing that is still needed is trimmed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evolver.upkeep import upkeep
from evolver.window import load_window
from shared.archive_files import ArchiveFiles
from shared.artifacts import ArtifactStore
from shared.evolutions import EvolutionStatus
from shared.history import HistoryStore
from shared.redis_keys import PartitionKeys, partition_of
from shared.types import Interaction, StreamPositions, UserId, order_of
from tests.faults.conftest import Tell
from tests.faults.lost_support import N_USERS, SHOP, DoomedRedis, Shop
from tests.integration.evolver_support import base_model_stub, run
from tests.service_support import ITEMS as SERVED
from tests.service_support import serving
from tests.tiny_base import write_base

Doom = Callable[..., DoomedRedis]


@pytest.fixture
def doom(tmp_path: Path) -> Iterator[Doom]:
    """Starts a Redis that may be lost; it ends with the test."""
    started: list[DoomedRedis] = []

    def start(**changes: object) -> DoomedRedis:
        redis = DoomedRedis(tmp_path / "state", **changes)
        redis.start()
        started.append(redis)
        return redis

    yield start
    for redis in started:
        redis.stop()


async def histories(shop: Shop) -> dict[UserId, tuple[Interaction, ...]]:
    users = [UserId(f"u{n}") for n in range(N_USERS)]
    return await HistoryStore(shop.backend.redis, shop.settings).get_many(SHOP, users)


def flat(by_partition: dict[int, list[Interaction]]) -> list[Interaction]:
    return [event for events in by_partition.values() for event in events]


async def test_everything_archived_comes_back(
    doom: Doom, tmp_path: Path, rng: random.Random, full: bool, outcome: Tell
) -> None:
    losses, cases, known = 4 if full else 2, 0, Counter[str]()
    redis = doom(partitions=2, base_model=str(base_model_stub(tmp_path / "base")))
    async with redis.backend() as backend:
        shop = Shop(backend, rng)
        await shop.open()
        for _ in range(losses):
            for _ in range(8 if full else 3):
                await shop.append(400 if full else 300)  # histories stay below their cap
                evolution = await run(backend, force=True)
                assert (evolution.status, evolution.adapter in known) == (EvolutionStatus.published, False)
                known[str(evolution.adapter)] += 1
            await backend.registry.rollback(SHOP)
            await backend.registry.set_paused(SHOP, True)
            versions, aliases = await backend.registry.versions(SHOP), await shop.aliases()
            route, considered = await backend.registry.route(SHOP), await backend.registry.considered(SHOP)
            items, kept = await backend.catalog.all(SHOP), await histories(shop)
            archived = flat(shop.archived())
            for partition, events in (await shop.streamed()).items():  # behind the kept versions it is trimmed
                assert events == shop.archived()[partition][-len(events) :]
            await shop.append(50)  # after the last publication: lost, as is said

            await backend.redis.aclose()
            redis.lose()
            assert await backend.redis.dbsize() == 0
            rebuilt = (await redis.command("registry", "rebuild"))["rebuilt"][SHOP]
            restored = await redis.command("ingest", "--archive", "--domain", SHOP)

            assert (rebuilt["skipped"], restored["interactions"]) == ([], len(archived))
            assert await backend.registry.versions(SHOP) == versions
            assert (await shop.aliases(), await backend.registry.route(SHOP)) == (aliases, route)
            assert await backend.registry.considered(SHOP) == considered
            assert await backend.catalog.all(SHOP) == items
            assert flat(await shop.streamed()) == archived
            assert await histories(shop) == kept
            champion = await backend.registry.manifest(SHOP, aliases["champion"])
            assert await backend.registry.watermark(SHOP) == champion.range_end
            cases += len(versions) + len(aliases) + len(items) + len(archived)

            shop.appended = {event.event_id: event for event in archived}
            learned = {e.event_id for e in archived if _learned(e, champion.range_end)}
            await shop.append(60)
            window = await load_window(backend, SHOP, seed=0)
            positive = {id_ for id_, e in shop.appended.items() if e.event_type == "purchase"}
            assert {event_id for _, event_id in window.inputs.window} == positive - learned
            cases += await shop.check()
    what = (
        "with Redis and its files gone, versions, aliases, route, catalog and archived interactions are back, each once"
    )
    outcome(4, what, faults={"Redis killed and its files deleted": losses}, cases=cases)


def _learned(event: Interaction, range_end: StreamPositions) -> bool:
    return order_of(event.stream_id) <= order_of(range_end[partition_of(event.user_id, len(range_end))])


async def test_the_service_goes_on_once_the_domain_is_rebuilt(doom: Doom, tmp_path: Path, outcome: Tell) -> None:
    base = write_base(tmp_path / "base")
    redis = doom(base_model=str(base), registry_poll_s=0.2, max_model_len=1024, default_domain=SHOP)
    async with redis.backend() as backend, serving(redis.settings, backend.redis) as service:
        await backend.catalog.put(SHOP, SERVED)
        await service.ready()
        events = [{"user_id": f"u{n % 9}", "item_id": f"i{n % 30}", "timestamp": 1.7e9 + n} for n in range(300)]
        await service.http.post("/interactions", json={"interactions": events})
        tail = await backend.log.tail(SHOP)
        name = await service.publisher.publish(stream_ranges={0: ("0-0", tail[0])})
        await service.served_by(name)
        await upkeep(backend, SHOP)

        redis.lose()
        refused = await service.http.post("/interactions", json={"interactions": events[:1]})
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        assert "evorec registry rebuild" in refused.json()["detail"]
        assert (await redis.command("registry", "rebuild"))["rebuilt"][SHOP]["aliases"] == {"champion": name}
        await service.served_by(name)
        sent = [{**event, "timestamp": 1.75e9} for event in events[:9]]
        answers, restored = await asyncio.gather(
            service.http.post("/interactions", json={"interactions": sent}),
            redis.command("ingest", "--archive", "--domain", SHOP),
        )
        assert (answers.json()["accepted"], restored) == (9, {"interactions": 300, "known": 0})
        history = (await service.http.get("/users/u1/history")).json()["interactions"]
        assert len(history) == len([event for event in [*events, *sent] if event["user_id"] == "u1"])
        second = await service.publisher.publish(champion=False)
        await backend.registry.promote(SHOP, second, expected=name)
        await service.served_by(second)
        assert second != name
    what = "a running service serves, accepts and swaps again once its domain is rebuilt"
    outcome(4, what, faults={"Redis killed and its files deleted under a running service": 1}, cases=309)


async def test_killed_while_archiving_and_trimming(doom: Doom, rng: random.Random, full: bool, outcome: Tell) -> None:
    kills, cases = 0, 0
    redis = doom(partitions=2, kept_versions=2, max_history=50)
    async with redis.backend() as backend:
        shop = Shop(backend, rng)
        await shop.open()
        while kills < (60 if full else 4):
            await shop.append(3000)
            await shop.publish()
            for _ in range(4):
                at_file = rng.choice((None, rng.randrange(1, 40)))
                killed = await redis.killed("upkeep", rng.uniform(0.0, 0.4), at_file=at_file)
                kills += killed
                cases += await shop.check()
                if not killed:
                    break
            if rng.random() < 0.3:
                await shop.erase()
        assert not await redis.killed("upkeep", 120)
        cases += await shop.check()
        assert {event.event_id for event in flat(shop.archived())} == shop.expected
        assert len(backend.artifacts.names(SHOP)) <= 3
    what = "a killed worker leaves whole archive files alone, and the next one goes on: nothing lost, nothing twice"
    outcome(4, what, faults={"worker killed while archiving, pruning or trimming": kills}, cases=cases)


async def test_a_half_written_file_is_never_seen(doom: Doom, rng: random.Random, full: bool, outcome: Tell) -> None:
    redis, kills = doom(), 20 if full else 2
    store = ArtifactStore(redis.settings)
    for _ in range(kills):
        assert await redis.killed("write", rng.uniform(0.0, 0.1))
        assert (store.files(SHOP, "archive", "0"), ArchiveFiles(store).spans(SHOP, 0)) == ([], [])
    assert store.sweep(SHOP) == 0
    assert store.sweep(SHOP, older_than_s=0.0) == kills
    what = "a file of the archive is seen whole or not at all; what was half written is swept after a day"
    outcome(4, what, faults={"process killed while writing a file": kills}, cases=2 * kills)


async def test_killed_while_restoring(doom: Doom, rng: random.Random, full: bool, outcome: Tell) -> None:
    kills, cases, losses = 0, 0, 0
    redis = doom(partitions=2)
    async with redis.backend() as backend:
        shop = Shop(backend, rng)
        await shop.open()
        await shop.append(20_000 if full else 6000)
        await shop.publish()
        await upkeep(backend, SHOP)
        while kills < (40 if full else 3):
            archived, kept = shop.archived(), await histories(shop)
            redis.lose()
            losses += 1
            await redis.command("registry", "rebuild")
            while await redis.killed("restore", rng.uniform(0.05, 0.6)):
                kills += 1
                if rng.random() < 0.3:
                    await shop.erase()
                    archived, kept = shop.archived(), {u: () if _gone(shop, u) else e for u, e in kept.items()}
            assert await shop.streamed() == archived
            assert await histories(shop) == kept
            cases += await shop.check() + len(kept)
    what = "a killed restore goes on where it was: every archived interaction once, at its id; the erased stay erased"
    faults = {"Redis killed and its files deleted": losses, "restore killed": kills}
    outcome(4, what, faults=faults, cases=cases)


def _gone(shop: Shop, user: UserId) -> bool:
    return any(shop.appended[id_].user_id == user for id_ in shop.erased)


async def test_every_kept_versions_window_stays(doom: Doom, rng: random.Random, full: bool, outcome: Tell) -> None:
    steps, cases, done = 800 if full else 50, 0, Counter[str]()
    redis = doom(partitions=2, kept_versions=3, max_history=30)
    async with redis.backend() as backend:
        shop = Shop(backend, rng)
        await shop.open()
        await shop.append(50)
        await shop.publish()
        for _ in range(steps):
            step = rng.choice(("append", "publish", "upkeep", "promote", "erase", "two upkeeps"))
            done[step] += 1
            match step:
                case "append":
                    await shop.append(rng.randrange(1, 200))
                case "publish":
                    await shop.publish()
                case "promote":
                    await shop.promote()
                case "erase":
                    await shop.erase()
                case "upkeep":
                    await upkeep(backend, SHOP)
                case _:
                    await asyncio.gather(upkeep(backend, SHOP), upkeep(backend, SHOP))
            cases += await shop.check()
    what = "whatever is published, promoted, erased, pruned and trimmed, each kept version's window is in the stream"
    outcome(5, what, faults=dict(done), cases=cases)


async def test_many_publications_leave_streams_and_artifacts_bounded(
    doom: Doom, rng: random.Random, full: bool, outcome: Tell, record_property: Callable[[str, object], None]
) -> None:
    rounds, each, kept = 150 if full else 15, 500, 3
    redis = doom(kept_versions=kept, max_history=20, event_id_ttl_s=1)
    longest, sizes = 0, list[int]()
    async with redis.backend() as backend:
        shop = Shop(backend, rng)
        await shop.open()
        for _ in range(rounds):
            await shop.append(each)
            await shop.publish()
            await upkeep(backend, SHOP)
            longest = max(longest, int(await backend.redis.xlen(PartitionKeys(SHOP, 0).stream)))
            sizes.append(int(await backend.redis.memory_usage(PartitionKeys(SHOP, 0).stream) or 0))
            assert len(backend.artifacts.names(SHOP)) <= kept
        assert longest <= kept * each
        assert max(map(len, (await histories(shop)).values())) <= 2 * 20  # of each kind
        cases = rounds + await shop.check()
    record_property("stream bytes", sizes)
    what = f"after each of {rounds} publications the stream holds at most {kept} windows, the rest is archived"
    outcome(5, what, faults={"publications, each with pruning and trimming": rounds}, cases=cases)
