"""The sign of life of a worker's tick, which its container's health check asks for."""

from __future__ import annotations

import socket
from typing import Final

from redis.asyncio import Redis

from shared.redis_keys import heartbeat

LASTS_TICKS: Final = 6
"""How many may fail, or what a slow one may take, before the worker counts as one that starts nothing."""


async def beat(redis: Redis, tick_s: float) -> None:
    """To be called at each tick's end."""
    await redis.set(heartbeat(socket.gethostname()), "1", px=int(LASTS_TICKS * tick_s * 1000))


async def beats(redis: Redis) -> bool:
    """Whether a worker of this host, which is this container, has ended a tick lately."""
    return bool(await redis.exists(heartbeat(socket.gethostname())))
