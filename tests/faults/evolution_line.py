"""A small domain that learns on real parts: a Redis of its own and real workers, with the real pipeline on the tiny
base or, where the training itself is not the point, the fast one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from evolver import lease
from evolver.backend import Backend, open_backend
from shared.artifacts import STAGING_PREFIX
from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.evolutions import Evolution, EvolutionStatus
from shared.manifest import Manifest
from shared.types import DomainId, EvolutionId, Interaction, Item, ItemId, UserId
from tests.conftest import make_settings
from tests.integration.evolver_support import FAKE_WORKER, REAL_WORKER, WorkerProcess, finished, until
from tests.tiny_base import WORDS, write_base, write_weights

SHOP: Final = DomainId("shop")
ITEMS: Final = tuple(
    Item(ItemId(f"item-{n}"), f"{WORDS[n % 7]} {WORDS[n // 7 % 7]} {n}", category=WORDS[n % 3]) for n in range(40)
)
N_USERS: Final = 150
N_BEFORE, N_NEW = 900, 300  # interactions of the bootstrap and of each window
TIMEOUT_S: Final = 240.0


def small_settings(folder: Path, *, weights: bool = True) -> Settings:
    """So small that an evolution takes seconds, so large that each of its stages can be seen and struck."""
    state = folder / "state"
    state.mkdir(exist_ok=True)
    base = write_base(folder / "base")
    return make_settings(
        state_dir=state,
        base_model=str(write_weights(base) if weights else base),
        lease_s=3,
        trigger_tick_s=0.5,
        evolve_min_interactions=N_NEW,
        panel_share=0.3,
        rank_candidates=8,
        max_train_examples=64,
        max_validation_users=8,
        retriever_epochs=2,
        retriever_window_epochs=30,
        update_epochs=3,
        train_threads=1,
    )


class Missed(AssertionError):
    """The evolution was not seen in the stage."""


class Line:
    """The domain `shop` and its line of versions."""

    def __init__(self, backend: Backend, redis: EmbeddedRedis, rng: random.Random, *, real: bool) -> None:
        self.backend = backend
        self.redis = redis
        self._command = REAL_WORKER if real else FAKE_WORKER
        self.worker = self.new_worker()
        self._rng = rng
        self._reached: float | None = None
        self._now = 1_700_000_000.0

    def new_worker(self, log: str = "worker.log") -> WorkerProcess:
        return WorkerProcess(self.backend.settings, self._command, log)

    async def interact(self, n: int = N_NEW) -> None:
        """As many purchases as make an evolution due."""
        events = []
        for _ in range(n):
            self._now += 60.0
            user, item = f"user-{self._rng.randrange(N_USERS)}", self._rng.choice(ITEMS)
            events.append(Interaction("", UserId(user), item.item_id, self._now))
        await self.backend.log.append(SHOP, events)

    async def begun(self) -> EvolutionId:
        """The evolution that the tick has created, once there is one."""

        async def there() -> bool:
            assert self.worker.running(), self.worker.log
            return await self.backend.evolutions.active(SHOP) is not None

        await until(there, "an evolution", TIMEOUT_S)
        active = await self.backend.evolutions.active(SHOP)
        assert active is not None
        return active.id

    async def reach(self, evolution_id: EvolutionId, stage: str) -> None:
        """Wait until an attempt at the evolution that was not waited for before is in the stage.

        Missed where it ended first: its record tells of stages twice a second alone.
        """

        async def there() -> bool:
            record = await self.backend.evolutions.get(evolution_id)
            if record.status.final:
                raise Missed(f"{evolution_id} ended before it was seen in {stage}: {record}\n{self.worker.log}")
            new = record.started_at != self._reached
            return record.status is EvolutionStatus.running and record.stage == stage and new

        await until(there, f"{evolution_id} in stage {stage}", TIMEOUT_S)
        self._reached = (await self.backend.evolutions.get(evolution_id)).started_at

    async def published(self, evolution_id: EvolutionId) -> Evolution:
        """The evolution's record once it has ended as it should."""
        done = await finished(self.backend, evolution_id, TIMEOUT_S)
        assert done.status is EvolutionStatus.published, f"{done}\n{self.worker.log}"
        return done

    async def new_versions(self, known: list[Manifest]) -> list[Manifest]:
        """What the registry has beyond `known`, oldest first."""
        return [manifest for manifest in await self.backend.registry.versions(SHOP) if manifest not in known]

    async def check(self, known: list[Manifest], done: Evolution) -> int:
        """All that must hold after the evolution, whatever happened to it; how many things were looked at.

        `known`: the versions before it.
        """
        await self.quiet()
        backend, registry, artifacts = self.backend, self.backend.registry, self.backend.artifacts
        (made,) = await self.new_versions(known)
        before = {0: known[-1].range_end[0] if known else "0-0"}
        tail = await backend.log.tail(SHOP)
        holds = {
            "the record names the version": done.adapter == made.name and made.evolution_id == done.id,
            "the version serves": await registry.champion(SHOP) == made.name,
            "its parent is the champion before it": made.parent == (known[-1].name if known else None),
            "it begins where that one ended": {0: made.stream_ranges[0][0]} == before,
            "the watermark is its end": await registry.watermark(SHOP) == made.range_end == tail,
            "considered is its end": await registry.considered(SHOP) == made.range_end,
            "no other version can be seen": artifacts.names(SHOP) == [m.name for m in [*known, made]],
            "its files match their checksums": artifacts.fetch(SHOP, made.name).is_dir(),
            "its manifest is the registry's": artifacts.manifest(SHOP, made.name) == made,
            "nothing staged is left": not self.staged(),
            "no attempt's files are left": not list((backend.settings.state_dir / "work").iterdir()),
            "no evolution runs": await backend.evolutions.active(SHOP) is None,
        }
        failed = [what for what, held in holds.items() if not held]
        assert not failed, f"{failed}: {done}, {made.name}\n{self.worker.log}"
        return len(holds) + 1  # and the lease

    async def quiet(self) -> None:
        """Wait until the lease is free: the last thing that a run does, after its record is final."""

        async def free() -> bool:
            return not await lease.is_held(self.backend.redis, SHOP)

        await until(free, "the lease")

    def staged(self) -> list[Path]:
        """What is being put into the artifact store."""
        return list(self.folder.glob(f"{STAGING_PREFIX}*"))

    @property
    def folder(self) -> Path:
        """The domain's artifacts."""
        return self.backend.artifacts.place / SHOP


@asynccontextmanager
async def open_line(
    folder: Path, rng: random.Random, *, real: bool = True, artifacts: Path | None = None
) -> AsyncIterator[Line]:
    """A domain with interactions for its bootstrap and a worker that is not started yet.

    `folder` should have a short name: a Redis whose socket's path is too long gets another one at each start.
    """
    settings = small_settings(folder, weights=real)
    if artifacts is not None:
        settings = settings.model_copy(update={"artifacts_url": str(artifacts)})
    redis = EmbeddedRedis(settings)
    await asyncio.to_thread(redis.start)
    try:
        async with open_backend(settings) as backend:
            await backend.catalog.put(SHOP, ITEMS)
            line = Line(backend, redis, rng, real=real)
            await line.interact(N_BEFORE)
            try:
                yield line
            finally:
                await asyncio.to_thread(line.worker.kill)
    finally:
        await asyncio.to_thread(redis.stop)
