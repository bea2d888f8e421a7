"""Dead letters: what could not be read or learned from, set aside with its reason so that it blocks nobody."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from shared.redis_client import text
from shared.redis_keys import DomainKeys
from shared.types import DomainId, EvolutionId, ItemId, UserId

KEPT = 10_000
MAX_RAW, MAX_REASON = 2000, 500  # characters
REPEATED_AFTER_S = 24 * 3600

# KEYS: dead letters, marker of this letter.  ARGV: kept, seconds, field, value, ...  -> 1 if the letter is new
# What cannot be read is found again by every run that comes past it: once a day says it.
ADD = """
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[2]) then return 0 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 3))
return 1
"""


class Unreadable(ValueError):
    """A stored record is none of ours, or not any more; `str(error)` says what is wrong with it."""


class DeadLetter(BaseModel):
    """One thing set aside. `at`: unix seconds; of the ids those are given that are known; `raw`: its beginning."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    reason: str
    at: float = 0.0
    evolution_id: EvolutionId | None = None
    stream_id: str | None = None
    user_id: UserId | None = None
    item_id: ItemId | None = None
    raw: str | None = None


class DeadLetters:
    """A capped stream per domain, about the newest `KEPT` letters."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock
        self._add = redis.register_script(ADD)

    async def add(self, domain: DomainId, letter: DeadLetter) -> bool:
        """False for a letter that was written within the last day."""
        keys = DomainKeys(domain)
        cut = {"reason": readable(letter.reason)[:MAX_REASON], "raw": readable(letter.raw or "")[:MAX_RAW] or None}
        stated = letter.model_copy(update={**cut, "at": self._clock()})
        fields = {name: readable(str(value)) for name, value in stated.model_dump(exclude_none=True).items()}
        what = "\0".join(f"{name}={value}" for name, value in fields.items() if name not in ("at", "evolution_id"))
        marker = keys.dead_letter_marker(hashlib.blake2b(what.encode(), digest_size=16).hexdigest())
        args = [part for field in fields.items() for part in field]
        return bool(await self._add(keys=[keys.dead_letters, marker], args=[KEPT, REPEATED_AFTER_S, *args]))

    async def newest(self, domain: DomainId, limit: int) -> Sequence[DeadLetter]:
        """Newest first."""
        entries = await self._redis.xrevrange(DomainKeys(domain).dead_letters, count=limit) or []
        return [DeadLetter.model_validate(fields) for _, fields in entries]

    async def count(self, domain: DomainId) -> int:
        """How many there are now."""
        return int(await self._redis.xlen(DomainKeys(domain).dead_letters))

    async def erase(self, domain: DomainId, user_id: UserId) -> int:
        """Remove the letters about a user; how many those were."""
        key = DomainKeys(domain).dead_letters
        entries = await self._redis.xrange(key) or []
        theirs = [text(entry) for entry, fields in entries if entry and fields and fields.get("user_id") == user_id]
        return int(await self._redis.xdel(key, *theirs)) if theirs else 0


def readable(raw: str) -> str:
    """Text that every encoding takes: what is none (stray bytes read from Redis) as its code, `\\udc80`."""
    return raw.encode("utf-8", "backslashreplace").decode()
