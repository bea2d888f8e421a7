"""Erasure beside what is damaged or busy: it goes as far as it can, says what it could not, and can be repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from evolver.backend import Backend
from evolver.upkeep import due, upkeep
from shared import archive, erasure
from shared.archive_files import Span
from shared.config import Settings
from shared.erasure import MARK_KEPT_S, Eraser, ErasureMarks, Mark
from shared.errors import InvalidArtifact, Unavailable
from shared.redis_keys import PartitionKeys
from shared.types import STREAM_START, UserId
from tests.factories import BEAUTY, commit, manifest
from tests.integration.test_archive import World
from tests.store_outage import ERRORS, interrupt

A, B = UserId("a"), UserId("b")


@pytest.fixture
async def world(redis: Redis, redis_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    """Nine interactions of three users, in an archive of three files."""
    monkeypatch.setattr(archive, "PART_ROWS", 3)
    world = World(redis, redis_settings)
    await world.append(*"abcabcabc")
    version = manifest(1, stream_ranges={0: (STREAM_START, (await world.log.tail(BEAUTY))[0])})
    assert await world.archive.extend(BEAUTY, [version]) == 9
    return world


def path_of(world: World, span: Span) -> Path:
    return world.settings.state_dir / "artifacts" / BEAUTY / "archive" / "0" / span.file


def users(world: World, span: Span) -> list[str]:
    return [event.user_id for batch in world.files.read(BEAUTY, 0, span) for event in batch]


def damage(path: Path) -> bytes:
    """What was there before."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


async def test_a_damaged_file_does_not_stop_the_others(redis: Redis, world: World) -> None:
    first, second, third = world.files.spans(BEAUTY, 0)
    whole = damage(path_of(world, second))

    with capture_logs() as logs:
        assert len(await world.eraser.erase(BEAUTY, A)) == 3  # of all three, two of them from the files as well
    assert [entry["event"] for entry in logs] == ["archive_file_damaged"]
    assert second.file in logs[0]["error"]
    assert logs[0]["remedy"]
    assert users(world, first) == users(world, third) == ["b", "c"]
    with pytest.raises(InvalidArtifact):
        users(world, second)

    # The mark stays as long as the file is damaged, and does its work once that is put back.
    late = Eraser(redis, world.settings, world.artifacts, clock=lambda: 4e9 + MARK_KEPT_S)
    assert await late.purge(BEAUTY) == 0
    path_of(world, second).write_bytes(whole)
    assert await late.purge(BEAUTY) == 1
    assert users(world, second) == ["b", "c"]
    assert world.artifacts.files(BEAUTY, "archive", "0", "erased") == []


@pytest.mark.parametrize("redis_lost", [False, True])
async def test_a_file_that_the_store_does_not_give_is_not_taken_for_damaged(
    redis: Redis, world: World, redis_lost: bool
) -> None:
    """What the first try removed, from the first file or from Redis, is told by the second."""
    theirs = {event.stream_id for event in await world.streamed() if event.user_id == A}
    if redis_lost:
        await redis.flushdb()
    path = path_of(world, world.files.spans(BEAUTY, 0)[1])
    aside = path.rename(path.with_suffix(".aside"))
    path.mkdir()  # whoever opens it is refused by the file system
    with pytest.raises(Unavailable, match="try again"):
        await world.eraser.erase(BEAUTY, A)
    path.rmdir()
    aside.rename(path)
    for _ in range(2):
        assert await world.eraser.erase(BEAUTY, A) == theirs
    assert {user for span in world.files.spans(BEAUTY, 0) for user in users(world, span)} == {"b", "c"}


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_whichever_call_the_store_does_not_answer_an_erasure_says_so_or_is_whole(
    redis: Redis,
    redis_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
    remote: bool,
) -> None:
    url = f"memory://{tmp_path.name}" if remote else None
    world = World(redis, redis_settings.model_copy(update={"artifacts_url": url}))
    await world.append(*[f"u{n}" for n in range(30)])
    version = manifest(1, stream_ranges={0: (STREAM_START, (await world.log.tail(BEAUTY))[0])})
    await world.archive.extend(BEAUTY, [version])
    refused = []
    for number in range(30):
        user = UserId(f"u{number}")
        with monkeypatch.context() as patched:
            interrupt(world.artifacts, patched, error, calls=number.__eq__)
            try:
                assert len(await world.eraser.erase(BEAUTY, user)) == 1
            except Unavailable:
                refused.append(number)
        if number not in refused:
            assert user not in [event.user_id for event in world.archived()]
    assert refused
    assert max(refused) < 29
    for number in refused:
        assert len(await world.eraser.erase(BEAUTY, UserId(f"u{number}"))) == 1
    assert world.archived() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"until": "x", "at": 1}', b'{"until": 5, "at": 1}', b"\xff"])
async def test_a_damaged_mark_does_not_stop_the_others(world: World, content: bytes) -> None:
    events = await world.streamed()
    await world.eraser.erase(BEAUTY, A)
    (mark,) = world.settings.state_dir.rglob("erased/*.json")
    await world.eraser.erase(BEAUTY, B)
    mark.write_bytes(content)
    first = world.files.spans(BEAUTY, 0)[0]
    world.files.write(BEAUTY, 0, first, events[:3], 1)  # by a late writer

    with capture_logs() as logs:
        assert await world.eraser.purge(BEAUTY) == 1
    told = {(entry["event"], entry["file"].rpartition("/")[2]) for entry in logs}
    assert told == {("erasure_mark_damaged", mark.name)}
    assert users(world, first) == ["a", "c"]
    assert mark.exists()


async def test_a_mark_is_not_lowered_by_a_second_erasure(world: World) -> None:
    """The stream ends earlier then: what it ended with is gone."""
    await world.append("a", start=20)
    newest = (await world.streamed())[-1]
    for _ in range(2):
        await world.eraser.erase(BEAUTY, A)
    await world.append("a", start=30)
    assert await world.eraser.erased_of(BEAUTY, {A: [newest]}) == {A}  # read by an evolution beforehand

    last = world.files.spans(BEAUTY, 0)[-1]
    late = Span(last.until, newest.stream_id)
    world.files.write(BEAUTY, 0, late, [newest], 1)
    assert await world.eraser.purge(BEAUTY) == 1
    assert users(world, late) == []


def test_marks_are_compared_as_numbers(world: World) -> None:
    marks = ErasureMarks(world.artifacts)
    for until, at, expected in (
        ("9-9", 5.0, "9-9"),
        ("9-10", 4.0, "9-10"),
        ("10-0", 6.0, "10-0"),
        ("9-11", 7.0, "10-0"),
    ):
        mark = marks.add(BEAUTY, 0, A, Mark(until, at))
        assert (mark, list(marks.all(BEAUTY, 0).values())) == (Mark(expected, max(at, 5.0)), [mark])


async def test_an_upkeep_that_cannot_purge_prunes_and_trims(
    redis: Redis, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "LOCK_WAIT_S", 0.1)
    backend = Backend.over(redis, world.settings.model_copy(update={"kept_versions": 1}))
    await backend.catalog.put(BEAUTY, ())
    start, parent = STREAM_START, None
    for number, event in enumerate((await world.streamed())[1::3], 1):
        version = commit(world.artifacts, manifest(number, parent=parent, stream_ranges={0: (start, event.stream_id)}))
        await backend.registry.publish(version, expected=parent, fencing_token=0)
        start, parent = event.stream_id, version.name
    await world.eraser.erase(BEAUTY, A)
    lock = redis.lock(PartitionKeys(BEAUTY, 0).archive_lock, timeout=60)
    await lock.acquire()

    with pytest.raises(Unavailable, match="erased users"):
        await upkeep(backend, BEAUTY)
    assert len(await backend.registry.versions(BEAUTY)) == 2  # the champion and its parent
    assert [event.user_id for event in await world.streamed()] == [*"cbcbc"]  # without a, and behind the first b
    assert await due(backend, BEAUTY)
    await lock.release()
    await upkeep(backend, BEAUTY)
    assert not await due(backend, BEAUTY)
