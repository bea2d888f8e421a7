"""As little HTTP client as a load generator needs: on two cores, whatever the client takes is missing in the server."""

from __future__ import annotations

import asyncio
from typing import Self


class Connection:
    """One keep-alive connection. ConnectionError where the server ends it. `headers`: the last answer's, lower case."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host
        self.headers: dict[str, str] = {}

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        opening = asyncio.ensure_future(asyncio.open_connection(host, port))
        try:
            return cls(*await asyncio.shield(opening), host)
        except asyncio.CancelledError:
            # Cancelled itself, it may lose a connection that it has just made: nobody would close that.
            opening.add_done_callback(_hang_up)
            raise

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self.send_part(path, body, len(body))
        return await self.answer()

    async def put(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.send_part(path, body, len(body), method="PUT")
        return await self.answer()

    async def get(self, path: str) -> tuple[int, bytes]:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        return await self.answer()

    def send_part(self, path: str, part: bytes, length: int, method: str = "POST") -> None:
        """The begin of a request whose body is to have `length` bytes; `send_rest` goes on."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        )
        self._writer.write(head.encode() + part)

    def send_rest(self, part: bytes) -> None:
        self._writer.write(part)

    async def answer(self) -> tuple[int, bytes]:
        raw = await self._reader.readuntil(b"\r\n\r\n")
        status, *lines = raw.decode("latin-1").strip().split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(status.split(" ")[1]), await self._reader.readexactly(int(self.headers["content-length"]))

    def close(self) -> None:
        self._writer.close()


def _hang_up(opening: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[1].close()
