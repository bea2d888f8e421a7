"""Users' histories: the newest interactions of each, ordered by (timestamp, stream id).

Those that are learned from, and those that only make an item seen, are kept and capped apart, and read together.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import structlog
from redis.asyncio import Redis

from shared.config import Settings
from shared.dead_letters import DeadLetter, DeadLetters, Unreadable
from shared.interaction_codec import decode
from shared.redis_client import text, texts
from shared.redis_keys import PartitionKeys, partition_of
from shared.stream import FIELD, PAGE
from shared.types import DomainId, Interaction, UserId, order_of

log = structlog.get_logger(__name__)

PIPELINE = 1000
ERASED_IDS_KEPT_S = 24 * 3600
_ORDER = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)

# KEYS: history, stream, users, capped, then what a running restore from the archive uses: restored, restoring, erased;
# then erased ids, seen.  ARGV: user, seconds that the ids are kept.
# -> '' | the stream id up to which streams have to be read for what the cap pushed out of the history
# The ids are noted in the step that removes the entries: a retry, of the client or of the caller, answers the same.
# What arrives after this script is the user's again, and has a higher stream id than any entry then has.
# A member starts with its zero-padded stream id, "000001719230000000-0000000003"... up to the first '|'.
ERASE = """
for _, history in ipairs({KEYS[1], KEYS[9]}) do
  for _, member in ipairs(redis.call('ZRANGE', history, 0, -1)) do
    local ms, seq = string.match(member, '^0*(%d+)%-0*(%d+)|')
    if ms then
      local id = ms .. '-' .. seq
      redis.call('SADD', KEYS[8], id)
      redis.call('XDEL', KEYS[2], id)
      redis.call('XDEL', KEYS[5], id)
    end
  end
end
redis.call('EXPIRE', KEYS[8], ARGV[2])
redis.call('DEL', KEYS[1], KEYS[9])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('EXISTS', KEYS[6]) == 1 then redis.call('SADD', KEYS[7], ARGV[1]) end
if redis.call('SISMEMBER', KEYS[4], ARGV[1]) == 0 then return '' end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
             or redis.call('XREVRANGE', KEYS[5], '+', '-', 'COUNT', 1)[1]
return last and last[1] or '0-0'
"""

# KEYS: history, seen, capped.  ARGV: user.
# Where there is a history anew, the cap may have pushed entries out of that one: the user stays in the set.
UNCAP = """
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then redis.call('SREM', KEYS[3], ARGV[1]) end
"""


class HistoryStore:
    """Reads what `InteractionLog.append` writes, and erases it.

    An entry that cannot be read is left out with a warning, and becomes a dead letter where `dead_letters` is given:
    those who answer requests only warn.
    """

    def __init__(self, redis: Redis, settings: Settings, dead_letters: DeadLetters | None = None) -> None:
        self._redis = redis
        self._settings = settings
        self._dead_letters = dead_letters
        self._erase = redis.register_script(ERASE)
        self._uncap = redis.register_script(UNCAP)

    async def get(self, domain: DomainId, user_id: UserId) -> tuple[Interaction, ...]:
        """Oldest first, each event once; empty for an unknown user."""
        return (await self.get_many(domain, [user_id]))[user_id]

    async def get_many(self, domain: DomainId, user_ids: Sequence[UserId]) -> dict[UserId, tuple[Interaction, ...]]:
        """The history of every user asked for, unknown ones with an empty one."""
        histories: dict[UserId, tuple[Interaction, ...]] = {}
        for start in range(0, len(user_ids), PIPELINE):
            chunk = user_ids[start : start + PIPELINE]
            pipe = self._redis.pipeline(transaction=False)
            for user_id in chunk:
                keys = self._keys(domain, user_id)
                pipe.zrange(keys.history(user_id), 0, -1)
                pipe.zrange(keys.seen(user_id), 0, -1)
            found = iter(await pipe.execute())
            for user_id, learned, seen in zip(chunk, found, found, strict=True):
                histories[user_id], unreadable = _history(learned, seen)
                for member, reason in unreadable:
                    await self._set_aside(domain, user_id, member, reason)
        return histories

    async def _set_aside(self, domain: DomainId, user_id: UserId, member: str, reason: str) -> None:
        letter = DeadLetter(reason=f"history entry: {reason}", user_id=user_id, raw=member)
        if self._dead_letters is None or await self._dead_letters.add(domain, letter):
            log.warning("history_entry_unreadable", domain=domain, reason=reason)

    async def users(self, domain: DomainId) -> list[UserId]:
        """Users with an interaction, the most recently active first."""
        pipe = self._redis.pipeline(transaction=False)
        for partition in range(self._settings.partitions):
            pipe.zrevrange(PartitionKeys(domain, partition).users, 0, -1, withscores=True)
        newest_first = heapq.merge(*await pipe.execute(), key=lambda entry: float(entry[1]), reverse=True)
        return [UserId(user) for user, _ in newest_first]

    async def complete(self, domain: DomainId) -> bool:
        """Whether everybody is here: not so from a rebuild until what was lost is brought back (`shared.restore`)."""
        pipe = self._redis.pipeline(transaction=False)
        for partition in range(self._settings.partitions):
            keys = PartitionKeys(domain, partition)
            pipe.exists(keys.lost, keys.restoring)
        return not any(await pipe.execute())

    async def erase(self, domain: DomainId, user_id: UserId) -> frozenset[str]:
        """Removes the user's history and stream entries; the stream ids of what that, and erasures of the last day
        before it, removed: who repeats one that failed half-way, or whose answer got lost, learns it all.

        Popularity keeps their share: it is a sum over users and names none. Dead letters about the user go too.
        """
        await DeadLetters(self._redis).erase(domain, user_id)
        keys = self._keys(domain, user_id)
        history, seen, erased_ids = keys.history(user_id), keys.seen(user_id), keys.erased_ids(user_id)
        restore = [keys.restored, keys.restoring, keys.erased]
        fixed = [history, keys.stream, keys.users, keys.capped, *restore, erased_ids, seen]
        if until := text(await self._erase(keys=fixed, args=[user_id, ERASED_IDS_KEPT_S])):
            for stream in (keys.stream, keys.restored):
                await self._erase_from(stream, until, keys, user_id)
            await self._uncap(keys=[history, seen, keys.capped], args=[user_id])
        return frozenset(texts(await self._redis.smembers(erased_ids)))

    async def note_erased(self, domain: DomainId, user_id: UserId, stream_ids: Collection[str]) -> None:
        """For whoever removes entries of a user elsewhere, and beforehand: `erase` returns these as well."""
        key = self._keys(domain, user_id).erased_ids(user_id)
        pipe = self._redis.pipeline(transaction=True)
        pipe.sadd(key, *stream_ids)
        pipe.expire(key, ERASED_IDS_KEPT_S)
        await pipe.execute()

    async def _erase_from(self, stream: str, until: str, keys: PartitionKeys, user_id: UserId) -> None:
        after = "-"
        while page := await self._redis.xrange(stream, after, until, count=PAGE):
            entries = [(text(entry), fields) for entry, fields in page if entry is not None and fields is not None]
            theirs = [entry for entry, fields in entries if _is_of(user_id, fields)]
            if theirs:
                await self.note_erased(keys.domain, user_id, theirs)
                await self._redis.xdel(stream, *theirs)
            after = f"({entries[-1][0]}"

    def _keys(self, domain: DomainId, user_id: UserId) -> PartitionKeys:
        return PartitionKeys(domain, partition_of(user_id, self._settings.partitions))


def _history(learned: Sequence[str], seen: Sequence[str]) -> tuple[tuple[Interaction, ...], list[tuple[str, str]]]:
    """Each event once, both kinds in one order, and (member, reason) of what cannot be read."""
    events, unreadable = [], []
    for member in chain(learned, seen):
        try:
            events.append(_event(member))
        except Unreadable as error:
            unreadable.append((member, str(error)))
    if learned and seen:
        events.sort(key=lambda event: (event.timestamp, order_of(event.stream_id)))
    # The first of two twins stays where it was; a dict keeps that order.
    once: dict[str, Interaction] = {}
    for event in events:
        once.setdefault(event.event_id, event)
    return tuple(once.values()), unreadable


def _event(member: str) -> Interaction:
    order, _, payload = member.partition("|")
    found = _ORDER.fullmatch(order)
    if found is None:
        raise Unreadable(f"{order!r:.60} is no stream id")
    return decode(payload, f"{int(found[1])}-{int(found[2])}")


def _is_of(user_id: UserId, fields: Any) -> bool:
    try:
        return decode(str(fields.get(FIELD)), "").user_id == user_id
    except Unreadable:
        return False
