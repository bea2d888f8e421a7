"""Reads of the data store that a recommendation waits for: bounded in time, not tried while it is known to be away."""

from __future__ import annotations

import time
from asyncio import sleep, timeout
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ClassVar, TypeVar

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.metrics import Metrics
from shared.errors import Unavailable
from shared.telemetry import described

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Between two looks at a store that is away: requests do not wait for it meanwhile.
PAUSE_S = 1.0


class StoreAway(Unavailable):
    """The data store does not answer; a guarded read fails like this at once for as long as that lasts."""

    title: ClassVar[str] = "Temporarily unavailable"
    logged: ClassVar[bool] = False  # coming and going are, once each


class StoreGuard:
    """A circuit breaker. While the store is away, one read in `PAUSE_S` tries it; the others fail without waiting."""

    def __init__(self, timeout_s: float, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._clock = clock
        self._next_look: float | None = None
        self._metrics.store_available.set(1)

    @property
    def away(self) -> bool:
        """Whether the last read found no store."""
        return self._next_look is not None

    async def read(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer of `ask`. StoreAway where it takes too long, finds no connection, or is not tried."""
        if self._next_look is not None:
            if self._clock() < self._next_look:
                raise StoreAway("the data store cannot be reached")
            self._next_look = self._clock() + self._timeout_s + PAUSE_S  # this one looks; the others go on failing
        try:
            async with timeout(self._timeout_s):
                answer = await ask()
        except MaxConnectionsError as error:  # of this process: the store is there
            raise StoreAway("too many calls wait for the data store") from error
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            self._note_away(error)
            raise StoreAway("the data store cannot be reached") from error
        self._note_back()
        return answer

    async def look_while_away(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Until cancelled: tries a store that is away by `ask`, so that its return shows where nobody else asks."""
        while True:
            await sleep(PAUSE_S)
            if self.away:
                with suppress(StoreAway, RedisError):
                    await self.read(ask)

    def _note_away(self, error: Exception) -> None:
        if not self.away:
            self._metrics.store_available.set(0)
            log.error("store_away", error=described(error))
        self._next_look = self._clock() + PAUSE_S

    def _note_back(self) -> None:
        if self.away:
            self._metrics.store_available.set(1)
            log.info("store_back")
        self._next_look = None
