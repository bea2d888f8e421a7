"""Connections to Redis, and the narrowing that its client's wide return types need."""

from __future__ import annotations

from collections.abc import Iterable

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from shared.config import Settings
from shared.embedded_redis import socket_url


def connect(settings: Settings) -> Redis:
    """A client (no I/O yet) of EVOREC_REDIS_URL, else of the embedded Redis. The caller closes it: `aclose()`.

    Commands are retried on connection errors: every write of this project may run twice.
    """
    return Redis.from_url(
        settings.redis_url or socket_url(settings),
        decode_responses=True,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), retries=3),
        socket_timeout=30,
        health_check_interval=30,
    )


def text(value: bytes | str) -> str:
    """`connect` decodes every answer; the client's annotations cannot know."""
    return value if isinstance(value, str) else value.decode()


def maybe_text(value: bytes | str | None) -> str | None:
    return None if value is None else text(value)


def texts(values: Iterable[bytes | str]) -> list[str]:
    return [text(value) for value in values]
