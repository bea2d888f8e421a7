"""What is recommended, and what happens where the LLM cannot rank."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from service.ports import AdapterNotLoaded, EngineUnavailable
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.ranking import Blends, BlendWeights
from shared.types import Item, ItemId, UserId
from tests.service_support import ITEMS, SHOP, Engines, Running, serving

pytest_plugins = ["tests.service_fixtures"]


async def buy(running: Running, user: str, *items: str, event_type: str = "purchase") -> None:
    now = time.time() - 1000
    events = [
        {"user_id": user, "item_id": item, "timestamp": now + n, "event_type": event_type, "event_id": f"{user}-{item}"}
        for n, item in enumerate(items)
    ]
    answer = await running.http.post("/interactions", json={"interactions": events})
    assert answer.json()["rejected"] == []


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


async def version_serves(running: Running, **changes: Any) -> str:
    name = await running.publisher.publish(**changes)
    await running.served_by(name)
    return name


async def test_the_llm_ranks_and_the_rest_follows(running: Running) -> None:
    name = await version_serves(running)
    body = (await running.recommend(count=25, explain=True)).json()
    assert (body["adapter"], body["degraded"], body["user_id"]) == (name, False, "u1")
    items = body["items"]
    assert [item["rank"] for item in items] == list(range(1, 26))
    assert [item["score"] for item in items] == sorted((item["score"] for item in items), reverse=True)
    assert sum(item["score"] for item in items[:20]) == pytest.approx(1.0)
    assert [item["reason"]["llm_log_probability"] is None for item in items] == [False] * 20 + [True] * 5
    tail = [item["reason"]["retriever_score"] for item in items[20:]]
    assert tail == sorted(tail, reverse=True)
    assert max(tail) <= min(item["reason"]["retriever_score"] for item in items[:20])
    assert {each["item_id"] for each in items[0]["reason"]["history"]} == {"i1", "i2"}
    assert not {"i1", "i2"} & {item["item_id"] for item in items}
    assert body["took_ms"] > 0


async def test_named_candidates_and_the_retrievers_own_are_blended_by_weights_of_their_own(running: Running) -> None:
    """Here by the LLM alone, and by the retriever alone."""
    blend = Blends(given=BlendWeights(llm=1.0), retrieved=BlendWeights(llm=0.0, retriever=1.0))
    await version_serves(running, blend=blend)
    own = (await running.recommend(count=20, explain=True)).json()["items"]
    given = (await running.recommend(candidates=[item["item_id"] for item in own], explain=True)).json()["items"]
    for items, by in ((own, "retriever_score"), (given, "llm_log_probability")):
        said = [item["reason"][by] for item in items]
        assert said == sorted(said, reverse=True)
    assert [item["item_id"] for item in own] != [item["item_id"] for item in given]


async def test_the_answer_does_not_depend_on_the_order_of_named_candidates(running: Running) -> None:
    await version_serves(running)
    named = [f"i{n}" for n in range(5, 15)]
    first = await running.recommend(candidates=named)
    second = await running.recommend(candidates=named[::-1] + named[:3])
    assert ids(first) == ids(second)
    assert set(ids(first)) == set(named)


async def test_named_candidates_are_kept_unless_leaving_seen_ones_out_is_asked_for(running: Running) -> None:
    await version_serves(running)
    named = ["i1", "i2", "i3", "i4"]
    assert set(ids(await running.recommend(candidates=named))) == set(named)
    assert set(ids(await running.recommend(candidates=named, exclude_seen=True))) == {"i3", "i4"}
    assert set(ids(await running.recommend(candidates=named, exclude_item_ids=["i3"]))) == {"i1", "i2", "i4"}
    assert set(ids(await running.recommend(candidates=named, categories=["Care"]))) == {"i1", "i3"}
    assert ids(await running.recommend(candidates=["i1"], exclude_item_ids=["i1"])) == []


async def test_filters_of_retrieved_items(running: Running) -> None:
    await version_serves(running)
    care = {item.item_id for item in ITEMS if item.category == "Care"}
    assert set(ids(await running.recommend(count=100, categories=["Care"]))) == care - {"i1"}
    seen_too = ids(await running.recommend(count=100, exclude_seen=False))
    assert set(seen_too) == {item.item_id for item in ITEMS}
    assert "i9" not in ids(await running.recommend(count=100, exclude_item_ids=["i9"]))


async def test_the_callers_own_category_finds_its_items(running: Running) -> None:
    written = ["Beauty>Skin Care", "Skin  Care", "Skin\u00a0Care", "Cre\u0301me", "\uff34\uff45\uff41", " Tea > Green"]
    items = [{"item_id": f"own-{n}", "title": "Cream", "category": category} for n, category in enumerate(written)]
    await running.http.put("/items", json={"items": items})
    for served in (False, True):
        if served:
            await version_serves(running)
        for item, category in zip(items, written, strict=True):
            shown = (await running.http.get(f"/items/{item['item_id']}")).json()["category"]
            for asked in (category, shown):
                assert item["item_id"] in ids(await running.recommend(count=100, categories=[asked]))


async def test_an_interaction_changes_the_very_next_prompt(running: Running) -> None:
    await version_serves(running)
    await buy(running, "ann", "i3")
    assert (await running.recommend(user_id="ann", history=None)).json()["degraded"] is False
    before = running.engines.last.calls[-1][1]
    await buy(running, "ann", "i4")
    answer = await running.recommend(user_id="ann", history=None, count=100)
    assert running.engines.last.calls[-1][1] != before
    assert not {"i3", "i4"} & set(ids(answer))


@pytest.mark.parametrize(("positive", "other"), [("purchase", "view"), ("click", "purchase")])
async def test_events_that_are_not_positive_stay_out_of_the_prompt_but_count_as_seen(
    service_settings: Settings, redis: Redis, shop: str, positive: str, other: str
) -> None:
    settings = service_settings.model_copy(update={"positive_events": frozenset({positive})})
    async with serving(settings, redis) as running:
        await version_serves(running)
        await buy(running, "ann", "i3", event_type=positive)
        await running.recommend(user_id="ann", history=None, candidates=["i7", "i8"])
        before = running.engines.last.calls[-1][1]
        await running.recommend(history=["i3"], user_id="ann", candidates=["i7", "i8"])
        assert running.engines.last.calls[-1][1] == before
        await buy(running, "ann", "i4", event_type=other)
        await running.recommend(user_id="ann", history=None, candidates=["i7", "i8"])
        assert running.engines.last.calls[-1][1] == before
        assert "i4" not in ids(await running.recommend(user_id="ann", history=None, count=100))


async def test_what_a_version_forgot_leaves_the_prompt_but_is_still_seen(running: Running) -> None:
    await buy(running, "ann", "i3", "i4")
    await version_serves(running, forgotten={UserId("ann"): frozenset({"ann-i3"})})
    answer = await running.recommend(user_id="ann", history=None, count=100)
    forgotten_prompt = running.engines.last.calls[-1][1]
    assert "i3" not in ids(answer)
    await running.recommend(user_id="ann", history=["i4"], count=100, exclude_item_ids=["i3"])
    assert running.engines.last.calls[-1][1] == forgotten_prompt
    history = (await running.http.get("/users/ann/history")).json()["interactions"]
    assert [(each["item_id"], each["forgotten"]) for each in history] == [("i3", True), ("i4", False)]


async def test_popularity_for_users_without_history(running: Running) -> None:
    for user, item in (("a", "i5"), ("b", "i5"), ("c", "i5"), ("d", "i6"), ("e", "i6"), ("f", "i7")):
        await buy(running, user, item)
    name = await version_serves(running)
    answer = await running.recommend(user_id="stranger", history=None, count=3)
    assert ids(answer) == ["i5", "i6", "i7"]
    assert (answer.json()["degraded"], answer.json()["adapter"]) == ("no_history", None)
    assert ids(await running.recommend(user_id="stranger", history=None, candidates=["i7", "i1", "i5"])) == [
        "i5",
        "i7",
        "i1",
    ]
    everything = ids(await running.recommend(user_id="stranger", history=None, count=100))
    assert len(everything) == len(ITEMS)
    assert ids(await running.recommend(user_id="stranger", history=None, categories=["Hair"], count=1)) == ["i6"]
    assert (await running.recommend()).json()["adapter"] == name


async def test_deleted_items_take_no_popular_ones_place(running: Running) -> None:
    """Popularity counts on what was deleted, here more items than the catalog has left."""
    for item in ITEMS[:20]:
        for user in range(3):
            await buy(running, f"u{user}", item.item_id)
    for buyer, bought in (("a", "i29"), ("b", "i29"), ("c", "i27")):
        await buy(running, buyer, bought)
    for item in ITEMS[:20]:
        assert (await running.http.delete(f"/items/{item.item_id}")).status_code == 204
    items = (await running.recommend(user_id="stranger", history=None, count=100)).json()["items"]
    assert [each["item_id"] for each in items] == ["i29", "i27", *(f"i{n}" for n in range(20, 27)), "i28"]
    assert [each["score"] > 0 for each in items] == [True, True] + [False] * 8


async def test_a_new_item_can_be_recommended_and_a_deleted_one_cannot(running: Running) -> None:
    await version_serves(running)
    new = {"item_id": "new", "title": "red blue green cream"}
    assert (await running.http.put("/items", json={"items": [new]})).json() == {"upserted": 1, "rejected": []}
    assert set(ids(await running.recommend(candidates=["new", "i5"]))) == {"new", "i5"}
    assert "new" in ids(await running.recommend(count=100))
    assert (await running.http.delete("/items/new")).status_code == 204
    assert "new" not in ids(await running.recommend(count=100))
    assert (await running.recommend(candidates=["new"])).status_code == 422
    await running.http.put("/items", json={"items": [{"item_id": "i5", "title": "gone", "available": False}]})
    async with asyncio.timeout(10):
        while "i5" in ids(await running.recommend(count=100)):  # noqa: ASYNC110 - another replica may have written
            await asyncio.sleep(0.02)
    assert ids(await running.recommend(candidates=["i5", "i6"])) == ["i6"]


async def test_a_new_domain_answers_at_once(running: Running) -> None:
    items = [{"item_id": "t1", "title": "toy"}, {"item_id": "t2", "title": "another toy"}]
    await running.http.put("/items", json={"domain": "toys", "items": items})
    answer = await running.recommend(domain="toys", history=["t1"])
    assert ids(answer) == ["t2"]
    assert answer.json()["degraded"] == "no_adapter"


async def test_a_store_that_is_back_shows_without_another_recommendation(running: Running, redis: Redis) -> None:
    async def available(figure: str) -> bool:
        return f"evorec_store_available {figure}" in (await running.http.get("/metrics")).text

    await redis.config_set("maxclients", 1)
    try:
        await redis.client_kill_filter(_type="normal", skipme=True)
        assert (await running.recommend(history=None)).json()["degraded"] == "store_unavailable"
        assert await available("0.0")
    finally:
        await redis.config_set("maxclients", 10_000)
    async with asyncio.timeout(20):
        while not await available("1.0"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def at_once(running: Running, n: int, *, ended: int) -> list[httpx.Response]:
    """Answers to `n` recommendations of which the engine holds all but `ended`: those have ended before it goes on."""
    gate = running.engines.last.gate = asyncio.Event()
    asked = [asyncio.create_task(running.recommend(explain=True)) for _ in range(n)]
    async with asyncio.timeout(30):
        while sum(task.done() for task in asked) < ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.engines.last.gate = None
    gate.set()
    return await asyncio.gather(*asked)


def in_the_retrievers_order(answer: httpx.Response) -> bool:
    items = answer.json()["items"]
    retrieved = [item["reason"]["retriever_score"] for item in items]
    scores = [item["score"] for item in items]
    return bool(items) and retrieved == sorted(retrieved, reverse=True) and scores == sorted(scores, reverse=True)


async def test_a_ranking_that_takes_too_long_gives_the_retrievers_order(
    service_settings: Settings, redis: Redis, shop: str
) -> None:
    settings = service_settings.model_copy(update={"rank_timeout_ms": 100, "max_concurrent_rankings": 1})
    async with serving(settings, redis) as running:
        name = await version_serves(running)
        running.engines.last.gate = asyncio.Event()
        for _ in range(2):  # the first one has made room for the second
            answer = await running.recommend(explain=True)
            assert (answer.json()["degraded"], answer.json()["adapter"]) == ("rank_timeout", name)
            assert in_the_retrievers_order(answer)


async def test_beyond_the_limit_of_rankings_the_others_get_the_retrievers_order(
    service_settings: Settings, redis: Redis, shop: str
) -> None:
    async with serving(service_settings.model_copy(update={"max_concurrent_rankings": 2}), redis) as running:
        name = await version_serves(running)
        answers = await at_once(running, 5, ended=3)
        saturated = [answer for answer in answers if answer.json()["degraded"]]
        assert [answer.json()["degraded"] for answer in saturated] == ["saturated"] * 3
        assert all(map(in_the_retrievers_order, saturated))
        assert {answer.json()["adapter"] for answer in answers} == {name}
        assert (await running.recommend()).json()["degraded"] is False
        text = (await running.http.get("/metrics")).text
        assert 'evorec_recommendations_total{adapter="shop-v000001",degraded="saturated",domain="shop"} 3.0' in text


async def test_beyond_the_limit_requests_are_turned_away_and_told_when_to_come_back(
    service_settings: Settings, redis: Redis, shop: str
) -> None:
    async with serving(service_settings.model_copy(update={"max_concurrent_requests": 2}), redis) as running:
        await version_serves(running)
        answers = await at_once(running, 5, ended=3)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503, 503]
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["title"] == "Too many requests at once"
        assert (await running.recommend()).status_code == 200


async def test_recommendations_go_on_while_an_artifact_store_stalls(running: Running) -> None:
    """Its threads are asyncio's own, and there are few of them."""
    name = await version_serves(running)
    back = threading.Event()
    stalled = [asyncio.create_task(asyncio.to_thread(back.wait)) for _ in range(100)]
    try:
        async with asyncio.timeout(20):
            ranked = (await running.recommend(explain=True)).json()
            popular = (await running.recommend(user_id="stranger", history=None)).json()
    finally:
        back.set()
        await asyncio.gather(*stalled)
    assert (ranked["adapter"], ranked["degraded"]) == (name, False)
    assert popular["degraded"] == "no_history"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("a mistake"), "engine_failed"),
        (AdapterNotLoaded("fell out of the engine"), "adapter_unavailable"),
        (EngineUnavailable("has died"), "engine_unavailable"),
    ],
)
async def test_whatever_the_engine_raises_costs_the_llms_ranking_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    async def fail(*_: object) -> list[float]:
        raise error

    name = await version_serves(running)
    monkeypatch.setattr(running.engines.last, "rank", fail)
    answer = await running.recommend(candidates=["i5", "i6"])
    assert set(ids(answer)) == {"i5", "i6"}
    assert (answer.json()["degraded"], answer.json()["adapter"]) == (reason, name)


async def test_an_engine_that_dies_is_replaced_and_answers_go_on_meanwhile(running: Running) -> None:
    name = await version_serves(running)
    running.engines.last.die()
    degraded = (await running.recommend()).json()
    assert (degraded["degraded"], degraded["adapter"]) == ("engine_unavailable", name)
    assert len(degraded["items"]) == 10
    assert (await running.http.get("/health/live")).status_code == 200
    await running.ready()
    assert len(running.engines.built) == 2
    assert (await running.recommend()).json()["degraded"] is False
    assert running.engines.last.events == [f"add {name}"]


async def test_without_an_engine_the_service_lives_and_answers_but_is_not_ready(
    service_settings: Settings, redis: Redis, shop: str
) -> None:
    engines = Engines(error=RuntimeError("no weights"))
    async with serving(service_settings, redis, engines=engines) as running:
        await running.publisher.publish()
        await running.served_by((await running.publisher.registry.champion(SHOP)) or "")  # type: ignore[arg-type]
        answer = (await running.recommend()).json()
        assert answer["degraded"] == "engine_unavailable"
        assert len(answer["items"]) == 10
        ready = await running.http.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["error"] == "no weights"
        assert (await running.http.get("/health/live")).status_code == 200


async def test_titles_of_the_catalog_are_in_the_answer(running: Running, redis: Redis) -> None:
    await CatalogStore(redis).put(SHOP, [Item(ItemId("i5"), "A fine\ncream")])
    await version_serves(running)
    assert (await running.recommend(candidates=["i5"])).json()["items"][0]["title"] == "A fine cream"
