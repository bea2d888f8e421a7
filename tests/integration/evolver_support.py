"""What the evolver's tests share: a small store's data, and a real worker process to start, stop and kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import psutil

from deploy.health import check_worker
from evolver.attempt import Surroundings
from evolver.backend import Backend
from evolver.evolve import evolve
from evolver.inputs import Pipeline
from shared.config import Settings
from shared.errors import Unavailable
from shared.evolutions import Evolution, EvolutionStatus
from shared.types import DomainId, EvolutionId, Interaction, Item, ItemId, UserId
from tests.integration.fake_pipeline import FakePipeline

DOMAIN: Final = DomainId("shop")
ITEMS: Final = tuple(Item(ItemId(f"item-{n}"), f"Thing number {n}") for n in range(10))
USERS: Final = tuple(UserId(f"user-{n}") for n in range(30))
_ROOT: Final = Path(__file__).parents[2]


def base_model_stub(folder: Path) -> Path:
    """A folder that has a base model's hash and nothing to run."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Stub"]}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


async def fill(
    backend: Backend, users: tuple[UserId, ...] = USERS, *, start: float = 1_000.0, event_type: str = "purchase"
) -> int:
    """Items, and two interactions of each user from `start` on; how many were accepted."""
    await backend.catalog.put(DOMAIN, ITEMS)
    events = [
        Interaction("", user, ITEMS[(number + turn) % len(ITEMS)].item_id, start + turn, event_type)
        for number, user in enumerate(users)
        for turn in range(2)
    ]
    return (await backend.log.append(DOMAIN, events)).accepted


async def run(
    backend: Backend, pipeline: Pipeline | None = None, *, force: bool = False, dry_run: bool = False
) -> Evolution:
    """One evolution in this process, from its creation to its end."""
    return await deliver(backend, await backend.evolutions.create(DOMAIN, force, dry_run), pipeline)


async def deliver(backend: Backend, evolution: Evolution, pipeline: Pipeline | None = None) -> Evolution:
    """An evolution from the queue, as the Celery task does it."""
    surroundings = Surroundings(pipeline=pipeline or FakePipeline())
    return await evolve(backend.settings, evolution.id, evolution.domain, surroundings)


async def nothing_published(backend: Backend) -> bool:
    return not await backend.registry.versions(DOMAIN) and not backend.artifacts.names(DOMAIN)


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float = 30.0) -> None:
    """Wait for the condition; fail naming what did not come true."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.05)


async def healthy_worker(settings: Settings) -> bool:
    """Whether the health check of a worker's container is content."""
    try:
        await asyncio.to_thread(check_worker, settings)
    except Unavailable:
        return False
    return True


async def finished(backend: Backend, evolution_id: EvolutionId, timeout_s: float = 30.0) -> Evolution:
    """The evolution's record once it has ended."""

    async def has_ended() -> bool:
        return (await backend.evolutions.get(evolution_id)).status.final

    await until(has_ended, f"end of {evolution_id}", timeout_s)
    return await backend.evolutions.get(evolution_id)


async def in_stage(backend: Backend, evolution_id: EvolutionId, stage: str, timeout_s: float = 30.0) -> None:
    """Wait until the evolution's record says that it is in the stage."""

    async def there() -> bool:
        evolution = await backend.evolutions.get(evolution_id)
        assert not evolution.status.final, f"{evolution_id} ended before {stage}: {evolution}"
        return evolution.status is EvolutionStatus.running and evolution.stage == stage

    await until(there, f"{evolution_id} in stage {stage}", timeout_s)


FAKE_WORKER: Final = ("-m", "tests.integration.evolver_worker")
REAL_WORKER: Final = ("-m", "deploy.cli.main", "worker")


class WorkerProcess:
    """A worker over the same Redis and state directory: with the fast pipeline, or `REAL_WORKER`."""

    def __init__(self, settings: Settings, command: Sequence[str] = FAKE_WORKER, log: str = "worker.log") -> None:
        self._settings = settings
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._log = settings.state_dir / log

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def stages(self) -> list[tuple[int, str]]:
        """(process, stage) of every stage that the fast pipeline has begun."""
        trace = self._settings.state_dir / "trace"
        lines = trace.read_text().splitlines() if trace.exists() else []
        return [(int(pid), stage) for pid, stage in (line.split(maxsplit=1) for line in lines)]

    def start(self, *, stage_s: float = 0.0, **env: str) -> None:
        changed = self._settings.model_dump(mode="json", exclude_defaults=True)
        environment = {
            **os.environ,
            **{f"EVOREC_{name.upper()}": str(value) for name, value in changed.items()},
            "FAKE_STAGE_S": str(stage_s),
            **env,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._command],
                cwd=_ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 60.0) -> int:
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self, children: Sequence[psutil.Process] | None = None) -> None:
        """SIGKILL to the worker alone: its children have to notice by themselves.

        To find them takes milliseconds: give them where the moment counts.
        """
        if self._process is None or self._process.poll() is not None:
            return
        children = self.children() if children is None else children
        self._process.kill()
        self._process.wait()
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive, f"left running: {alive}"
