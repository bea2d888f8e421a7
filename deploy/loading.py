"""Rows into a domain: over the service's interface, or directly into Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from deploy.client import BATCH, Ingested, ServiceClient, batches, event_body
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.redis_client import connect
from shared.stream import InteractionLog
from shared.types import DomainId, Interaction, Item, ItemId

if TYPE_CHECKING:
    from service.schemas.common import Rejected

Row = TypeVar("Row", Item, Interaction)

SHOWN_REJECTED = 5
_SHOWN_VALUE = 100  # characters


class Loader(Protocol):
    """Takes at most `BATCH` rows at a time."""

    async def put_items(self, domain: DomainId, items: Sequence[Item]) -> Ingested: ...

    async def post_interactions(self, domain: DomainId, interactions: Sequence[Interaction]) -> Ingested: ...


@dataclass(frozen=True, slots=True)
class Total:
    """What became of all rows. `first_rejected`: (the row in words, reason)."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    first_rejected: tuple[tuple[str, str], ...] = ()

    def plus(self, batch: Ingested, rows: Sequence[Item] | Sequence[Interaction]) -> Total:
        """`batch`: what became of `rows`."""
        shown = (*self.first_rejected, *((in_words(rows[index]), reason) for index, reason in batch.rejected))
        return Total(
            self.accepted + batch.accepted,
            self.duplicates + batch.duplicates,
            self.rejected + len(batch.rejected),
            shown[:SHOWN_REJECTED],
        )


def in_words(row: Item | Interaction) -> str:
    """What to look for in the file: rows come sorted, and without those that are bad or outside of the time range."""
    values: dict[str, str]
    if isinstance(row, Item):
        values = {"item_id": row.item_id}
    else:
        values = {
            "user_id": row.user_id,
            "item_id": row.item_id,
            "event_type": row.event_type,
            "timestamp": f"{row.timestamp:.0f}",
        }
    return ", ".join(f"{name} {value[:_SHOWN_VALUE]}" for name, value in values.items())


class DirectLoader:
    """Writes with the stores that the service itself uses, after its own checks: same effect, no HTTP, no service."""

    def __init__(self, catalog: CatalogStore, log: InteractionLog, max_clock_skew_s: float) -> None:
        self._catalog = catalog
        self._log = log
        self._max_clock_skew_s = max_clock_skew_s

    async def put_items(self, domain: DomainId, items: Sequence[Item]) -> Ingested:
        from service.intake import sift_items  # FastAPI comes along; no other command pays for it

        good, rejected = sift_items([asdict(item) for item in items])
        return Ingested(await self._catalog.put(domain, good) if good else 0, 0, _reasons(rejected))

    async def post_interactions(self, domain: DomainId, interactions: Sequence[Interaction]) -> Ingested:
        from service.intake import sift_interactions

        async def known(item_ids: Sequence[ItemId]) -> Collection[ItemId]:
            return await self._catalog.get_many(domain, sorted(set(item_ids)))

        latest = time.time() + self._max_clock_skew_s
        good, rejected = await sift_interactions([event_body(event) for event in interactions], domain, known, latest)
        appended = await self._log.append(domain, good)
        return Ingested(appended.accepted, appended.duplicates, _reasons(rejected))


def _reasons(rejected: Sequence[Rejected]) -> tuple[tuple[int, str], ...]:
    return tuple((each.index, each.reason) for each in rejected)


@asynccontextmanager
async def loader(client: ServiceClient, direct: bool) -> AsyncIterator[Loader]:
    if not direct:
        yield client
        return
    settings = Settings()
    redis = connect(settings)
    try:
        yield DirectLoader(CatalogStore(redis), InteractionLog(redis, settings), settings.max_clock_skew_s)
    finally:
        await redis.aclose()


async def load_items(
    to: Loader,
    domain: DomainId,
    items: Sequence[Item],
    done: Callable[[int], object],
    so_far: Callable[[Total], object] = lambda _: None,
) -> Total:
    """`done(n)` after each batch of n rows, and `so_far(total)`: for who wants to tell it where a later one fails."""
    return await _in_batches(items, partial(to.put_items, domain), done, so_far)


async def load_interactions(
    to: Loader,
    domain: DomainId,
    events: Sequence[Interaction],
    done: Callable[[int], object],
    so_far: Callable[[Total], object] = lambda _: None,
) -> Total:
    """In order and one batch after the other: the stream's order decides between equal timestamps."""
    return await _in_batches(events, partial(to.post_interactions, domain), done, so_far)


async def _in_batches(
    rows: Sequence[Row],
    send: Callable[[Sequence[Row]], Awaitable[Ingested]],
    done: Callable[[int], object],
    so_far: Callable[[Total], object],
) -> Total:
    total = Total()
    for batch in batches(rows, BATCH):
        total = total.plus(await send(batch), batch)
        so_far(total)
        done(len(batch))
    return total
