"""Interactions from the archive back into a Redis that has lost them, at the stream ids that they had.

They go into a stream aside while histories fill up; then what has arrived since is copied behind them and the streams
are exchanged. So the service may accept interactions all the while, and no reader ever sees half a stream.
How far it has come stands in Redis and moves in the script that writes the entries: a crash repeats nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

import structlog
from redis.asyncio import Redis

from shared.archive_files import ArchiveFiles, Span
from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.erasure import ErasureMarks
from shared.errors import Conflict, InvalidInput, NotFound
from shared.fixed_settings import keep_fixed_settings
from shared.interaction_codec import encode
from shared.redis_keys import DomainKeys, PartitionKeys
from shared.stream import REMEMBER, history_key, popularity_weight
from shared.types import DomainId, Interaction, StreamPositions, order_of

log = structlog.get_logger(__name__)

SPLICE_CHUNK = 1000

# KEYS: stream, archived, restoring, lost.  ARGV: last id of the archive.
# An emptied Redis can be told by what it lacks; once upkeeps trim it again, only by this.
REMEMBER_LOSS = """
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) > 0 then return end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
redis.call('HSET', KEYS[4], 'until', first and first[1] or ARGV[1], 'open', first and '1' or '0')
"""

# KEYS: stream, archived, restoring, restored, erased, lost.  ARGV: last id of the archive.
# -> {'done'} | {'on', after (exclusive), until, '1' if until is exclusive}
# Whatever the stream holds has arrived since the loss, and what was trimmed behind a rebuild has as well; what the
# archive has from there on is in Redis already.
BEGIN = """
if redis.call('EXISTS', KEYS[3]) == 0 then
  local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  local lost = redis.call('HMGET', KEYS[6], 'until', 'open')
  if not lost[1] then
    if redis.call('EXISTS', KEYS[2]) == 1 then return {'done'} end
    lost = {first and first[1] or ARGV[1], first and '1' or '0'}
  end
  redis.call('DEL', KEYS[4], KEYS[5])
  redis.call('HSET', KEYS[3], 'after', '0-0', 'until', lost[1], 'open', lost[2], 'copied', '0-0')
  -- New entries come behind the archive's, even where the clock of a new Redis is late.
  if not first and type(redis.pcall('XADD', KEYS[1], ARGV[1], 'e', '')) == 'string' then
    redis.call('XDEL', KEYS[1], ARGV[1])
  end
end
return {'on', unpack(redis.call('HMGET', KEYS[3], 'after', 'until', 'open'))}
"""

# KEYS: restored, users, popularity, capped, restoring, erased, then the event-id key of each event, then the keys of
# histories and `seen`.  ARGV: number of events, max_history, position before, position behind, then per event: stream
# id, payload, timestamp, user, item, log2 popularity weight ('' where the event does not count), index of the user's
# key, seconds that its event id is still remembered ('' where that time is over).
# -> events brought back; one whose id is known already (sent again since the loss) is left out; -1: nothing done,
# somebody else has moved the position. A retry of the client, whose answer got lost, gets the answer.
RESTORE = (
    REMEMBER
    + """
local n, position = tonumber(ARGV[1]), redis.call('HGET', KEYS[5], 'after')
if position == ARGV[4] then return tonumber(redis.call('HGET', KEYS[5], 'restored')) end
if position ~= ARGV[3] then return -1 end
local restored, touched = 0, {}
for i = 0, n - 1 do
  local at, event = 4 + 8 * i, KEYS[7 + i]
  local id, payload, timestamp, user, item, weight, history, ttl = unpack(ARGV, at + 1, at + 8)
  if redis.call('EXISTS', event) == 0 and redis.call('SISMEMBER', KEYS[6], user) == 0 then
    history = KEYS[6 + n + tonumber(history)]
    redis.call('XADD', KEYS[1], id, 'e', payload)
    remember(history, id, payload, timestamp, user, item, weight)
    if ttl ~= '' then redis.call('SET', event, '1', 'EX', ttl) end
    touched[history] = user
    restored = restored + 1
  end
end
cap(touched, tonumber(ARGV[2]))
redis.call('HSET', KEYS[5], 'after', ARGV[4], 'restored', restored)
return restored
"""
)

# KEYS: stream, archived, restoring, restored, erased, lost.  ARGV: page, last id of the archive.  -> 1 once done
SPLICE = """
if redis.call('EXISTS', KEYS[3]) == 0 then return 1 end
if redis.call('EXISTS', KEYS[4]) == 1 then
  local copied = redis.call('HGET', KEYS[3], 'copied')
  local entries = redis.call('XRANGE', KEYS[1], '(' .. copied, '+', 'COUNT', ARGV[1])
  for _, entry in ipairs(entries) do redis.call('XADD', KEYS[4], entry[1], unpack(entry[2])) end
  if #entries == tonumber(ARGV[1]) then
    redis.call('HSET', KEYS[3], 'copied', entries[#entries][1])
    return 0
  end
  redis.call('RENAME', KEYS[4], KEYS[1])
  if type(redis.pcall('XADD', KEYS[1], ARGV[2], 'e', '')) == 'string' then redis.call('XDEL', KEYS[1], ARGV[2]) end
end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3], KEYS[5], KEYS[6])
return 1
"""


@dataclass(frozen=True, slots=True)
class Restored:
    """`interactions` came back now; `known`: left out, because sent again since the loss, or erased."""

    interactions: int = 0
    known: int = 0


@dataclass(frozen=True, slots=True)
class _Range:
    """What of the archive Redis lacks."""

    after: str
    until: str
    open: bool

    def lacks(self, event: Interaction) -> bool:
        order, until = order_of(event.stream_id), order_of(self.until)
        return order_of(self.after) < order and (order < until if self.open else order <= until)


class Restorer:
    def __init__(
        self, redis: Redis, settings: Settings, artifacts: ArtifactStore, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._files = ArchiveFiles(artifacts)
        self._marks = ErasureMarks(artifacts)
        self._clock = clock
        self._remember_loss = redis.register_script(REMEMBER_LOSS)
        self._begin = redis.register_script(BEGIN)
        self._restore = redis.register_script(RESTORE)
        self._splice = redis.register_script(SPLICE)

    def rows(self, domain: DomainId) -> int:
        """How many interactions the archive has. Synchronous file I/O; reads every file's end.

        NotFound without an archive, InvalidInput where it was written with another number of partitions,
        InvalidArtifact for a damaged file, Unavailable for one that the store does not give.
        """
        rows, expected = 0, self._settings.partitions
        partitions = self._files.partitions(domain)
        if not partitions:
            raise NotFound(f"there is no archive of domain {domain!r} in the artifact store")
        for partition in partitions:
            for span in self._files.spans(domain, partition):
                header = self._files.header(domain, partition, span)
                if header.partitions != expected:
                    raise InvalidInput(
                        f"the archive of domain {domain!r} is of {header.partitions} partitions, EVOREC_PARTITIONS is "
                        f"{expected}: set it to {header.partitions}, or ingest the files one by one as new interactions"
                    )
                rows += header.rows
        return rows

    async def remember_loss(self, domain: DomainId, archived: StreamPositions) -> None:
        """What the archive holds, up to `archived`, has been lost: however much is trimmed, it can be brought back.

        Nothing changes where Redis has the interactions, or gets them back already.
        """
        for partition, until in archived.items():
            keys = PartitionKeys(domain, partition)
            await self._remember_loss(keys=[keys.stream, keys.archived, keys.restoring, keys.lost], args=[until])

    async def restore(self, domain: DomainId, done: Callable[[int], object] = lambda _: None) -> Restored:
        """Brings back what Redis lacks; `done(n)` for every n rows of the archive, brought back or not.

        Conflict where another restore of the domain runs at the same time, or where Redis has interactions that were
        written by other settings.
        """
        await asyncio.to_thread(self.rows, domain)
        await keep_fixed_settings(self._redis, self._settings)
        total = Restored()
        for partition in await asyncio.to_thread(self._files.partitions, domain):
            part = await self._restore_partition(domain, partition, done)
            total = Restored(total.interactions + part.interactions, total.known + part.known)
        await self._redis.delete(DomainKeys(domain).upkeep)  # which trims again what is older than any kept version
        return total

    async def _restore_partition(self, domain: DomainId, partition: int, done: Callable[[int], object]) -> Restored:
        keys = PartitionKeys(domain, partition)
        spans = await asyncio.to_thread(self._files.spans, domain, partition)
        if not spans:
            return Restored()
        end = max((span.until for span in spans), key=order_of)
        shared = [keys.stream, keys.archived, keys.restoring, keys.restored, keys.erased, keys.lost]
        state, *where = await self._begin(keys=shared, args=[end])
        if state == "done":
            return Restored()
        lacking = _Range(where[0], where[1], where[2] == "1")
        # Later erasures are in Redis, where the script sees them.
        erased = await asyncio.to_thread(self._marks.erased, domain, partition)
        position, interactions, known = lacking.after, 0, 0
        async for events in self._read(keys, spans, lacking, done):
            kept = [event for event in events if not erased(event.user_id, event.stream_id)]
            restored = await self._apply(keys, kept, position) if kept else 0
            position = kept[-1].stream_id if kept else position
            interactions, known = interactions + restored, known + len(events) - restored
        while not await self._splice(keys=shared, args=[SPLICE_CHUNK, end]):
            pass
        return Restored(interactions, known)

    async def _read(
        self, keys: PartitionKeys, spans: Sequence[Span], lacking: _Range, done: Callable[[int], object]
    ) -> AsyncIterator[Sequence[Interaction]]:
        """What Redis lacks, in the stream's order and each entry once, even of files that overlap."""
        for span in spans:
            if order_of(span.until) <= order_of(lacking.after):
                done((await asyncio.to_thread(self._files.header, keys.domain, keys.partition, span)).rows)
                continue
            batches = self._files.read(keys.domain, keys.partition, span)
            while batch := await asyncio.to_thread(next, batches, None):
                if events := [event for event in batch if lacking.lacks(event)]:
                    yield events
                done(len(batch))
            lacking = replace(lacking, after=span.until)

    async def _apply(self, keys: PartitionKeys, events: Sequence[Interaction], position: str) -> int:
        histories: dict[str, int] = {}
        behind = events[-1].stream_id
        args: list[str | int | float] = [len(events), self._settings.max_history, position, behind]
        for event in events:
            index = histories.setdefault(history_key(keys, event, self._settings), len(histories) + 1)
            weight = popularity_weight(event, self._settings)
            args += (event.stream_id, encode(event), event.timestamp, event.user_id, event.item_id, weight, index)
            args.append(self._remembered_s(event))
        fixed = [keys.restored, keys.users, keys.popularity, keys.capped, keys.restoring, keys.erased]
        event_keys = [keys.event(event.event_id) for event in events]
        restored = int(await self._restore(keys=[*fixed, *event_keys, *histories], args=args))
        if restored < 0:
            raise Conflict(f"another restore of domain {keys.domain!r} is running")
        return restored

    def _remembered_s(self, event: Interaction) -> int | str:
        """Seconds that are left of the time for which the event's id is kept; '' where it is over."""
        age = self._clock() - order_of(event.stream_id)[0] / 1000
        left = int(self._settings.event_id_ttl_s - max(age, 0))
        return left if left > 0 else ""
