"""The interaction log: a Redis stream per partition, and what one append keeps in step with it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from shared.config import Settings
from shared.dead_letters import DeadLetter, DeadLetters, Unreadable
from shared.errors import NotReplicated
from shared.fixed_settings import keep_fixed_settings
from shared.interaction_codec import decode, encode, user_of, with_id
from shared.popularity import log2_weight
from shared.redis_client import text
from shared.redis_keys import PartitionKeys, partition_of
from shared.types import STREAM_START, DomainId, Interaction, StreamPositions, order_of

log = structlog.get_logger(__name__)

PAGE = 1000
# One script call blocks Redis; 500 events keep that to a few milliseconds.
APPEND_CHUNK = 500
TRIM_CHUNK = 10_000
FIELD = "e"

# What a script does with an event that it has put into the stream.  KEYS[2..4]: users, popularity, capped.
# Popularity scores are log2 of the decayed mass, hence log2(2^a + 2^b) instead of ZINCRBY.
REMEMBER = """
local function remember(history, id, payload, timestamp, user, item, weight)
  local dash = string.find(id, '-', 1, true)
  local order = string.rep('0', 16 - dash) .. string.sub(id, 1, dash)
                .. string.rep('0', 10 - (#id - dash)) .. string.sub(id, dash + 1)
  redis.call('ZADD', history, timestamp, order .. '|' .. payload)
  redis.call('ZADD', KEYS[2], 'GT', timestamp, user)
  if weight ~= '' then
    local mass, added = redis.call('ZSCORE', KEYS[3], item), tonumber(weight)
    if mass then
      mass = tonumber(mass)
      added = math.max(mass, added) + math.log(1 + 2 ^ -math.abs(mass - added)) / math.log(2)
    end
    redis.call('ZADD', KEYS[3], added, item)
  end
end
local function cap(touched, max_history)
  for history, user in pairs(touched) do
    if redis.call('ZREMRANGEBYRANK', history, 0, -max_history - 1) > 0 then redis.call('SADD', KEYS[4], user) end
  end
end
"""

# KEYS: stream, users, popularity, capped, then the event-id key of each event, then the keys of histories and `seen`.
# ARGV: number of events, max_history, ttl, then per event: payload, timestamp, user, item,
#       log2 popularity weight ('' where the event does not count), index of the user's key.
# The event id is set last: after a crash between two commands a retry repairs, and readers drop the event's twin.
APPEND = (
    REMEMBER
    + """
local function finite(text)
  local value = tonumber(text)
  return value and value == value and math.abs(value) < math.huge
end
local n, max_history, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
if #ARGV ~= 3 + 6 * n then return redis.error_reply('ERR append: wrong number of arguments') end
for i = 0, n - 1 do
  local at = 3 + 6 * i
  if not finite(ARGV[at + 2]) or (ARGV[at + 5] ~= '' and not finite(ARGV[at + 5]))
     or not KEYS[4 + n + tonumber(ARGV[at + 6])] then
    return redis.error_reply('ERR append: bad event ' .. i)
  end
end
local accepted, touched = 0, {}
for i = 0, n - 1 do
  local at = 3 + 6 * i
  local event = KEYS[5 + i]
  if redis.call('EXISTS', event) == 0 then
    local payload, timestamp, user, item, weight = unpack(ARGV, at + 1, at + 5)
    local history = KEYS[4 + n + tonumber(ARGV[at + 6])]
    local id = redis.call('XADD', KEYS[1], '*', 'e', payload)
    remember(history, id, payload, timestamp, user, item, weight)
    redis.call('SET', event, '1', 'EX', ttl)
    touched[history] = user
    accepted = accepted + 1
  end
end
cap(touched, max_history)
return accepted
"""
)

# KEYS: stream.  ARGV: first id (exclusive), page.  -> {number of entries, last id seen}
COUNT_PAGE = """
local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
return {#entries, #entries > 0 and entries[#entries][1] or ''}
"""

# KEYS: stream.  ARGV: id.  The stream's ids go on behind it, even where the clock of a new Redis is late.
FLOOR = """
if type(redis.pcall('XADD', KEYS[1], ARGV[1], 'e', '')) == 'string' then redis.call('XDEL', KEYS[1], ARGV[1]) end
"""


@dataclass(frozen=True, slots=True)
class Appended:
    accepted: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class _Call:
    """Keys and arguments of one run of `APPEND`."""

    keys: list[str]
    args: list[str | int | float]


def popularity_weight(event: Interaction, settings: Settings) -> float | str:
    """log2 of what the event adds to its item's popularity, '' where it does not count."""
    if event.event_type not in settings.positive_events:
        return ""
    return log2_weight(event.timestamp, settings.popularity_half_life_days)


def history_key(keys: PartitionKeys, event: Interaction, settings: Settings) -> str:
    """Where the user's newest interactions of the event's kind are."""
    kind = keys.history if event.event_type in settings.positive_events else keys.seen
    return kind(event.user_id)


class InteractionLog:
    """Append-only, but for erasure (`HistoryStore.erase`)."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._settings_are_kept = False
        self._append = redis.register_script(APPEND)
        self._count_page = redis.register_script(COUNT_PAGE)
        self._floor = redis.register_script(FLOOR)
        self._dead_letters = DeadLetters(redis)

    async def append(self, domain: DomainId, interactions: Sequence[Interaction]) -> Appended:
        """Adds what is new to stream, histories and popularity. Events without id get the hash of their content.

        Whatever it raises, the events may have been added all the same, or some of them; a retry adds the others.
        NotReplicated where fewer than `wait_replicas` replicas have them in time, Conflict where the data of this Redis
        were written by other settings (`shared.fixed_settings`).
        """
        if interactions and not self._settings_are_kept:
            await keep_fixed_settings(self._redis, self._settings)
            self._settings_are_kept = True
        by_partition: defaultdict[int, list[Interaction]] = defaultdict(list)
        for event in interactions:
            by_partition[partition_of(event.user_id, self._settings.partitions)].append(with_id(event))
        calls = [
            self._call(PartitionKeys(domain, partition), events[start : start + APPEND_CHUNK])
            for partition, events in by_partition.items()
            for start in range(0, len(events), APPEND_CHUNK)
        ]
        if self._settings.wait_replicas and calls:
            accepted = await self._append_replicated(PartitionKeys(domain, min(by_partition)), calls)
        else:
            accepted = sum([int(await self._append(keys=call.keys, args=call.args)) for call in calls])
        return Appended(accepted, len(interactions) - accepted)

    async def _append_replicated(self, keys: PartitionKeys, calls: Sequence[_Call]) -> int:
        """One pipeline, hence one connection: a retry after a failover repeats the appends on the new primary."""
        pipe = self._redis.pipeline(transaction=False)
        for call in calls:
            await self._append(keys=call.keys, args=call.args, client=pipe)
        # WAIT counts from the connection's last write, and an append of nothing but duplicates writes nothing.
        pipe.set(keys.barrier, 1)
        pipe.execute_command("WAIT", self._settings.wait_replicas, self._settings.wait_replicas_ms)
        *accepted, _, acknowledged = await pipe.execute()
        if acknowledged < self._settings.wait_replicas:
            raise NotReplicated(
                f"{acknowledged} of {self._settings.wait_replicas} replicas of Redis had the interactions within "
                f"{self._settings.wait_replicas_ms} ms; send them again, they count once"
            )
        return sum(map(int, accepted))

    def _call(self, keys: PartitionKeys, events: Sequence[Interaction]) -> _Call:
        histories: dict[str, int] = {}
        args: list[str | int | float] = [len(events), self._settings.max_history, self._settings.event_id_ttl_s]
        for event in events:
            index = histories.setdefault(history_key(keys, event, self._settings), len(histories) + 1)
            args += (
                encode(event),
                event.timestamp,
                event.user_id,
                event.item_id,
                popularity_weight(event, self._settings),
                index,
            )
        fixed = [keys.stream, keys.users, keys.popularity, keys.capped]
        event_keys = [keys.event(event.event_id) for event in events]
        return _Call([*fixed, *event_keys, *histories], args)

    async def entries(self, domain: DomainId, partition: int, after: str, until: str) -> AsyncIterator[Interaction]:
        """One partition's entries after `after`, up to `until` (inclusive), in stream order; one that was appended
        twice comes twice. What cannot be read becomes a dead letter.
        """
        stream = PartitionKeys(domain, partition).stream
        while page := await self._redis.xrange(stream, f"({after}", until, count=PAGE):
            for entry_id, fields in page:
                if entry_id is None or fields is None:
                    continue
                after = text(entry_id)
                try:
                    # With decode_responses, which the annotations do not know, fields are strings.
                    yield decode(str(fields.get(FIELD)), after)
                except Unreadable as error:
                    letter = DeadLetter(
                        reason=f"stream entry: {error}",
                        stream_id=after,
                        user_id=user_of(fields.get(FIELD)),
                        raw=json.dumps(fields, ensure_ascii=False),
                    )
                    if await self._dead_letters.add(domain, letter):
                        log.warning("stream_entry_unreadable", domain=domain, stream_id=after, reason=str(error))

    async def first_id(self, domain: DomainId, partition: int) -> str | None:
        """The oldest stream id that the partition still holds."""
        page = await self._redis.xrange(PartitionKeys(domain, partition).stream, count=1)
        return text(page[0][0]) if page and page[0][0] is not None else None

    async def continue_behind(self, domain: DomainId, partition: int, stream_id: str) -> None:
        """Entries to come get ids after `stream_id`; where that is so already, nothing changes."""
        if stream_id != STREAM_START:
            await self._floor(keys=[PartitionKeys(domain, partition).stream], args=[stream_id])

    async def trim(self, domain: DomainId, partition: int, up_to: str) -> int:
        """Drops every entry up to and including `up_to` from the stream; how many that were. Histories keep theirs."""
        keys = PartitionKeys(domain, partition)
        if await self._redis.exists(keys.restoring):
            return 0
        milliseconds, sequence = order_of(up_to)
        first_kept = f"{milliseconds}-{sequence + 1}"
        await self._redis.set(keys.archived, up_to)  # first: whoever restores must not take what is gone for lost
        total = 0
        # An exact trim of millions of entries would block Redis; in whole nodes it takes a limit.
        while dropped := int(await self._redis.xtrim(keys.stream, minid=first_kept, limit=TRIM_CHUNK)):
            total += dropped
        return total + int(await self._redis.xtrim(keys.stream, minid=first_kept, approximate=False))

    async def tail(self, domain: DomainId) -> StreamPositions:
        """The newest stream id of every partition."""
        pipe = self._redis.pipeline(transaction=False)
        for keys in self._all_keys(domain):
            pipe.xrevrange(keys.stream, count=1)
        pages = await pipe.execute()
        return {partition: page[0][0] if page else STREAM_START for partition, page in enumerate(pages)}

    async def count(self, domain: DomainId, after: StreamPositions, *, at_most: int | None = None) -> int:
        """Entries after `after`. Stops early, at a page's end, beyond `at_most`."""
        total = 0
        for keys in self._all_keys(domain):
            position = after.get(keys.partition, STREAM_START)
            found = PAGE
            while found == PAGE and (at_most is None or total < at_most):
                found, position = await self._count_page(keys=[keys.stream], args=[position, PAGE])
                total += found
        return total

    async def first_timestamp(self, domain: DomainId, after: StreamPositions) -> float | None:
        """When (unix seconds) the first interaction after `after` arrived; None where there is none."""
        pipe = self._redis.pipeline(transaction=False)
        for keys in self._all_keys(domain):
            pipe.xrange(keys.stream, f"({after.get(keys.partition, STREAM_START)}", "+", count=1)
        arrivals = [order_of(page[0][0])[0] / 1000 for page in await pipe.execute() if page]
        return min(arrivals, default=None)

    def _all_keys(self, domain: DomainId) -> Iterable[PartitionKeys]:
        return (PartitionKeys(domain, partition) for partition in range(self._settings.partitions))
