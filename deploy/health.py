"""`python -m deploy.health service|worker`: a container's health check. Exit code 0 is healthy, 1 says why not."""

from __future__ import annotations

import asyncio
import sys

import httpx
import redis.exceptions

from evolver import heartbeat
from shared.config import Settings
from shared.errors import EvorecError, Unavailable
from shared.redis_client import connect
from shared.telemetry import described

_TIMEOUT_S = 4


def check_service(settings: Settings) -> None:
    """Ready: the engine runs, the champions are loaded and warmed."""
    try:
        response = httpx.get(f"{settings.own_url}/health/ready", timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        raise Unavailable(f"the service does not answer: {error!r}") from error
    if not response.is_success:
        raise Unavailable(f"not ready: {response.text[:300]}")


def check_worker(settings: Settings) -> None:
    """The worker's tick has come to its end lately, in the Redis that it shares with this check."""
    if not asyncio.run(_beats(settings)):
        raise Unavailable("no worker of this host has ended a tick lately; its log says why (tick_failed)")


async def _beats(settings: Settings) -> bool:
    client = connect(settings)
    try:
        return await asyncio.wait_for(heartbeat.beats(client), _TIMEOUT_S)
    except (redis.exceptions.RedisError, TimeoutError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {described(error)}") from error
    finally:
        await client.aclose()


_CHECKS = {"service": check_service, "worker": check_worker}


def main(arguments: list[str]) -> int:
    try:
        _CHECKS[arguments[0]](Settings())
    except EvorecError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
