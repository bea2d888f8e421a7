"""The HTTP client of the commands: what it asks, what it repeats, and what it makes of refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from deploy.client import ServiceClient, ServiceRefused
from shared.errors import InvalidInput, Unavailable
from shared.types import DomainId, Interaction, Item, ItemId, UserId

DOMAIN = DomainId("shop")
Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler) -> ServiceClient:
    return ServiceClient("http://service", "secret", transport=httpx.MockTransport(handler))


async def test_interactions_leave_out_what_the_log_derives() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(
            202, json={"accepted": 1, "duplicates": 0, "rejected": [{"index": 1, "reason": "no item"}]}
        )

    async with client(handler) as service:
        events = [Interaction("", UserId("u"), ItemId(item), 5.0) for item in ("a", "gone")]
        answer = await service.post_interactions(DOMAIN, events)
    assert answer.rejected == ((1, "no item"),)
    assert seen[0].headers["X-API-Key"] == "secret"
    assert json.loads(seen[0].content) == {
        "domain": "shop",
        "interactions": [
            {"user_id": "u", "item_id": item, "timestamp": 5.0, "event_type": "purchase"} for item in ("a", "gone")
        ],
    }


async def test_a_timestamp_of_zero_is_sent() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["interactions"][0]["timestamp"] == 0.0
        return httpx.Response(202, json={"accepted": 1, "duplicates": 0, "rejected": []})

    async with client(handler) as service:
        await service.post_interactions(DOMAIN, [Interaction("", UserId("u"), ItemId("a"), 0.0)])


async def test_named_candidates_are_ranked_even_when_seen() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert (body["candidates"], body["exclude_seen"]) == (["a"], False)
        items = [{"item_id": "a", "rank": 1, "score": 1.0, "title": "A"}]
        return httpx.Response(200, json={"items": items, "adapter": "shop-v000001", "degraded": False, "took_ms": 1.0})

    async with client(handler) as service:
        answer = await service.recommend(DOMAIN, UserId("u"), candidates=[ItemId("a")])
    assert (answer.items[0].item_id, answer.adapter) == ("a", "shop-v000001")


async def test_a_problem_document_becomes_an_error_with_its_words() -> None:
    problem = {"title": "Unknown domain", "detail": "there is no domain 'shop'", "status": 404}
    async with client(lambda _: httpx.Response(404, json=problem)) as service:
        with pytest.raises(ServiceRefused, match="Unknown domain: there is no domain 'shop'") as refused:
            await service.evolve(DOMAIN)
    assert refused.value.status_code == 404


@pytest.mark.parametrize("content", [b"<html>bad gateway</html>", b"[]", b""])
async def test_other_failures_are_errors_too(content: bytes) -> None:
    async with client(lambda _: httpx.Response(502, content=content)) as service:
        with pytest.raises(ServiceRefused, match="HTTP 502"):
            await service.adapters()


@pytest.mark.parametrize("content", [b"<html>welcome</html>", b"[]", b""])
async def test_a_success_that_is_none_of_the_services_names_who_answered(content: bytes) -> None:
    headers = {"Content-Type": "text/html"}
    async with client(lambda _: httpx.Response(200, content=content, headers=headers)) as service:
        with pytest.raises(ServiceRefused, match=r"http://service is not evorec.*text/html.*check EVOREC_URL"):
            await service.adapters()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client would have slept."""
    slept: list[float] = []

    async def no_wait(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("deploy.client.asyncio.sleep", no_wait)
    return slept


def one_after_the_other(*answers: httpx.Response | Exception) -> Handler:
    left: Iterator[httpx.Response | Exception] = iter(answers)

    def handler(_: httpx.Request) -> httpx.Response:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handler


PUT = httpx.Response(200, json={"upserted": 1, "rejected": []})


@pytest.mark.parametrize(
    ("answers", "waited"),
    [
        ([httpx.Response(503), httpx.ReadTimeout("slow")], [0.2, 0.4]),
        ([httpx.Response(503, headers={"Retry-After": "5"})], [5.0]),
        ([httpx.Response(429, headers={"Retry-After": "7"}), httpx.Response(429)], [7.0, 0.4]),
        ([httpx.Response(429, headers={"Retry-After": "3600"})], [60.0]),
        ([httpx.Response(429, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"})], [0.2]),
    ],
)
async def test_a_service_that_asks_for_patience_is_asked_again(
    waits: list[float], answers: list[httpx.Response | Exception], waited: list[float]
) -> None:
    async with client(one_after_the_other(*answers, PUT)) as service:
        assert (await service.put_items(DOMAIN, [Item(ItemId("a"), "A")])).accepted == 1
    assert waits == waited


async def test_patience_ends(waits: list[float]) -> None:
    problem = {"title": "Too many requests", "detail": "wait a second"}
    async with client(lambda _: httpx.Response(429, json=problem)) as service:
        with pytest.raises(ServiceRefused, match="Too many requests: wait a second"):
            await service.adapters()
    assert len(waits) == 4


async def test_a_service_that_answered_before_has_a_minute_to_restart(waits: list[float]) -> None:
    gone = httpx.ConnectError("refused")
    async with client(one_after_the_other(PUT, *[gone] * 4, PUT, *[gone] * 5)) as service:
        for _ in range(2):
            await service.put_items(DOMAIN, [Item(ItemId("a"), "A")])
        assert sum(waits) == 60
        with pytest.raises(Unavailable, match="no service answers"):
            await service.put_items(DOMAIN, [Item(ItemId("a"), "A")])


async def test_no_service_at_all_is_said_at_once() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with client(handler) as service:
        with pytest.raises(Unavailable, match=r"no service answers at http://service .*evorec up"):
            await service.adapters()


@pytest.mark.parametrize("key", ["secret\n", "secret\r\n", " secret"])
async def test_white_space_around_the_key_is_not_sent(key: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["X-API-Key"] == "secret"
        return httpx.Response(200, json={"domains": []})

    async with ServiceClient("http://service", key, transport=httpx.MockTransport(handler)) as service:
        assert await service.adapters() == []


@pytest.mark.parametrize("key", ["hush\x07hush", "hush\nhush", "hüsh"])
def test_a_key_that_no_header_can_hold_is_named_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidInput, match="EVOREC_API_KEY") as refused:
        ServiceClient("http://service", key)
    assert key not in str(refused.value)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://host:80a", "http://me:hush#hush@host:1", "host:8000", "http://", "http://h\n"])
def test_what_is_no_url_is_named_and_not_shown(url: str) -> None:
    with pytest.raises(InvalidInput, match="EVOREC_URL") as refused:
        ServiceClient(url)
    assert "hush" not in str(refused.value)


async def test_a_password_in_the_url_is_not_shown() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"].startswith("Basic ")
        raise httpx.ConnectError("refused")

    async with ServiceClient("http://me:hush@host:1/evorec", transport=httpx.MockTransport(handler)) as service:
        with pytest.raises(Unavailable, match="at http://host:1/evorec ") as failed:
            await service.adapters()
    assert "hush" not in str(failed.value)


@pytest.mark.usefixtures("waits")
async def test_an_error_that_may_quote_a_header_is_named_alone() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise httpx.LocalProtocolError("Illegal header value b'secret'")

    async with client(handler) as service:
        with pytest.raises(Unavailable, match=r"\(LocalProtocolError\)"):
            await service.adapters()
