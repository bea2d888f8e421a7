"""Promise 2: pauses, a Redis that goes away, a training process that dies, messages that come twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial

import psutil
import pytest

from evolver import tasks
from evolver.attempt import MAX_ATTEMPTS, Surroundings
from evolver.monitor import MAX_RUN_S
from evolver.worker import HARD_TIME_LIMIT_S, VISIBILITY_TIMEOUT_S, create_app
from shared.evolutions import EvolutionStatus
from shared.redis_keys import DomainKeys
from tests.faults.conftest import Tell
from tests.faults.evolution_line import SHOP, TIMEOUT_S, Line, Missed, open_line
from tests.integration.evolver_support import WorkerProcess, finished, until

LEARNING = ("evaluate before", "locate", "forget", "update", "evaluate")


@pytest.fixture
async def line(tmp_path_factory: pytest.TempPathFactory, rng: random.Random, full: bool) -> AsyncIterator[Line]:
    """With the real pipeline at full size: what is broken here is never the training."""
    async with open_line(tmp_path_factory.mktemp("line"), rng, real=full) as line:
        yield line


async def test_a_paused_worker_that_wakes_up_late_changes_nothing(
    line: Line, full: bool, rng: random.Random, outcome: Tell
) -> None:
    checked = paused = 0
    for stage in rng.sample(LEARNING, 5 if full else 1):
        known = await line.backend.registry.versions(SHOP)
        line.worker = line.new_worker(f"sleeper-{stage}.log")
        line.worker.start(stage_s=1.5)
        evolution_id = await line.begun()
        await line.reach(evolution_id, stage)
        sleepers = suspended(line.worker)
        successor = line.new_worker()
        successor.start()
        try:
            done = await line.published(evolution_id)
            for process in sleepers:
                process.resume()
            await until(partial(gone, sleepers[1]), "the end of the sleeper's run", TIMEOUT_S)
            assert "lease_lost" in line.worker.log
            assert await line.backend.evolutions.get(evolution_id) == done
            checked += 1 + await line.check(known, done)
            paused += 1
        finally:
            await asyncio.to_thread(line.worker.kill)
            await asyncio.to_thread(successor.kill)
        await line.interact()

    outcome(
        2,
        "a worker paused past its lease publishes nothing when it wakes up: its successor's version is the one",
        faults={"worker and its child stopped past the lease": paused},
        cases=checked,
    )


async def test_a_redis_that_goes_away_costs_time_alone(
    line: Line, full: bool, rng: random.Random, outcome: Tell
) -> None:
    checked = killed = stopped = 0
    line.worker.start(stage_s=1.5)
    for stage in rng.sample(LEARNING, 5 if full else 1):
        for kill in (True, False):
            known = await line.backend.registry.versions(SHOP)
            evolution_id = await line.begun()
            await line.reach(evolution_id, stage)
            if kill:
                await asyncio.to_thread(restarted, line)
                killed += 1
            else:
                await paused_redis(line, line.backend.settings.lease_s + 1.0)
                stopped += 1
            checked += await line.check(known, await line.published(evolution_id))
            await line.interact()

    outcome(
        2,
        "an evolution outlives Redis killed and restarted, or silent for longer than the lease: one version",
        faults={"Redis killed and restarted": killed, "Redis stopped past the lease": stopped},
        cases=checked,
    )


async def test_a_killed_training_process_is_redone_and_given_up_in_the_end(
    line: Line, full: bool, outcome: Tell
) -> None:
    """As the kernel does it when memory runs out: the parent lives, and its message is acknowledged."""
    known = await line.backend.registry.versions(SHOP)
    line.worker.start(stage_s=1.5)
    evolution_id = await line.begun()
    killed = 0
    # Stages that a bootstrap spends some time in, the longest one first; the other may pass unseen.
    for stage in ("update", "evaluate")[: MAX_ATTEMPTS - 1 if full else 1]:
        with suppress(Missed):
            await line.reach(evolution_id, stage)
            await child_killed(line)
            killed += 1
    assert killed, "the training process was never seen at work"
    checked = await line.check(known, await line.published(evolution_id))

    await line.interact()
    second = await line.begun()
    known = await line.backend.registry.versions(SHOP)
    for _ in range(MAX_ATTEMPTS):
        await line.reach(second, "locate")
        await child_killed(line)
        killed += 1
    failed = await finished(line.backend, second, TIMEOUT_S)
    assert failed.status is EvolutionStatus.failed
    assert failed.error == (
        "gave up after 3 attempts: the worker died in each (out of memory?); the last stage was locate"
    )
    assert await line.backend.registry.versions(SHOP) == known
    assert line.backend.artifacts.names(SHOP) == [manifest.name for manifest in known]
    outcome(
        2,
        "a training process that is killed is redone; after three attempts the run has failed and says why",
        faults={"training process killed, its parent alive": killed},
        cases=checked + 4,
    )


async def test_a_message_delivered_again_does_nothing_again(line: Line, outcome: Tell) -> None:
    """Together at the start, and again after the end."""
    evolution = await line.backend.evolutions.create(SHOP)
    app = create_app(line.backend.settings, Surroundings())
    enqueue = tasks.enqueuer(app)
    for _ in range(2):
        enqueue(evolution.id, SHOP)
    line.worker.start(stage_s=0.2)
    done = await line.published(evolution.id)
    enqueue(evolution.id, SHOP)
    app.close()
    await said(line.worker, "evolution_already_finished", times=2)

    assert await line.backend.evolutions.get(evolution.id) == done
    assert int(await line.backend.redis.get(DomainKeys(SHOP).fence) or 0) == 1
    outcome(
        2,
        "a task that is delivered again, beside its run or after it, does nothing again",
        faults={"message delivered again": 2},
        cases=2 + await line.check([], done),
    )


async def test_what_celery_is_told(line: Line) -> None:
    """Acknowledge late, hold one message, redeliver only when a run must have ended: the tick recovers sooner."""
    app = create_app(line.backend.settings, Surroundings())
    assert app.conf.task_acks_late
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.task_time_limit == HARD_TIME_LIMIT_S > MAX_RUN_S
    assert app.conf.broker_transport_options["visibility_timeout"] == VISIBILITY_TIMEOUT_S > HARD_TIME_LIMIT_S
    # A message whose child died is acknowledged: put back at once, it would only find the dead child's lease.
    assert not app.conf.task_reject_on_worker_lost
    assert app.conf.accept_content == ["json"]


def suspended(worker: WorkerProcess) -> Sequence[psutil.Process]:
    """The worker and its children, stopped."""
    processes = [psutil.Process(worker.pid), *worker.children()]
    for process in processes:
        process.suspend()
    return processes


async def gone(process: psutil.Process) -> bool:
    return not process.is_running()


async def said(worker: WorkerProcess, event: str, times: int = 1) -> None:
    """Wait until the worker has logged the event."""

    async def logged() -> bool:
        return worker.log.count(event) >= times

    await until(logged, f"{event} in the log", TIMEOUT_S)


def restarted(line: Line) -> None:
    """SIGKILL to Redis, and a new one on its files."""
    assert line.redis.pid is not None
    os.kill(line.redis.pid, signal.SIGKILL)
    line.redis.stop()
    line.redis.start()


async def paused_redis(line: Line, seconds: float) -> None:
    """SIGSTOP to Redis for a while."""
    assert line.redis.pid is not None
    process = psutil.Process(line.redis.pid)
    process.suspend()
    try:
        await asyncio.sleep(seconds)
    finally:
        process.resume()


async def child_killed(line: Line) -> None:
    """SIGKILL to the process that trains; return once it is gone and its parent has another one."""
    (child,) = line.worker.children()
    child.kill()

    async def replaced() -> bool:
        return [process.pid for process in line.worker.children()] not in ([], [child.pid])

    await until(replaced, "a new child", TIMEOUT_S)
    assert line.worker.running()
