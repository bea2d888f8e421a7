"""Promise 5: SIGTERM drains within a stated time, and a second one hurries."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from deploy.cli.serve import serve
from deploy.cli.worker import worker as worker_command
from evolver.backend import Backend
from evolver.worker import DRAIN_S as WORKER_DRAIN_S
from service.main import DRAIN_S, GRACEFUL_S, LAME_DUCK_S
from shared.evolutions import EvolutionStatus
from shared.types import EvolutionId
from tests.faults.conftest import Tell
from tests.faults.processes import ServiceProcess
from tests.faults.saturable import ASK, Stack, saturable
from tests.integration.evolver_support import DOMAIN, WorkerProcess, fill, finished, in_stage

pytest_plugins = ["tests.integration.evolver_fixtures"]

CLIENTS = 6
COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
# Between the end that is stated and the one that is measured, on a machine that does other things as well.
LATE_S = 15.0


@dataclass
class Caller:
    """Callers behind a load balancer: they send as long as the service says that it is ready."""

    stack: Stack
    ready: bool = True
    statuses: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    async def balance(self) -> None:
        """Until the service is ready no more."""
        connection = await self.stack.service.connect()
        while (await connection.get("/health/ready"))[0] == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        self.ready = False
        connection.close()

    async def call(self, path: str, bodies: random.Random) -> None:
        """One request after the other, over a connection that is kept while the service keeps it."""
        connection = await self.stack.service.connect()
        while self.ready:
            body = ASK if path == "/recommend" else _interaction(bodies.random())
            try:
                status, _ = await connection.post(path, body)
            except (OSError, EOFError) as error:
                self.broken.append(repr(error))
                return
            self.statuses[status] += 1
            if connection.headers.get("connection") == "close":
                connection.close()
                connection = await self.stack.service.connect()
        connection.close()


def _interaction(timestamp: float) -> bytes:
    return json.dumps({"interactions": [{"user_id": "u1", "item_id": "i1", "timestamp": timestamp}]}).encode()


async def _exit_status(service: ServiceProcess, within_s: float) -> int:
    return await asyncio.to_thread(service.wait, within_s)


async def test_sigterm_answers_all_that_came_before(full: bool, rng: random.Random, outcome: Tell) -> None:
    rounds, answered, broken = 5 if full else 1, 0, 0
    for _ in range(rounds):
        async with saturable() as stack:
            caller = Caller(stack)
            paths = ["/recommend"] * CLIENTS + ["/interactions"] * 2
            calls = [asyncio.create_task(caller.call(path, rng)) for path in paths]
            balancing = asyncio.create_task(caller.balance())
            await asyncio.sleep(rng.uniform(0.5, 1.5))
            began = time.monotonic()
            stack.service.signal(signal.SIGTERM)
            await asyncio.gather(balancing, *calls)
            assert await _exit_status(stack.service, DRAIN_S + LATE_S) == 0
            assert time.monotonic() - began < DRAIN_S
            assert set(caller.statuses) <= {200, 202}, caller.statuses
            answered += caller.statuses.total()
            broken += len(caller.broken)
    outcome(
        5,
        f"SIGTERM ends readiness first, all that was sent till then is answered, exit status 0 within {DRAIN_S:.0f} s",
        faults={"SIGTERM under load": rounds},
        cases=answered,
        lost=broken,
    )


async def test_a_request_that_hangs_does_not_hold_the_end_up(full: bool, outcome: Tell) -> None:
    """The engine never answers: a second signal gives the request up at once, and without one the drain ends in its
    time."""
    patient = [True, False] if full else [False]
    for waits in patient:
        # Warming the version and the first answer take one ranking each.
        async with saturable(rank_timeout_ms=600_000, FAKE_HANGS_AFTER="2") as stack:
            connection = await stack.service.connect()
            hanging = asyncio.create_task(connection.post("/recommend", ASK))
            await asyncio.sleep(0.3)
            began = time.monotonic()
            stack.service.signal(signal.SIGTERM)
            if not waits:
                await asyncio.sleep(0.3)
                stack.service.signal(signal.SIGTERM)
            status = await _exit_status(stack.service, DRAIN_S + LATE_S)
            took = time.monotonic() - began
            assert (await hanging)[0] == 503
            connection.close()
        assert (status, took < DRAIN_S) == (0, True), (status, took)
    outcome(
        5,
        "A request that cannot be answered delays the end by the stated time at most; a second signal gives it up",
        faults={"ranking hangs": len(patient), "SIGTERM": len(patient), "second SIGTERM": patient.count(False)},
        cases=len(patient),
    )


@pytest.mark.parametrize("hangs", [False, True], ids=["at work", "hanging"])
async def test_the_worker_drains_in_its_time_and_the_run_is_redone(
    backend: Backend, worker: WorkerProcess, full: bool, outcome: Tell, hangs: bool
) -> None:
    if hangs and not full:
        pytest.skip("waits for the whole time of the drain: with FAULTS=full")
    await fill(backend)
    worker.start(stage_s=60)
    evolution = EvolutionId("shop-e000001")
    async with asyncio.timeout(60):
        while await backend.evolutions.active(DOMAIN) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await in_stage(backend, evolution, "evaluate before")
    children = worker.children()
    if hangs:
        for child in children:
            child.suspend()
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    status = await asyncio.to_thread(worker.wait, WORKER_DRAIN_S + LATE_S)
    took = time.monotonic() - began
    assert status == (-signal.SIGKILL if hangs else 0)
    assert not psutil.wait_procs(children, timeout=5)[1]
    worker.start()
    ended = await finished(backend, evolution, timeout_s=60)
    assert ended.status is EvolutionStatus.published
    assert len(await backend.registry.versions(DOMAIN)) == 1
    assert took < WORKER_DRAIN_S + LATE_S
    outcome(
        5,
        f"SIGTERM ends a worker within {WORKER_DRAIN_S:.0f} s; the next one publishes its run, once",
        faults={"SIGTERM to the worker": 1, "run stopped": int(hangs)},
        cases=1,
    )


def test_the_help_names_the_times_of_a_drain() -> None:
    told = " ".join((serve.__doc__ or "").split())
    assert f"closes {LAME_DUCK_S:.0f} s later" in told
    assert f"answered for up to {GRACEFUL_S} s" in told
    assert f"ends within {DRAIN_S:.0f} s" in told
    assert f"killed after {WORKER_DRAIN_S:.0f} s" in (worker_command.__doc__ or "")


def test_containers_get_longer_than_a_drain_takes() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name, drain_s in (("service", DRAIN_S), ("worker", WORKER_DRAIN_S)):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > drain_s
