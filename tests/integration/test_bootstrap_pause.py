"""`evorec bootstrap` pauses a domain's evolutions while it loads the past, and leaves the route as it was."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

from deploy.cli import ingest
from deploy.cli.ingest import evolutions_paused
from deploy.client import ServiceClient
from shared.config import Settings
from shared.errors import Unavailable
from shared.evolutions import Evolution
from shared.registry_records import Route
from shared.types import DomainId, EvolutionId
from tests.service_support import SHOP, Running, serving

pytest_plugins = ("tests.service_fixtures",)


def client_of(service: Running) -> ServiceClient:
    return ServiceClient(str(service.http.base_url))


async def test_evolutions_are_paused_meanwhile_and_go_on_afterwards(running: Running) -> None:
    registry = running.publisher.registry
    async with client_of(running) as client:
        async with evolutions_paused(client, SHOP):
            assert (await registry.route(SHOP)).paused
        assert await registry.route(SHOP) == Route()
        with pytest.raises(KeyError):
            async with evolutions_paused(client, SHOP):
                raise KeyError
    assert await registry.route(SHOP) == Route()


async def test_a_pause_and_a_trial_of_the_operators_stay(running: Running) -> None:
    registry = running.publisher.registry
    await running.publisher.publish()
    challenger = await running.publisher.publish(champion=False)
    for paused in (True, False):
        await registry.set_trial(SHOP, challenger, 0.25)
        await registry.set_paused(SHOP, paused)
        before = await registry.route(SHOP)
        async with client_of(running) as client, evolutions_paused(client, SHOP):
            assert await registry.route(SHOP) == before.model_copy(update={"paused": True})
        assert await registry.route(SHOP) == before


@pytest.mark.parametrize("paused", [False, True])
async def test_a_pause_from_before_is_said_at_the_end(
    running: Running, paused: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def first_version(_: ServiceClient, domain: DomainId) -> Evolution:
        return Evolution(id=EvolutionId("shop-e000001"), domain=domain, requested_at=0.0)

    monkeypatch.setattr(ingest, "first_version", first_version)
    async with client_of(running) as client:
        await client.pause_evolutions(SHOP, paused)
    await ingest._bootstrap(SHOP, (), (), False, str(running.http.base_url), None)
    said = capsys.readouterr().err
    assert ("Evolutions of shop were paused before" in said) is paused
    assert ('PUT /admin/routes {"domain": "shop", "paused": false}' in said) is paused


async def test_what_stays_paused_because_the_service_went_away_is_said(
    service_settings: Settings,
    redis: Redis,
    shop: DomainId,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("deploy.client._FIRST_RESTART_WAIT_S", 0.01)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(service_settings, redis))
        await service.ready()
        async with client_of(service) as client:
            with pytest.raises(Unavailable, match="no service answers"):
                async with evolutions_paused(client, shop):
                    await stack.aclose()
        assert (await service.publisher.registry.route(shop)).paused
    said = capsys.readouterr().err
    assert "Evolutions of shop are still paused" in said
    assert 'PUT /admin/routes {"domain": "shop", "paused": false}' in said
