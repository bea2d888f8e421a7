"""What the worker does with every domain at each tick: one that cannot be looked at must not stop the others, and what
waits in the queue is not put there again.
"""

from __future__ import annotations

import dataclasses

import pytest
from kombu.exceptions import OperationalError

from evolver import trigger, upkeep
from evolver.backend import Backend
from evolver.figures import Figures
from shared.evolutions import EvolutionStatus
from shared.redis_keys import DomainKeys
from shared.types import DomainId, EvolutionId
from tests.integration.evolver_support import DOMAIN, ITEMS, deliver, fill
from tests.integration.fake_pipeline import meddling

pytest_plugins = ("tests.integration.evolver_fixtures",)

UNREADABLE = [DomainId("aaa"), DomainId("zzz")]  # before and behind the other


async def test_a_record_that_cannot_be_read_stops_its_domain_alone(backend: Backend) -> None:
    """As another release may have written it, which knows fields that this one does not."""
    await fill(backend)
    for domain in UNREADABLE:
        await backend.catalog.put(domain, ITEMS)
        evolution = await backend.evolutions.create(domain)
        record = evolution.model_dump_json().replace("{", '{"new":1,', 1)
        await backend.redis.hset(DomainKeys(domain).evolutions, evolution.id, record)
    asked: list[tuple[EvolutionId, DomainId]] = []
    await trigger.tick(backend, lambda *arguments: asked.append(arguments))
    assert [domain for _, domain in asked] == [DOMAIN]
    started = await backend.evolutions.get(asked[0][0])
    await backend.evolutions.update(started.model_copy(update={"status": EvolutionStatus.cancelled}))
    assert await upkeep.tick(backend, lambda _: None) == [DOMAIN]
    figures = Figures()
    settings = backend.settings.model_copy(update={"worker_metrics_port": 1})
    await figures.read(dataclasses.replace(backend, settings=settings))
    pending = "evorec_pending_interactions"
    assert figures.registry.get_sample_value(pending, {"domain": DOMAIN}) == await backend.log.count(DOMAIN, {})
    assert figures.registry.get_sample_value(pending, {"domain": UNREADABLE[0]}) is None


def send(evolution_id: EvolutionId, domain: DomainId) -> None:
    """To a broker whose worker is busy."""


async def test_a_message_that_waits_behind_a_run_is_not_sent_again_and_again(backend: Backend) -> None:
    await fill(backend)
    (evolution_id,) = await trigger.tick(backend, send)
    assert await trigger.tick(backend, send) == []
    assert await backend.redis.ttl(DomainKeys(DOMAIN).enqueued(evolution_id)) > 50 * 60
    await backend.evolutions.request_cancel(evolution_id)
    assert await trigger.tick(backend, send) == [evolution_id]  # the broker may have lost the first one


async def test_an_evolution_whose_worker_died_as_soon_as_it_had_the_message_gets_another(backend: Backend) -> None:
    class Gone(BaseException):
        pass

    def die() -> None:
        raise Gone

    await fill(backend)
    (evolution_id,) = await trigger.tick(backend, send)
    with pytest.raises(Gone):
        await deliver(backend, await backend.evolutions.get(evolution_id), meddling(die))
    assert await trigger.tick(backend, send) == [evolution_id]


async def test_a_message_that_could_not_be_sent_does_not_count(backend: Backend) -> None:
    def refuse(evolution_id: EvolutionId, domain: DomainId) -> None:
        raise OperationalError("no broker")

    await fill(backend)
    assert await trigger.tick(backend, refuse) == []
    assert len(await trigger.tick(backend, send)) == 1
