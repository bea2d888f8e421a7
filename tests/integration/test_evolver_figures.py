"""What the worker tells Prometheus: over HTTP, from a real Redis."""

from __future__ import annotations

import dataclasses
import re
import socket

import httpx

from evolver.backend import Backend
from evolver.figures import Figures
from shared.dead_letters import DeadLetter
from tests.integration.evolver_support import DOMAIN, USERS, fill, run

pytest_plugins = ("tests.integration.evolver_fixtures",)


async def test_it_tells_of_runs_and_of_the_champion(backend: Backend) -> None:
    await fill(backend)
    await run(backend)
    await fill(backend, USERS[:2], start=9_000.0)
    await backend.dead_letters.add(DOMAIN, DeadLetter(reason="test", user_id="u"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    figures = Figures()
    asked = dataclasses.replace(backend, settings=backend.settings.model_copy(update={"worker_metrics_port": port}))
    figures.serve(asked.settings)
    await figures.read(asked)
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
    found = dict(re.findall(r"^(evorec_\S+) (\S+)$", text, re.MULTILINE))
    assert float(found[f'evorec_evolutions{{domain="{DOMAIN}",status="published"}}']) == 1
    assert float(found[f'evorec_evolution_running{{domain="{DOMAIN}"}}']) == 0
    assert float(found[f'evorec_pending_interactions{{domain="{DOMAIN}"}}']) == 4
    assert float(found[f'evorec_dead_letters{{domain="{DOMAIN}"}}']) == 1
    assert float(found[f'evorec_last_published_timestamp_seconds{{domain="{DOMAIN}"}}']) > 1.7e9


async def test_without_a_port_it_listens_nowhere(backend: Backend) -> None:
    Figures().serve(backend.settings)
