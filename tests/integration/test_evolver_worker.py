"""The real Celery worker process on a real Redis: triggers, recovery, cancellation, shutdown, processes killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
from redis.asyncio import Redis

from evolver import lease, tasks
from evolver.attempt import Surroundings
from evolver.backend import Backend
from evolver.worker import create_app
from shared.config import Settings
from shared.evolutions import Evolution, EvolutionStatus
from shared.redis_keys import DomainKeys
from shared.types import EvolutionId
from tests.integration.evolver_support import (
    DOMAIN,
    REAL_WORKER,
    USERS,
    WorkerProcess,
    fill,
    finished,
    healthy_worker,
    in_stage,
    until,
)

pytest_plugins = ("tests.integration.evolver_fixtures",)

FIRST = EvolutionId("shop-e000001")


async def exactly_one_version(backend: Backend) -> None:
    """One version, known to the registry and the artifact store alike, whose range is the watermark."""
    versions = await backend.registry.versions(DOMAIN)
    assert [manifest.name for manifest in versions] == backend.artifacts.names(DOMAIN)
    assert len(versions) == 1
    assert await backend.registry.champion(DOMAIN) == versions[0].name
    assert await backend.registry.watermark(DOMAIN) == versions[0].range_end == await backend.log.tail(DOMAIN)


async def started(backend: Backend, worker: WorkerProcess, stage: str) -> Evolution:
    """The first evolution, once the worker's tick has created it and it is in the stage."""

    async def exists() -> bool:
        assert psutil.pid_exists(worker.pid), worker.log
        return await backend.evolutions.active(DOMAIN) is not None

    await until(exists, "an evolution")
    await in_stage(backend, FIRST, stage)
    return await backend.evolutions.get(FIRST)


async def test_the_tick_starts_what_is_due_again_and_again(backend: Backend, worker: WorkerProcess) -> None:
    await fill(backend)
    worker.start()

    async def published(version: str) -> bool:
        return await backend.registry.champion(DOMAIN) == version

    await until(lambda: published("shop-v000001"), "the bootstrap")
    await fill(backend, USERS[:3], start=3_000.0)  # 6 new interactions: not due
    await asyncio.sleep(1)
    assert len(await backend.evolutions.list(DOMAIN)) == 1
    await fill(backend, USERS[3:6], start=3_000.0)  # 12: due
    await until(lambda: published("shop-v000002"), "the evolution")

    for evolution in await backend.evolutions.list(DOMAIN):
        assert (await finished(backend, evolution.id)).status is EvolutionStatus.published
    assert len(await backend.evolutions.list(DOMAIN)) == 2
    first, second = (pid for pid, stage in worker.stages() if stage == "locate")
    assert first != second  # a process of its own for each: torch's memory goes with it


async def test_a_task_delivered_twice_runs_once(
    backend: Backend, worker: WorkerProcess, evolver_settings: Settings
) -> None:
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    app = create_app(evolver_settings, Surroundings())
    enqueue = tasks.enqueuer(app)
    for _ in range(3):
        enqueue(evolution.id, DOMAIN)
    app.close()
    worker.start()

    assert (await finished(backend, evolution.id)).status is EvolutionStatus.published

    async def all_delivered() -> bool:
        return worker.log.count("evolution_already_finished") >= 2

    await until(all_delivered, "the second and third delivery")
    assert [stage for _, stage in worker.stages()].count("locate") == 1
    await exactly_one_version(backend)


async def test_cancel_through_the_record(backend: Backend, worker: WorkerProcess) -> None:
    await fill(backend)
    worker.start(stage_s=20)
    evolution = await started(backend, worker, "evaluate before")

    await backend.evolutions.request_cancel(evolution.id)

    assert (await finished(backend, evolution.id)).status is EvolutionStatus.cancelled
    assert not backend.artifacts.names(DOMAIN)
    await asyncio.sleep(1)
    assert await backend.evolutions.active(DOMAIN) is None  # the triggers leave it alone for a while


async def test_kill_9_in_the_middle_then_a_new_worker_makes_exactly_one_version(
    backend: Backend, worker: WorkerProcess
) -> None:
    await fill(backend)
    worker.start(stage_s=2)
    evolution = await started(backend, worker, "forget")

    worker.kill()  # asserts that the training process dies with it
    worker.start()

    done = await finished(backend, evolution.id)
    assert (done.status, done.adapter) == (EvolutionStatus.published, "shop-v000001")
    # The killed run's lease had to expire before the second worker got one: a token each, and no third taker.
    assert int(await backend.redis.get(DomainKeys(DOMAIN).fence) or 0) == 2
    assert len(await backend.evolutions.list(DOMAIN)) == 1
    await exactly_one_version(backend)
    assert not list((backend.settings.state_dir / "work").iterdir())


async def test_a_crash_between_artifact_and_registry_is_resumed_by_the_same_worker(
    backend: Backend, worker: WorkerProcess, tmp_path: Path
) -> None:
    kill_once = tmp_path / "kill-once"
    kill_once.touch()
    await fill(backend)
    worker.start(FAKE_KILL_ONCE=str(kill_once))

    async def published() -> bool:
        return await backend.registry.champion(DOMAIN) is not None

    await until(published, "the publication")

    assert not kill_once.exists()
    assert (await finished(backend, FIRST)).status is EvolutionStatus.published
    assert [stage for _, stage in worker.stages()].count("locate") == 1  # the stored version was not trained again
    await exactly_one_version(backend)


async def test_a_worker_that_slept_through_its_lease_publishes_nothing(
    backend: Backend, worker: WorkerProcess, evolver_settings: Settings
) -> None:
    await fill(backend)
    worker.start(stage_s=1)
    evolution = await started(backend, worker, "forget")
    sleepers = [psutil.Process(worker.pid), *worker.children()]
    for process in sleepers:
        process.suspend()

    other = WorkerProcess(evolver_settings)
    other.start()
    try:
        done = await finished(backend, evolution.id)
        for process in sleepers:
            process.resume()

        async def noticed() -> bool:
            return "evolution_taken_over" in worker.log or "lease_lost" in worker.log

        await until(noticed, "the sleeper's notice")
        await asyncio.sleep(2)
    finally:
        other.kill()
    assert await backend.evolutions.get(evolution.id) == done
    await exactly_one_version(backend)


async def test_sigterm_puts_the_run_back_and_leaves_no_process(backend: Backend, worker: WorkerProcess) -> None:
    await fill(backend)
    worker.start(stage_s=20)
    evolution = await started(backend, worker, "evaluate before")
    children = worker.children()

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert (await backend.evolutions.get(evolution.id)).status is EvolutionStatus.queued
    assert not await lease.is_held(backend.redis, DOMAIN)
    worker.start()
    assert (await finished(backend, evolution.id)).status is EvolutionStatus.published
    assert not await backend.redis.exists(DomainKeys(DOMAIN).enqueued(evolution.id))
    await exactly_one_version(backend)


async def test_an_idle_worker_stops_on_request(backend: Backend, worker: WorkerProcess) -> None:
    worker.start()

    async def ready() -> bool:
        return "worker_ready" in worker.log

    await until(ready, "the worker")
    worker.signal(signal.SIGINT)

    assert worker.wait() == 0


def test_a_worker_whose_metrics_port_is_taken_ends_and_says_so(redis: Redis, evolver_settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = WorkerProcess(evolver_settings.model_copy(update={"worker_metrics_port": port}), REAL_WORKER)
        worker.start()
        try:
            assert worker.wait() == 1
        finally:
            worker.kill()
    assert "worker_ready" not in worker.log
    for word in (str(port), "EVOREC_WORKER_METRICS_PORT", "in use", "set another port"):
        assert word in " ".join(worker.log.split())


async def test_a_worker_is_healthy_while_its_tick_goes_on(
    redis: Redis, worker: WorkerProcess, evolver_settings: Settings
) -> None:
    assert not await healthy_worker(evolver_settings)
    worker.start()
    await until(lambda: healthy_worker(evolver_settings), "the first tick's end")

    async def unhealthy() -> bool:
        return not await healthy_worker(evolver_settings)

    process = psutil.Process(worker.pid)
    process.suspend()
    await until(unhealthy, "the notice that nothing ticks")
    process.resume()
    await until(lambda: healthy_worker(evolver_settings), "the next tick's end")


async def test_the_health_check_as_a_command_fails_where_no_worker_ticks(
    redis: Redis, evolver_settings: Settings
) -> None:
    command = [sys.executable, "-m", "deploy.health", "worker"]
    env = {**os.environ, "EVOREC_REDIS_URL": str(evolver_settings.redis_url)}
    check = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (check.returncode, check.stdout) == (1, "")
    assert "no worker of this host has ended a tick lately" in check.stderr
