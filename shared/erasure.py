"""Erasure of a user: from history, stream and archive.

Others write to the archive at the same time, and may have read the user's entries just before they went. So an erasure
leaves a mark beside the archive before it removes anything: whoever reads the archive leaves the marked entries out,
and the upkeep removes what a late writer has put there. Marks name users by hash, and go after `MARK_KEPT_S`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import LockError

from shared.archive_files import ArchiveFiles
from shared.artifacts import ARCHIVE, ArtifactStore
from shared.config import Settings
from shared.errors import InvalidArtifact, Unavailable
from shared.history import HistoryStore
from shared.redis_keys import PartitionKeys, partition_of
from shared.stream import InteractionLog, order_of
from shared.types import STREAM_START, DomainId, UserId

MARKS = "erased"
MARK_KEPT_S = 24 * 3600  # a run, and with it whoever may still write what it has read, ends within hours
LOCK_S = 10  # renewed with every file; whoever waits longer than this outlives a holder that was killed
LOCK_WAIT_S = 30


@dataclass(frozen=True, slots=True)
class Mark:
    """Nothing of the user up to and including `until` (stream id) counts. `at`: unix seconds."""

    until: str
    at: float


class ErasureMarks:
    """Synchronous file I/O: `<domain>/archive/<partition>/erased/<hash of the user>.json`."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    def add(self, domain: DomainId, partition: int, user_id: UserId, mark: Mark) -> None:
        with self._artifacts.write(domain, ARCHIVE, str(partition), MARKS, f"{_digest(user_id)}.json") as staged:
            staged.write_text(json.dumps({"until": mark.until, "at": mark.at}))

    def all(self, domain: DomainId, partition: int) -> Mapping[str, Mark]:
        """By hash of the user."""
        found = {}
        for name in self._artifacts.files(domain, ARCHIVE, str(partition), MARKS):
            try:
                with self._artifacts.open(domain, ARCHIVE, str(partition), MARKS, name) as file:
                    found[name.removesuffix(".json")] = Mark(**json.load(file))
            except FileNotFoundError:
                continue  # another upkeep has removed it
            except (ValueError, TypeError) as error:
                raise InvalidArtifact(f"erasure mark {name} of {domain} cannot be read: {error}") from error
        return found

    def erased(self, domain: DomainId, partition: int) -> Callable[[UserId, str], bool]:
        """Whether a user's entry (stream id) has been erased."""
        marks = self.all(domain, partition)

        def erased(user_id: UserId, stream_id: str) -> bool:
            mark = marks.get(_digest(user_id)) if marks else None
            return mark is not None and order_of(stream_id) <= order_of(mark.until)

        return erased

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
        """Removes all that is known of a user, wherever it is; the stream ids of the interactions that this was.

        Unavailable where the archive cannot be written, before anything is removed; a call that failed can be repeated.
        """
        partition = partition_of(user_id, self._settings.partitions)
        if not self._settings.archive and not await asyncio.to_thread(self._artifacts.files, domain, ARCHIVE):
            return await self._history.erase(domain, user_id)
        tail = (await self._stream.tail(domain))[partition]
        spans = await asyncio.to_thread(self._files.spans, domain, partition)
        until = max([tail, *(span.until for span in spans)], key=order_of, default=STREAM_START)
        mark = Mark(until, self._clock())
        try:
            await asyncio.to_thread(self._marks.add, domain, partition, user_id, mark)
        except OSError as error:
            raise Unavailable(f"the archive cannot be written, so nothing was erased: {error}") from error
        known = await self._history.erase(domain, user_id)
        return known | await self._purge(domain, partition, _only(user_id, until))

    async def purge(self, domain: DomainId) -> int:
        """Removes from the archive what late writers have put there of erased users; how many entries that were."""
        removed = 0
        for partition in await asyncio.to_thread(self._files.partitions, domain):
            if await asyncio.to_thread(self._marks.all, domain, partition):
                erased = await asyncio.to_thread(self._marks.erased, domain, partition)
                removed += len(await self._purge(domain, partition, erased))
                await asyncio.to_thread(self._marks.forget, domain, partition, self._clock())
        return removed

    async def _purge(self, domain: DomainId, partition: int, chosen: Callable[[UserId, str], bool]) -> frozenset[str]:
        """One at a time: of two that rewrite a file at once, the later would undo what the earlier has done."""
        lock = self._redis.lock(
            PartitionKeys(domain, partition).archive_lock, timeout=LOCK_S, blocking_timeout=LOCK_WAIT_S
        )
        spans = await asyncio.to_thread(self._files.spans, domain, partition)
        removed: set[str] = set()
        try:
            async with lock:
                for span in spans:
                    removed |= await asyncio.to_thread(self._files.remove, domain, partition, span, chosen)
                    await lock.reacquire()
        except LockError as error:
            raise Unavailable(f"the archive of {domain} is being rewritten; try again") from error
        return frozenset(removed)


def _only(user_id: UserId, until: str) -> Callable[[UserId, str], bool]:
    return lambda user, stream_id: user == user_id and order_of(stream_id) <= order_of(until)


def _digest(user_id: UserId) -> str:
    return hashlib.blake2b(user_id.encode(), digest_size=16).hexdigest()
