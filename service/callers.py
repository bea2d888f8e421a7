"""Who calls, settled before anything of a request's body is read."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.auth import Forbidden, Keys, Principal, Unauthorized
from service.metrics import Metrics
from service.problems import refusal
from service.rate_limits import RateLimits, TooManyRequests
from shared.errors import EvorecError
from shared.network import is_loopback

API_KEY = "X-API-Key"
PUBLIC = frozenset(
    {"/health/live", "/health/ready", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)


class Callers:
    """Puts the principal into the request's state, or answers 401, 403 or 429; `PUBLIC` paths are everybody's."""

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
        """Unauthorized or Forbidden for strangers, TooManyRequests for those who ask too often: strangers too."""
        headers = Headers(scope=scope)
        host = client_host(scope)
        forwarded = "x-forwarded-for" in headers or "forwarded" in headers
        try:
            principal = self._keys.ring.authenticate(
                headers.get(API_KEY), host, forwarded=forwarded, foreign_page=_of_foreign_page(headers)
            )
        except (Unauthorized, Forbidden):
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


def _of_foreign_page(headers: Headers) -> bool:
    """Whether a web page from elsewhere asks, or may: a name of its own can be made to lead here (DNS rebinding)."""
    addressed = [f"//{headers['host']}"] if "host" in headers else []  # no browser leaves it out
    named = [*addressed, *headers.getlist("origin")]
    return headers.get("sec-fetch-site") == "cross-site" or not all(map(_leads_here, named))


def _leads_here(url: str) -> bool:
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    return host is not None and is_loopback(host)


def client_host(scope: Scope) -> str | None:
    """None: the peer of a unix socket."""
    client = scope.get("client")
    return client[0] if client else None
