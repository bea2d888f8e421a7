"""Who calls, settled before anything of a request's body is read."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.auth import Keys, Principal, Unauthorized
from service.problems import refusal
from service.rate_limits import RateLimits, TooManyRequests
from shared.errors import EvorecError
from shared.metrics import Metrics

API_KEY = "X-API-Key"
PUBLIC = frozenset(
    {"/health/live", "/health/ready", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)


class Callers:
    """Puts the principal into the request's state, or answers 401 or 429; `PUBLIC` paths are everybody's."""

    def __init__(self, app: ASGIApp, keys: Keys, limits: RateLimits, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC:
            try:
                scope["state"]["principal"] = self._admit(scope)
            except EvorecError as error:
                await refusal(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Principal:
        """Unauthorized for strangers, TooManyRequests for those who ask too often: strangers too."""
        headers = Headers(scope=scope)
        host = client_host(scope)
        forwarded = "x-forwarded-for" in headers or "forwarded" in headers
        try:
            principal = self._keys.ring.authenticate(headers.get(API_KEY), host, forwarded=forwarded)
        except Unauthorized:
            self._count(f"address:{host}", "unknown")
            raise
        if principal.name is None:
            self._count(f"address:{host}", "none")
        else:
            self._count(f"key:{principal.name}", principal.name)
        return principal

    def _count(self, caller: str, label: str) -> None:
        """`label`: an address would make a metric of every caller's."""
        try:
            self._limits.count(caller)
        except TooManyRequests:
            self._metrics.rate_limited.labels(label).inc()
            raise


def client_host(scope: Scope) -> str | None:
    """None: the peer of a unix socket."""
    client = scope.get("client")
    return client[0] if client else None
