"""Around every request: its id and its metrics. Plain ASGI, so that nothing is buffered."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.metrics import Metrics
from shared.telemetry import bound_request_id

log = structlog.get_logger(__name__)

REQUEST_ID = "X-Request-ID"
CALLER_LEFT = 499
_USABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id_of(headers: Headers) -> str:
    """The caller's id where it is fit for logs and headers, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex


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
        status = CALLER_LEFT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                if scope["app"].state.draining:
                    # The caller's next request goes elsewhere, instead of into a connection that is about to end.
                    headers["Connection"] = "close"
            await send(message)

        with bound_request_id(request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                status = 500
                raise
            finally:
                seconds = time.perf_counter() - started
                self._count(scope, status, seconds)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # Paths are the callers' to invent; the patterns are ours and few.
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.http_requests.labels(scope["method"], route, str(status)).inc()
        self._metrics.http_seconds.labels(scope["method"], route).observe(seconds)
        log.debug("request", method=scope["method"], route=route, status=status, ms=round(1000 * seconds, 1))
