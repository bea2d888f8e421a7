"""A request's body, before any parser sees it: how many are read at once, its size, its depth, its time to arrive."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from typing import ClassVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import Admission
from service.problems import refusal
from shared.errors import EvorecError

KIB = 2**10
BATCHES = frozenset({"/interactions", "/items"})
MAX_BYTES = {"/recommend": 256 * KIB, "/interactions": 16 * KIB**2, "/items": 16 * KIB**2}
MAX_BYTES_ELSEWHERE = 64 * KIB
MAX_DEPTH = 32
# A caller that is still sending reads no answer: so much longer is listened to what it says.
LINGER_S = 2.0

_BRACKETS = bytes.maketrans(b"{}", b"[]")
_OTHER_BYTES = bytes(set(range(256)) - set(b'[]{}"'))


class TooLarge(EvorecError):
    status: ClassVar[int] = 413
    title: ClassVar[str] = "Content too large"


class TooDeep(EvorecError):
    status: ClassVar[int] = 400
    title: ClassVar[str] = "Malformed JSON"


class TooSlow(EvorecError):
    status: ClassVar[int] = 408
    title: ClassVar[str] = "Request timeout"


class _Left(Exception):
    pass


class BodyGuard:
    """Reads the body, or answers 503, 413, 408 or 400; the application gets it in one piece.

    A batch takes one of the places of `batches` from before it is read until its answer.
    """

    def __init__(self, app: ASGIApp, timeout_s: float, batches: Admission) -> None:
        self._app = app
        self._timeout_s = timeout_s
        self._batches = batches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        try:
            with self._batches.place() if scope["path"] in BATCHES else nullcontext():
                body = await self._read(scope, receive)
                check_json(body)
                await self._app(scope, _replay(body, receive), send)
        except EvorecError as error:
            # The application answers its own errors itself: this one came before it.
            await _refuse(refusal(Request(scope), error), receive, send, linger=not isinstance(error, TooDeep))
        except _Left:
            return

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limit = MAX_BYTES.get(scope["path"], MAX_BYTES_ELSEWHERE)
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or int(announced[:20]) > limit:
            raise _too_large(limit)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Left
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise TooSlow(f"the body did not arrive within {self._timeout_s:g} s") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def check_json(body: bytes) -> None:
    """TooDeep beyond `MAX_DEPTH` arrays and objects within each other, and for what is not UTF-8 to begin with.

    >>> check_json(b'{"a": "[[[[", "b": [1, 2]}')
    """
    if b"\0" in body:
        raise TooDeep("the body holds NUL bytes; send JSON in UTF-8")
    brackets = _brackets(body)
    for _ in range(MAX_DEPTH):
        flatter = brackets.replace(b"[]", b"")
        if len(flatter) == len(brackets):
            break
        brackets = flatter
    # What is left without a pair is malformed, which the parser says better; but it has to be able to.
    if b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH:
        raise TooDeep(f"the body nests arrays and objects more than {MAX_DEPTH} deep")


def _brackets(body: bytes) -> bytes:
    """The brackets outside of strings, all of them as `[` and `]`."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    kept = body.translate(_BRACKETS, _OTHER_BYTES)
    # Where no string holds a bracket, quotation marks stand in pairs now: the first with the second, and so on.
    without_strings = kept.replace(b'""', b"")
    return without_strings if b'"' not in without_strings else b"".join(kept.split(b'"')[::2])


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit // KIB} KiB, which is the most that this call takes")


async def _refuse(response: Response, receive: Receive, send: Send, *, linger: bool) -> None:
    """Answers and closes the connection; `linger`: once a caller who still sends had a moment to stop and read."""
    response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S if linger else 0):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
