"""`python -m deploy.health service|worker`: a container's health check. Exit code 0 is healthy, 1 says why not."""

from __future__ import annotations

import asyncio
import sys

import httpx
import psutil
import redis.exceptions

from shared.config import Settings
from shared.errors import EvorecError, Unavailable
from shared.redis_client import connect

_TIMEOUT_S = 4


def check_service(settings: Settings) -> None:
    """Ready: the engine runs, the champions are loaded and warmed."""
    try:
        response = httpx.get(f"http://127.0.0.1:{settings.port}/health/ready", timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        raise Unavailable(f"the service does not answer: {error!r}") from error
    if not response.is_success:
        raise Unavailable(f"not ready: {response.text[:300]}")


def check_worker(settings: Settings) -> None:
    """The worker's process is there and its Redis answers. It serves no port, so this is all one can ask for."""
    if not any(_is_worker(process) for process in psutil.process_iter(["cmdline", "status"])):
        raise Unavailable("no worker process runs here")
    asyncio.run(_ping(settings))


def _is_worker(process: psutil.Process) -> bool:
    command: list[str] = process.info["cmdline"] or []
    alive = process.info["status"] != psutil.STATUS_ZOMBIE
    # Celery renames the process once it consumes.
    return alive and (command[-1:] == ["worker"] or "".join(command[:1]).startswith("[celeryd"))


async def _ping(settings: Settings) -> None:
    client = connect(settings)
    try:
        await asyncio.wait_for(client.ping(), _TIMEOUT_S)
    except (redis.exceptions.RedisError, TimeoutError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {error!r}") from error
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
