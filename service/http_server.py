"""The HTTP server: uvicorn with httptools, and the limits on a request's head that httptools does not have."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 32 * 2**10
MAX_HEADERS = 100
LINGER_S = 1.0


class HeadTooLarge(Exception):
    pass


class BoundedProtocol(HttpToolsProtocol):
    """431 for a head beyond `MAX_HEAD_BYTES` or `MAX_HEADERS`, 408 for one that does not come in time.

    Connections without any request are closed in the same time.
    """

    head_timeout_s: float = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = 0
        self._in_head = False
        self._between = True
        self._begun = 0
        self._too_large = False
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._begun, between = 0, self._between
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if self._in_head:
            # A head that begins behind something else is counted from the next bytes on.
            if self._begun == 0 or (self._begun == 1 and between):
                self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._timer is None and not self._busy:
            self._expect_head()  # bytes between requests have switched uvicorn's own timer off

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._between, self._head_bytes = True, False, 0
        self._begun += 1
        if self._timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._forget_timer()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._too_large = True
            raise HeadTooLarge  # httptools makes a parser error of it
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._between = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif not self._refused:
            super().send_400_response(msg)

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        if self._busy:
            self._expect_head()
        else:
            self._timer = None
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    @property
    def _busy(self) -> bool:
        """Whether an earlier request of this connection is still to be answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: HTTPStatus) -> None:
        self._refused = True
        if self._busy:
            self.transport.close()
        else:
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            self.transport.write(head.encode())
            # A caller that is still sending reads no answer from a connection that is closed at once.
            self.loop.call_later(LINGER_S, self.transport.close)


def server_config(app: FastAPI, *, receive_timeout_s: float, **settings: Any) -> uvicorn.Config:
    """uvicorn's configuration with what this service never wants otherwise; `settings` are uvicorn's."""
    protocol = type("Protocol", (BoundedProtocol,), {"head_timeout_s": receive_timeout_s})
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        workers=1,
        log_config=None,
        access_log=False,
        server_header=False,
        # Who calls is decided by the peer's address; a forwarded header could claim anything.
        proxy_headers=False,
        **settings,
    )
