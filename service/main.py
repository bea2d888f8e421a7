"""Runs the service in this process."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.http_server import server_config
from shared.config import Settings
from shared.telemetry import configure_logging

# Requests that callers sent before they heard of the end still arrive, and are answered.
LAME_DUCK_S = 1.0
# An orchestrator sends SIGKILL 30 s after SIGTERM by default; the engine's own shutdown takes some 5 s.
GRACEFUL_S = 15


class Server(uvicorn.Server):
    """On the first signal it stops being ready, and closes its socket a moment later; a second signal does not wait."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._app.state.draining:
            super().handle_exit(sig, frame)
            return
        self._app.state.draining = True
        closing = threading.Timer(LAME_DUCK_S, super().handle_exit, (sig, frame))
        closing.daemon = True
        closing.start()


def run(settings: Settings) -> None:
    """Blocks until SIGTERM or SIGINT, then answers what is in flight, and stops engine and followers.

    One process, one event loop: a second uvicorn worker would be a second engine. Run more replicas instead.
    """
    configure_logging(settings, "service")
    # Retrieval is one small product: threads of its own would spin against the engine's.
    torch.set_num_threads(1)
    app = create_app(settings)
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


def _ended_well(number: int, frame: FrameType | None) -> None:
    pass


if __name__ == "__main__":
    run(Settings())
