"""What this process remembers of users for as long as the data store is away."""

from __future__ import annotations

import time
from collections.abc import Callable

from cachetools import TTLCache

from service.ports import Histories, KnownHistory
from service.store_guard import StoreAway, StoreGuard
from shared.history import HistoryStore
from shared.types import DomainId, Interaction, UserId

# Longer than an outage should be; a history that nobody asked for since is dropped, for erasure's sake.
KEPT_S = 6 * 3600.0


class RememberedHistories(Histories):
    """The store's histories; while it is away, those read last, at most `limit` interactions in all."""

    def __init__(
        self, store: HistoryStore, guard: StoreGuard, limit: int, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._guard = guard
        self._erasures = 0
        self._kept: TTLCache[tuple[DomainId, UserId], tuple[Interaction, ...]] = TTLCache(
            limit, KEPT_S, timer, getsizeof=len
        )

    async def get(self, domain: DomainId, user_id: UserId) -> KnownHistory:
        erasures = self._erasures
        try:
            events = await self._guard.read(lambda: self._store.get(domain, user_id))
        except StoreAway:
            return KnownHistory(self._kept.get((domain, user_id), ()), current=False)
        if erasures == self._erasures:  # else these may be the events of a user who was erased meanwhile
            self._keep(domain, user_id, events)
        return KnownHistory(events, current=True)

    def forget(self, domain: DomainId, user_id: UserId) -> None:
        """An erased user is remembered no longer, in this process. Others forget within `KEPT_S`."""
        self._erasures += 1
        self._kept.pop((domain, user_id), None)

    def _keep(self, domain: DomainId, user_id: UserId, events: tuple[Interaction, ...]) -> None:
        if 0 < len(events) <= self._kept.maxsize:
            self._kept[domain, user_id] = events
        else:
            self._kept.pop((domain, user_id), None)
