"""The audit trail: who administered what, and who tried to. Kept in Redis, capped, and written to the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog
from pydantic import BaseModel, Field, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.callers import client_host
from service.problems import path_of
from shared.redis_keys import AUDIT, AUDIT_DENIED
from shared.telemetry import described
from shared.types import order_of

log = structlog.get_logger(__name__)

MAX_RECORDS = 10_000
STORE_TIMEOUT_S = 1.0
MAX_WRITERS = 8  # of each kind: strangers must not take the connections that recommendations need
CATALOG = "/items"
_DENIED = (401, 403)
_READS = ("GET", "HEAD", "OPTIONS")


class AuditRecord(BaseModel):
    """One call. It holds no secret: neither keys nor bodies, but what the caller decided, in `input`."""

    at: float = Field(description="Unix seconds")
    key: str | None = Field(description="The key's name; null: no key, or an unknown one")
    scopes: list[str]
    client: str | None = Field(description="The peer's address; null: a unix socket")
    method: str
    path: str
    domain: str | None
    request_id: str | None
    status: int
    input: dict[str, str | float | bool | None] = Field(description="What was decided", examples=[{"force": True}])


class AuditLog:
    """Denied calls, and those of nobody, have a stream of their own: strangers could fill it, and push out what counts.
    Nobody's (no scopes) are those beyond a rate as well, and what strangers may ask for but is not there."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._writing = {AUDIT: asyncio.Semaphore(MAX_WRITERS), AUDIT_DENIED: asyncio.Semaphore(MAX_WRITERS)}

    async def append(self, record: AuditRecord) -> None:
        """To the log in any case, to Redis if it can be had soon."""
        log.info("audit", **record.model_dump(exclude={"request_id"}))
        stream = AUDIT_DENIED if record.status in _DENIED or not record.scopes else AUDIT
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S), self._writing[stream]:
                await self._redis.xadd(stream, {"record": record.model_dump_json()}, maxlen=MAX_RECORDS)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("audit_not_stored", error=described(error))

    async def newest(self, limit: int) -> list[AuditRecord]:
        """Newest first; what cannot be read is left out."""
        entries: list[tuple[tuple[int, int], str]] = []
        for stream in (AUDIT, AUDIT_DENIED):
            found_here: Any = await self._redis.xrevrange(stream, count=limit)
            entries += [(order_of(stream_id), fields["record"]) for stream_id, fields in found_here]
        found = []
        for _, record in sorted(entries, reverse=True)[:limit]:
            try:
                found.append(AuditRecord.model_validate_json(record))
            except ValidationError:
                log.warning("audit_record_unreadable")
        return found


def _may_decide(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.startswith("/admin/") or path == CATALOG or scope["method"] == "DELETE"


class AuditTrail:
    """Records administration, new domains and deletions before they are answered; of plain reads, the denied ones."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.time) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _may_decide(scope):
            await self._app(scope, receive, send)
            return

        async def recording(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._record(scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, recording)
        except asyncio.CancelledError:
            await self._record(scope, 503)  # what the end of a drain has given up
            raise
        except Exception:
            await self._record(scope, 500)
            raise

    async def _record(self, scope: Scope, status: int) -> None:
        if scope["method"] in _READS and status not in _DENIED:
            return
        state = scope["state"]
        if scope["path"] == CATALOG and "decision" not in state:
            return  # an existing domain's items
        principal = state.get("principal")
        decision = dict(state.get("decision", {}))
        record = AuditRecord(
            at=self._clock(),
            key=principal.name if principal else None,
            scopes=sorted(principal.scopes) if principal else [],
            client=client_host(scope),
            method=scope["method"],
            path=path_of(scope),
            domain=decision.pop("domain", None),
            request_id=state.get("request_id"),
            status=status,
            input=decision,
        )
        audit: AuditLog = state["services"].audit
        await audit.append(record)


def decided(state: State, **decision: str | float | bool | None) -> None:
    """Notes what a call decides, and in which domain, for its audit record."""
    state.decision = decision
