"""As little HTTP client as a load generator needs: on two cores, whatever the client takes is missing in the server."""

from __future__ import annotations

import asyncio
from typing import Self


class Connection:
    """One keep-alive connection. ConnectionError where the server ends it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        return cls(*await asyncio.open_connection(host, port), host)

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        raw = await self._reader.readuntil(b"\r\n\r\n")
        status, *headers = raw.decode("latin-1").split("\r\n")
        lengths = [int(line.partition(":")[2]) for line in headers if line.lower().startswith("content-length:")]
        return int(status.split(" ")[1]), await self._reader.readexactly(lengths[0])

    def close(self) -> None:
        self._writer.close()
