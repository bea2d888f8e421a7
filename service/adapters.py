"""Follows the registry: keeps the versions that it names loaded, and moves requests between them.

A new champion is fetched, verified, added to the engine and warmed while the old one answers; then new requests flip
to it in one assignment, running ones finish where they started, and only then is the old adapter removed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import replace

import structlog
from redis.exceptions import RedisError

from service.catalogs import Catalogs
from service.champion_changes import ChampionChanges
from service.engine_host import EngineHost
from service.loading import VersionFiles, VersionLoader
from service.ports import CatalogSnapshot, EngineUnavailable, LoraHandle, RankingEngine, ServingVersion
from service.router import DomainRoute, choose
from service.slots import Readiness, Slot, SlotState
from service.store_guard import StoreGuard
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.errors import InvalidArtifact
from shared.metrics import Metrics
from shared.refusals import RefusalStore
from shared.registry import CHAMPION, Registry
from shared.types import AdapterName, DomainId, ItemId, UserId

log = structlog.get_logger(__name__)

# Every vocabulary has these ids; the answer does not matter.
WARM_PROMPT = tuple(range(16))
WARM_LABELS = (0, 1)
FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 60.0


class AdapterManager:
    """`service.ports.Versions` over the registry, the artifact store and the engine. One lock per domain."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        catalog: CatalogStore,
        host: EngineHost,
        load: VersionLoader,
        metrics: Metrics,
        guard: StoreGuard,
        refusals: RefusalStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._store = catalog
        self._host = host
        self._load = load
        self._metrics = metrics
        self._refusals = refusals
        self._clock = clock
        self._slots: dict[AdapterName, Slot] = {}
        self._routes: dict[DomainId, DomainRoute] = {}
        self._wanted: dict[DomainId, DomainRoute] = {}
        self._changes = ChampionChanges(metrics, clock)
        self._catalogs = Catalogs(catalog, guard, settings.store_timeout_ms / 1000, prepare=self._reindexed)
        self._locks: defaultdict[DomainId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._lora_ids: dict[AdapterName, int] = {}
        self._next_id = itertools.count(1)
        self._wake = asyncio.Event()
        self._scheduled: set[DomainId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._synced = False
        host.on_change(self._wake.set)

    # -- answering --------------------------------------------------------------------------------

    async def catalog(self, domain: DomainId, named: Set[ItemId] = frozenset()) -> CatalogSnapshot:
        return await self._catalogs.get(domain, named)

    async def refresh_catalog(self, domain: DomainId) -> None:
        """Has this process know the newest catalog at once."""
        await self._catalogs.refresh(domain)

    @contextmanager
    def lease(self, domain: DomainId, user_id: UserId | None) -> Iterator[ServingVersion | None]:
        """The version that answers this user; it stays loaded until the block ends."""
        name = choose(self._routes.get(domain, DomainRoute()), user_id)
        slot = None if name is None else self._slots.get(name)
        if slot is None or slot.version is None:
            yield None
            return
        slot.enter()
        try:
            yield slot.version
        finally:
            slot.leave()

    def champion(self, domain: DomainId) -> ServingVersion | None:
        """The champion that answers in this process."""
        name = self._routes.get(domain, DomainRoute()).champion
        return None if name is None or name not in self._slots else self._slots[name].version

    def slots(self, domain: DomainId) -> list[Slot]:
        """What this process holds of the domain, for people."""
        return sorted((slot for slot in self._slots.values() if slot.domain == domain), key=lambda slot: slot.name)

    def readiness(self) -> Readiness:
        """Ready: the engine runs, and every champion is loaded and warmed (or has a predecessor that still serves)."""
        domains = {domain: self._standing(domain) for domain in sorted(self._wanted)}
        settled = all(standing in ("serving", "no_champion") for standing in domains.values())
        return Readiness(self._synced and settled and self._host.current is not None, domains)

    def _standing(self, domain: DomainId) -> str:
        wanted = self._wanted[domain].champion
        if wanted is None:
            return "no_champion"
        answering = self._routes[domain].champion if domain in self._routes else None
        held = None if answering is None else self._slots.get(answering)
        if held is not None and held.state is SlotState.serving and held.generation == self._host.generation:
            return "serving"
        slot = self._slots.get(wanted)
        return "refused" if slot is not None and slot.state is SlotState.refused else "loading"

    # -- following --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: reacts to messages at once, and looks at every domain each `registry_poll_s`."""
        following = asyncio.create_task(self._follow(), name="registry-messages")
        try:
            while True:
                self._wake.clear()
                await self._sync_all()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._settings.registry_poll_s)
        finally:
            pending = [following, *self._tasks]
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _follow(self) -> None:
        async for domain in self._registry.subscribe():
            self.schedule(domain)

    def schedule(self, domain: DomainId) -> None:
        """Looks at the domain soon; calls that come before that are one."""
        if domain not in self._scheduled:
            self._scheduled.add(domain)
            self._spawn(self._sync_scheduled(domain))

    async def _sync_scheduled(self, domain: DomainId) -> None:
        async with self._locks[domain]:
            self._scheduled.discard(domain)
        await self._sync_logged(domain)

    async def _sync_all(self) -> None:
        try:
            domains = await self._store.domains()
        except Exception as error:
            log.warning("registry_unreachable", error=repr(error))
            return
        done = await asyncio.gather(*(self._sync_logged(domain) for domain in domains))
        self._synced = self._synced or all(done)

    async def _sync_logged(self, domain: DomainId) -> bool:
        """One domain's trouble must not stop the others."""
        try:
            await self.sync(domain)
        except Exception as error:
            log.warning("domain_not_synced", domain=domain, error=repr(error))
            return False
        return True

    async def sync(self, domain: DomainId) -> None:
        """Brings this process in line with the registry."""
        async with self._locks[domain]:
            await self._catalogs.refresh(domain)
            route = await self._registry.route(domain)
            champion = (await self._registry.aliases(domain)).get(CHAMPION)
            if champion != self._wanted.get(domain, DomainRoute()).champion:
                self._changes.wanted(domain)
            wanted = self._wanted[domain] = DomainRoute(champion, route.challenger, route.share)
            for name in sorted(wanted.names):
                await self._ensure(domain, name)
            self._flip(domain, replace(wanted, champion=await self._servable_champion(domain, champion)))
            self._retire(domain)

    async def _reindexed(self, catalog: CatalogSnapshot) -> Callable[[], None]:
        """Indexes over a new catalog for every loaded version; catalog and indexes change together."""
        stale = [slot for slot in self._slots.values() if slot.domain == catalog.domain and slot.files is not None]
        items = list(catalog.items.values())
        indexes = [await asyncio.to_thread(slot.files.make_index, items) for slot in stale if slot.files]

        def put_in_place() -> None:
            for slot, index in zip(stale, indexes, strict=True):
                if slot.version is not None:
                    slot.version = replace(slot.version, catalog=catalog, index=index)

        return put_in_place

    async def _servable_champion(self, domain: DomainId, wanted: AdapterName | None) -> AdapterName | None:
        """The wanted champion; where this process refuses it, what serves already, else its nearest sound ancestor."""
        if wanted is None or self._slots[wanted].servable:
            return wanted
        serving = self._routes.get(domain, DomainRoute()).champion
        if serving is not None and serving != wanted:
            await self._ensure(domain, serving)  # a new engine does not hold it yet
            if self._slots[serving].servable:
                return serving
        parents = {manifest.name: manifest.parent for manifest in await self._registry.versions(domain)}
        while (wanted := parents.get(wanted)) is not None:
            await self._ensure(domain, wanted)
            if self._slots[wanted].servable:
                return wanted
        return None

    # -- loading ----------------------------------------------------------------------------------

    async def _ensure(self, domain: DomainId, name: AdapterName) -> None:
        slot = self._slots.setdefault(name, Slot(name, domain))
        if slot.state is SlotState.refused and self._clock() < slot.retry_at:
            return
        try:
            if slot.version is None:
                await self._load_files(slot)
            await self._load_lora(slot)
        except Exception as error:
            await self._refuse(slot, error)

    async def _load_files(self, slot: Slot) -> None:
        slot.state = SlotState.fetching
        files = await asyncio.to_thread(self._load, slot.domain, slot.name)
        if files.manifest != await self._registry.manifest(slot.domain, slot.name):
            raise InvalidArtifact(f"adapter {slot.name}: its manifest is not the one that was published")
        async with self._catalogs.unchanging(slot.domain) as catalog:
            index = await asyncio.to_thread(files.make_index, list(catalog.items.values()))
            slot.files = files
            slot.version = ServingVersion(
                name=slot.name,
                domain=slot.domain,
                lora=self._handle(slot.name, files),
                blend=files.manifest.blend,
                forgotten=files.forgotten,
                catalog=catalog,
                index=index,
            )

    def _handle(self, name: AdapterName, files: VersionFiles) -> LoraHandle:
        """A version keeps its id: the same name under two ids in one batch kills the engine."""
        if name not in self._lora_ids:
            self._lora_ids[name] = next(self._next_id)
        return LoraHandle(self._lora_ids[name], name, files.folder)

    async def _load_lora(self, slot: Slot) -> None:
        engine, generation = self._host.current, self._host.generation
        if engine is None or slot.version is None:
            slot.state = SlotState.waiting
            return
        if slot.generation != generation:
            try:
                await self._add_and_warm(engine, slot, slot.version.lora)
            except EngineUnavailable:
                slot.state = SlotState.waiting
                return
            slot.generation = generation
            loaded = self._metrics.adapter_loaded.labels(slot.domain, slot.name)
            loaded.set_function(lambda: self._held(slot))  # an engine that dies unloads nothing
            with suppress(RedisError, OSError):  # a process before this one may have refused it as well
                await self._refusals.clear(slot.domain, slot.name)
        slot.state, slot.refusal, slot.failures = SlotState.serving, None, 0

    def _held(self, slot: Slot) -> bool:
        """Whether the engine that runs now holds the version."""
        return self._host.current is not None and slot.generation == self._host.generation

    async def _add_and_warm(self, engine: RankingEngine, slot: Slot, lora: LoraHandle) -> None:
        slot.state = SlotState.loading
        try:
            await engine.add_adapter(lora)
            slot.state = SlotState.warming
            await engine.rank(WARM_PROMPT, WARM_LABELS, lora)
        except BaseException:
            await engine.remove_adapter(lora)
            raise

    async def _refuse(self, slot: Slot, error: Exception) -> None:
        slot.state, slot.refusal = SlotState.refused, str(error) or repr(error)
        slot.retry_at = self._clock() + min(FIRST_RETRY_S * 2**slot.failures, LONGEST_RETRY_S)
        slot.failures += 1
        self._metrics.adapter_refusals.labels(slot.domain, type(error).__name__).inc()
        log.error("adapter_refused", domain=slot.domain, adapter=slot.name, reason=slot.refusal)
        with suppress(RedisError, OSError):  # the log and the metric have it
            await self._refusals.note(slot.domain, slot.name, slot.refusal)

    # -- moving -----------------------------------------------------------------------------------

    def _flip(self, domain: DomainId, wanted: DomainRoute) -> None:
        """New requests go to what is wanted; a challenger that cannot be served gets none."""
        before = self._routes.get(domain, DomainRoute())
        champion = wanted.champion
        challenger = wanted.challenger
        if challenger is not None and not self._slots[challenger].servable:
            challenger = None
        self._routes[domain] = DomainRoute(champion, challenger, wanted.share)
        if champion is not None and champion != before.champion:
            log.info("champion_flipped", domain=domain, adapter=champion, before=before.champion)
        self._changes.flipped(domain, before=before.champion, answering=champion, wanted=self._wanted[domain].champion)

    def _retire(self, domain: DomainId) -> None:
        route, wanted = self._routes[domain], self._wanted[domain]
        kept = route.names | wanted.names
        if route.champion is None and wanted.champion is not None:
            # Each sync looks at the refused ancestors again; their slots know when to try them.
            kept |= {slot.name for slot in self.slots(domain) if slot.state is SlotState.refused}
        for slot in self.slots(domain):
            if slot.name in kept or slot.state is SlotState.draining:
                continue
            slot.state = SlotState.draining
            if slot.in_flight == 0:
                slot.idle.set()
            self._spawn(self._drain(slot))

    async def _drain(self, slot: Slot) -> None:
        await slot.idle.wait()
        async with self._locks[slot.domain]:
            # Meanwhile it may be wanted again: a rollback.
            if slot.state is not SlotState.draining or slot.in_flight or self._slots.get(slot.name) is not slot:
                return
            engine = self._host.current
            if engine is not None and slot.version is not None:
                await engine.remove_adapter(slot.version.lora)
            del self._slots[slot.name]
            with suppress(KeyError):
                self._metrics.adapter_loaded.remove(slot.domain, slot.name)
            log.info("adapter_unloaded", domain=slot.domain, adapter=slot.name)
            await self._drop_copies(slot.domain)

    async def _drop_copies(self, domain: DomainId) -> None:
        """Under the domain's lock: nothing of it is being fetched."""
        in_use = frozenset(slot.name for slot in self.slots(domain))
        try:
            await self._registry.drop_copies(domain, in_use)
        except (RedisError, OSError) as error:
            log.warning("copies_not_dropped", domain=domain, error=repr(error))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
