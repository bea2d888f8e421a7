"""The processes of one machine, as `evorec up` and `evorec demo` start them: Redis, worker, service."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import redis.exceptions

from deploy.local.supervisor import RUN_MODULE, ChildSpec, Supervisor
from shared.config import Settings
from shared.errors import Conflict, EvorecError, Unavailable
from shared.redis_client import connect

REDIS, WORKER, SERVICE = "redis", "worker", "service"
_REDIS_START_S = 60.0
_SAID_EVERY_S = 180.0
_SHOWN_ANSWER = 1000  # characters


async def start_redis(
    supervisor: Supervisor, settings: Settings, env: Mapping[str, str], cwd: Path | None = None
) -> None:
    """Starts the embedded Redis unless the settings name another one; returns once Redis answers."""
    if settings.redis_url is None:
        # Its stop waits for the append-only file to reach the disk.
        spec = ChildSpec(REDIS, (*RUN_MODULE, "deploy.local.redis_process"), env, cwd, grace_s=30)
        await supervisor.start(spec)
        await supervisor.guard(_redis_answers(settings))
    else:
        await _redis_answers(settings)


async def start_processes(supervisor: Supervisor, env: Mapping[str, str], cwd: Path | None = None) -> None:
    """Starts the worker and the service, side by side: their imports take seconds each."""
    command = (*RUN_MODULE, "deploy.cli.main")
    await supervisor.start(ChildSpec(WORKER, (*command, "worker"), env, cwd, grace_s=25))
    await supervisor.start(ChildSpec(SERVICE, (*command, "serve"), env, cwd, grace_s=30))


def require_free_port(host: str, port: int) -> None:
    """Conflict where somebody listens there: their answers would be taken for those of the service to come. What else
    is wrong with the address the service says itself.
    """
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the service: past who has just ended
                probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} of {host} is taken, maybe by another `evorec up`; stop that, or set EVOREC_PORT"
            ) from error


async def service_ready(
    url: str, *, timeout_s: float = math.inf, say: Callable[[str], object] = lambda _: None
) -> None:
    """Returns once the champions are loaded and warmed; raises Unavailable after `timeout_s`.

    A start may take any time (a large model is downloaded once): every few minutes `say` gets what keeps the service.
    """
    began = said = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as client:
        while (obstacle := await _obstacle(client)) is not None:
            now = time.monotonic()
            if now >= began + timeout_s:
                raise Unavailable(f"the service at {url} was not ready within {timeout_s:.0f} s: {obstacle}")
            if now >= said + _SAID_EVERY_S:
                said = now
                say(f"not ready after {now - began:.0f} s: {obstacle}")
            await asyncio.sleep(0.2)


async def _obstacle(client: httpx.AsyncClient) -> str | None:
    """What /health/ready says against the service; None once it is ready."""
    try:
        response = await client.get("/health/ready")
    except httpx.TransportError as error:
        return f"no answer ({error!r})"
    return None if response.is_success else f"/health/ready answers {response.text[:_SHOWN_ANSWER]}"


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
