"""Promise 1: an accepted interaction is never lost and counts once, whoever is killed while it comes in."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from shared.catalog import CatalogStore
from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.redis_client import connect
from shared.redis_urls import redis_folder
from shared.stream import InteractionLog
from shared.types import Interaction
from tests.conftest import make_settings
from tests.factories import BEAUTY, interaction
from tests.faults.conftest import Tell
from tests.faults.kept import check_consistent, lost_or_doubled, read_back
from tests.faults.numbered import NumberedStream
from tests.faults.processes import FAKE_ENGINE, RedisProcess, ServiceProcess, machine
from tests.integration.evolver_support import WorkerProcess
from tests.service_support import ITEMS, SHOP

CLIENTS = 6
REAL_COMMAND = "service.main"


class Crew:
    """The processes of one machine, and what strikes them."""

    def __init__(self, settings: Settings, module: str, rng: random.Random) -> None:
        self._rng = rng
        self._settings = settings
        self.redis = RedisProcess(settings)
        self.service = ServiceProcess(settings, module)
        self.worker = WorkerProcess(settings)
        self.done: Counter[str] = Counter()
        self.faults: dict[str, Callable[[], None]] = {
            "service killed": self._kill_service,
            "worker killed": self._kill_worker,
            "Redis killed": self._kill_redis,
            "Redis stopped": self._stop_redis,
        }

    async def start(self) -> None:
        self.redis.start()
        async with connect(self._settings) as client:
            await CatalogStore(client).put(SHOP, ITEMS)
        self.service.start()
        self._start_worker()
        await self.service.listening()

    def _start_worker(self) -> None:
        self.worker.start(EVOREC_PARTITIONS=str(self._settings.partitions))

    async def strike_as_they_come_in(self, stream: NumberedStream, faults: Sequence[str]) -> None:
        """Each fault at a random moment of the stream's way; several may fall together."""
        moments = sorted(self._rng.uniform(0.02, 0.95) * stream.total for _ in faults)
        for moment, fault in zip(moments, faults, strict=True):
            while len(stream.sent.answered) < moment:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.to_thread(self.faults[fault])
            self.done[fault] += 1

    def _kill_service(self) -> None:
        self.service.kill()
        self.service.start()

    def _kill_worker(self) -> None:
        self.worker.kill()
        self._start_worker()

    def _kill_redis(self) -> None:
        self.redis.kill()
        self.redis.start()

    def _stop_redis(self) -> None:
        self.redis.signal(signal.SIGSTOP)
        try:
            # Beyond what the clients wait for an answer, now and then.
            time.sleep(self._rng.choice((0.05, 0.3, 1.0, 6.0)))
        finally:
            self.redis.signal(signal.SIGCONT)

    def end(self) -> None:
        self.service.kill()
        self.worker.kill()
        self.redis.kill()


def plan(full: bool, rng: random.Random, module: str) -> list[str]:
    scale = {"service killed": 1, "worker killed": 1, "Redis killed": 4, "Redis stopped": 2}
    if full:
        rare = 4 if module == REAL_COMMAND else 8
        scale = {"service killed": rare, "worker killed": 5, "Redis killed": 20, "Redis stopped": 8}
    faults = [fault for fault, count in scale.items() for _ in range(count)]
    rng.shuffle(faults)
    return faults


@pytest.mark.parametrize(
    ("partitions", "module"), [(1, FAKE_ENGINE), (3, FAKE_ENGINE), (1, REAL_COMMAND)], ids=["one", "three", "vllm"]
)
@pytest.mark.timeout(1800)
async def test_accepted_interactions_survive_kills(
    full: bool, rng: random.Random, outcome: Tell, partitions: int, module: str
) -> None:
    if module == REAL_COMMAND and not full:
        pytest.skip("the real engine's starts take minutes: with FAULTS=full")
    total, users = (100_000, 1_000) if full else (3_000, 50)
    changes = {} if module == FAKE_ENGINE else {"base_model": Settings(_env_file=None).base_model}
    with machine(partitions=partitions, evolve_min_interactions=200, **changes) as settings:
        crew, stream = Crew(settings, module, rng), NumberedStream(total, users, rng)
        try:
            await crew.start()
            faults = plan(full, rng, module)
            async with asyncio.TaskGroup() as group:
                group.create_task(stream.send_all(crew.service.connect, CLIENTS))
                group.create_task(crew.strike_as_they_come_in(stream, faults))
            # Whatever is still on its way to Redis arrives or ends with the service.
            crew.service.kill()
            async with connect(settings) as client:
                kept = await read_back(client, settings)
        finally:
            crew.end()
    check_consistent(kept, settings)
    sent = stream.sent
    assert sent.answered.isdisjoint(sent.abandoned)
    assert len(sent.answered) + len(sent.abandoned) == total
    # A lost answer hides that its events were accepted: the next one calls them duplicates.
    assert sent.accepted <= len(kept.stream)
    outcome(
        1,
        f"Each accepted interaction is once in stream, history and popularity ({partitions} partitions, `{module}`)",
        faults={**crew.done, "requests retried": sent.retries + sent.shed, "clients that hung up": len(sent.abandoned)},
        cases=len(sent.answered),
        lost=lost_or_doubled(kept, stream),
    )


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_log_cut_anywhere_is_repaired_by_the_retry(
    tmp_path: Path, full: bool, rng: random.Random, outcome: Tell, partitions: int
) -> None:
    """Redis dies while it writes a batch down: its file ends anywhere in the batch, and the client retries."""
    whole = make_settings(state_dir=tmp_path / "whole", partitions=partitions)
    before = [interaction(f"u{n % 7}", f"i{n % 3}", at=n, event_id=f"before-{n}") for n in range(20)]
    batch = [interaction(f"u{n % 7}", f"i{n % 3}", at=-n, event_id=f"batch-{n}") for n in range(20)]
    first, last = await _written(whole, before), await _written(whole, batch)
    cuts = sorted(rng.sample(range(first, last), min(last - first, 600 if full else 25)))
    partial = wrong = 0
    for number, cut in enumerate(cuts):
        damaged = make_settings(state_dir=tmp_path / f"cut-{number}", partitions=partitions)
        shutil.copytree(redis_folder(whole), redis_folder(damaged), ignore=shutil.ignore_patterns("*.sock", "lock"))
        with _aof(damaged).open("r+b") as file:
            file.truncate(cut)
        with EmbeddedRedis(damaged):
            async with connect(damaged) as client:
                left = await read_back(client, damaged, BEAUTY)
                check_consistent(left, damaged)
                appended = await InteractionLog(client, damaged).append(BEAUTY, batch)
                kept = await read_back(client, damaged, BEAUTY)
        check_consistent(kept, damaged)
        partial += len(before) < len(left.stream) < len(before) + len(batch)
        assert appended.duplicates == len(left.stream) - len(before)
        found = Counter(event.event_id for event in kept.stream)
        wrong += found != Counter(event.event_id for event in [*before, *batch])
        shutil.rmtree(damaged.state_dir)
    assert (partial > 0) == (partitions > 1), "a script's effects are there as a whole, those of other partitions not"
    outcome(
        1,
        f"Where Redis's file ends within a batch, a retry adds what is missing, once ({partitions} partitions)",
        faults={"file cut": len(cuts), "batch there in part": partial},
        cases=len(cuts) * (len(before) + len(batch)),
        lost=wrong,
    )


def _aof(settings: Settings) -> Path:
    return redis_folder(settings) / "appendonly.aof"


async def _written(settings: Settings, events: Sequence[Interaction]) -> int:
    """Size of the append-only file once the events are appended."""
    server = EmbeddedRedis(settings)
    server.start()
    async with connect(settings) as client:
        await InteractionLog(client, settings).append(BEAUTY, events)
    server.stop()
    return _aof(settings).stat().st_size
