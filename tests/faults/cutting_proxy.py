"""A proxy before Redis that cuts connections in mid-flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.config import Settings
from shared.redis_client import connect


@asynccontextmanager
async def cut_after(settings: Settings, folder: Path, sent: int, answered: int) -> AsyncIterator[Redis]:
    """A client each of whose connections breaks once `sent` bytes went to Redis or `answered` bytes came back.

    Returns once Redis has noticed, so that whatever it got of them has happened or never will.
    """
    path = folder / "cut.sock"
    target = (settings.redis_url or "").removeprefix("unix://").partition("?")[0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(target)
        ways = [
            asyncio.create_task(_copy(reader, redis_writer, sent)),
            asyncio.create_task(_copy(redis_reader, writer, answered)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for each in (writer, redis_writer):
            each.close()
            with suppress(OSError):
                await each.wait_closed()

    async with connect(settings) as direct:
        before = len(await direct.client_list())
        server = await asyncio.start_unix_server(serve, path)
        try:
            async with connect(settings.model_copy(update={"redis_url": f"unix://{path}"})) as client:
                # As often as ever, without the pauses: each attempt breaks.
                client.connection_pool.connection_kwargs["retry"] = Retry(NoBackoff(), 3)
                yield client
        finally:
            server.close()
            await server.wait_closed()
            async with asyncio.timeout(30):
                while len(await direct.client_list()) > before:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> None:
    while limit > 0 and (part := await reader.read(min(limit, 65536))):
        writer.write(part)
        await writer.drain()
        limit -= len(part)
