"""Runs the service in this process."""

from __future__ import annotations

import uvicorn

from service.app import create_app
from shared.config import Settings
from shared.telemetry import configure_logging

# An orchestrator sends SIGKILL 30 s after SIGTERM by default; the engine's own shutdown takes some 5 s.
GRACEFUL_S = 15


def run(settings: Settings) -> None:
    """Blocks until SIGTERM or SIGINT, then answers what is in flight, and stops engine and followers.

    One process, one event loop: a second uvicorn worker would be a second engine. Run more replicas instead.
    """
    configure_logging(settings, "service")
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        workers=1,
        log_config=None,
        access_log=False,
        server_header=False,
        # Who calls is decided by the peer's address; a forwarded header could claim anything.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACEFUL_S,
    )
    uvicorn.Server(config).run()


if __name__ == "__main__":
    run(Settings())
