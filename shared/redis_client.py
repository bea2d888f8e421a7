"""Connections to Redis, and the narrowing that its client's wide return types need."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.config import Settings
from shared.redis_urls import socket_url

SOCKET_TIMEOUT_S = 30.0
# Beside those of recommendations and batches, which the service bounds: other calls, domains that are looked at.
OTHER_CONNECTIONS = 128


def connect(settings: Settings, *, answer_within_s: float | None = None) -> Redis:
    """A client (no I/O yet) of EVOREC_REDIS_URL, else of the embedded Redis. The caller closes it: `aclose()`.

    Commands are retried on connection errors: every write of this project may run twice. They are repeated as well
    where Redis is silent for too long, unless the caller has somebody waiting and says how long that may be (at most
    twice that, where a new connection has to be made). redis-py's `health_check_interval` stays off: it reconnects
    without end where a server accepts connections and hangs up (8.1: its PING in a handshake begins another one).
    """
    backoff = ExponentialBackoff(cap=0.5, base=0.02)
    if answer_within_s is None:
        retry = Retry(backoff, retries=3)
    else:
        # Once: a new connection to a silent Redis fails as a connection error, after all of the time limit.
        retry = Retry(backoff, retries=1, supported_errors=(RedisConnectionError,))
    pool = ConnectionPool.from_url(
        settings.redis_url or socket_url(settings),
        decode_responses=True,
        # One stray byte in one record must not make a whole page of them unreadable.
        encoding_errors="surrogateescape",
        retry=retry,
        # A pool that has no more says that there is no connection, which here means that Redis is away.
        max_connections=settings.max_concurrent_requests + settings.max_concurrent_batches + OTHER_CONNECTIONS,
        socket_timeout=answer_within_s or SOCKET_TIMEOUT_S,
        socket_connect_timeout=5,
    )
    chosen = pool.connection_class
    pool.connection_class = type(f"Cancellable{chosen.__name__}", (_CancellableSend, chosen), {})
    return Redis.from_pool(pool)


class _CancellableSend(AbstractConnection):
    """Sends without `asyncio.wait_for`, which before Python 3.12 can lose a task's cancellation (gh-86296).

    redis-py takes it wherever there is a socket timeout. A lost cancellation leaves a background task running that
    somebody waits for, for ever.
    """

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        timeout, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(timeout):
                await super().send_packed_command(command, check_health=False)
        except TimeoutError as error:
            raise RedisTimeoutError("Timeout writing to socket") from error
        finally:
            self.socket_timeout = timeout


def text(value: bytes | str) -> str:
    """`connect` decodes every answer; the client's annotations cannot know."""
    return value if isinstance(value, str) else value.decode()


def maybe_text(value: bytes | str | None) -> str | None:
    return None if value is None else text(value)


def texts(values: Iterable[bytes | str]) -> list[str]:
    return [text(value) for value in values]
