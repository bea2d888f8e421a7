"""Hot swap: versions come and go while requests are answered, and none of them fails."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from shared.config import Settings
from shared.registry import CHALLENGER, CHAMPION
from shared.types import DomainId
from tests.service_support import SHOP, Engines, Running, serving

pytest_plugins = ["tests.service_fixtures"]


async def replica(running: Running) -> dict[str, str]:
    """Adapter -> state, as the process tells it."""
    domains = (await running.http.get("/admin/adapters", params={"domain": SHOP})).json()["domains"]
    return {slot["name"]: slot["state"] for slot in domains[0]["replica"]}


async def until(running: Running, states: dict[str, str], timeout_s: float = 10.0) -> None:
    found: dict[str, str] = {}
    try:
        async with asyncio.timeout(timeout_s):
            while (found := await replica(running)) != states:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{found} did not become {states}") from None


async def test_ten_swaps_under_load_fail_no_request(running: Running) -> None:
    await running.served_by(await running.publisher.publish())
    running.engines.last.delay_s = 0.02
    answers: Counter[tuple[int, object, str]] = Counter()
    stop = asyncio.Event()

    async def client(number: int) -> None:
        while not stop.is_set():
            answer = await running.recommend(user_id=f"u{number}")
            body = answer.json()
            answers[answer.status_code, body.get("degraded"), str(body.get("adapter"))] += 1

    clients = [asyncio.create_task(client(number)) for number in range(8)]
    names = []
    for _ in range(10):
        names.append(await running.publisher.publish())
        await running.served_by(names[-1])
    stop.set()
    await asyncio.gather(*clients)
    assert {(status, degraded) for status, degraded, _ in answers} == {(200, False)}
    assert {adapter for _, _, adapter in answers} >= set(names)
    await until(running, {names[-1]: "serving"})
    events = running.engines.last.events
    for older, newer in itertools.pairwise(names):
        assert events.index(f"add {newer}") < events.index(f"remove {older}")
    assert set(running.engines.last.loaded.values()).pop().name == names[-1]


async def held_in_the_engine(running: Running) -> tuple[asyncio.Task[httpx.Response], asyncio.Event]:
    """A request that the engine answers once the event is set; it answers later ones at once."""
    engine = running.engines.last
    before = len(engine.calls)
    gate = engine.gate = asyncio.Event()
    slow = asyncio.create_task(running.recommend())
    async with asyncio.timeout(30):
        while len(engine.calls) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    engine.gate = None
    return slow, gate


async def test_running_requests_finish_on_the_version_they_started_with(running: Running) -> None:
    first = await running.publisher.publish()
    await running.served_by(first)
    slow, gate = await held_in_the_engine(running)
    second = await running.publisher.publish()
    await running.served_by(second)
    assert await replica(running) == {first: "draining", second: "serving"}
    gate.set()
    answer = (await slow).json()
    assert (answer["adapter"], answer["degraded"]) == (first, False)
    await until(running, {second: "serving"})


async def test_a_rollback_while_the_old_version_drains_takes_it_back(running: Running) -> None:
    first = await running.publisher.publish()
    await running.served_by(first)
    slow, gate = await held_in_the_engine(running)
    second = await running.publisher.publish()
    await running.served_by(second)
    for _ in range(2):  # the second one is a retry
        answer = await running.http.post("/admin/rollback", json={"domain": SHOP, "from": second})
        assert answer.json() == {"domain": SHOP, "champion": first}
    await running.served_by(first)
    gate.set()
    assert (await slow).json()["adapter"] == first
    await until(running, {first: "serving"})
    assert running.engines.last.events.count(f"add {first}") == 1
    promoted = await running.http.post(f"/admin/adapters/{second}/promote")
    assert promoted.json() == {"domain": SHOP, "champion": second}
    await running.served_by(second)


async def test_a_version_that_does_not_fit_is_refused_and_its_predecessor_serves_on(running: Running) -> None:
    first = await running.publisher.publish()
    await running.served_by(first)
    stranger = await running.publisher.publish(base_model_hash="f" * 64)
    await until(running, {first: "serving", stranger: "refused"})
    domains = (await running.http.get("/admin/adapters")).json()["domains"]
    assert domains[0]["aliases"] == {CHAMPION: stranger}
    assert "made for base model" in next(slot["refusal"] for slot in domains[0]["replica"] if slot["name"] == stranger)
    assert (await running.recommend()).json()["adapter"] == first
    assert (await running.http.get("/health/ready")).status_code == 200
    assert 'evorec_adapter_swaps_total{domain="shop",outcome="failed"}' in (await running.http.get("/metrics")).text
    await running.http.post("/admin/rollback", json={"domain": SHOP})
    await until(running, {first: "serving"})


async def test_a_first_champion_that_does_not_serve_is_no_missing_one(running: Running) -> None:
    """Who is to be told of a refused champion takes a domain without one for a new domain."""

    async def degraded() -> object:
        return (await running.recommend()).json()["degraded"]

    assert await degraded() == "no_adapter"
    stranger = await running.publisher.publish(base_model_hash="f" * 64)
    await until(running, {stranger: "refused"})
    assert await degraded() == "adapter_unavailable"
    gate = running.engines.last.gate = asyncio.Event()
    sound = await running.publisher.publish()
    await until(running, {stranger: "refused", sound: "warming"})
    assert await degraded() == "adapter_unavailable"
    running.engines.last.gate = None
    gate.set()
    await running.served_by(sound)


async def test_damaged_files_are_refused(running: Running) -> None:
    first = await running.publisher.publish()
    await running.served_by(first)
    damaged = await running.publisher.publish(champion=False)
    folder = running.publisher.artifacts.fetch(SHOP, damaged)
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    await running.http.post(f"/admin/adapters/{damaged}/promote")
    await until(running, {first: "serving", damaged: "refused"})
    assert (await running.recommend()).json()["adapter"] == first


async def test_a_challenger_answers_a_sticky_share(running: Running) -> None:
    champion = await running.publisher.publish()
    challenger = await running.publisher.publish(champion=False)
    body = {"domain": SHOP, "challenger": challenger, "share": 0.4}
    answer = await running.http.put("/admin/routes", json=body)
    assert answer.json() == {"domain": SHOP, "challenger": challenger, "share": 0.4, "paused": False}
    await until(running, {champion: "serving", challenger: "serving"})

    async def adapters() -> list[str]:
        return [(await running.recommend(user_id=f"u{n}")).json()["adapter"] for n in range(60)]

    again = await running.http.put("/admin/routes", json={"domain": SHOP, "challenger": challenger})
    assert again.json() == answer.json()
    first = await adapters()
    assert 10 <= first.count(challenger) <= 40
    assert await adapters() == first
    refused = await running.http.post("/admin/evolve", json={"force": True})
    assert refused.status_code == 409
    assert "on trial" in refused.json()["detail"]
    await running.http.put("/admin/routes", json={"domain": SHOP, "challenger": None})
    await until(running, {champion: "serving"})
    assert CHALLENGER not in await running.publisher.registry.aliases(SHOP)


async def test_health_is_answered_while_the_engine_starts_and_ready_follows_the_champion(
    service_settings: Settings, redis: Redis, shop: str
) -> None:
    engines = Engines(gate=asyncio.Event())
    async with serving(service_settings, redis, engines=engines) as running:
        name = await running.publisher.publish()
        assert (await running.http.get("/health/live")).json() == {"status": "alive"}
        await until(running, {name: "waiting_for_engine"})
        ready = await running.http.get("/health/ready")
        assert (ready.status_code, ready.json()["domains"]) == (503, {SHOP: "loading"})
        assert engines.gate is not None
        engines.gate.set()
        await running.ready()
        assert (await running.http.get("/health/ready")).json()["domains"] == {SHOP: "serving"}
        assert await replica(running) == {name: "serving"}


async def test_missed_messages_are_made_up_for_by_polling(
    service_settings: Settings, redis: Redis, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf(_: Redis) -> AsyncIterator[DomainId]:
        await asyncio.Event().wait()
        yield SHOP

    monkeypatch.setattr("service.adapters.changes", deaf)
    async with serving(service_settings, redis) as running:
        await running.ready()
        for _ in range(2):
            await running.served_by(await running.publisher.publish())


async def test_two_replicas_follow_the_same_registry(
    service_settings: Settings, redis: Redis, shop: str, tmp_path: Path
) -> None:
    async with serving(service_settings, redis) as one, serving(service_settings, redis) as other:
        name = await one.publisher.publish()
        await asyncio.gather(one.served_by(name), other.served_by(name))
        answers = [(await each.recommend()).json()["items"] for each in (one, other)]
        assert answers[0] == answers[1]
