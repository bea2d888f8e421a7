"""Around every request: its id and its metrics. Plain ASGI, so that nothing is buffered."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.problems import problem
from shared.errors import Unavailable
from shared.telemetry import bound_request_id

log = structlog.get_logger(__name__)

REQUEST_ID = "X-Request-ID"
CALLER_LEFT = 499
_USABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id_of(headers: Headers) -> str:
    """The caller's id where it is fit for logs and headers, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex


def pattern_of(scope: Scope) -> str:
    """The pattern of the request's route, of one that was answered before it was routed too; else `unmatched`."""
    route = scope.get("route")
    if route is None:
        # As the router chooses: the first that takes path and method, else the first that takes the path.
        best = max(scope["app"].routes, key=lambda each: each.matches(scope)[0].value)
        route = best if best.matches(scope)[0] is not Match.NONE else None
    return getattr(route, "path", "unmatched")


class RequestContext:
    """Binds the request id to logs and answer, counts and times the request by its route's pattern."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status, answering = CALLER_LEFT, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, answering
            if message["type"] == "http.response.start":
                status, answering = int(message["status"]), True
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                if scope["app"].state.draining:
                    # The caller's next request goes elsewhere, instead of into a connection that is about to end.
                    headers["Connection"] = "close"
            await send(message)

        with bound_request_id(request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except asyncio.CancelledError:
                # The end of a drain gives up what is in flight; the server alone would call that an error of ours.
                if answering or not scope["app"].state.draining:
                    raise
                await _given_up(scope)(scope, receive, send_with_id)
            except Exception:
                status = 500
                raise
            finally:
                seconds = time.perf_counter() - started
                self._count(scope, status, seconds)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # Paths are the callers' to invent; the patterns are ours and few.
        route = pattern_of(scope)
        self._metrics.http_requests.labels(scope["method"], route, str(status)).inc()
        self._metrics.http_seconds.labels(scope["method"], route).observe(seconds)
        log.debug("request", method=scope["method"], route=route, status=status, ms=round(1000 * seconds, 1))


def _given_up(scope: Scope) -> Response:
    return problem(
        Request(scope),
        HTTPStatus.SERVICE_UNAVAILABLE,
        Unavailable.title,
        "the service is ending; whether the request had an effect is unknown",
        headers={"Retry-After": str(Unavailable.retry_after_s)},
    )
