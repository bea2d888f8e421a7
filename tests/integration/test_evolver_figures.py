"""What the worker tells Prometheus: over HTTP, from a real Redis."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from threading import Thread
from wsgiref.simple_server import WSGIServer

import httpx
import pytest
from prometheus_client import CollectorRegistry, start_http_server

from evolver import figures
from evolver.backend import Backend
from evolver.figures import Figures
from shared.config import Settings
from shared.dead_letters import DeadLetter
from tests.integration.evolver_support import DOMAIN, USERS, fill, run
from tests.integration.fake_pipeline import FakePipeline

pytest_plugins = ("tests.integration.evolver_fixtures",)

Servers = list[tuple[WSGIServer, Thread]]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """The HTTP servers that figures have started; they end with the test."""
    started: Servers = []

    def start(port: int, host: str, registry: CollectorRegistry) -> None:
        started.append(start_http_server(port, host, registry))

    monkeypatch.setattr(figures, "start_http_server", start)
    yield started
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_it_tells_of_runs_and_of_the_champion(backend: Backend, servers: Servers) -> None:
    await fill(backend)
    await run(backend)
    await fill(backend, USERS[:2], start=9_000.0)
    await backend.dead_letters.add(DOMAIN, DeadLetter(reason="test", user_id="u"))
    told = Figures()
    asked = dataclasses.replace(backend, settings=backend.settings.model_copy(update={"worker_metrics_port": 0}))
    told.serve(asked.settings)
    await told.read(asked)
    [(server, _)] = servers
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"http://127.0.0.1:{server.server_port}/metrics")).text
    found = dict(re.findall(r"^(evorec_\S+) (\S+)$", text, re.MULTILINE))
    assert float(found[f'evorec_evolutions{{domain="{DOMAIN}",status="published"}}']) == 1
    assert float(found[f'evorec_evolution_running{{domain="{DOMAIN}"}}']) == 0
    assert float(found[f'evorec_pending_interactions{{domain="{DOMAIN}"}}']) == 4
    assert float(found[f'evorec_dead_letters{{domain="{DOMAIN}"}}']) == 1
    assert float(found[f'evorec_last_published_timestamp_seconds{{domain="{DOMAIN}"}}']) > 1.7e9


def test_without_a_port_it_listens_nowhere(settings: Settings, servers: Servers) -> None:
    Figures().serve(settings)
    assert servers == []


@pytest.mark.parametrize("unasked", [(), ("U_I",)])
async def test_nothing_of_an_earlier_champion_is_told_of_the_next(backend: Backend, unasked: tuple[str, ...]) -> None:
    asked = dataclasses.replace(backend, settings=backend.settings.model_copy(update={"worker_metrics_port": 0}))
    told = Figures()

    def hit_rate(group: str) -> float | None:
        labels = {"domain": DOMAIN, "moment": "after", "group": group}
        return told.registry.get_sample_value("evorec_champion_panel_hit_rate", labels)

    await fill(backend)
    await run(backend, FakePipeline(groups=("U", "U_I")))
    await told.read(asked)
    assert (hit_rate("U"), hit_rate("U_I")) == (0.5, 0.5)
    await fill(backend, USERS[:2], start=9_000.0)
    await run(backend, FakePipeline(unasked=unasked))
    await told.read(asked)
    assert (hit_rate("U"), hit_rate("U_I")) == (0.5, None)
