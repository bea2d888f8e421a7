from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.artifacts import ALIASES, ArtifactStore
from shared.config import Settings
from shared.errors import AliasMoved, Conflict, LeaseLost, NotFound, Unavailable
from shared.manifest import Manifest, adapter_name
from shared.redis_keys import DomainKeys
from shared.registry import CHALLENGER, CHAMPION, Registry
from shared.registry_records import AliasMove, RegistryRecords, Route
from shared.retention import Retention
from shared.types import AdapterName, DomainId
from tests.factories import BEAUTY, commit, manifest, register
from tests.store_outage import ERRORS, interrupt

V1, V2, V3 = (adapter_name(BEAUTY, n) for n in (1, 2, 3))


@pytest.fixture
def artifacts(redis_settings: Settings) -> ArtifactStore:
    return ArtifactStore(redis_settings)


@pytest.fixture
def registry(redis: Redis, artifacts: ArtifactStore) -> Registry:
    return Registry(redis, artifacts, clock=lambda: 1_700_000_000.25)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of alias moves that are read."""
    found: list[str] = []
    read = RegistryRecords.alias_move

    def note(records: RegistryRecords, domain: DomainId, file: str) -> AliasMove:
        found.append(file)
        return read(records, domain, file)

    monkeypatch.setattr(RegistryRecords, "alias_move", note)
    return found


async def publish(
    registry: Registry, artifacts: ArtifactStore, number: int, parent: AdapterName | None = None
) -> Manifest:
    version = commit(artifacts, manifest(number, parent=parent))
    await registry.publish(version, expected=parent, fencing_token=0)
    return version


async def three_versions(registry: Registry, artifacts: ArtifactStore) -> None:
    await publish(registry, artifacts, 1)
    await publish(registry, artifacts, 2, parent=V1)
    await publish(registry, artifacts, 3, parent=V2)


async def test_an_empty_domain(registry: Registry) -> None:
    assert await registry.champion(BEAUTY) is None
    assert await registry.aliases(BEAUTY) == {}
    assert await registry.versions(BEAUTY) == []
    assert await registry.watermark(BEAUTY) == {}
    assert await registry.considered(BEAUTY) == {}
    assert await registry.route(BEAUTY) == Route()
    with pytest.raises(NotFound):
        await registry.manifest(BEAUTY, V1)
    with pytest.raises(Conflict):
        await registry.rollback(BEAUTY)


async def test_publish_moves_the_champion_and_the_watermark(registry: Registry, artifacts: ArtifactStore) -> None:
    first = await publish(registry, artifacts, 1)
    assert await registry.champion(BEAUTY) == V1
    assert await registry.manifest(BEAUTY, V1) == first
    second = await publish(registry, artifacts, 2, parent=V1)
    assert await registry.versions(BEAUTY) == [first, second]
    assert await registry.watermark(BEAUTY) == await registry.considered(BEAUTY) == {0: "2-0"}
    assert await registry.rollback(BEAUTY) == V1
    # The watermark goes back with the alias; what has been considered stays, or the triggers would fire at once.
    assert await registry.watermark(BEAUTY) == {0: "1-0"}
    assert await registry.considered(BEAUTY) == {0: "2-0"}


async def test_publish_twice_is_publish_once(registry: Registry, artifacts: ArtifactStore) -> None:
    first = await publish(registry, artifacts, 1)
    await registry.publish(first, expected=None, fencing_token=0)
    assert len(RegistryRecords(artifacts).alias_moves(BEAUTY)) == 1


async def test_an_old_token_cannot_publish(registry: Registry, artifacts: ArtifactStore, redis: Redis) -> None:
    await redis.set(DomainKeys(BEAUTY).fence, 2)
    version = commit(artifacts, manifest(1))
    for token in (0, 1, 3):
        with pytest.raises(LeaseLost):
            await registry.publish(version, expected=None, fencing_token=token)
    assert await registry.champion(BEAUTY) is None
    assert await registry.versions(BEAUTY) == []
    assert await registry.considered(BEAUTY) == {}
    await registry.publish(version, expected=None, fencing_token=2)
    assert await registry.champion(BEAUTY) == V1


async def test_a_moved_alias_stops_a_publication_whole(registry: Registry, artifacts: ArtifactStore) -> None:
    await publish(registry, artifacts, 1)
    late = commit(artifacts, manifest(2))
    with pytest.raises(AliasMoved, match=f"points at {V1}, not at nothing"):
        await registry.publish(late, expected=None, fencing_token=0)
    assert [version.name for version in await registry.versions(BEAUTY)] == [V1]


async def test_only_what_is_stored_can_be_published(registry: Registry) -> None:
    with pytest.raises(NotFound, match="artifact store"):
        await registry.publish(manifest(1), expected=None, fencing_token=0)
    assert await registry.champion(BEAUTY) is None


async def test_a_name_never_gets_another_manifest(registry: Registry, artifacts: ArtifactStore, redis: Redis) -> None:
    first = commit(artifacts, manifest(1))
    await register(redis, first)
    other = first.model_copy(update={"seed": 8})
    with pytest.raises(Conflict):
        await registry.publish(other, expected=None, fencing_token=0)
    assert await registry.versions(BEAUTY) == [first]


async def test_promoting(registry: Registry, artifacts: ArtifactStore) -> None:
    await three_versions(registry, artifacts)
    await registry.promote(BEAUTY, V1, expected=V3)
    assert await registry.champion(BEAUTY) == V1
    with pytest.raises(AliasMoved):
        await registry.promote(BEAUTY, V2, expected=V3)
    with pytest.raises(NotFound):
        await registry.promote(BEAUTY, adapter_name(BEAUTY, 9), expected=V1)


async def test_rollback_follows_the_parents(registry: Registry, artifacts: ArtifactStore) -> None:
    await three_versions(registry, artifacts)
    assert [await registry.rollback(BEAUTY), await registry.rollback(BEAUTY)] == [V2, V1]
    moves = [(move.before, move.to, move.reason) for move in RegistryRecords(artifacts).alias_moves(BEAUTY)]
    assert moves == [
        (None, V1, "publish"),
        (V1, V2, "publish"),
        (V2, V3, "publish"),
        (V3, V2, "rollback"),
        (V2, V1, "rollback"),
    ]


async def test_a_rollback_that_names_what_it_leaves_goes_back_once(
    registry: Registry, artifacts: ArtifactStore
) -> None:
    await three_versions(registry, artifacts)
    assert [await registry.rollback(BEAUTY, V3), await registry.rollback(BEAUTY, V3)] == [V2, V2]
    assert await registry.champion(BEAUTY) == V2
    assert await registry.rollback(BEAUTY, V2) == V1
    with pytest.raises(AliasMoved, match=f"points at {V1}, not at {V3}"):
        await registry.rollback(BEAUTY, V3)
    with pytest.raises(NotFound):
        await registry.rollback(BEAUTY, adapter_name(BEAUTY, 9))
    assert await registry.champion(BEAUTY) == V1


async def test_a_rollback_never_goes_to_what_another_has_left(registry: Registry, artifacts: ArtifactStore) -> None:
    await three_versions(registry, artifacts)
    assert [await registry.rollback(BEAUTY), await registry.rollback(BEAUTY)] == [V2, V1]
    for leaving in (None, V1):
        with pytest.raises(Conflict, match="no earlier version"):
            await registry.rollback(BEAUTY, leaving)
    assert await registry.champion(BEAUTY) == V1


async def test_rollback_without_parent_takes_the_former_champion(registry: Registry, artifacts: ArtifactStore) -> None:
    await publish(registry, artifacts, 1)
    with pytest.raises(Conflict, match="no earlier version"):
        await registry.rollback(BEAUTY)
    fresh = commit(artifacts, manifest(2))
    await registry.publish(fresh, expected=V1, fencing_token=0)
    assert await registry.rollback(BEAUTY) == V1


async def test_a_rollback_to_a_registered_parent_reads_no_alias_moves(
    registry: Registry, artifacts: ArtifactStore, reads: list[str]
) -> None:
    """There is one with each publication, for ever, and somebody waits."""
    await three_versions(registry, artifacts)
    reads.clear()
    assert [await registry.rollback(BEAUTY, V3), await registry.rollback(BEAUTY)] == [V2, V1]
    assert reads == []


async def test_a_rollback_past_a_pruned_parent_takes_the_champion_before_it(
    registry: Registry, artifacts: ArtifactStore, redis: Redis
) -> None:
    await three_versions(registry, artifacts)
    await Retention(redis, artifacts).prune(BEAUTY, keep=1, in_use=frozenset([V1]))
    assert await registry.rollback(BEAUTY) == V1


async def test_reserving_a_name_reads_each_alias_move_once(
    registry: Registry, artifacts: ArtifactStore, reads: list[str]
) -> None:
    await three_versions(registry, artifacts)
    for new in ([1, 2, 3], [], [4]):
        reads.clear()
        name = await registry.reserve_name(BEAUTY)
        assert reads == [f"{number:09d}.json" for number in new]
        if not new:
            await publish(registry, artifacts, int(name[-6:]), parent=V3)


async def test_names_are_never_used_twice_where_redis_is_restored_from_an_older_state(
    registry: Registry, artifacts: ArtifactStore, redis: Redis
) -> None:
    """The newest version is deleted, so that the moves alone have its name, and another move follows."""
    await publish(registry, artifacts, 1)
    assert await registry.reserve_name(BEAUTY) == V2
    older = {key: await redis.dump(key) or b"" for key in await redis.keys()}
    await publish(registry, artifacts, 2, parent=V1)
    assert await registry.reserve_name(BEAUTY) == V3
    await publish(registry, artifacts, 3, parent=V2)
    await redis.flushdb()
    for key, value in older.items():
        await redis.restore(key, 0, value)
    artifacts.delete(BEAUTY, V3)
    await registry.set_trial(BEAUTY, V1, 0.1)
    assert await registry.reserve_name(BEAUTY) == adapter_name(BEAUTY, 4)


async def test_the_name_of_half_a_version_is_not_given_again(registry: Registry, artifacts: ArtifactStore) -> None:
    (artifacts.place / BEAUTY / V2).mkdir(parents=True)
    assert await registry.reserve_name(BEAUTY) == V3


async def test_names_are_never_used_twice(registry: Registry, artifacts: ArtifactStore, redis: Redis) -> None:
    names = await asyncio.gather(*(registry.reserve_name(BEAUTY) for _ in range(5)))
    assert sorted(names) == [adapter_name(BEAUTY, n) for n in range(1, 6)]
    await publish(registry, artifacts, 9)
    assert await registry.reserve_name(BEAUTY) == adapter_name(BEAUTY, 10)
    # Redis is lost and the newest version deleted: the log of moves still knows its name.
    await redis.flushdb()
    artifacts.delete(BEAUTY, adapter_name(BEAUTY, 9))
    assert await registry.reserve_name(BEAUTY) == adapter_name(BEAUTY, 10)


async def test_routes(registry: Registry, artifacts: ArtifactStore) -> None:
    await three_versions(registry, artifacts)
    await registry.set_trial(BEAUTY, V2, 0.25)
    assert await registry.route(BEAUTY) == Route(challenger=V2, share=0.25)
    assert await registry.aliases(BEAUTY) == {CHAMPION: V3, CHALLENGER: V2}
    with pytest.raises(NotFound):
        await registry.set_trial(BEAUTY, adapter_name(BEAUTY, 9), 0.5)
    await registry.set_trial(BEAUTY, V2, 0.5)
    await registry.set_paused(BEAUTY, True)
    assert await registry.route(BEAUTY) == Route(challenger=V2, share=0.5, paused=True)
    await registry.set_trial(BEAUTY, None, 0.5)
    assert await registry.route(BEAUTY) == Route(paused=True)
    await registry.set_paused(BEAUTY, False)
    assert await registry.route(BEAUTY) == Route()
    assert await registry.aliases(BEAUTY) == {CHAMPION: V3}


@pytest.mark.parametrize("then", ["publish", "rollback"])
async def test_a_trial_ends_for_good_with_the_challengers_promotion(
    registry: Registry, artifacts: ArtifactStore, then: str
) -> None:
    await three_versions(registry, artifacts)
    await registry.rollback(BEAUTY)
    await registry.set_trial(BEAUTY, V3, 0.25)
    await registry.promote(BEAUTY, V3, expected=V2)
    if then == "publish":
        await publish(registry, artifacts, 4, parent=V3)
    else:
        await registry.rollback(BEAUTY)
    assert await registry.route(BEAUTY) == Route()
    assert CHALLENGER not in await registry.aliases(BEAUTY)
    replayed = {move.alias: move.to for move in RegistryRecords(artifacts).alias_moves(BEAUTY)}
    assert replayed[CHALLENGER] is None


async def test_a_challengers_alias_that_an_older_release_has_left_begins_no_trial(
    registry: Registry, artifacts: ArtifactStore, redis: Redis
) -> None:
    await three_versions(registry, artifacts)
    await redis.hset(DomainKeys(BEAUTY).aliases, CHALLENGER, V3)
    await redis.set(DomainKeys(BEAUTY).route, '{"share":0.1,"paused":false}')
    assert await registry.route(BEAUTY) == Route()
    await publish(registry, artifacts, 4, parent=V3)
    assert await registry.route(BEAUTY) == Route()
    assert CHALLENGER not in await registry.aliases(BEAUTY)


async def test_a_trial_and_a_pause_at_once_are_both_kept(registry: Registry, artifacts: ArtifactStore) -> None:
    await three_versions(registry, artifacts)
    for number in range(20):
        paused = bool(number % 2)
        await asyncio.gather(registry.set_trial(BEAUTY, V1, number / 20), registry.set_paused(BEAUTY, paused))
        assert await registry.route(BEAUTY) == Route(challenger=V1, share=number / 20, paused=paused)
        await registry.set_trial(BEAUTY, None, 0.0)


async def test_a_store_that_lacks_what_redis_knows_is_the_wrong_one(
    registry: Registry, artifacts: ArtifactStore, redis: Redis
) -> None:
    """A volume that is not mounted, say; an erasure would find nothing to erase in it."""
    await publish(registry, artifacts, 1)
    mounted = artifacts.place.rename(artifacts.place.with_name("elsewhere"))
    for _ in range(2):
        with pytest.raises(Unavailable, match="mounted"):
            await registry.refuse_where_lost(BEAUTY)
        artifacts.place.mkdir(exist_ok=True)  # the empty mount point
    artifacts.place.rmdir()
    mounted.rename(artifacts.place)
    await registry.refuse_where_lost(BEAUTY)
    await redis.flushdb()
    with pytest.raises(Unavailable, match="registry rebuild"):
        await registry.refuse_where_lost(BEAUTY)


async def test_considered(registry: Registry) -> None:
    await registry.set_considered(BEAUTY, {0: "5-0", 1: "6-1"})
    await registry.set_considered(BEAUTY, {1: "7-0"})
    assert await registry.considered(BEAUTY) == {0: "5-0", 1: "7-0"}


async def test_domains_do_not_touch(registry: Registry, artifacts: ArtifactStore) -> None:
    await publish(registry, artifacts, 1)
    toys = DomainId("toys")
    assert await registry.champion(toys) is None
    with pytest.raises(NotFound):
        await registry.promote(toys, V1, expected=None)


class Crash(BaseException):
    """Stands for the process' end."""


@pytest.mark.parametrize(
    "failure", [OSError("disk full"), Unavailable("away"), ValueError("no record"), Crash()], ids=repr
)
async def test_a_move_that_could_not_be_logged_is_logged_with_the_next(
    registry: Registry, artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise failure

    await publish(registry, artifacts, 1)
    with monkeypatch.context() as patched, suppress(Crash):
        patched.setattr(RegistryRecords, "record_alias_move", fail)
        await publish(registry, artifacts, 2, parent=V1)
    assert await registry.champion(BEAUTY) == V2
    assert [move.to for move in RegistryRecords(artifacts).alias_moves(BEAUTY)] == [V1]
    await registry.rollback(BEAUTY)
    assert [move.to for move in RegistryRecords(artifacts).alias_moves(BEAUTY)] == [V1, V2, V1]


@pytest.fixture
async def remote(redis: Redis, redis_settings: Settings, tmp_path: Path) -> tuple[Registry, ArtifactStore]:
    """Of three versions."""
    store = ArtifactStore(redis_settings.model_copy(update={"artifacts_url": f"memory://{tmp_path.name}"}))
    registry = Registry(redis, store)
    await three_versions(registry, store)
    return registry, store


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_no_alias_moves_while_the_artifact_store_is_away(
    remote: tuple[Registry, ArtifactStore], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    registry, store = remote
    with monkeypatch.context() as patched:
        interrupt(store, patched, error)
        for move in (
            registry.promote(BEAUTY, V1, expected=V3),
            registry.rollback(BEAUTY),
            registry.set_trial(BEAUTY, V1, 0.5),
        ):
            with pytest.raises(Unavailable):
                await move
        await registry.set_paused(BEAUTY, True)  # whose copy in the store nothing but a rebuild reads
    assert await registry.aliases(BEAUTY) == {CHAMPION: V3}
    assert await registry.route(BEAUTY) == Route(paused=True)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_an_alias_has_moved_though_the_artifact_store_goes_in_that_moment(
    remote: tuple[Registry, ArtifactStore], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    registry, store = remote
    with monkeypatch.context() as patched:
        interrupt(store, patched, error, calls=lambda number: number > 0)  # the moves are listed beforehand
        assert await registry.rollback(BEAUTY) == V2
    with monkeypatch.context() as patched:
        interrupt(store, patched, error, calls=lambda number: number > 0)
        await registry.set_trial(BEAUTY, V1, 0.5)
    assert await registry.aliases(BEAUTY) == {CHAMPION: V2, CHALLENGER: V1}
    await registry.record_moves(BEAUTY)
    assert [move.to for move in RegistryRecords(store).alias_moves(BEAUTY)] == [V1, V2, V3, V2, V1]


async def test_a_file_that_is_no_alias_move_stops_no_move(registry: Registry, artifacts: ArtifactStore) -> None:
    """A copy that somebody has made by hand, say."""
    await publish(registry, artifacts, 1)
    for name in ("000000001.json.bak", "notes.txt", "1.json"):
        with artifacts.write(BEAUTY, ALIASES, name) as staged:
            staged.write_text("{}")
    await publish(registry, artifacts, 2, parent=V1)
    assert [move.to for move in RegistryRecords(artifacts).alias_moves(BEAUTY)] == [V1, V2]


async def test_a_move_that_cannot_be_recorded_has_happened(
    registry: Registry, artifacts: ArtifactStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told otherwise does it again: a rollback that is repeated goes back twice."""
    await three_versions(registry, artifacts)

    async def away(*_: object) -> None:
        raise RedisConnectionError

    monkeypatch.setattr(redis, "lrem", away)
    assert await registry.rollback(BEAUTY) == V2
    assert await registry.champion(BEAUTY) == V2
    monkeypatch.undo()
    await registry.record_moves(BEAUTY)
    assert [move.to for move in RegistryRecords(artifacts).alias_moves(BEAUTY)] == [V1, V2, V3, V2]
