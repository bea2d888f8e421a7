"""Erasure of a user: from history, stream and archive.

Others write to the archive at the same time, and may have read the user's entries just before they went. So an erasure
leaves a mark beside the archive before it removes anything: whoever reads the archive leaves the marked entries out,
the upkeep removes what a late writer has put there, and an evolution that had read them publishes nothing of them:
for its sake there is a mark without an archive too. Marks name users by hash, and go after `MARK_KEPT_S`.
What goes is noted before it goes, and as long: an erasure that is repeated says all that has gone.
What is damaged is skipped, so that it does not stop the others; the marks stay until nothing of the partition is.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from redis.exceptions import LockError

from shared.archive_files import ArchiveFiles
from shared.artifacts import ARCHIVE, ArtifactStore
from shared.config import Settings
from shared.errors import InvalidArtifact, Unavailable
from shared.history import HistoryStore
from shared.redis_keys import PartitionKeys, partition_of, user_digest
from shared.stream import InteractionLog
from shared.telemetry import described
from shared.types import STREAM_START, DomainId, Interaction, UserId, order_of

log = structlog.get_logger(__name__)

MARKS = "erased"
MARK_KEPT_S = 24 * 3600  # a run, and with it whoever may still write what it has read, ends within hours
LOCK_S = 10  # renewed with every file; whoever waits longer than this outlives a holder that was killed
LOCK_WAIT_S = 30


@dataclass(frozen=True, slots=True)
class Mark:
    """Nothing of the user up to and including `until` (stream id) counts. `at`: unix seconds."""

    until: str
    at: float


Erased = Callable[[UserId, str], bool]


class ErasureMarks:
    """Synchronous file I/O: `<domain>/archive/<partition>/erased/<hash of the user>.json`."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    def add(self, domain: DomainId, partition: int, user_id: UserId, mark: Mark) -> Mark:
        """The mark that there is now: an earlier one is never lowered. What it has removed is no end of the stream to
        a second one, and a late writer may still bring it back."""
        name = f"{user_digest(user_id)}.json"
        earlier = self._read(domain, partition, name)
        if earlier is not None:
            mark = Mark(max(mark.until, earlier.until, key=order_of), max(mark.at, earlier.at))
        with self._artifacts.write(domain, ARCHIVE, str(partition), MARKS, name) as staged:
            staged.write_text(json.dumps({"until": mark.until, "at": mark.at}))
        return mark

    def all(self, domain: DomainId, partition: int) -> Mapping[str, Mark]:
        """By hash of the user."""
        names = self._artifacts.files(domain, ARCHIVE, str(partition), MARKS)
        read = {name.removesuffix(".json"): self._read(domain, partition, name) for name in names}
        return {user: mark for user, mark in read.items() if mark is not None}

    def _read(self, domain: DomainId, partition: int, name: str) -> Mark | None:
        """One damaged mark must not stop every erasure to come: it is logged, and None."""
        try:
            return _mark(**json.loads(self._artifacts.read(domain, ARCHIVE, str(partition), MARKS, name)))
        except FileNotFoundError:  # or an upkeep has removed it just now
            return None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            log.warning(
                "erasure_mark_damaged",
                file=f"{domain}/{ARCHIVE}/{partition}/{MARKS}/{name}",
                error=described(error),
                remedy="delete the file and repeat the erasures of its day (GET /admin/audit has them)",
            )
            return None

    def erased(self, domain: DomainId, partition: int) -> Erased:
        """Whether a user's entry (stream id) has been erased."""
        return _by_marks(self.all(domain, partition))

    def forget(self, domain: DomainId, partition: int, now: float) -> None:
        """Removes marks whose time is over."""
        for name, mark in self.all(domain, partition).items():
            if mark.at + MARK_KEPT_S < now:
                self._artifacts.delete_file(domain, ARCHIVE, str(partition), MARKS, f"{name}.json")


class Eraser:
    def __init__(
        self, redis: Redis, settings: Settings, artifacts: ArtifactStore, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._artifacts = artifacts
        self._files = ArchiveFiles(artifacts)
        self._marks = ErasureMarks(artifacts)
        self._stream = InteractionLog(redis, settings)
        self._history = HistoryStore(redis, settings)
        self._settings = settings
        self._clock = clock

    async def erase(self, domain: DomainId, user_id: UserId) -> frozenset[str]:
        """Removes all that is known of a user, wherever it is; the stream ids of the interactions that this was, with
        those that erasures of the last day removed.

        Unavailable where the archive cannot be read or written: some of it may be there still. A call that failed can
        be repeated until all is gone. Damaged files are skipped; an upkeep cleans them once they can be read again.
        """
        try:
            return await self._erase(domain, user_id)
        except OSError as error:
            raise Unavailable(
                f"the archive of {domain} cannot be read or written, so that not all is erased; try again: {error}"
            ) from error

    async def _erase(self, domain: DomainId, user_id: UserId) -> frozenset[str]:
        partition = partition_of(user_id, self._settings.partitions)
        tail = (await self._stream.tail(domain))[partition]
        spans = await asyncio.to_thread(self._files.spans, domain, partition)
        until = max([tail, *(span.until for span in spans)], key=order_of, default=STREAM_START)
        mark = await asyncio.to_thread(self._marks.add, domain, partition, user_id, Mark(until, self._clock()))
        known = await self._history.erase(domain, user_id)
        return known | (await self._remove(domain, partition, _only(user_id, mark.until), user_id)).stream_ids

    async def erased_of(self, domain: DomainId, histories: Mapping[UserId, Sequence[Interaction]]) -> frozenset[UserId]:
        """The users of whose interactions some are erased: by the marks, or, for want of any, by who is known."""
        known = frozenset(await self._history.users(domain))
        gone = frozenset(user for user in histories if user not in known)
        return gone | await asyncio.to_thread(self._marked, domain, histories)

    def _marked(self, domain: DomainId, histories: Mapping[UserId, Sequence[Interaction]]) -> frozenset[UserId]:
        partitions = self._settings.partitions
        erased = [self._marks.erased(domain, partition) for partition in range(partitions)]
        return frozenset(
            user
            for user, events in histories.items()
            if any(erased[partition_of(user, partitions)](user, event.stream_id) for event in events)
        )

    async def any_since(self, domain: DomainId, at: float) -> bool:
        """Whether a mark says that somebody was erased since then (unix seconds)."""
        marks = [
            await asyncio.to_thread(self._marks.all, domain, partition)
            for partition in range(self._settings.partitions)
        ]
        return any(mark.at >= at for found in marks for mark in found.values())

    async def purge(self, domain: DomainId) -> int:
        """Removes from the archive what late writers have put there of erased users; how many entries that were.

        Unavailable where a partition could not be rewritten; the others are, all the same.
        """
        removed, failed = 0, None
        for partition in await asyncio.to_thread(self._files.partitions, domain):
            try:
                removed += await self._purge(domain, partition)
            except (OSError, Unavailable) as error:
                log.warning("archive_not_purged", domain=domain, partition=partition, error=described(error))
                failed = error
        if failed is not None:
            raise Unavailable(f"the archive of {domain} keeps entries of erased users: {failed}") from failed
        return removed

    async def _purge(self, domain: DomainId, partition: int) -> int:
        marks = await asyncio.to_thread(self._marks.all, domain, partition)
        if not marks:
            return 0
        removed = await self._remove(domain, partition, _by_marks(marks))
        if removed.everywhere:
            await asyncio.to_thread(self._marks.forget, domain, partition, self._clock())
        return len(removed.stream_ids)

    async def _remove(
        self, domain: DomainId, partition: int, chosen: Erased, user_id: UserId | None = None
    ) -> _Removed:
        """One at a time: of two that rewrite a file at once, the later would undo what the earlier has done.

        `user_id`: whose entries these are, to note them.
        """
        lock = self._redis.lock(
            PartitionKeys(domain, partition).archive_lock, timeout=LOCK_S, blocking_timeout=LOCK_WAIT_S
        )
        spans = await asyncio.to_thread(self._files.spans, domain, partition)
        removed, everywhere = set[str](), True
        try:
            async with lock:
                for span in spans:
                    try:
                        found = await asyncio.to_thread(self._files.find, domain, partition, span, chosen)
                        if found:
                            if user_id is not None:
                                await self._history.note_erased(domain, user_id, found)
                            await asyncio.to_thread(self._files.remove, domain, partition, span, found)
                            removed |= found
                    except InvalidArtifact as error:
                        everywhere = False
                        log.warning(
                            "archive_file_damaged",
                            error=str(error),
                            remedy="put it back from a copy, or delete it: what only it holds is lost",
                        )
                    await lock.reacquire()
        except LockError as error:
            raise Unavailable(f"the archive of {domain} is being rewritten; try again") from error
        return _Removed(frozenset(removed), everywhere)


@dataclass(frozen=True, slots=True)
class _Removed:
    """`everywhere`: every file could be read."""

    stream_ids: frozenset[str]
    everywhere: bool


def _only(user_id: UserId, until: str) -> Erased:
    return lambda user, stream_id: user == user_id and order_of(stream_id) <= order_of(until)


def _by_marks(marks: Mapping[str, Mark]) -> Erased:
    def erased(user_id: UserId, stream_id: str) -> bool:
        mark = marks.get(user_digest(user_id)) if marks else None
        return mark is not None and order_of(stream_id) <= order_of(mark.until)

    return erased


def _mark(until: str, at: float) -> Mark:
    """ValueError, TypeError or AttributeError where the values are none of a mark."""
    order_of(until)
    return Mark(until, float(at))
