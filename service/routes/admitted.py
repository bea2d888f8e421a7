"""Routes that take batches in: a caller too many is told so before its body is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.deps import get_services

# A caller that sends slower than this would keep its place from the others.
BODY_S = 20.0


class AdmittedRoute(APIRoute):
    """A request with a body takes one of `Services.batches`' places, from before it is read until its answer."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def admitted(request: Request) -> Response:
            if request.method not in ("POST", "PUT"):
                return await handle(request)
            with get_services(request).batches.place():
                await _receive(request)
                return await handle(request)

        return admitted


async def _receive(request: Request) -> None:
    """The request keeps its body for whoever reads it next."""
    try:
        async with asyncio.timeout(BODY_S):
            await request.body()
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not arrive within {BODY_S:.0f} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the caller went away") from error
