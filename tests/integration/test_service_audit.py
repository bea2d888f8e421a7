"""Administration leaves a trail, and so do those who were not allowed to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from service import audit
from service.audit import MAX_WRITERS, AuditLog, AuditRecord
from shared.config import Settings
from shared.redis_client import connect
from shared.redis_keys import AUDIT, AUDIT_DENIED
from tests.service_support import SHOP, Running, serving

pytest_plugins = ["tests.service_fixtures"]

BOSS = {"X-API-Key": "boss-secret"}
WRITER = {"X-API-Key": "writer-secret"}


KEYS = tuple(map(SecretStr, ("boss=boss-secret:admin", "writer=writer-secret:ingest")))


@pytest.fixture
async def guarded(service_settings: Settings, redis: Redis, shop: str) -> AsyncIterator[Running]:
    async with serving(service_settings.model_copy(update={"api_keys": KEYS}), redis) as service:
        await service.ready()
        yield service


async def trail(service: Running, limit: int = 100) -> list[dict[str, Any]]:
    answer = (await service.http.get(f"/admin/audit?limit={limit}", headers=BOSS)).json()
    records: list[dict[str, Any]] = answer["records"]
    return records


async def test_every_decision_is_recorded_with_its_input(guarded: Running) -> None:
    version = await guarded.publisher.publish(champion=False)
    calls: list[tuple[str, str, Any, int, dict[str, Any]]] = [
        ("POST", "/admin/evolve", {"force": True}, 202, {"force": True, "dry_run": False}),
        ("POST", "/admin/evolve", {"domain": "nowhere"}, 404, {"force": False, "dry_run": False}),
        ("DELETE", "/admin/evolutions/shop-e000001", None, 202, {"cancelled": "shop-e000001"}),
        ("POST", f"/admin/adapters/{version}/promote", None, 200, {"champion": version}),
        ("PUT", "/admin/routes", {"paused": True}, 200, {"paused": True}),
        ("POST", "/admin/rollback", {}, 409, {}),
        ("POST", "/admin/rollback", {"from": version}, 409, {"from": version}),
        ("DELETE", "/items/i7", None, 204, {"deleted_item": "i7"}),
        ("DELETE", "/users/u%2F1", None, 404, {"erased_user": "u/1"}),
        ("PUT", "/admin/routes", {"share": 7}, 422, {}),
    ]
    before = time.time()
    for method, path, body, status, _ in calls:
        answer = await guarded.http.request(method, path, json=body, headers={**BOSS, "X-Request-ID": "r-1"})
        assert answer.status_code == status, answer.text
    await guarded.http.get("/admin/adapters", headers=BOSS)
    records = await trail(guarded)
    assert [(each["method"], each["path"], each["status"], each["input"]) for each in reversed(records)] == [
        (method, path, status, decision) for method, path, _, status, decision in calls
    ]
    for record in records:
        assert (record["key"], record["scopes"], record["client"]) == ("boss", ["admin"], "127.0.0.1")
        assert record["request_id"] == "r-1"
        assert before <= record["at"] <= time.time()
    assert [each["domain"] for each in reversed(records)] == [SHOP, "nowhere", *[SHOP] * 7, None]
    assert [each["path"] for each in await trail(guarded, 1)] == ["/admin/routes"]


async def test_denied_calls_are_recorded_reads_too(guarded: Running) -> None:
    await guarded.http.get("/admin/adapters", headers=WRITER)
    await guarded.http.get("/admin/audit", headers={"X-API-Key": "stolen-secret"})
    await guarded.http.delete("/users/u1")
    await guarded.http.get("/items/i1", headers={"X-API-Key": "stolen-secret"})
    records = await trail(guarded)
    assert [(each["status"], each["key"], each["path"]) for each in records] == [
        (401, None, "/users/u1"),
        (401, None, "/admin/audit"),
        (403, "writer", "/admin/adapters"),
    ]
    assert "secret" not in str(records)


async def test_who_creates_a_domain_or_tries_to_is_recorded(guarded: Running, redis: Redis) -> None:
    async def put(domain: str, headers: dict[str, str], **item: str) -> int:
        body = {"domain": domain, "items": [{"item_id": "i1", **item}]}
        return (await guarded.http.put("/items", json=body, headers=headers)).status_code

    with capture_logs() as logs:
        assert await put("tried", WRITER, title="red cream") == 403
        assert await put("empty", BOSS) == 200  # the one item is rejected: no domain comes of it
        assert await put("made", BOSS, title="red cream") == 200
        assert await put("made", WRITER, title="blue cream") == 200
        await redis.config_set("maxmemory", 1)  # Redis reads, and refuses to write
        try:
            assert await put("half", BOSS, title="red cream") == 503
        finally:
            await redis.config_set("maxmemory", 0)
    written = [
        (each["key"], each["domain"], each["status"], each["input"]) for each in logs if each["event"] == "audit"
    ]
    created = {"created_domain": True}
    assert written == [
        ("writer", "tried", 403, created),
        ("boss", "made", 200, created),
        ("boss", "half", 503, created),
    ]
    assert [each["domain"] for each in await trail(guarded)] == ["made", "tried"]


async def test_strangers_cannot_push_the_trail_out(
    guarded: Running, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_RECORDS", 10)
    await guarded.http.put("/admin/routes", json={"paused": True}, headers=BOSS)
    for _ in range(250):
        await guarded.http.delete("/users/u1")
    assert (await redis.xlen(AUDIT), await redis.xlen(AUDIT_DENIED) < 250) == (1, True)
    assert any(each["status"] == 200 for each in await trail(guarded, 1000))


async def test_calls_beyond_a_rate_or_of_nobody_leave_the_trail_alone(
    service_settings: Settings, redis: Redis, shop: str
) -> None:
    settings = service_settings.model_copy(update={"api_keys": KEYS, "rate_limit": "2/hour"})
    async with serving(settings, redis) as service:

        async def erase(**headers: str) -> list[int]:
            return [(await service.http.delete("/users/u1", headers=headers)).status_code for _ in range(4)]

        assert await erase(**BOSS) == [404, 404, 429, 429]
        assert await erase() == [401, 401, 429, 429]
        assert (await service.http.delete("/health/live")).status_code == 405
    assert (await redis.xlen(AUDIT), await redis.xlen(AUDIT_DENIED)) == (2, 7)


async def test_what_was_decided_reaches_the_log_when_redis_is_away(guarded: Running, redis: Redis) -> None:
    await redis.config_set("maxclients", 1)
    try:
        await redis.client_kill_filter(_type="normal", skipme=True)
        with capture_logs() as logs:
            denied = await guarded.http.get("/admin/adapters", headers=WRITER)
            failed = await guarded.http.post("/admin/evolve", json={"force": True}, headers=BOSS)
    finally:
        await redis.config_set("maxclients", 10_000)
    assert (denied.status_code, failed.status_code) == (403, 503)
    written = [(each["key"], each["status"], each["input"]) for each in logs if each["event"] == "audit"]
    assert written == [("writer", 403, {}), ("boss", 503, {"force": True, "dry_run": False})]
    assert [each["event"] for each in logs].count("audit_not_stored") == 2


async def test_an_unreadable_record_hides_no_other(guarded: Running, redis: Redis) -> None:
    await guarded.http.put("/admin/routes", json={"paused": True}, headers=BOSS)
    await redis.xadd(AUDIT, {"record": "{"})
    assert [each.path for each in await AuditLog(redis).newest(5)] == ["/admin/routes"]


async def test_strangers_take_few_connections(redis_settings: Settings, redis: Redis) -> None:
    """Of those that recommendations need; what finds no place in time is in the log."""
    record = AuditRecord(
        at=0.0,
        key=None,
        scopes=[],
        client=None,
        method="GET",
        path="/admin/adapters",
        domain=None,
        request_id=None,
        status=401,
        input={},
    )
    async with connect(redis_settings) as client:
        audit = AuditLog(client)
        await asyncio.gather(*(audit.append(record) for _ in range(300)))
        connections = [each for each in await redis.client_list() if each["cmd"] == "xadd"]
    assert await redis.xlen(AUDIT_DENIED) == 300
    assert 1 <= len(connections) <= MAX_WRITERS
