"""The domains' catalogs as this process knows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from service.ports import CatalogSnapshot
from service.store_guard import StoreAway, StoreGuard
from shared.catalog import CatalogStore
from shared.errors import Unavailable, UnknownDomain
from shared.types import DomainId, ItemId

Prepare = Callable[[CatalogSnapshot], Awaitable[Callable[[], None]]]
"""Makes what depends on a new catalog; the function that it returns puts it in place, in one step with the catalog."""


class Catalogs:
    """Snapshots of the catalogs, read anew where their versions have changed. One lock per domain."""

    def __init__(self, store: CatalogStore, guard: StoreGuard, timeout_s: float, prepare: Prepare) -> None:
        self._store = store
        self._guard = guard
        self._timeout_s = timeout_s
        self._prepare = prepare
        self._snapshots: dict[DomainId, CatalogSnapshot] = {}
        # Of those that somebody holds or waits for: callers may name any number of domains that do not exist.
        self._locks: WeakValueDictionary[DomainId, asyncio.Lock] = WeakValueDictionary()

    async def get(self, domain: DomainId, named: Set[ItemId] = frozenset()) -> CatalogSnapshot:
        """The domain's catalog, read anew where it lacks one of `named`.

        UnknownDomain where there is none, Unavailable where it cannot be read in time.
        """
        current = self._snapshots.get(domain)
        if current is None or not named <= current.items.keys():
            current = await self._read_in_time(domain)
        if current is None:
            raise UnknownDomain(f"there is no domain {domain!r}; PUT /items creates it")
        return current

    async def _read_in_time(self, domain: DomainId) -> CatalogSnapshot | None:
        if self._guard.away:
            raise StoreAway("the data store cannot be reached")
        # A large catalog takes longer than a caller waits; it is read to the end all the same.
        reading = asyncio.ensure_future(self.refresh(domain))
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(reading)
        except TimeoutError as error:
            raise Unavailable(f"the catalog of domain {domain!r} is being read; ask again in a moment") from error

    async def refresh(self, domain: DomainId) -> CatalogSnapshot | None:
        """The catalog, read anew if it has changed; None where there is none."""
        async with self._lock(domain):
            version = await self._store.version(domain)
            current = self._snapshots.get(domain)
            if version == 0 or (current is not None and current.version == version):
                return current
            items = await self._store.all(domain)
            fresh = CatalogSnapshot(domain, version, {item.item_id: item for item in items})
            put_in_place = await self._prepare(fresh)
            self._snapshots[domain] = fresh
            put_in_place()
            return fresh

    @asynccontextmanager
    async def unchanging(self, domain: DomainId) -> AsyncIterator[CatalogSnapshot]:
        """The catalog, which stays the newest one for the block. UnknownDomain where there is none."""
        await self.get(domain)
        async with self._lock(domain):
            yield self._snapshots[domain]

    def _lock(self, domain: DomainId) -> asyncio.Lock:
        return self._locks.setdefault(domain, asyncio.Lock())
