"""The archive: every entry once, whatever is repeated; nothing leaves the stream that it does not hold."""

from __future__ import annotations

import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from shared import archive, erasure
from shared.archive import Archive
from shared.archive_files import ArchiveFiles, Span, covered_to, gaps
from shared.artifacts import STAGING_KEPT_S, ArtifactStore
from shared.config import Settings
from shared.erasure import Eraser, ErasureMarks, Mark
from shared.errors import InvalidArtifact, Unavailable
from shared.history import HistoryStore
from shared.redis_keys import PartitionKeys
from shared.stream import InteractionLog
from shared.types import STREAM_START, Interaction, UserId
from tests.factories import BEAUTY, commit, interaction, manifest
from tests.log_reader import read_all
from tests.store_outage import ERRORS, interrupt

POSITIONS = st.integers(0, 12).map(lambda n: f"{n}-0")
SPANS = st.lists(
    st.tuples(st.integers(0, 11), st.integers(1, 4)).map(lambda at: Span(f"{at[0]}-0", f"{at[0] + at[1]}-0")),
    max_size=6,
)


class World:
    """A domain's stores, over one Redis and one artifact store."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.settings = settings
        self.artifacts = ArtifactStore(settings)
        self.log = InteractionLog(redis, settings)
        self.history = HistoryStore(redis, settings)
        self.files = ArchiveFiles(self.artifacts)
        self.archive = Archive(self.log, self.files, settings.partitions)
        self.eraser = Eraser(redis, settings, self.artifacts)

    async def append(self, *users: str, start: int = 0) -> None:
        await self.log.append(BEAUTY, [interaction(user, f"i{n}", float(n)) for n, user in enumerate(users, start)])

    def archived(self, partition: int = 0) -> list[Interaction]:
        spans = self.files.spans(BEAUTY, partition)
        return [event for span in spans for batch in self.files.read(BEAUTY, partition, span) for event in batch]

    async def streamed(self) -> list[Interaction]:
        return await read_all(self.log, BEAUTY)


@pytest.fixture(params=["folder", "memory"])
def world(redis: Redis, redis_settings: Settings, request: pytest.FixtureRequest, tmp_path: Path) -> World:
    url = None if request.param == "folder" else f"memory://{tmp_path.name}"
    return World(redis, redis_settings.model_copy(update={"artifacts_url": url}))


def inside(spans: list[Span], number: int) -> bool:
    return any(int(span.after[:-2]) < number <= int(span.until[:-2]) for span in spans)


@given(spans=SPANS, until=POSITIONS)
def test_spans_and_gaps_cover_the_stream(spans: list[Span], until: str) -> None:
    found = gaps(spans, until)
    for number in range(1, int(until[:-2]) + 1):
        assert inside(spans, number) != inside(found, number)
    assert not any(inside(found, number) for number in range(int(until[:-2]) + 1, 20))


@given(spans=SPANS, first=st.integers(1, 12))
def test_coverage_ends_at_the_first_gap(spans: list[Span], first: int) -> None:
    reached = covered_to(spans, f"{first}-0")
    end = first
    while inside(spans, end):
        end += 1
    assert reached == (f"{end - 1}-0" if end > first else None)


async def test_the_archive_has_every_entry_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PART_ROWS", 3)
    await world.append(*"abcabca")
    sent = interaction("ü", "i|{1}", 9.125, value=2.5, event_type="click", recommendation_id="r1", event_id="e")
    await world.log.append(BEAUTY, [sent])
    first = manifest(1, stream_ranges={0: (STREAM_START, (await world.log.tail(BEAUTY))[0])})
    await world.append("b", "c", start=20)
    # After a rollback: ranges that overlap.
    second = manifest(2, stream_ranges={0: (STREAM_START, (await world.log.tail(BEAUTY))[0])})
    await world.append("not learned", start=30)

    assert await world.archive.extend(BEAUTY, [first]) == 8
    assert [world.files.header(BEAUTY, 0, span).rows for span in world.files.spans(BEAUTY, 0)] == [3, 3, 2]
    assert await world.archive.extend(BEAUTY, [second, first]) == 2
    assert await world.archive.extend(BEAUTY, [first, second]) == 0

    assert world.archived() == (await world.streamed())[:-1]
    assert gaps(world.files.spans(BEAUTY, 0), second.range_end[0]) == []


async def test_trimming_stops_at_the_oldest_kept_range_and_at_a_gap(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "PART_ROWS", 2)
    await world.append(*"abcdef")
    events = await world.streamed()
    old = manifest(1, stream_ranges={0: (STREAM_START, events[3].stream_id)})
    new = manifest(2, stream_ranges={0: (events[3].stream_id, events[5].stream_id)})

    assert await world.archive.trim(BEAUTY, [new]) == 0  # nothing is archived
    await world.archive.extend(BEAUTY, [old])
    assert await world.archive.trim(BEAUTY, [old, new]) == 0  # the old version's range is kept
    missing = world.files.spans(BEAUTY, 0)[1]
    world.artifacts.delete_file(BEAUTY, "archive", "0", missing.file)
    assert await world.archive.trim(BEAUTY, [new]) == 2
    assert await world.streamed() == events[2:]
    await world.archive.extend(BEAUTY, [new])  # fills the gap as well
    assert await world.archive.trim(BEAUTY, [new]) == 2
    assert await world.streamed() == events[4:]
    assert world.archived() == events
    assert len(await world.history.get(BEAUTY, UserId("a"))) == 1


async def test_an_archive_that_cannot_be_listed_is_not_begun_anew(
    redis: Redis, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file from the stream's start on would hide those that hold what has been trimmed since."""
    await world.append(*"abcd")
    events = await world.streamed()
    old = manifest(1, stream_ranges={0: (STREAM_START, events[1].stream_id)})
    new = manifest(2, stream_ranges={0: (events[1].stream_id, events[3].stream_id)})
    await world.archive.extend(BEAUTY, [old])
    await world.archive.trim(BEAUTY, [new])
    with monkeypatch.context() as patched:
        interrupt(world.artifacts, patched)
        for change in (world.archive.extend, world.archive.trim):
            with pytest.raises(Unavailable):
                await change(BEAUTY, [old, new])
    await world.archive.extend(BEAUTY, [old, new])
    assert world.archived() == events
    assert world.files.spans(BEAUTY, 0)[0].until == events[1].stream_id


async def test_a_long_stream_is_trimmed_exactly(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await world.log.append(BEAUTY, [interaction(f"u{n % 9}", f"i{n}", float(n)) for n in range(2345)])
    events = await world.streamed()
    old = manifest(1, stream_ranges={0: (STREAM_START, events[1233].stream_id)})
    new = manifest(2, stream_ranges={0: (events[1233].stream_id, events[-1].stream_id)})
    await world.archive.extend(BEAUTY, [old, new])

    assert await world.archive.trim(BEAUTY, [new]) == 1234
    assert await world.streamed() == events[1234:]
    await world.append("late", start=9000)
    assert (await world.streamed())[-1].user_id == "late"


async def test_erasure_reaches_the_archive_and_counts_every_interaction_once(redis: Redis, world: World) -> None:
    small = World(redis, world.settings.model_copy(update={"max_history": 2}))
    await small.append(*"abababa")  # four of a: two are beyond the history
    events = await small.streamed()
    old = manifest(1, stream_ranges={0: (STREAM_START, events[3].stream_id)})
    new = manifest(2, stream_ranges={0: (events[3].stream_id, events[5].stream_id)})
    await small.archive.extend(BEAUTY, [old, new])
    await small.archive.trim(BEAUTY, [new])  # two of a are in the archive alone, one in both, one in the stream alone

    theirs = {event.stream_id for event in events if event.user_id == "a"}
    assert await small.eraser.erase(BEAUTY, UserId("a")) == theirs
    assert [event.user_id for event in small.archived()] == ["b", "b", "b"]
    assert await small.eraser.erase(BEAUTY, UserId("a")) == theirs
    assert gaps(small.files.spans(BEAUTY, 0), events[5].stream_id) == []


async def test_a_late_writer_cannot_bring_an_erased_user_back(world: World) -> None:
    """An archiver that has read the user's entries, and puts them into the archive once they are erased."""
    await world.append(*"aba")
    events = await world.streamed()
    await world.eraser.erase(BEAUTY, UserId("a"))
    world.files.write(BEAUTY, 0, Span(STREAM_START, events[-1].stream_id), events, 1)

    erased = ErasureMarks(world.artifacts).erased(BEAUTY, 0)
    assert [erased(event.user_id, event.stream_id) for event in events] == [True, False, True]
    assert await world.eraser.purge(BEAUTY) == 2
    assert [event.user_id for event in world.archived()] == ["b"]


async def test_an_erased_user_can_come_back(world: World) -> None:
    await world.append("a")
    await world.eraser.erase(BEAUTY, UserId("a"))
    await world.append("a", start=5)
    version = manifest(1, stream_ranges={0: (STREAM_START, (await world.log.tail(BEAUTY))[0])})
    await world.archive.extend(BEAUTY, [version])
    await world.eraser.purge(BEAUTY)
    assert [event.item_id for event in world.archived()] == ["i5"]


async def test_marks_of_erasures_go_after_a_day(world: World) -> None:
    marks = ErasureMarks(world.artifacts)
    marks.add(BEAUTY, 0, UserId("old"), Mark("5-0", at=1000.0))
    marks.add(BEAUTY, 0, UserId("new"), Mark("5-0", at=100_000.0))
    marks.forget(BEAUTY, 0, now=100_001.0)
    erased = marks.erased(BEAUTY, 0)
    assert (erased(UserId("old"), "1-0"), erased(UserId("new"), "1-0")) == (False, True)
    assert (erased(UserId("new"), "5-0"), erased(UserId("new"), "5-1")) == (True, False)


async def test_a_damaged_file_is_named(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await world.append(*"abc")
    version = manifest(1, stream_ranges={0: (STREAM_START, (await world.log.tail(BEAUTY))[0])})
    await world.archive.extend(BEAUTY, [version])
    (path,) = redis_settings.state_dir.rglob("*.parquet")
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF  # within the first page: the footer stays readable
    path.write_bytes(content)
    with pytest.raises(InvalidArtifact, match=path.name):
        world.archived()


async def test_a_file_of_something_else_is_damaged_for_good(redis: Redis, redis_settings: Settings) -> None:
    world = World(redis, redis_settings)
    await world.append("a")
    version = manifest(1, stream_ranges={0: (STREAM_START, (await world.log.tail(BEAUTY))[0])})
    await world.archive.extend(BEAUTY, [version])
    (path,) = redis_settings.state_dir.rglob("*.parquet")
    pq.write_table(pa.table({"other": [1]}), path)
    with pytest.raises(InvalidArtifact, match=path.name):
        world.archived()


@pytest.mark.parametrize("error", [error for error in ERRORS if type(error) is not OSError], ids=repr)
async def test_a_file_that_the_store_stops_giving_half_way_is_not_taken_for_damaged(
    redis: Redis, redis_settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    world = World(redis, redis_settings)
    await world.append(*"abc")
    version = manifest(1, stream_ranges={0: (STREAM_START, (await world.log.tail(BEAUTY))[0])})
    await world.archive.extend(BEAUTY, [version])

    class Cut(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise error

    monkeypatch.setattr(world.artifacts._client.fs, "open", lambda path, _: Cut(Path(path).read_bytes()))
    with pytest.raises(Unavailable, match="try again"):
        world.archived()
    with pytest.raises(Unavailable, match="try again"):
        await world.eraser.erase(BEAUTY, UserId("a"))


def test_what_dead_processes_staged_goes_after_a_day(settings: Settings) -> None:
    store = ArtifactStore(settings)
    files = ArchiveFiles(store)
    files.write(BEAUTY, 0, Span("0-0", "1-0"), [], 1)
    version = store.stage(BEAUTY, manifest(1).name).path
    half = settings.state_dir / "artifacts" / BEAUTY / "archive" / "0" / ".staging-0-0_2-0.parquet-1"
    half.write_text("half")
    assert store.sweep(BEAUTY) == 0
    long_ago = time.time() - STAGING_KEPT_S - 60
    os.utime(half, (long_ago, long_ago))
    assert store.sweep(BEAUTY) == 1
    assert (half.exists(), version.exists()) == (False, True)
    half.write_text("half")
    assert store.sweep(BEAUTY, 0.0, versions_only=True) == 1
    assert (half.exists(), version.exists()) == (True, False)
    assert files.spans(BEAUTY, 0) == [Span("0-0", "1-0")]


def test_what_is_put_in_place_while_swept_is_no_error(settings: Settings) -> None:
    """Writers rename what they have staged at any moment of a sweep."""
    store = ArtifactStore(settings)
    files = ArchiveFiles(store)
    ended = threading.Event()

    def write() -> None:
        for number in range(100):
            files.write(BEAUTY, 0, Span("0-0", f"{number + 1}-0"), [], 1)
            commit(store, manifest(number + 1))
        ended.set()

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        while not (ended.is_set() or written.done()):
            assert store.sweep(BEAUTY) == 0
        written.result()
    assert len(files.spans(BEAUTY, 0)) == len(store.names(BEAUTY)) == 100


async def test_a_holder_that_was_killed_does_not_stop_erasures(
    redis: Redis, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "LOCK_S", 0.5)
    await world.append(*"ab")
    version = manifest(1, stream_ranges={0: (STREAM_START, (await world.log.tail(BEAUTY))[0])})
    await world.archive.extend(BEAUTY, [version])
    await redis.lock(PartitionKeys(BEAUTY, 0).archive_lock, timeout=erasure.LOCK_S).acquire()
    assert len(await world.eraser.erase(BEAUTY, UserId("a"))) == 1
    assert [event.user_id for event in world.archived()] == ["b"]
