"""`evorec serve`: one service process."""

from __future__ import annotations

from typing import Annotated

import typer

from shared.config import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
) -> None:
    """The recommendation service: FastAPI with vLLM in the process.

    SIGTERM or Ctrl-C: /health/ready turns 503 at once, the socket closes 1 s later, requests in flight are answered
    for up to 15 s, and the process ends within 26 s, whatever hangs. A second signal gives up what is in flight.
    """
    from service.main import run  # vLLM takes seconds to import; no other command pays for it

    overrides = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    run(Settings().model_copy(update=overrides))
