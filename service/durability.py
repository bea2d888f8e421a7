"""Whether the Redis that is there can keep what the service accepts."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

NO_APPEND_ONLY_FILE = (
    "Redis has no append-only file: its restart loses every accepted interaction since its last snapshot "
    "(set `appendonly yes`, and `appendfsync always`)"
)
NO_SYNC = (
    "Redis leaves it to the system when its append-only file reaches the disk (`appendfsync no`): a power failure "
    "loses what it accepted in the last half minute, or more (set `appendfsync always`)"
)
EVICTION = (
    "Redis may evict keys ({policy}): accepted interactions, histories and the registry would vanish without a word "
    "(set `maxmemory-policy noeviction`)"
)


async def durability_warnings(redis: Redis) -> tuple[str, ...]:
    """What would lose accepted interactions, for people; RedisError where Redis does not answer.

    From INFO where that has it, because a managed Redis rarely allows CONFIG; what it does not tell is not warned of.
    """
    found: dict[str, Any] = {**await redis.info("persistence"), **await redis.info("memory")}
    warnings = []
    if not int(found.get("aof_enabled", 1)):
        warnings.append(NO_APPEND_ONLY_FILE)
    elif await _append_fsync(redis) == "no":
        warnings.append(NO_SYNC)
    policy = str(found.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        warnings.append(EVICTION.format(policy=policy))
    return tuple(warnings)


async def _append_fsync(redis: Redis) -> str | None:
    """None where Redis does not tell."""
    told: dict[str | None, str | None] = {}
    with suppress(ResponseError):
        told = await redis.config_get("appendfsync")
    return told.get("appendfsync")
