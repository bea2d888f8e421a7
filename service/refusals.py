"""Adapter versions that a serving process refused, with the reason: for the people who look at the registry."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis

from shared.redis_client import text
from shared.redis_keys import DomainKeys
from shared.types import AdapterName, DomainId


class Refusal(BaseModel):
    """Why a version is not served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    at: float = Field(description="Unix seconds of the last refusal")
    replica: str = Field(description="Host name of the process that refused it")


class RefusalStore:
    """The last refusal of each version of a domain, until a process that had refused it serves it."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock

    async def note(self, domain: DomainId, name: AdapterName, reason: str) -> None:
        refusal = Refusal(reason=reason, at=self._clock(), replica=socket.gethostname())
        await self._redis.hset(DomainKeys(domain).refusals, name, refusal.model_dump_json())

    async def clear(self, domain: DomainId, name: AdapterName) -> None:
        await self._redis.hdel(DomainKeys(domain).refusals, name)

    async def all(self, domain: DomainId) -> dict[AdapterName, Refusal]:
        found = await self._redis.hgetall(DomainKeys(domain).refusals)
        return {AdapterName(text(name)): Refusal.model_validate_json(record) for name, record in found.items()}
