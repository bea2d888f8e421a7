"""What this process knows of each adapter version."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from service.loading import VersionFiles
from service.ports import ServingVersion
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
    """One adapter version in this process. `generation`: the engine that holds it (0: none)."""

    name: AdapterName
    domain: DomainId
    state: SlotState = SlotState.fetching
    files: VersionFiles | None = None
    version: ServingVersion | None = None
    generation: int = 0
    in_flight: int = 0
    refusal: str | None = None
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


@dataclass(frozen=True, slots=True)
class Readiness:
    """`domains`: domain -> serving, no_champion, loading or refused."""

    ready: bool
    domains: dict[DomainId, str]
