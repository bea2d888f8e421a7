"""Keys and scopes, evolutions, users."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.app import create_app
from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.dead_letters import DeadLetter, DeadLetters
from shared.errors import Unavailable
from shared.panel import in_panel
from shared.rebuild import Rebuilder
from shared.redis_keys import DomainKeys
from shared.types import UserId
from tests.service_support import SHOP, Running, serving
from tests.store_outage import ERRORS, interrupt

pytest_plugins = ["tests.service_fixtures"]

KEYS = ("reader:recommend", "writer:ingest", "boss:admin")
IDS = {"item_id": "i1", "user_id": "u", "evolution_id": "e", "name": "shop-v000001"}
# Who may: method, path, body -> keys
RIGHTS = [
    ("POST", "/recommend", {"user_id": "u"}, {"reader", "boss"}),
    ("POST", "/interactions", {"interactions": [{}]}, {"writer", "boss"}),
    ("PUT", "/items", {"items": [{"item_id": "i1", "title": "x"}]}, {"writer", "boss"}),
    ("PUT", "/items", {"domain": "fresh", "items": [{"item_id": "i1", "title": "x"}]}, {"boss"}),
    ("GET", "/items/{item_id}", None, {"reader", "writer", "boss"}),
    ("DELETE", "/items/{item_id}", None, {"writer", "boss"}),
    ("GET", "/users/{user_id}/history", None, {"writer", "boss"}),
    ("DELETE", "/users/{user_id}", None, {"boss"}),
    ("POST", "/admin/evolve", {}, {"boss"}),
    ("GET", "/admin/evolutions", None, {"boss"}),
    ("GET", "/admin/evolutions/{evolution_id}", None, {"boss"}),
    ("DELETE", "/admin/evolutions/{evolution_id}", None, {"boss"}),
    ("GET", "/admin/adapters", None, {"boss"}),
    ("POST", "/admin/adapters/{name}/promote", None, {"boss"}),
    ("GET", "/admin/audit", None, {"boss"}),
    ("GET", "/admin/dead-letters?domain=shop", None, {"boss"}),
    ("POST", "/admin/rollback", {}, {"boss"}),
    ("PUT", "/admin/routes", {"paused": False}, {"boss"}),
    ("GET", "/health/live", None, {"", "nobody", "reader", "writer", "boss"}),
    ("GET", "/health/ready", None, {"", "nobody", "reader", "writer", "boss"}),
    ("GET", "/metrics", None, {"", "nobody", "reader", "writer", "boss"}),
]


@pytest.fixture
async def guarded(service_settings: Settings, redis: Redis, shop: str) -> AsyncIterator[Running]:
    settings = service_settings.model_copy(update={"api_keys": tuple(map(SecretStr, KEYS))})
    async with serving(settings, redis) as service:
        await service.ready()
        yield service


async def test_every_call_needs_its_scope(guarded: Running) -> None:
    for method, path, body, allowed in RIGHTS:
        for key in ("", "nobody", "reader", "writer", "boss"):
            headers = {"X-API-Key": key} if key else {}
            answer = await guarded.http.request(method, path.format(**IDS), json=body, headers=headers)
            if key in allowed:
                assert answer.status_code not in (401, 403), (method, path, key, answer.text)
            else:
                expected = 403 if key in ("reader", "writer") else 401
                assert answer.status_code == expected, (method, path, key, answer.text)
                assert answer.headers["content-type"] == "application/problem+json"
    assert "X-API-Key" in (await guarded.http.get("/admin/adapters")).headers["WWW-Authenticate"]


def test_there_is_no_call_whose_scope_is_not_tested(settings: Settings) -> None:
    paths = create_app(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"})).openapi()["paths"]
    calls = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert {(method, path.partition("?")[0]) for method, path, _, _ in RIGHTS} == calls


async def test_without_keys_a_proxied_caller_is_turned_away(running: Running) -> None:
    answer = await running.http.get("/admin/adapters", headers={"X-Forwarded-For": "203.0.113.9"})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example:8000"},
        {"Host": "localhost.rebound.example"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Origin": "https://shop.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_without_keys_a_web_page_from_elsewhere_is_turned_away(running: Running, headers: dict[str, str]) -> None:
    answer = await running.http.post("/admin/rollback", headers=headers)
    assert (answer.status_code, "configure keys" in answer.json()["detail"]) == (403, True)
    assert (await running.http.get("/health/live", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},
        {"Host": "LOCALHOST:8000"},
        {"Host": "127.8.9.1:1"},
        {"Host": "[::1]:8000", "Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
    ],
)
async def test_without_keys_this_machine_is_served_by_any_of_its_names(
    running: Running, headers: dict[str, str]
) -> None:
    assert (await running.http.get("/admin/adapters", headers=headers)).status_code == 200


async def test_with_keys_a_service_has_any_name(guarded: Running) -> None:
    headers = {"X-API-Key": "boss", "Host": "shop.example", "Origin": "https://shop.example"}
    assert (await guarded.http.get("/admin/adapters", headers=headers)).status_code == 200


async def test_an_evolution_is_queued_once_watched_and_cancelled(running: Running, redis: Redis) -> None:
    first = await running.http.post("/admin/evolve", json={"force": True, "dry_run": True})
    assert first.status_code == 202
    evolution_id = first.json()["evolution_id"]
    assert running.queue.enqueued == [(evolution_id, SHOP)]
    assert await redis.exists(DomainKeys(SHOP).enqueued(evolution_id))  # so that no worker's tick sends it as well
    again = await running.http.post("/admin/evolve", json={})
    assert (again.status_code, again.json()["title"]) == (409, "An evolution is already running")
    record = (await running.http.get(f"/admin/evolutions/{evolution_id}")).json()
    assert (record["status"], record["force"], record["dry_run"]) == ("queued", True, True)
    listed = (await running.http.get("/admin/evolutions")).json()["evolutions"]
    assert [each["id"] for each in listed] == [evolution_id]
    cancelled = await running.http.delete(f"/admin/evolutions/{evolution_id}")
    assert cancelled.status_code == 202


async def test_a_broker_that_is_away_leaves_no_evolution_behind(running: Running) -> None:
    running.queue.error = Unavailable("the broker is away")
    assert (await running.http.post("/admin/evolve", json={})).status_code == 503
    running.queue.error = None
    assert (await running.http.post("/admin/evolve", json={})).status_code == 202
    statuses = [each["status"] for each in (await running.http.get("/admin/evolutions")).json()["evolutions"]]
    assert statuses == ["queued", "failed"]
    failed = (await running.http.get("/admin/evolutions")).json()["evolutions"][1]["id"]
    assert (await running.http.delete(f"/admin/evolutions/{failed}")).status_code == 409


async def test_paused_evolutions_start_by_force_alone(running: Running) -> None:
    paused = await running.http.put("/admin/routes", json={"paused": True})
    assert paused.json() == {"domain": SHOP, "challenger": None, "share": 0.0, "paused": True}
    refused = await running.http.post("/admin/evolve", json={})
    assert (refused.status_code, "paused" in refused.json()["detail"]) == (409, True)
    assert (await running.http.post("/admin/evolve", json={"force": True})).status_code == 202


async def test_erasure_names_the_versions_that_learned(running: Running) -> None:
    share = running.settings.panel_share
    trained = next(f"u{n}" for n in range(100) if not in_panel(UserId(f"u{n}"), share))
    held_out = next(f"u{n}" for n in range(1000) if in_panel(UserId(f"u{n}"), share))
    events = [{"user_id": user, "item_id": "i1", "timestamp": 1.7e9} for user in (trained, held_out)]
    await running.http.post("/interactions", json={"interactions": events})
    after = {0: ("9999999999999-0", "9999999999999-1")}
    first = await running.publisher.publish(stream_ranges={0: ("0-0", "9999999999999-0")})
    second = await running.publisher.publish(stream_ranges=after)
    await running.publisher.publish("toys", stream_ranges=after)  # type: ignore[arg-type]
    for _ in range(2):  # the answer of the first may get lost
        gone = (await running.http.delete(f"/users/{trained}")).json()
        assert gone == {"user_id": trained, "domain": SHOP, "erased": 1, "learned_by": [first, second]}
    assert (await running.http.get(f"/users/{trained}/history")).status_code == 404
    # Their targets may have chosen the blend, and the forgotten sets name them.
    assert (await running.http.delete(f"/users/{held_out}")).json()["learned_by"] == [first, second]


async def test_erasure_names_the_descendants_of_a_pruned_version(running: Running) -> None:
    events = [{"user_id": "u", "item_id": "i1", "timestamp": 1.7e9}]
    await running.http.post("/interactions", json={"interactions": events})
    ends = [f"9999999999999-{number}" for number in range(4)]
    first = await running.publisher.publish(stream_ranges={0: ("0-0", ends[0])})
    _, *kept = [await running.publisher.publish(stream_ranges={0: (a, b)}) for a, b in itertools.pairwise(ends)]
    assert first in await running.publisher.retention.prune(SHOP, keep=2)
    assert (await running.http.delete("/users/u")).json()["learned_by"] == kept


async def test_an_erasure_waits_for_a_lost_registry(running: Running, redis: Redis) -> None:
    events = [{"user_id": "u", "item_id": "i1", "timestamp": 1.7e9}]
    await running.http.post("/interactions", json={"interactions": events})
    version = await running.publisher.publish(stream_ranges={0: ("0-0", "9999999999999-0")})
    await redis.flushall()
    for items in ([], [{"item_id": "i1", "title": "red cream"}]):  # without its catalog, too, the domain is a known one
        if items:
            await running.http.put("/items", json={"items": items})
            await running.http.post("/interactions", json={"interactions": events})
        refused = await running.http.delete("/users/u")
        assert (refused.status_code, "evorec registry rebuild" in refused.json()["detail"]) == (503, True)
    await Rebuilder(redis, running.settings, ArtifactStore(running.settings)).rebuild(SHOP)
    gone = (await running.http.delete("/users/u")).json()
    assert (gone["erased"], gone["learned_by"]) == (1, [version])


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_what_needs_the_artifact_store_is_503_while_that_is_away(
    running: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    first, second = [await running.publisher.publish() for _ in range(2)]
    with monkeypatch.context() as patched:
        interrupt(running.publisher.artifacts, patched, error)  # fsspec has one client for all local folders
        for method, path, body in (
            ("POST", f"/admin/adapters/{first}/promote", None),
            ("POST", "/admin/rollback", {"from": second}),
            ("PUT", "/admin/routes", {"challenger": first, "share": 0.1}),
            ("DELETE", "/users/u", None),
        ):
            refused = await running.http.request(method, path, json=body)
            assert (refused.status_code, refused.headers.get("Retry-After")) == (503, "5"), path
    assert await running.publisher.registry.aliases(SHOP) == {"champion": second}
    assert (await running.http.post("/admin/rollback", json={"from": second})).json()["champion"] == first


async def test_ids_may_contain_slashes(running: Running) -> None:
    item = {"item_id": "a/b", "title": "red cream"}
    await running.http.put("/items", json={"items": [item]})
    assert (await running.http.get("/items/a%2Fb")).json()["item_id"] == "a/b"
    event = {"user_id": "u/1", "item_id": "a/b", "timestamp": 1.7e9}
    await running.http.post("/interactions", json={"interactions": [event]})
    assert len((await running.http.get("/users/u%2F1/history")).json()["interactions"]) == 1


async def test_metrics_count_by_route_not_by_path(running: Running) -> None:
    await asyncio.gather(*(running.http.get(f"/items/secret-{n}") for n in range(3)))
    await running.http.get("/wp-admin")
    text = (await running.http.get("/metrics")).text
    assert 'evorec_http_requests_total{method="GET",route="/items/{item_id:path}",status="404"} 3.0' in text
    assert 'route="unmatched",status="404"} 1.0' in text
    assert "secret" not in text


async def test_what_is_refused_before_it_is_routed_counts_under_its_route(guarded: Running) -> None:
    boss, junk = {"X-API-Key": "boss"}, b"\0"
    statuses = [
        (await guarded.http.delete("/items/secret")).status_code,
        (await guarded.http.get("/users/secret/history")).status_code,
        (await guarded.http.post("/recommend", content=junk, headers=boss)).status_code,
        (await guarded.http.get("/wp-admin")).status_code,
    ]
    assert statuses == [401, 401, 400, 401]
    text = (await guarded.http.get("/metrics")).text
    for method, route, status in (
        ("DELETE", "/items/{item_id:path}", 401),
        ("GET", "/users/{user_id:path}/history", 401),
        ("POST", "/recommend", 400),
        ("GET", "unmatched", 401),
    ):
        assert f'evorec_http_requests_total{{method="{method}",route="{route}",status="{status}"}} 1.0' in text
    assert "secret" not in text


async def test_dead_letters_newest_first(running: Running, redis: Redis) -> None:
    letters = DeadLetters(redis)
    for number in range(3):
        await letters.add(SHOP, DeadLetter(reason=f"reason {number}", user_id=UserId("u"), raw="\udc80"))
    assert not await letters.add(SHOP, DeadLetter(reason="reason 2", user_id=UserId("u"), raw="\udc80"))

    answer = await running.http.get("/admin/dead-letters", params={"domain": SHOP, "limit": 2})

    found = answer.json()["dead_letters"]
    assert [letter["reason"] for letter in found] == ["reason 2", "reason 1"]
    assert (found[0]["user_id"], found[0]["raw"], found[0]["evolution_id"]) == ("u", "\\udc80", None)
    assert (await running.http.get("/admin/dead-letters", params={"domain": "nowhere"})).status_code == 404
