"""Hostile bytes on the raw socket, as no well-behaved client sends them: 4xx or cut off, and the next one is served."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from shared.config import Settings
from tests.faults.conftest import Tell
from tests.service_support import Running, serving

pytest_plugins = ["tests.service_fixtures"]

RECOMMEND = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
EVENT = b'{"interactions": [{"user_id": "u", "item_id": "i1", "timestamp": %s}]}'
BODIES = {
    "invalid UTF-8": b'{"user_id": "\xff\xfe\x80"}',
    "overlong UTF-8": b'{"user_id": "\xc0\xaf"}',
    "UTF-16": '{"user_id": "u"}'.encode("utf-16"),
    "lone surrogate": b'{"user_id": "\\ud800", "history": ["\\udfff"]}',
    "surrogate in a key": b'{"\\ud800": 1}',
    "huge integer": b'{"user_id": "u", "count": ' + b"9" * 4000 + b"}",
    "integer beyond Python's limit": b'{"user_id": "u", "count": ' + b"9" * 5000 + b"}",
    "huge exponent": b'{"user_id": "u", "count": 1e999999}',
    "NaN": b'{"user_id": "u", "count": NaN}',
    "infinity": b'{"user_id": "u", "count": -Infinity}',
    "duplicate keys": b'{"user_id": "u", "user_id": 7}',
    "deep arrays": b"[" * 60_000,
    "deep objects": b'{"a":' * 30_000,
    "deep, closed": b"[" * 30_000 + b"]" * 30_000,
    "deep behind strings": b'{"a": "\\"", "b": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "NUL": b'{"user_id": "a\x00b"}',
    "escaped NUL": b'{"user_id": "a\\u0000b"}',
    "byte order mark": b'\xef\xbb\xbf{"user_id": 5}',
    "two documents": b'{"user_id": "u"}{"user_id": "v"}',
    "no JSON": b"\x80\x04\x95",
    "many keys": b"{" + b",".join(b'"k%d": 1' % n for n in range(9000)) + b"}",
    "nothing": b"",
}
# Sent as they are; the service may answer, or close. `%d` is where random bytes go.
RAW = {
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bad method": b"G@T / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    "absolute target": b"GET http://other/items/i1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    "bytes in the path": b"GET /items/\xff\xfe HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    "bad escapes in the path": b"GET /items/%zz%ff%00 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    "dots in the path": b"GET /items/../../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    "bad host": b"GET /items/i1/ HTTP/1.1\r\nhost: [::1\r\nconnection: close\r\n\r\n",
    "no host": b"GET /nowhere HTTP/1.1\r\nconnection: close\r\n\r\n",
    "bad version": b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
    "websocket": b"GET /recommend HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "header injection": b"GET /items/i1 HTTP/1.1\r\nhost: localhost\r\nx-request-id: a\rb\r\nconnection: close\r\n\r\n",
    "folded header": b"GET /items/i1 HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\nconnection: close\r\n\r\n",
    "two lengths": RECOMMEND + b"content-length: 2\r\ncontent-length: 20\r\n\r\n{}",
    "length and chunks": RECOMMEND + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": RECOMMEND + b"content-length: -1\r\n\r\n{}",
    "length with letters": RECOMMEND + b"content-length: 2x\r\n\r\n{}",
    "chunk that is shorter": RECOMMEND + b"transfer-encoding: chunked\r\n\r\nff\r\n{}\r\n0\r\n\r\n",
    "chunk that is longer": RECOMMEND + b"transfer-encoding: chunked\r\n\r\n1\r\n{}{}{}\r\n0\r\n\r\n",
    "chunk without end": RECOMMEND + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "chunk of all the memory": RECOMMEND + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
    "body that is half there": RECOMMEND + b"content-length: 100\r\n\r\n{",
    "pipelined garbage": b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n\x00\x01\x02\xff\r\n\r\n",
    "pipelined requests": b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n" * 50 + b"\r\n",
    "half a head": b"GET /health/live HTTP/1.1\r\nhost",
}


@pytest.fixture
async def hurried(service_settings: Settings, redis: Redis, shop: str) -> AsyncIterator[Running]:
    async with serving(service_settings.model_copy(update={"receive_timeout_s": 0.5}), redis) as service:
        await service.ready()
        yield service


async def exchange(service: Running, sent: bytes, *, vanish: bool = False) -> list[int]:
    """The statuses that came back until the service closed the connection."""
    address = urlsplit(str(service.http.base_url))
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    answer = b""
    try:
        writer.write(sent)
        await writer.drain()
        if vanish:
            writer.transport.abort()
            return []
        async with asyncio.timeout(30):
            while data := await reader.read(2**16):
                answer += data
    except ConnectionError:
        pass  # it is the service's right to hang up
    finally:
        writer.close()
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def framed(body: bytes) -> bytes:
    return RECOMMEND + b"content-length: %d\r\n\r\n" % len(body) + body


async def no_server_error(service: Running) -> int:
    """Server errors that the service has counted itself, whether anybody read the answer or not."""
    text = (await service.http.get("/metrics")).text
    found = re.findall(r'evorec_http_requests_total\{method="\w+",route="([^"]*)",status="5\d\d"\} ([\d.]+)', text)
    return sum(int(float(count)) for route, count in found if route != "/health/ready")


async def test_hostile_bodies_are_bad_requests(hurried: Running, outcome: Tell) -> None:
    answers = {name: await exchange(hurried, framed(body)) for name, body in BODIES.items()}
    wrong = {name: found for name, found in answers.items() if found not in ([400], [422])}
    assert wrong == {}
    for number in (b"NaN", b"1e400", b"-1", b"9" * 400, b"null"):
        head = RECOMMEND.replace(b"/recommend", b"/interactions")
        body = EVENT % number
        assert await exchange(hurried, head + b"content-length: %d\r\n\r\n" % len(body) + body) == [202]
    assert (await hurried.http.get("/users/u/history")).status_code == 404  # none of them was taken
    faults = {"hostile body": len(BODIES), "hostile number": 5}
    outcome(7, "Bodies that no client should send are 400 or 422", faults=faults, cases=len(BODIES) + 5)


async def test_hostile_bytes_end_in_no_server_error(
    hurried: Running, outcome: Tell, full: bool, rng: random.Random
) -> None:
    tried: Counter[str] = Counter()
    for _ in range(20 if full else 1):
        exchanges = {name: exchange(hurried, sent) for name, sent in RAW.items()}
        for name, statuses in zip(exchanges, await asyncio.gather(*exchanges.values()), strict=True):
            assert all(status < 500 for status in statuses), (name, statuses)
            tried[name] += 1
    samples = [*RAW.values(), *(framed(body) for body in BODIES.values())]
    for _ in range(600 if full else 60):
        sent = bytearray(rng.choice(samples)[:4000])
        for _ in range(rng.randint(1, 8)):
            sent[rng.randrange(len(sent))] = rng.randrange(256)
        statuses = await exchange(hurried, bytes(sent[: rng.randint(1, len(sent))]), vanish=rng.random() < 0.7)
        assert all(status < 500 for status in statuses), bytes(sent)
        tried["mutated bytes"] += 1
    assert (await hurried.recommend()).status_code == 200
    assert await no_server_error(hurried) == 0
    what = "Bytes that are no HTTP, lie about their length or stop half way end in no server error"
    outcome(7, what, faults=dict(tried), cases=tried.total())
