"""The window: what an evolution reads, from the champion's range end up to the moment it starts."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Self

import numpy as np

from evolver.backend import Backend
from evolver.inputs import EventKey, EvolutionInputs, event_key, n_rehearsed
from shared.config import Settings
from shared.panel import in_panel
from shared.redis_client import text
from shared.redis_keys import PartitionKeys, partition_of
from shared.types import STREAM_START, AdapterName, DomainId, Interaction, ItemId, StreamPositions, UserId, order_of

_PAGE: Final = 500
LOOKED_AT: Final = 100_000  # inactive users at most, unless more are wanted

StreamRanges = Mapping[int, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Window:
    """An evolution's inputs and the stream range they come from (after: exclusive, until: inclusive)."""

    inputs: EvolutionInputs
    ranges: StreamRanges
    n_interactions: int
    n_active_users: int

    @classmethod
    def of(cls, inputs: EvolutionInputs, ranges: StreamRanges) -> Self:
        """The window of these inputs, counted."""
        return cls(inputs, ranges, len(inputs.window), len(inputs.active_users()))

    def without(self, user_id: UserId) -> Self:
        """The same stream range, learned from without this user."""
        return type(self).of(self.inputs.without(user_id), self.ranges)

    @property
    def until(self) -> StreamPositions:
        """Where the window ends, per partition: the watermark of the version that learns from it."""
        return {partition: until for partition, (_, until) in self.ranges.items()}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where the window lies in every partition's stream."""

    after: StreamPositions
    until: StreamPositions
    partitions: int

    def ranges(self) -> StreamRanges:
        """(after, until) of every partition, as a manifest names them."""
        return {partition: (self.after.get(partition, STREAM_START), until) for partition, until in self.until.items()}

    def holds(self, event: Interaction) -> bool:
        """Whether the event lies in the window."""
        partition = partition_of(event.user_id, self.partitions)
        return order_of(self.after.get(partition, STREAM_START)) < order_of(event.stream_id) and self.started(event)

    def started(self, event: Interaction) -> bool:
        """Whether the event was there when the evolution started; what came since belongs to the next window."""
        partition = partition_of(event.user_id, self.partitions)
        return order_of(event.stream_id) <= order_of(self.until.get(partition, STREAM_START))


async def load_window(backend: Backend, domain: DomainId, seed: int) -> Window:
    """Read the domain's window and all that training needs beside it.

    With a champion: the full histories of the window's users, and of a bounded, seeded draw of the others.
    Without one (bootstrap): everything.
    """
    settings = backend.settings
    champion = await backend.registry.champion(domain)
    after, tail = await backend.registry.watermark(domain), await backend.log.tail(domain)
    bounds = Bounds(
        after=after,
        # A stream that was trimmed or erased to its end has no tail; the watermark must not go back for that.
        until={p: max(after.get(p, STREAM_START), end, key=order_of) for p, end in tail.items()},
        partitions=settings.partitions,
    )
    known = await backend.history.users(domain)
    items = tuple(await backend.catalog.all(domain))
    reader = _Reader(backend, domain, bounds, frozenset(item.item_id for item in items))
    if champion is None:
        histories = await reader.histories(sorted(known))
    else:
        active = await reader.active()
        histories = await reader.histories(sorted(active))
        # In a thread, as whatever looks at each of millions: the loop renews the lease meanwhile.
        for draw in await asyncio.to_thread(inactive_draws, known, active, settings, seed, champion):
            histories |= await reader.drawn(draw)

    def in_window() -> frozenset[EventKey]:
        return frozenset(event_key(e) for events in histories.values() for e in events if bounds.holds(e))

    inputs = EvolutionInputs(
        domain=domain,
        items=items,
        histories=histories,
        window=await asyncio.to_thread(in_window),
        panel=frozenset(user for user in histories if in_panel(user, settings.panel_share)),
        seed=seed,
        # Users whom only the archive has will be known again.
        known=frozenset(known) if await backend.history.complete(domain) else None,
        popularity=await _popularity(backend, domain, reader.catalog),
    )
    return await asyncio.to_thread(Window.of, inputs, bounds.ranges())


@dataclass(frozen=True, slots=True)
class Draw:
    """`wanted` of these users, the first ones with something to learn or to ask; in an order drawn with the seed."""

    users: Sequence[UserId]
    wanted: int


def inactive_draws(
    known: Iterable[UserId], active: frozenset[UserId], settings: Settings, seed: int, champion: AdapterName
) -> tuple[Draw, Draw]:
    """Inactive users to measure forgetting on, and others to learn from, who are to keep what they liked.

    Of the panel as many as evaluation may use, the same ones for the same seed. Of the others as many, or as many as
    are rehearsed beside the active ones: other ones after each champion, so that not always the same are remembered.
    One joint draw would leave too few of the panel, a small share of all users, to say anything about U_I.
    """
    inactive = [user for user in known if user not in active]
    panel = [user for user in inactive if in_panel(user, settings.panel_share)]
    others = [user for user in inactive if not in_panel(user, settings.panel_share)]
    limit = settings.max_evaluated_users
    return (
        Draw(_shuffled(panel, f"{seed}"), limit),
        Draw(_shuffled(others, f"{seed}:{champion}"), max(limit, n_rehearsed(len(active)))),
    )


def _shuffled(users: Iterable[UserId], salt: str) -> list[UserId]:
    def rank(user_id: UserId) -> bytes:
        return hashlib.blake2b(f"{salt}:{user_id}".encode(), digest_size=8).digest()

    return sorted(users, key=rank)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads what can be learned from: positive events on items the catalog still has, up to the window's end."""

    backend: Backend
    domain: DomainId
    bounds: Bounds
    catalog: frozenset[ItemId]

    async def active(self) -> frozenset[UserId]:
        """Users with a positive event in the window."""
        positive, log = self.backend.settings.positive_events, self.backend.log
        return frozenset(
            {
                event.user_id
                for partition, (after, until) in self.bounds.ranges().items()
                async for event in log.entries(self.domain, partition, after, until)
                if event.event_type in positive
            }
        )

    async def histories(self, users: Sequence[UserId]) -> dict[UserId, tuple[Interaction, ...]]:
        """Of those users who have any."""
        histories: dict[UserId, tuple[Interaction, ...]] = {}
        for start in range(0, len(users), _PAGE):
            page = users[start : start + _PAGE]
            for user, events in (await self.backend.history.get_many(self.domain, page)).items():
                if kept := tuple(event for event in events if self._teaches(event)):
                    histories[user] = kept
        return histories

    async def drawn(self, draw: Draw) -> dict[UserId, tuple[Interaction, ...]]:
        """Most visitors of a shop never buy, and who bought one item has no history before it: neither fills a place
        of the draw.
        """
        found: dict[UserId, tuple[Interaction, ...]] = {}
        users = draw.users[: max(LOOKED_AT, draw.wanted)]
        for start in range(0, len(users), _PAGE):
            if len(found) >= draw.wanted:
                break
            page = await self.histories(users[start : start + _PAGE])
            found |= {user: events for user, events in page.items() if len({event.item_id for event in events}) > 1}
        return dict(islice(found.items(), draw.wanted))

    def _teaches(self, event: Interaction) -> bool:
        positive = event.event_type in self.backend.settings.positive_events
        return positive and event.item_id in self.catalog and self.bounds.started(event)


async def _popularity(backend: Backend, domain: DomainId, catalog: frozenset[ItemId]) -> dict[ItemId, float]:
    """log2 of each item's decayed mass, partitions together."""
    masses: dict[ItemId, float] = {}
    for partition in range(backend.settings.partitions):
        key = PartitionKeys(domain, partition).popularity
        found: Any = await backend.redis.zrange(key, 0, -1, withscores=True)
        for name, mass in found:
            item = ItemId(text(name))
            if item in catalog:
                masses[item] = float(np.logaddexp2(masses.get(item, -math.inf), mass))
    return masses
