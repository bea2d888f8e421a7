"""Runs the service in this process."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import structlog
import torch
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.engine import start_engine
from service.http_server import server_config
from service.ports import EngineFactory
from shared.config import Settings
from shared.fixed_settings import require_fixed_settings_at_start
from shared.telemetry import configure_logging

log = structlog.get_logger(__name__)

# Requests that callers sent before they heard of the end still arrive, and are answered.
LAME_DUCK_S = 1.0
GRACEFUL_S = 15
# The engine's own shutdown takes some 5 s.
CLOSE_S = 10
# From the first signal to the end of the process, whatever hangs: orchestrators send SIGKILL 30 s after SIGTERM.
DRAIN_S = LAME_DUCK_S + GRACEFUL_S + CLOSE_S


class Server(uvicorn.Server):
    """On the first signal it stops being ready, closes its socket a moment later and answers what it has.

    A second signal hurries: the socket closes now, and requests in flight are given up.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Never uvicorn's own handler: on a second Ctrl-C it leaves without closing the engine.
        if self._app.state.draining:
            self._close_socket()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._give_up)
            return
        self._app.state.draining = True
        _later(LAME_DUCK_S, self._close_socket)
        _later(DRAIN_S, _end_at_once)

    def _close_socket(self) -> None:
        self.should_exit = True

    def _give_up(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()


def run(settings: Settings, engine: EngineFactory = start_engine) -> None:
    """Blocks until SIGTERM or SIGINT, then answers what is in flight, and stops engine and followers: within `DRAIN_S`.

    One process, one event loop: a second uvicorn worker would be a second engine. Run more replicas instead. Raises
    `Conflict` where the data in Redis were written by other settings.
    """
    configure_logging(settings, "service")
    asyncio.run(require_fixed_settings_at_start(settings))
    # Retrieval is one small product: threads of its own would spin against the engine's.
    torch.set_num_threads(1)
    app = create_app(settings, engine=engine)
    config = server_config(
        app,
        receive_timeout_s=settings.receive_timeout_s,
        host=settings.listen_host,
        port=settings.port,
        timeout_graceful_shutdown=GRACEFUL_S,
    )
    # uvicorn raises the signal again once everything is closed; this process has ended well by then, and says so.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ended_well)
    Server(config, app).run()


def _later(seconds: float, call: Callable[..., None], *args: object) -> None:
    timer = threading.Timer(seconds, call, args)
    timer.daemon = True
    timer.start()


def _end_at_once() -> None:
    """What has not ended by itself by now never will; the engine's processes must not outlive this one."""
    log.critical("drain_timeout", seconds=DRAIN_S)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


def _ended_well(number: int, frame: FrameType | None) -> None:
    pass


if __name__ == "__main__":
    run(Settings())
