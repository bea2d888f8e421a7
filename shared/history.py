"""Users' histories: the newest interactions of each, ordered by (timestamp, stream id)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

from redis.asyncio import Redis

from shared.config import Settings
from shared.redis_client import text, texts
from shared.redis_keys import PartitionKeys, partition_of
from shared.stream import FIELD, PAGE, decode
from shared.types import DomainId, Interaction, UserId

PIPELINE = 1000

# KEYS: history, stream, users, capped, then what a running restore from the archive uses: restored, restoring, erased.
# ARGV: user.  -> ids of the entries removed
# A member starts with its zero-padded stream id, "000001719230000000-0000000003"... up to the first '|'.
ERASE = """
local ids = {}
for i, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local ms, seq = string.match(member, '^0*(%d+)%-0*(%d+)|')
  ids[i] = ms .. '-' .. seq
  redis.call('XDEL', KEYS[2], ids[i])
  redis.call('XDEL', KEYS[5], ids[i])
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('SREM', KEYS[4], ARGV[1])
if redis.call('EXISTS', KEYS[6]) == 1 then redis.call('SADD', KEYS[7], ARGV[1]) end
return ids
"""


class HistoryStore:
    """Reads what `InteractionLog.append` writes, and erases it."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._erase = redis.register_script(ERASE)

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
                pipe.zrange(self._keys(domain, user_id).history(user_id), 0, -1)
            for user_id, members in zip(chunk, await pipe.execute(), strict=True):
                histories[user_id] = _history(members)
        return histories

    async def users(self, domain: DomainId, limit: int | None = None) -> list[UserId]:
        """Users with an interaction, the most recently active first."""
        last = -1 if limit is None else limit - 1
        if limit is not None and limit <= 0:
            return []
        pages = await self._per_partition(domain, "zrevrange", 0, last, withscores=True)
        newest_first = heapq.merge(*pages, key=lambda entry: float(entry[1]), reverse=True)
        return [UserId(user) for user, _ in newest_first][:limit]

    async def user_count(self, domain: DomainId) -> int:
        return sum(await self._per_partition(domain, "zcard"))

    async def erase(self, domain: DomainId, user_id: UserId) -> frozenset[str]:
        """Removes the user's history and stream entries; the stream ids of what that was.

        Popularity keeps their share: it is a sum over users and names none.
        """
        keys = self._keys(domain, user_id)
        beyond_history = await self._erase_capped(keys, user_id)
        restore = [keys.restored, keys.restoring, keys.erased]
        fixed = [keys.history(user_id), keys.stream, keys.users, keys.capped, *restore]
        return beyond_history | frozenset(texts(await self._erase(keys=fixed, args=[user_id])))

    async def _erase_capped(self, keys: PartitionKeys, user_id: UserId) -> frozenset[str]:
        """Entries that the cap pushed out of the history can only be found by reading the stream."""
        if not await self._redis.sismember(keys.capped, user_id):
            return frozenset()
        return frozenset().union(*[await self._erase_from(key, user_id) for key in (keys.stream, keys.restored)])

    async def _erase_from(self, stream: str, user_id: UserId) -> frozenset[str]:
        removed, after = set[str](), "-"
        while page := await self._redis.xrange(stream, after, "+", count=PAGE):
            entries = [(text(entry), fields) for entry, fields in page if entry is not None and fields is not None]
            theirs = [entry for entry, fields in entries if _is_of(user_id, fields)]
            if theirs:
                await self._redis.xdel(stream, *theirs)
            removed.update(theirs)
            after = f"({entries[-1][0]}"
        return frozenset(removed)

    async def _per_partition(self, domain: DomainId, command: str, *args: Any, **kwargs: Any) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for partition in range(self._settings.partitions):
            getattr(pipe, command)(PartitionKeys(domain, partition).users, *args, **kwargs)
        return await pipe.execute()

    def _keys(self, domain: DomainId, user_id: UserId) -> PartitionKeys:
        return PartitionKeys(domain, partition_of(user_id, self._settings.partitions))


def _history(members: Iterable[str]) -> tuple[Interaction, ...]:
    # The first of two twins stays where it was; a dict keeps that order.
    events: dict[str, Interaction] = {}
    for event in map(_event, members):
        events.setdefault(event.event_id, event)
    return tuple(events.values())


def _event(member: str) -> Interaction:
    order, _, payload = member.partition("|")
    milliseconds, _, sequence = order.partition("-")
    return decode(payload, f"{int(milliseconds)}-{int(sequence)}")


def _is_of(user_id: UserId, fields: Any) -> bool:
    try:
        return decode(fields[FIELD], "").user_id == user_id
    except (ValueError, KeyError, TypeError):
        return False
