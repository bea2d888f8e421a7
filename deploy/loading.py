"""Rows into a domain: over the service's interface, or directly into Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from deploy.client import BATCH, Ingested, ServiceClient, batches
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.redis_client import connect
from shared.stream import InteractionLog
from shared.types import DomainId, Interaction, Item

SHOWN_REJECTED = 5


class Loader(Protocol):
    """Takes at most `BATCH` rows at a time."""

    async def put_items(self, domain: DomainId, items: Sequence[Item]) -> Ingested: ...

    async def post_interactions(self, domain: DomainId, interactions: Sequence[Interaction]) -> Ingested: ...


@dataclass(frozen=True, slots=True)
class Total:
    """What became of all rows. `first_rejected`: (row number from 0, reason)."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    first_rejected: tuple[tuple[int, str], ...] = ()

    def plus(self, batch: Ingested, start: int) -> Total:
        shown = (*self.first_rejected, *((start + index, reason) for index, reason in batch.rejected))
        return Total(
            self.accepted + batch.accepted,
            self.duplicates + batch.duplicates,
            self.rejected + len(batch.rejected),
            shown[:SHOWN_REJECTED],
        )


class DirectLoader:
    """Writes with the stores that the service itself uses: same effect, no HTTP, no service needed."""

    def __init__(self, catalog: CatalogStore, log: InteractionLog) -> None:
        self._catalog = catalog
        self._log = log

    async def put_items(self, domain: DomainId, items: Sequence[Item]) -> Ingested:
        return Ingested(await self._catalog.put(domain, items), 0, ())

    async def post_interactions(self, domain: DomainId, interactions: Sequence[Interaction]) -> Ingested:
        """Rejects what the service would: items that the catalog does not have."""
        known = await self._catalog.get_many(domain, list({event.item_id for event in interactions}))
        rejected = tuple(
            (index, f"unknown item {event.item_id!r}")
            for index, event in enumerate(interactions)
            if event.item_id not in known
        )
        appended = await self._log.append(domain, [event for event in interactions if event.item_id in known])
        return Ingested(appended.accepted, appended.duplicates, rejected)


@asynccontextmanager
async def loader(client: ServiceClient, direct: bool) -> AsyncIterator[Loader]:
    if not direct:
        yield client
        return
    settings = Settings()
    redis = connect(settings)
    try:
        yield DirectLoader(CatalogStore(redis), InteractionLog(redis, settings))
    finally:
        await redis.aclose()


async def load_items(to: Loader, domain: DomainId, items: Sequence[Item], done: Callable[[int], object]) -> Total:
    """`done(n)` after each batch of n rows."""
    total = Total()
    for start, batch in batches(items, BATCH):
        total = total.plus(await to.put_items(domain, batch), start)
        done(len(batch))
    return total


async def load_interactions(
    to: Loader, domain: DomainId, events: Sequence[Interaction], done: Callable[[int], object]
) -> Total:
    """In order and one batch after the other: the stream's order decides between equal timestamps."""
    total = Total()
    for start, batch in batches(events, BATCH):
        total = total.plus(await to.post_interactions(domain, batch), start)
        done(len(batch))
    return total
