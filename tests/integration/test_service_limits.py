"""Rate limits, and what is refused before a parser sees it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.body import MAX_DEPTH
from service.http_server import MAX_HEADERS
from shared.config import Settings
from shared.errors import InvalidInput
from tests.integration.test_service_bad_input import problem
from tests.service_support import Running, serving

pytest_plugins = ["tests.service_fixtures"]

JSON = {"content-type": "application/json"}
Serve = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serve(service_settings: Settings, redis: Redis, shop: str) -> Serve:
    """The service with changed settings."""

    @asynccontextmanager
    async def start(**changes: object) -> AsyncIterator[Running]:
        async with serving(service_settings.model_copy(update=changes), redis) as service:
            yield service

    return start


async def raw(service: Running, *parts: bytes) -> bytes:
    """Everything that the service says on a connection, until it closes it."""
    address = urlsplit(str(service.http.base_url))
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


async def test_each_key_name_has_its_rate_and_strangers_have_theirs(serve: Serve) -> None:
    keys = tuple(map(SecretStr, ("shop=old:ingest", "shop=new:ingest", "other=key:ingest")))
    async with serve(api_keys=keys, rate_limit="4/hour") as service:

        async def status(key: str) -> int:
            return (await service.http.get("/items/i1", headers={"X-API-Key": key})).status_code

        assert [await status(key) for key in ("old", "old", "new", "new")] == [200] * 4
        limited = await service.http.get("/items/i1", headers={"X-API-Key": "new"})
        assert problem(limited, 429)["title"] == "Too many requests"
        assert 1 <= int(limited.headers["Retry-After"]) <= 3600
        assert await status("old") == 429
        assert await status("key") == 200
        assert [await status("wrong") for _ in range(5)] == [401] * 4 + [429]
        assert [(await service.http.get("/health/live")).status_code for _ in range(9)] == [200] * 9
        text = (await service.http.get("/metrics")).text
        assert 'evorec_rate_limited_total{key="shop"} 2.0' in text
        assert 'evorec_rate_limited_total{key="unknown"} 1.0' in text
        assert "wrong" not in text


async def test_without_keys_an_address_has_its_rate(serve: Serve) -> None:
    async with serve(rate_limit="2/hour;100/day") as service:
        statuses = [(await service.http.get("/items/i1")).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert 'evorec_rate_limited_total{key="none"} 1.0' in (await service.http.get("/metrics")).text


async def test_an_impossible_rate_stops_the_start(serve: Serve) -> None:
    with pytest.raises(InvalidInput, match="200/second"):
        async with serve(rate_limit="often"):
            pass


@pytest.mark.parametrize(
    ("path", "kib"), [("/recommend", 256), ("/interactions", 16 * 1024), ("/items", 16 * 1024), ("/admin/evolve", 64)]
)
async def test_each_call_takes_a_body_of_its_size(running: Running, path: str, kib: int) -> None:
    method = "PUT" if path == "/items" else "POST"
    fits = b" " * (kib * 1024 - 2) + b"{}"
    assert (await running.http.request(method, path, content=fits, headers=JSON)).status_code in (202, 422)
    document = problem(await running.http.request(method, path, content=fits + b" ", headers=JSON), 413)
    assert f"{kib} KiB" in document["detail"]


async def test_an_announced_body_is_refused_before_it_comes(running: Running) -> None:
    head = b"POST /interactions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999999999999\r\n"
    head += b"expect: 100-continue\r\n\r\n"
    answer = await raw(running, head)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer


async def test_strangers_are_refused_before_their_body_is_read(serve: Serve) -> None:
    async with serve(api_keys=(SecretStr("k:admin"),)) as service:
        head = b"POST /interactions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n"
        assert (await raw(service, head)).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH])
async def test_depth_is_limited_on_the_raw_bytes(running: Running, depth: int) -> None:
    body = b'{"x": ' + b"[" * depth + b"]" * depth + b"}"
    answer = await running.http.post("/recommend", content=body, headers=JSON)
    if depth < MAX_DEPTH:
        assert problem(answer, 422)["title"] == "Invalid input"
    else:
        assert "more than 32 deep" in problem(answer, 400)["detail"]


async def test_a_body_that_does_not_come_is_408(serve: Serve) -> None:
    async with serve(receive_timeout_s=0.3) as service:
        head = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        head += b"content-length: 100\r\n\r\n{"
        answer = await raw(service, head)
        assert answer.startswith(b"HTTP/1.1 408")
        document = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert "did not arrive within 0.3 s" in document["detail"]
        chunked = head.replace(b"content-length: 100", b"transfer-encoding: chunked")
        assert (await raw(service, chunked.removesuffix(b"{"), b"1\r\n{\r\n")).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("head", [b"", b"\r\n", b"GET", b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nx-slow:"])
async def test_a_head_that_does_not_come_is_408(serve: Serve, head: bytes) -> None:
    async with serve(receive_timeout_s=0.3) as service:
        assert (await raw(service, head)).startswith(b"HTTP/1.1 408")


async def test_bytes_between_requests_do_not_keep_a_connection(serve: Serve) -> None:
    async with serve(receive_timeout_s=0.3) as service:
        address = urlsplit(str(service.http.base_url))
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b"alive")
        writer.write(b"\r\n")
        assert b"HTTP/1.1 408" in await asyncio.wait_for(reader.read(), 30)
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 40_000,
        b"GET /health/live HTTP/1.1\r\nx: " + b"a" * 40_000,
        b"GET /health/live HTTP/1.1\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_HEADERS + 1) + b"\r\n",
    ],
    ids=["path", "header", "whole head", "headers"],
)
@pytest.mark.parametrize("size", [1000, 1_000_000])
async def test_a_large_head_is_431(running: Running, head: bytes, size: int) -> None:
    parts = [head[start : start + size] for start in range(0, len(head), size)]
    parts += [b""] if size == 1000 or head.endswith(b"\r\n\r\n") else [b"a" * 40_000]
    assert (await raw(running, *parts)).startswith(b"HTTP/1.1 431")


async def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    """A chunk of bytes that holds the end of a body and the beginning of a head is no large head."""
    large = b" " * 60_000 + b"{}"
    post = (
        b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    last = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    answer = await raw(running, (post % len(large) + large) * 3 + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"422", b"422", b"422", b"200"]


async def test_a_caller_that_leaves_is_no_server_error(running: Running) -> None:
    address = urlsplit(str(running.http.base_url))
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    async with asyncio.timeout(20):
        while 'status="499"} 1.0' not in (text := (await running.http.get("/metrics")).text):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert 'status="500"' not in text
