"""A lost domain comes back from the artifact store alone: whole or not at all, and nothing that Redis knows changes."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.archive_files import ArchiveFiles
from shared.artifacts import ArtifactStore
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.errors import Conflict, NotFound, Unavailable
from shared.evolutions import EvolutionStore
from shared.local_files import sha256
from shared.manifest import adapter_name
from shared.rebuild import Rebuilder, look
from shared.redis_keys import DomainKeys
from shared.registry import CHALLENGER, CHAMPION, Registry
from shared.registry_records import RegistryRecords, Route
from shared.stream import InteractionLog
from shared.types import DomainId, Item, ItemId, order_of
from tests.factories import BEAUTY, commit, interaction, manifest
from tests.store_outage import interrupt

V1, V2, V3 = (adapter_name(BEAUTY, n) for n in (1, 2, 3))
ITEMS = [Item(ItemId(f"i{n}"), f"Thing {n}", "Care", "Acme", available=n != 2) for n in range(5)]


@pytest.fixture(params=["folder", "memory"])
def settings_a(redis_settings: Settings, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = None if request.param == "folder" else f"memory://{tmp_path.name}"
    return redis_settings.model_copy(update={"artifacts_url": url})


class World:
    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.artifacts = ArtifactStore(settings)
        self.registry = Registry(redis, self.artifacts)
        self.catalog = CatalogStore(redis)
        self.log = InteractionLog(redis, settings)
        self.rebuilder = Rebuilder(redis, settings, self.artifacts)

    async def fill(self) -> None:
        """Three versions, the second serves and the third is on trial; a catalog, and its copy."""
        await self.catalog.put(BEAUTY, ITEMS)
        ArchiveFiles(self.artifacts).put_items(BEAUTY, ITEMS)
        for number in (1, 2, 3):
            parent = adapter_name(BEAUTY, number - 1) if number > 1 else None
            version = commit(self.artifacts, manifest(number, parent=parent))
            await self.registry.publish(version, expected=parent, fencing_token=0)
        await self.registry.rollback(BEAUTY)
        await self.registry.set_trial(BEAUTY, V3, 0.5)
        await self.registry.set_paused(BEAUTY, True)

    async def seen(self) -> object:
        return (
            await self.registry.versions(BEAUTY),
            await self.registry.aliases(BEAUTY),
            await self.registry.route(BEAUTY),
            await self.registry.considered(BEAUTY),
            await self.registry.watermark(BEAUTY),
            await self.catalog.all(BEAUTY),
            await self.catalog.domains(),
        )


async def test_a_domain_comes_back_as_it_was(redis: Redis, settings_a: Settings) -> None:
    world = World(redis, settings_a)
    await world.fill()
    before, next_name = await world.seen(), adapter_name(BEAUTY, 4)
    await redis.flushdb()

    assert await world.registry.lost(BEAUTY)
    assert (await world.rebuilder.rebuild(BEAUTY)).skipped == ()

    assert await world.seen() == before
    assert not await world.registry.lost(BEAUTY)
    assert await world.registry.reserve_name(BEAUTY) == next_name
    assert (await EvolutionStore(redis).create(BEAUTY)).id == "beauty-e000004"
    await world.registry.rollback(BEAUTY)
    sequences = [move.sequence for move in RegistryRecords(world.artifacts).alias_moves(BEAUTY)]
    assert sequences == list(range(1, len(sequences) + 1))


async def test_a_second_loss_is_as_harmless(redis: Redis, settings_a: Settings) -> None:
    world = World(redis, settings_a)
    await world.fill()
    before = await world.seen()
    for _ in range(2):
        await redis.flushdb()
        await world.rebuilder.rebuild(BEAUTY)
        assert await world.seen() == before


async def test_what_redis_knows_stays_untouched(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await world.fill()
    before, keys = await world.seen(), sorted(await redis.keys())
    with pytest.raises(Conflict):
        await world.rebuilder.rebuild(BEAUTY)
    assert (await world.seen(), sorted(await redis.keys())) == (before, keys)


async def test_a_redis_older_than_the_store_is_told(redis: Redis, redis_settings: Settings) -> None:
    """Restored from a snapshot of before two versions; one of them is damaged later, a third was never published."""
    world = World(redis, redis_settings)
    await world.fill()
    commit(world.artifacts, manifest(4, parent=V3))
    assert await world.rebuilder.lacking(BEAUTY) == []
    await redis.hdel(DomainKeys(BEAUTY).versions, V2, V3)
    assert await world.rebuilder.lacking(BEAUTY) == [V2, V3]
    with pytest.raises(Conflict, match=rf"older than the artifact store, which has {V2}, {V3} as well"):
        await world.rebuilder.rebuild(BEAUTY)
    (redis_settings.state_dir / "artifacts" / BEAUTY / V3 / "adapter_model.safetensors").write_text("flipped")
    assert await world.rebuilder.lacking(BEAUTY) == [V2]
    await redis.sadd(DomainKeys(BEAUTY).pruned, V2)
    assert await world.rebuilder.lacking(BEAUTY) == []


async def test_two_rebuilds_at_once_are_one(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await world.fill()
    before, moves = await world.seen(), len(RegistryRecords(world.artifacts).alias_moves(BEAUTY))
    await redis.flushdb()
    ended = await asyncio.gather(*(world.rebuilder.rebuild(BEAUTY) for _ in range(4)), return_exceptions=True)
    assert sorted(isinstance(result, Conflict) for result in ended) == [False, True, True, True]
    assert await world.seen() == before
    assert len(RegistryRecords(world.artifacts).alias_moves(BEAUTY)) == moves + 2


async def test_damaged_versions_are_left_out_and_named(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await world.fill()
    folder = redis_settings.state_dir / "artifacts" / BEAUTY
    (folder / V2 / "adapter_model.safetensors").write_text("flipped")
    (folder / V3 / "manifest.json").write_text("{")
    (folder / "aliases" / "000000001.json").write_text("half a mo")
    (folder / "route.json").write_text("null and void")
    await redis.flushdb()

    found = await world.rebuilder.rebuild(BEAUTY)

    assert [version.name for version in found.versions] == [V1]
    assert {what for what, _ in found.skipped} == {
        V2, V3, "aliases/000000001.json", "route", "alias champion", "alias challenger",
    }  # fmt: skip
    assert "does not match its checksum" in dict(found.skipped)[V2]
    # The move to version 1 cannot be read, so nothing says that it has ever served.
    assert await world.registry.aliases(BEAUTY) == {}
    assert await world.registry.reserve_name(BEAUTY) == adapter_name(BEAUTY, 4)


async def test_a_damaged_champion_gives_way_to_the_one_before(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await world.fill()
    (redis_settings.state_dir / "artifacts" / BEAUTY / V2 / "adapter_config.json").unlink()
    await redis.flushdb()
    found = await world.rebuilder.rebuild(BEAUTY)
    assert await world.registry.aliases(BEAUTY) == {CHAMPION: V3, CHALLENGER: V3} == found.aliases
    assert await world.registry.watermark(BEAUTY) == {0: "3-0"}


async def test_a_store_that_stops_answering_leaves_no_half_of_a_domain(
    redis: Redis, redis_settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(redis, redis_settings.model_copy(update={"artifacts_url": f"memory://{tmp_path.name}"}))
    await world.fill()
    before = await world.seen()
    refused = 0
    for number in range(50):
        await redis.flushdb()
        with monkeypatch.context() as patched:
            interrupt(world.artifacts, patched, calls=number.__eq__)
            try:
                assert (await world.rebuilder.rebuild(BEAUTY)).skipped == ()
            except Unavailable:
                refused += 1
                assert not await world.rebuilder.knows(BEAUTY)
                continue
        assert await world.seen() == before
    assert 10 < refused < 50


@pytest.mark.parametrize("error", [PermissionError(13, "forbidden"), OSError(errno.ENOSPC, "No space left")], ids=repr)
async def test_a_machine_that_cannot_hold_a_version_does_not_call_it_damaged(
    redis: Redis, redis_settings: Settings, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    world = World(redis, redis_settings)
    await world.fill()
    await redis.flushdb()

    def fail(path: Path) -> str:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("shared.local_files.sha256", fail)
        with pytest.raises(OSError, match=str(error.strerror)):
            await world.rebuilder.rebuild(BEAUTY)
    assert (await world.rebuilder.rebuild(BEAUTY)).skipped == ()


async def test_a_version_on_a_bad_sector_is_left_out_and_named(
    redis: Redis, redis_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(redis, redis_settings)
    await world.fill()
    await redis.flushdb()

    def read(path: Path) -> str:
        if path.parent.name == V3:
            raise OSError(errno.EIO, "Input/output error")
        return sha256(path)

    monkeypatch.setattr("shared.local_files.sha256", read)
    found = await world.rebuilder.rebuild(BEAUTY)
    assert [version.name for version in found.versions] == [V1, V2]
    assert "Input/output error" in dict(found.skipped)[V3]


async def test_items_put_since_the_loss_stay(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await world.fill()
    await redis.flushdb()
    await world.catalog.put(BEAUTY, [Item(ItemId("i1"), "Newer")])
    await world.rebuilder.rebuild(BEAUTY)
    assert [item.title for item in await world.catalog.all(BEAUTY)] == [
        "Thing 0", "Newer", "Thing 2", "Thing 3", "Thing 4",
    ]  # fmt: skip


async def test_new_interactions_come_behind_what_was_learned(redis: Redis, redis_settings: Settings) -> None:
    """Even where the new Redis' clock is hours behind the old one's."""
    world = World(redis, redis_settings)
    seconds, _ = await redis.time()
    learned = f"{(seconds + 7200) * 1000}-5"
    version = commit(world.artifacts, manifest(1, stream_ranges={0: ("0-0", learned)}))
    await world.registry.publish(version, expected=None, fencing_token=0)
    await redis.flushdb()
    await world.rebuilder.rebuild(BEAUTY)
    await world.log.append(BEAUTY, [interaction()])
    tail = (await world.log.tail(BEAUTY))[0]
    assert order_of(tail) > order_of(learned)
    assert await world.log.count(BEAUTY, await world.registry.watermark(BEAUTY)) == 1


async def test_tokens_and_versions_of_before_the_loss_mean_nothing(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await redis.set(DomainKeys(BEAUTY).fence, 41)
    await world.catalog.put(BEAUTY, ITEMS)
    version = commit(world.artifacts, manifest(1))
    await world.registry.publish(version, expected=None, fencing_token=41)
    old = await world.catalog.version(BEAUTY)
    await redis.flushdb()
    await world.rebuilder.rebuild(BEAUTY)
    assert int(await redis.get(DomainKeys(BEAUTY).fence) or 0) > 41
    assert await world.catalog.version(BEAUTY) > old


def test_nothing_to_rebuild(settings: Settings) -> None:
    with pytest.raises(NotFound):
        look(ArtifactStore(settings), BEAUTY)


def command(settings: Settings, *options: str) -> subprocess.CompletedProcess[str]:
    state = {"EVOREC_STATE_DIR": str(settings.state_dir), "EVOREC_REDIS_URL": str(settings.redis_url)}
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli.main", "registry", "rebuild", *options],
        env={**os.environ, "COLUMNS": "150", **state},
        capture_output=True,
        text=True,
        check=False,
    )


async def test_the_command_tells_what_came_back(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await world.fill()
    await redis.flushdb()

    said = await asyncio.to_thread(command, redis_settings, "--json")
    record = json.loads(said.stdout)["rebuilt"][BEAUTY]
    assert record["aliases"] == {CHAMPION: V2, CHALLENGER: V3}
    assert (record["items"], record["versions"], record["skipped"]) == (5, [V1, V2, V3], [])
    assert "lost" in record["histories"]
    again = await asyncio.to_thread(command, redis_settings)
    assert (again.returncode, "Untouched" in again.stderr, "older" in again.stderr) == (0, True, False)
    await redis.hdel(DomainKeys(BEAUTY).versions, V3)
    older = await asyncio.to_thread(command, redis_settings)
    assert f"beauty: Redis is older than the artifact store, which has {V3} as well" in older.stderr
    refused = await asyncio.to_thread(command, redis_settings, "--domain", BEAUTY)
    assert (refused.returncode, "Conflict" in refused.stderr) == (1, True)
    await redis.flushdb()
    people = await asyncio.to_thread(command, redis_settings, "--domain", BEAUTY)
    assert V2 in people.stdout
    assert "lost" in people.stderr


async def test_no_domain_keeps_the_others_from_coming_back(redis: Redis, redis_settings: Settings) -> None:
    """One that was paused before its first version, and one whose route is a folder, come before them."""
    world = World(redis, redis_settings)
    await world.fill()
    (redis_settings.state_dir / "artifacts" / "a-paused").mkdir()
    (redis_settings.state_dir / "artifacts" / "a-paused" / "route.json").write_text(Route(paused=True).record)
    await redis.flushdb()

    said = await asyncio.to_thread(command, redis_settings, "--json")
    ended = json.loads(said.stdout)
    assert (said.returncode, list(ended["rebuilt"]), ended["empty"], ended["failed"]) == (0, [BEAUTY], ["a-paused"], {})
    people = await asyncio.to_thread(command, redis_settings)
    assert (people.returncode, "Nothing to bring back, no version, item or archive: a-paused" in people.stderr) == (
        0,
        True,
    )

    await redis.flushdb()
    ArchiveFiles(world.artifacts).put_items(DomainId("b-broken"), ITEMS)
    (redis_settings.state_dir / "artifacts" / "b-broken" / "route.json").mkdir()
    people = await asyncio.to_thread(command, redis_settings)
    assert people.returncode == 1
    assert V2 in people.stdout
    assert "b-broken: not brought back: " in people.stderr
    assert not await world.registry.lost(BEAUTY)
