"""What this process knows of each adapter version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from service.loading import VersionFiles
from service.ports import CatalogSnapshot, ServingVersion
from shared.types import AdapterName, DomainId


class SlotState(StrEnum):
    """Where an adapter version stands in this process."""

    fetching = "fetching"
    waiting = "waiting_for_engine"
    loading = "loading"
    warming = "warming"
    serving = "serving"
    draining = "draining"
    refused = "refused"


@dataclass(slots=True)
class Slot:
    """One adapter version in this process. `generation`: the engine that holds it (0: none). `crowded_out`: it was
    refused for want of room in the engine, and not for what it is.
    """

    name: AdapterName
    domain: DomainId
    state: SlotState = SlotState.fetching
    files: VersionFiles | None = None
    version: ServingVersion | None = None
    generation: int = 0
    in_flight: int = 0
    refusal: str | None = None
    crowded_out: bool = False
    failures: int = 0
    retry_at: float = 0.0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def servable(self) -> bool:
        return self.version is not None and self.state in (SlotState.serving, SlotState.waiting)

    def enter(self) -> None:
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self.idle.set()


class Slots:
    """The versions that this process holds, or tries to, of all domains."""

    def __init__(self) -> None:
        self._slots: dict[AdapterName, Slot] = {}

    def of(self, domain: DomainId) -> list[Slot]:
        """The domain's, by name."""
        return sorted((slot for slot in self._slots.values() if slot.domain == domain), key=lambda slot: slot.name)

    def get(self, name: AdapterName | None) -> Slot | None:
        return None if name is None else self._slots.get(name)

    def servable(self, name: AdapterName) -> bool:
        """Whether requests can be answered with the version."""
        slot = self._slots.get(name)
        return slot is not None and slot.servable

    def open(self, domain: DomainId, name: AdapterName) -> Slot:
        """The version's slot; a new one where there is none."""
        return self._slots.setdefault(name, Slot(name, domain))

    def close(self, slot: Slot) -> None:
        del self._slots[slot.name]

    async def reindexed(self, catalog: CatalogSnapshot) -> Callable[[], None]:
        """Indexes over a new catalog for every loaded version; what puts them in place, together with the catalog."""
        stale = [slot for slot in self.of(catalog.domain) if slot.files is not None]
        items = list(catalog.items.values())
        indexes = [await asyncio.to_thread(slot.files.make_index, items) for slot in stale if slot.files]

        def put_in_place() -> None:
            for slot, index in zip(stale, indexes, strict=True):
                if slot.version is not None:
                    slot.version = replace(slot.version, catalog=catalog, index=index)

        return put_in_place


@dataclass(frozen=True, slots=True)
class Readiness:
    """`domains`: domain -> serving, no_champion, loading or refused."""

    ready: bool
    domains: dict[DomainId, str]
