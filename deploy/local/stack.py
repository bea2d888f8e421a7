"""The processes of one machine, as `evorec up` and `evorec demo` start them: Redis, worker, service."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import redis.exceptions

from deploy.local.supervisor import ChildSpec, Supervisor
from shared.config import Settings
from shared.errors import EvorecError, Unavailable
from shared.redis_client import connect

REDIS, WORKER, SERVICE = "redis", "worker", "service"
_REDIS_START_S = 60.0
# The engine's start takes half a minute on a laptop, several minutes with a large model on a cold disk.
_SERVICE_START_S = 900.0


async def start_redis(
    supervisor: Supervisor, settings: Settings, env: Mapping[str, str], cwd: Path | None = None
) -> None:
    """Starts the embedded Redis unless the settings name another one; returns once Redis answers."""
    if settings.redis_url is None:
        # Its stop waits for the append-only file to reach the disk.
        spec = ChildSpec(REDIS, (sys.executable, "-m", "deploy.local.redis_process"), env, cwd, grace_s=30)
        await supervisor.start(spec)
        await supervisor.guard(_redis_answers(settings))
    else:
        await _redis_answers(settings)


async def start_processes(supervisor: Supervisor, env: Mapping[str, str], cwd: Path | None = None) -> None:
    """Starts the worker and the service, side by side: their imports take seconds each."""
    command = (sys.executable, "-m", "deploy.cli.main")
    await supervisor.start(ChildSpec(WORKER, (*command, "worker"), env, cwd, grace_s=25))
    await supervisor.start(ChildSpec(SERVICE, (*command, "serve"), env, cwd, grace_s=30))


async def service_ready(url: str, timeout_s: float = _SERVICE_START_S) -> None:
    """Returns once the champions are loaded and warmed."""
    deadline = time.monotonic() + timeout_s
    async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/health/ready")).is_success:
                    return
            await asyncio.sleep(0.2)
    raise Unavailable(f"the service at {url} was not ready within {timeout_s:.0f} s")


async def _redis_answers(settings: Settings) -> None:
    deadline = time.monotonic() + _REDIS_START_S
    while True:
        try:
            client = connect(settings)
            try:
                await client.ping()
                return
            finally:
                await client.aclose()
        except redis.exceptions.BusyLoadingError:
            deadline = time.monotonic() + _REDIS_START_S  # it reads its file, which may take minutes
        except (redis.exceptions.RedisError, EvorecError, OSError) as error:
            if time.monotonic() > deadline:
                raise Unavailable(f"Redis does not answer: {error}") from error
        await asyncio.sleep(0.05)
