"""Time-decayed popularity: an item's mass is the sum over its positive events of 2^(-age / half-life).

All masses decay alike, so their shares need no clock: mass(t) = 2^(-t / h) * sum_i 2^(t_i / h). Redis keeps log2 of
that sum, because the sum itself leaves the range of a double within three years at a half-life of a day.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from redis.asyncio import Redis

from shared.config import Settings
from shared.errors import Unavailable
from shared.redis_client import text
from shared.redis_keys import PartitionKeys
from shared.types import DomainId, ItemId

SNAPSHOT_S = 2.0
BUSY_SHARE = 0.05
"""Of the time, at most, goes into counting anew, which takes Redis and a thread of ours seconds for a million items."""
RENEWAL_WAITED_S = 0.25
"""By a request at most, which then goes on with the last count: a small domain's is new by then."""
PAGE = 50_000
"""Items, about, that Redis hands out in one answer: nobody else has one meanwhile, and no answer takes so long that the
store seems to be away."""

Shares = Mapping[ItemId, float]
"""Item -> share of the domain's decayed mass, largest first."""

Answer = str | bytes
"""What `MASSES` says of one page."""

# KEYS: popularity.  ARGV: cursor, items.  -> [next cursor, [item, log2 mass, item, ...]] as one string: the client
# takes ten times as long over an answer of 10,000 parts, and the loop that waits for it serves requests.
MASSES = "return cjson.encode(redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2]))"


def log2_weight(timestamp: float, half_life_days: float) -> float:
    """log2 of an event's weight, t / h.

    >>> log2_weight(120 * 86400, half_life_days=60)
    2.0
    """
    return timestamp / (half_life_days * 86400)


def shares_of(log2_masses: Sequence[tuple[str, float]]) -> dict[ItemId, float]:
    """Shares of the whole mass, largest first (ties by item id); an item may occur once per partition.

    >>> shares_of([("a", 1.0), ("b", 0.0), ("b", 0.0), ("c", 2.0)])
    {'c': 0.5, 'a': 0.25, 'b': 0.25}
    """
    if not log2_masses:
        return {}
    masses = np.exp2(np.array([mass for _, mass in log2_masses]) - max(mass for _, mass in log2_masses))
    shares: dict[ItemId, float] = {}
    for (item, _), share in zip(log2_masses, (masses / masses.sum()).tolist(), strict=True):
        shares[ItemId(item)] = shares.get(ItemId(item), 0.0) + share
    return _largest_first(shares)


def _largest_first(shares: Mapping[ItemId, float]) -> dict[ItemId, float]:
    """By NumPy, which lets other threads run meanwhile: `sorted` would keep a million items' requests waiting."""
    items, values = [*shares], np.fromiter(shares.values(), np.float64, len(shares))
    order = np.argsort(-values)
    ends = np.flatnonzero(np.diff(values[order], append=np.nan)) + 1
    starts = np.concatenate([[0], ends[:-1]])
    tied = ends - starts > 1
    for start, end in zip(starts[tied].tolist(), ends[tied].tolist(), strict=True):
        order[start:end] = sorted(order[start:end].tolist(), key=items.__getitem__)
    return {items[row]: shares[items[row]] for row in order.tolist()}


@dataclass(frozen=True, slots=True)
class _Snapshot:
    taken: float
    lasts: float
    shares: Shares


async def ask_now(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """No guard: what goes wrong is the caller's to handle."""
    return await ask()


class PopularityStore:
    """Reads what `InteractionLog.append` counts, anew every `SNAPSHOT_S`, in large domains less often: every
    recommendation asks.
    """

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[Callable[[], Awaitable[Answer]]], Awaitable[Answer]] = ask_now,
    ) -> None:
        """`read` asks Redis for one page, or raises Unavailable where it is away: the last snapshot then goes on."""
        self._redis = redis
        self._settings = settings
        self._clock = clock
        self._guarded = read
        self._masses = redis.register_script(MASSES)
        self._snapshots: dict[DomainId, _Snapshot] = {}
        # Its own: an artifact store that stalls takes all of the loop's.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="popularity")
        self._counting: dict[DomainId, asyncio.Task[None]] = {}

    async def counted(self, domain: DomainId) -> Shares:
        """Every item that has had an event, deleted ones too, largest share first; as last counted where counting takes
        long, nothing where it is the first time.
        """
        if (shares := self._fresh(domain)) is not None:
            return shares
        if (counting := self._counting.get(domain)) is None:
            # Not the caller's own work: who stops waiting does not stop it.
            counting = self._counting[domain] = asyncio.create_task(self._count(domain))
            counting.add_done_callback(lambda _: self._counting.pop(domain))
        last = self._snapshots.get(domain)
        waited = RENEWAL_WAITED_S if last and last.shares else self._settings.store_timeout_ms / 1000
        done, _ = await asyncio.wait({counting}, timeout=waited)
        if done:
            counting.result()  # or what went wrong
        known = self._snapshots.get(domain)
        return {} if known is None else known.shares

    async def _count(self, domain: DomainId) -> None:
        began = self._clock()
        try:
            pages = [await self._pages(domain, partition) for partition in range(self._settings.partitions)]
        except Unavailable:
            return
        # A tenth of a second for 100,000 items, in which the loop serves others and Redis is not waited for.
        loop = asyncio.get_running_loop()
        shares = await loop.run_in_executor(self._thread, _shares_of_pages, pages)
        taken = self._clock()
        self._snapshots[domain] = _Snapshot(taken, max(SNAPSHOT_S, (taken - began) / BUSY_SHARE), shares)

    async def shares(self, domain: DomainId, item_ids: Sequence[ItemId]) -> list[float]:
        """Each item's share of the domain's decayed mass."""
        shares = await self.counted(domain)
        return [shares.get(item_id, 0.0) for item_id in item_ids]

    def _fresh(self, domain: DomainId) -> Shares | None:
        snapshot = self._snapshots.get(domain)
        # An empty one never is, so that a domain's very first events show at once.
        if snapshot is None or not snapshot.shares or self._clock() - snapshot.taken >= snapshot.lasts:
            return None
        return snapshot.shares

    async def _pages(self, domain: DomainId, partition: int) -> list[str]:
        key = PartitionKeys(domain, partition).popularity
        pages: list[str] = []
        cursor = "0"
        while not pages or cursor != "0":
            ask = partial(self._masses, keys=[key], args=[cursor, PAGE])
            page = text(await self._guarded(ask))
            pages.append(page)
            cursor = page.split('"', 2)[1]
        return pages


def _shares_of_pages(partitions: Sequence[Sequence[str]]) -> Shares:
    masses: list[tuple[str, float]] = []
    for pages in partitions:
        of_partition: dict[str, float] = {}  # ZSCAN may say an item twice
        for page in pages:
            flat = json.loads(page)[1] or []  # an empty list is `{}` to Lua
            of_partition.update(zip(flat[::2], map(float, flat[1::2]), strict=True))
        masses += of_partition.items()
    return shares_of(masses)
