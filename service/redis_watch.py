"""Says, for as long as it holds, that Redis would lose what this service accepts, or has it from other settings."""

from __future__ import annotations

import asyncio

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.durability import durability_warnings
from shared.config import Settings
from shared.errors import Conflict
from shared.fixed_settings import require_fixed_settings
from shared.telemetry import described

log = structlog.get_logger(__name__)

# Redis may come later than the service, and another one may take its place.
LOOK_S = 60.0
RETRY_S = 2.0


class RedisWatch:
    """`warnings`: what the last look found; each is logged when it appears."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self.warnings: tuple[str, ...] = ()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            answered = await self._look()
            await asyncio.sleep(LOOK_S if answered else RETRY_S)

    async def _look(self) -> bool:
        """False where Redis did not answer."""
        try:
            found = (*await durability_warnings(self._redis), *await self._conflicts())  # reads alone: writes may fail
        except (RedisError, OSError) as error:
            log.debug("durability_unknown", error=described(error))
            return False
        for warning in found:
            if warning not in self.warnings:
                log.warning("redis_warning", reason=warning)
        self.warnings = found
        return True

    async def _conflicts(self) -> tuple[str, ...]:
        """With the data of a Redis that was not there when this process started: else it would not have."""
        try:
            await require_fixed_settings(self._redis, self._settings)
        except Conflict as conflict:
            return (str(conflict),)
        return ()
