"""The service's follower of the registry, sync by sync, over a fake engine; time is the test's."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis

from service.adapters import AdapterManager
from service.catalogs import Catalogs
from service.engine_host import EngineHost
from service.loading import ArtifactLoader, VersionFiles
from service.metrics import Metrics
from service.refusals import RefusalStore
from service.slot_filling import SlotFiller
from service.slots import Readiness, Slots, SlotState
from service.store_guard import StoreGuard
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.registry import Registry
from shared.types import AdapterName, DomainId
from tests.service_support import SHOP, Engines, Publisher


@dataclass
class Follower:
    """A manager whose syncs a test asks for. `loads` counts how often each version was fetched and checked."""

    settings: Settings
    redis: Redis
    now: float = 0.0
    engines: Engines = field(default_factory=Engines)
    loads: Counter[AdapterName] = field(default_factory=Counter)
    before_load: Callable[[DomainId, AdapterName], None] = lambda domain, name: None

    def __post_init__(self) -> None:
        self.publisher = Publisher(self.redis, self.settings)
        self.metrics = Metrics()
        self.host = EngineHost(self.engines, self.settings)
        self._loader = ArtifactLoader(self.settings, self.publisher.artifacts)
        self.slots = Slots()
        registry, store = Registry(self.redis, self.publisher.artifacts), CatalogStore(self.redis)
        self.catalogs = Catalogs(store, StoreGuard(5.0, self.metrics), 5.0, prepare=self.slots.reindexed)
        filler = SlotFiller(
            registry, self.catalogs, self.host, self._load, self.metrics, RefusalStore(self.redis), self._clock
        )
        self.manager = AdapterManager(
            self.settings,
            self.redis,
            registry,
            self.publisher.retention,
            store,
            self.catalogs,
            self.slots,
            filler,
            self.host,
            self.metrics,
            self._clock,
        )

    def _clock(self) -> float:
        return self.now

    def _load(self, domain: DomainId, name: AdapterName) -> VersionFiles:
        self.loads[name] += 1
        self.before_load(domain, name)
        return self._loader(domain, name)

    def states(self) -> dict[AdapterName, SlotState]:
        return {slot.name: slot.state for slot in self.slots.of(SHOP)}

    def swaps(self) -> dict[str, float]:
        counts = {outcome: self.figure("adapter_swaps_total", outcome=outcome) for outcome in ("ok", "failed")}
        return {outcome: count for outcome, count in counts.items() if count}

    def figure(self, name: str, **labels: str) -> float | None:
        """A metric's value; None where it has none."""
        return self.metrics.registry.get_sample_value(f"evorec_{name}", {"domain": SHOP, **labels})


@asynccontextmanager
async def following(settings: Settings, redis: Redis) -> AsyncIterator[Follower]:
    """One whose engine runs."""
    follower = Follower(settings, redis)
    hosting = asyncio.create_task(follower.host.run())
    await until(lambda: follower.host.current is not None)
    yield follower
    hosting.cancel()
    await asyncio.gather(hosting, return_exceptions=True)
    await follower.host.close()


@asynccontextmanager
async def running(follower: Follower) -> AsyncIterator[Callable[[], Readiness]]:
    """It follows by itself; whether it is ready."""
    task = asyncio.create_task(follower.manager.run())
    yield follower.manager.readiness
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def waiting_for(event: threading.Event, stalled: DomainId) -> Callable[[DomainId, AdapterName], None]:
    """An artifact store that has nothing of one domain until then."""

    def before_load(domain: DomainId, version: AdapterName) -> None:
        if domain == stalled:
            event.wait(60)

    return before_load


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
