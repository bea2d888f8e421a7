"""Whoever follows an evolution hears once that no worker takes it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from itertools import count

import pytest
from rich.console import Console

from deploy.client import ServiceClient
from deploy.following import follow
from shared.evolutions import Evolution, EvolutionStatus
from shared.types import DomainId, EvolutionId

ID = EvolutionId("shop-e000001")


class Queue(ServiceClient):
    """An evolution that is polled each second, and queued for the first seconds."""

    def __init__(self, queued_s: int) -> None:
        super().__init__("http://service")
        self._queued_s = queued_s

    async def follow(self, evolution_id: EvolutionId) -> AsyncIterator[Evolution]:
        last = EvolutionStatus.running, EvolutionStatus.published
        for status in (*[EvolutionStatus.queued] * self._queued_s, *last):
            yield Evolution(id=evolution_id, domain=DomainId("shop"), requested_at=0.0, status=status)


@pytest.mark.parametrize(("queued_s", "times"), [(59, 0), (61, 1), (300, 1)])
async def test_an_evolution_that_stays_queued_asks_for_a_worker_once(queued_s: int, times: int) -> None:
    out, seconds = io.StringIO(), count()
    async with Queue(queued_s) as client:
        evolution = await follow(client, ID, Console(file=out), "Evolution of shop", lambda: float(next(seconds)))
    assert evolution.status is EvolutionStatus.published
    assert out.getvalue().count("EVOREC_BROKER_URL") == times
