"""The stores an evolution works with, opened together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from redis.asyncio import Redis

from shared import redis_client
from shared.archive import Archive
from shared.archive_files import ArchiveFiles
from shared.artifacts import ArtifactStore
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.dead_letters import DeadLetters
from shared.erasure import Eraser
from shared.evolutions import EvolutionStore
from shared.fixed_settings import require_fixed_settings
from shared.history import HistoryStore
from shared.registry import Registry
from shared.retention import Retention
from shared.stream import InteractionLog


@dataclass(frozen=True, slots=True)
class Backend:
    """Every store of the evolver, over one Redis client and one artifact store."""

    settings: Settings
    redis: Redis
    log: InteractionLog
    history: HistoryStore
    catalog: CatalogStore
    artifacts: ArtifactStore
    archive_files: ArchiveFiles
    archive: Archive
    eraser: Eraser
    registry: Registry
    retention: Retention
    evolutions: EvolutionStore
    dead_letters: DeadLetters

    @classmethod
    def over(cls, redis: Redis, settings: Settings) -> Self:
        """The stores over an existing client."""
        artifacts = ArtifactStore(settings)
        files = ArchiveFiles(artifacts)
        log = InteractionLog(redis, settings)
        dead_letters = DeadLetters(redis)
        return cls(
            settings=settings,
            redis=redis,
            log=log,
            history=HistoryStore(redis, settings, dead_letters),
            catalog=CatalogStore(redis),
            artifacts=artifacts,
            archive_files=files,
            archive=Archive(log, files, settings.partitions),
            eraser=Eraser(redis, settings, artifacts),
            registry=Registry(redis, artifacts),
            retention=Retention(redis, artifacts),
            evolutions=EvolutionStore(redis),
            dead_letters=dead_letters,
        )


@asynccontextmanager
async def open_backend(settings: Settings) -> AsyncIterator[Backend]:
    """Connect, give the stores, close. A client belongs to one event loop, so every `asyncio.run` opens its own.

    Raises `Conflict` where the data of this Redis were written by other settings.
    """
    redis = redis_client.connect(settings)
    try:
        await require_fixed_settings(redis, settings)
        yield Backend.over(redis, settings)
    finally:
        await redis.aclose()
