"""Follows the registry: keeps the versions that it names loaded, and moves requests between them.

A new champion is fetched, verified, added to the engine and warmed while the old one answers; then new requests flip
to it in one assignment, running ones finish where they started, and only then is the old adapter removed.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.catalogs import Catalogs
from service.champion_changes import ChampionChanges
from service.engine_host import EngineHost
from service.metrics import Metrics
from service.ports import ServingVersion
from service.router import DomainRoute, choose
from service.slot_filling import SlotFiller
from service.slots import Readiness, Slot, Slots, SlotState
from shared.catalog import CatalogStore
from shared.changes import changes
from shared.config import Settings
from shared.registry import CHAMPION, Registry
from shared.retention import Retention
from shared.telemetry import described
from shared.types import AdapterName, DomainId, UserId

log = structlog.get_logger(__name__)

# Each needs a connection to Redis.
SYNCED_AT_ONCE = 64


class AdapterManager:
    """`service.ports.Versions` over the registry and the slots. One lock per domain."""

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        registry: Registry,
        retention: Retention,
        store: CatalogStore,
        catalogs: Catalogs,
        slots: Slots,
        filler: SlotFiller,
        host: EngineHost,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._registry = registry
        self._retention = retention
        self._store = store
        self._catalogs = catalogs
        self._slots = slots
        self._filler = filler
        self._host = host
        self._routes: dict[DomainId, DomainRoute] = {}
        self._wanted: dict[DomainId, DomainRoute] = {}
        self._changes = ChampionChanges(metrics, clock)
        self._locks: defaultdict[DomainId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wake = asyncio.Event()
        self._scheduled: set[DomainId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._syncing = asyncio.Semaphore(SYNCED_AT_ONCE)
        # Whose champion has to answer for this process to be ready: those of the start, and all that it has answered
        # for. A domain's first champion, or one that cannot be served, takes nothing from what it answered before.
        self._must_serve: set[DomainId] = set()
        self._listed = False
        host.on_change(self._wake.set)

    # -- answering --------------------------------------------------------------------------------

    @contextmanager
    def lease(self, domain: DomainId, user_id: UserId | None) -> Iterator[ServingVersion | None]:
        """The version that answers this user; it stays loaded until the block ends."""
        slot = self._slots.get(choose(self._routes.get(domain, DomainRoute()), user_id))
        if slot is None or slot.version is None:
            yield None
            return
        slot.enter()
        try:
            yield slot.version
        finally:
            slot.leave()

    def wanted(self, domain: DomainId) -> bool:
        """Whether the registry names a champion, one that is still loading or refused too."""
        return self._wanted.get(domain, DomainRoute()).champion is not None

    def champion(self, domain: DomainId) -> ServingVersion | None:
        """The champion that answers in this process."""
        slot = self._slots.get(self._routes.get(domain, DomainRoute()).champion)
        return None if slot is None else slot.version

    def readiness(self) -> Readiness:
        """Ready: the engine runs, and every champion is loaded and warmed (or has a predecessor that still serves).

        A domain's first champion does not count until it has answered: all replicas load it at the same time.
        """
        domains = {domain: self._standing(domain) for domain in sorted(self._must_serve | self._wanted.keys())}
        settled = all(domains[domain] in ("serving", "no_champion") for domain in self._must_serve)
        return Readiness(self._listed and settled and self._host.current is not None, domains)

    def _standing(self, domain: DomainId) -> str:
        if domain not in self._wanted:
            return "loading"
        wanted = self._wanted[domain].champion
        if wanted is None:
            return "no_champion"
        answering = self._routes[domain].champion if domain in self._routes else None
        if answering is not None and self._is_held(answering):
            return "serving"
        slot = self._slots.get(wanted)
        return "refused" if slot is not None and slot.state is SlotState.refused else "loading"

    def _is_held(self, name: AdapterName) -> bool:
        """Whether the engine that runs now, or ran last, holds the version."""
        slot = self._slots.get(name)
        return slot is not None and slot.state is SlotState.serving and slot.generation == self._host.generation

    # -- following --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: reacts to messages at once, and looks at every domain each `registry_poll_s`."""
        following = asyncio.create_task(self._follow(), name="registry-messages")
        try:
            while True:
                self._wake.clear()
                await self._schedule_all()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._settings.registry_poll_s)
        finally:
            pending = [following, *self._tasks]
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _follow(self) -> None:
        async for domain in changes(self._redis):
            self.schedule(domain)

    def schedule(self, domain: DomainId) -> None:
        """Looks at the domain soon; calls that come before that are one."""
        if domain not in self._scheduled:
            self._scheduled.add(domain)
            self._spawn(self._sync_scheduled(domain))

    async def _sync_scheduled(self, domain: DomainId) -> None:
        async with self._locks[domain]:
            pass  # whoever waits for the domain's running sync must not take a place meanwhile
        try:
            async with self._syncing:
                self._scheduled.discard(domain)
                await self.sync(domain)
        except Exception as error:
            log.warning("domain_not_synced", domain=domain, error=described(error))

    async def _schedule_all(self) -> None:
        """Waits for none: an artifact store that stalls for one domain must not stop the others."""
        try:
            domains = await self._store.domains()
        except Exception as error:
            log.warning("registry_unreachable", error=described(error))
            return
        if not self._listed:
            self._listed, self._must_serve = True, self._must_serve | set(domains)
        for domain in domains:
            self.schedule(domain)

    async def sync(self, domain: DomainId) -> None:
        """Brings this process in line with the registry."""
        async with self._locks[domain]:
            await self._catalogs.refresh(domain)
            route = await self._registry.route(domain)
            champion = (await self._registry.aliases(domain)).get(CHAMPION)
            before = self._wanted.get(domain, DomainRoute()).champion
            if champion is None and before is not None and await self._registry.lost(domain):
                return  # until it is rebuilt, what this process has goes on serving
            if champion != before:
                self._changes.wanted(domain)
            wanted = self._wanted[domain] = DomainRoute(champion, route.challenger, route.share)
            if champion is None:
                self._must_serve.discard(domain)
            else:
                await self._fill(domain, champion)
            answering = replace(wanted, champion=await self._servable_champion(domain, champion))
            self._flip(domain, answering)
            if wanted.challenger is not None and not self._champions_want_room():
                await self._fill(domain, wanted.challenger)
                self._flip(domain, answering)
            self._retire(domain)

    def _champions_want_room(self) -> bool:
        """Then what the engine has is theirs: a new one must not be filled with challengers first."""
        return any(
            standing == "loading" or (standing == "refused" and self._is_crowded_out(self._wanted[domain].champion))
            for domain, standing in self.readiness().domains.items()
        )

    def _is_crowded_out(self, name: AdapterName | None) -> bool:
        slot = self._slots.get(name)
        return slot is not None and slot.crowded_out

    async def _servable_champion(self, domain: DomainId, wanted: AdapterName | None) -> AdapterName | None:
        """The wanted champion; where this process refuses it, what serves already, else its nearest sound ancestor."""
        if wanted is None or self._slots.servable(wanted):
            return wanted
        serving = self._routes.get(domain, DomainRoute()).champion
        if serving is not None and serving != wanted:
            await self._fill(domain, serving)  # a new engine does not hold it yet
            if self._slots.servable(serving):
                return serving
        if self._is_crowded_out(wanted):
            return None  # where it has no place an ancestor has none, and must not take the next one that is free
        parents = {manifest.name: manifest.parent for manifest in await self._registry.versions(domain)}
        while (wanted := parents.get(wanted)) is not None:
            await self._fill(domain, wanted)
            if self._slots.servable(wanted):
                return wanted
        return None

    async def _fill(self, domain: DomainId, name: AdapterName) -> None:
        await self._filler.fill(self._slots.open(domain, name))

    # -- moving -----------------------------------------------------------------------------------

    def _flip(self, domain: DomainId, wanted: DomainRoute) -> None:
        """New requests go to what is wanted; a challenger that cannot be served gets none."""
        before = self._routes.get(domain, DomainRoute())
        champion = wanted.champion
        challenger = wanted.challenger
        if challenger is not None and not self._is_held(challenger):
            challenger = None
        self._routes[domain] = DomainRoute(champion, challenger, wanted.share)
        if champion is not None:
            self._must_serve.add(domain)
        if champion is not None and champion != before.champion:
            log.info("champion_flipped", domain=domain, adapter=champion, before=before.champion)
        self._changes.flipped(domain, before=before.champion, answering=champion, wanted=self._wanted[domain].champion)

    def _retire(self, domain: DomainId) -> None:
        route, wanted = self._routes[domain], self._wanted[domain]
        kept = route.names | wanted.names
        if route.champion is None and wanted.champion is not None:
            # Each sync looks at the refused ancestors again; their slots know when to try them.
            kept |= {slot.name for slot in self._slots.of(domain) if slot.state is SlotState.refused}
        for slot in self._slots.of(domain):
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
            await self._filler.empty(slot)
            self._slots.close(slot)
            log.info("adapter_unloaded", domain=slot.domain, adapter=slot.name)
            await self._drop_copies(slot.domain)

    async def _drop_copies(self, domain: DomainId) -> None:
        """Under the domain's lock: nothing of it is being fetched."""
        in_use = frozenset(slot.name for slot in self._slots.of(domain))
        try:
            await self._retention.drop_copies(domain, in_use)
        except (RedisError, OSError) as error:
            log.warning("copies_not_dropped", domain=domain, error=described(error))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
