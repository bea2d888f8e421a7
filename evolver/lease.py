"""One evolution per domain at a time: a lease in Redis with a fencing token.

The lease keeps two well-behaved workers apart. The fencing token covers the rest: a worker that slept through its
lease (paused, swapped out, cut off from Redis) holds an old token, and the registry publishes with the newest alone.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.errors import LeaseLost
from shared.redis_keys import DomainKeys
from shared.types import DomainId

log = structlog.get_logger(__name__)

RENEWALS_PER_LEASE: Final = 3

# KEYS: lease, fence. ARGV: owner, milliseconds. The token rises only for the one who gets the lease: otherwise a
# worker that merely tried would fence out the holder. The client repeats a command whose answer got lost, so the
# owner finds its own lease.
_ACQUIRE: Final = """
local value = redis.call('GET', KEYS[1])
if value and string.sub(value, 1, #ARGV[1] + 1) == ARGV[1] .. '#' then return string.sub(value, #ARGV[1] + 2) end
if value then return 0 end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1] .. '#' .. token, 'PX', ARGV[2])
return token
"""

# KEYS: lease, fence. ARGV: value, milliseconds, token. An expired lease that nobody took since is taken up again:
# the token is still the newest, so nothing has happened meanwhile.
_RENEW: Final = """
local value = redis.call('GET', KEYS[1])
if value == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1 end
if not value and redis.call('GET', KEYS[2]) == ARGV[3] then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
end
return 0
"""

_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class LeaseHeld(LeaseLost):
    """The lease could not be had: another run of the domain holds it."""

    title = "Another run of this domain holds the lease"


class Lease:
    """A held lease. `token` goes to `Registry.publish`; `lost` turns True once another holder is known."""

    def __init__(self, redis: Redis, domain: DomainId, owner: str, token: int, ttl_s: float) -> None:
        self.domain = domain
        self.token = token
        self.lost = False
        self._redis: Any = redis  # redis-py types `eval` as a union of awaitable and plain answers
        self._keys = (DomainKeys(domain).lease, DomainKeys(domain).fence)
        self._value = f"{owner}#{token}"
        self._ttl_s = ttl_s

    def check(self) -> None:
        """Raise `LeaseLost` when another holder is known."""
        if self.lost:
            raise LeaseLost(f"the lease of domain {self.domain!r} (token {self.token}) has gone to another run")

    async def renew(self) -> None:
        """Prolong the lease; raise `LeaseLost` when another run has it, `RedisError` when nobody can tell."""
        args = (self._value, int(self._ttl_s * 1000), self.token)
        if not await self._redis.eval(_RENEW, 2, *self._keys, *args):
            self.lost = True
        self.check()

    async def keep(self) -> None:
        """Renew until cancelled or lost. Redis being away is waited out: the token tells whether it was too long."""
        while not self.lost:
            await asyncio.sleep(self._ttl_s / RENEWALS_PER_LEASE)
            try:
                await self.renew()
            except LeaseLost as error:
                log.warning("lease_lost", domain=self.domain, error=str(error))
            except (RedisError, OSError) as error:
                log.warning("lease_not_renewed", domain=self.domain, error=str(error))

    async def release(self) -> None:
        """Give the lease back if it is still ours; a lease that cannot be released expires."""
        with suppress(RedisError, OSError):
            await self._redis.eval(_RELEASE, 1, self._keys[0], self._value)


async def acquire(redis: Redis, domain: DomainId, owner: str, ttl_s: float) -> Lease:
    """Take the domain's lease for `owner` (an evolution id); raise `LeaseHeld` when another run has it."""
    client: Any = redis
    owner = f"{owner}:{uuid.uuid4().hex}"
    keys = (DomainKeys(domain).lease, DomainKeys(domain).fence)
    token = int(await client.eval(_ACQUIRE, 2, *keys, owner, int(ttl_s * 1000)))
    if not token:
        raise LeaseHeld(f"domain {domain!r} is being evolved by another run; wait for it or cancel it")
    return Lease(redis, domain, owner, token, ttl_s)


@asynccontextmanager
async def hold(redis: Redis, domain: DomainId, owner: str, ttl_s: float) -> AsyncIterator[Lease]:
    """Hold the domain's lease for the block, renewed in the background; raise `LeaseHeld` when it is taken."""
    lease = await acquire(redis, domain, owner, ttl_s)
    renewing = asyncio.create_task(lease.keep(), name=f"lease-{domain}")
    try:
        yield lease
    finally:
        await end_of(renewing)
        await lease.release()


async def end_of(task: asyncio.Task[None]) -> None:
    """Cancel a background task and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def is_held(redis: Redis, domain: DomainId) -> bool:
    """Whether any run holds the domain's lease now."""
    return bool(await redis.exists(DomainKeys(domain).lease))
