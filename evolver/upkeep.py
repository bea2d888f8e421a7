"""Upkeep after a publication: archive what was learned, drop old versions, trim the streams behind the kept ones.

Every step may be cut off and repeated. A run's worker does it at the run's end; where it died, the tick has it done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from evolver.backend import Backend
from shared.errors import EvorecError, Unavailable
from shared.manifest import split_adapter_name
from shared.redis_client import maybe_text, texts
from shared.redis_keys import DomainKeys
from shared.types import AdapterName, DomainId

log = structlog.get_logger(__name__)

EnqueueUpkeep = Callable[[DomainId], None]
"""Puts the task `evolver.upkeep` into the broker's queue."""

REQUEUE_S: Final = 60


async def due(backend: Backend, domain: DomainId) -> bool:
    """Whether anything has changed since the last upkeep."""
    done = maybe_text(await backend.redis.get(DomainKeys(domain).upkeep))
    return done != await _state(backend, domain)


async def upkeep(backend: Backend, domain: DomainId) -> None:
    """Archive, prune, trim and sweep. A lost registry is left alone: its artifacts and archive are all there is."""
    if await backend.registry.lost(domain):
        log.warning("registry_lost", domain=domain, remedy="evorec registry rebuild")
        return
    state = await _state(backend, domain)
    settings = backend.settings
    if settings.archive:
        archived = await backend.archive.extend(domain, await backend.registry.versions(domain))
        items = await backend.catalog.all(domain)
        await asyncio.to_thread(backend.archive_files.put_items, domain, items)
        log.info("archived", domain=domain, interactions=archived, items=len(items))
    unpurged = await _purge(backend, domain)
    dropped = await backend.registry.prune(domain, settings.kept_versions, await _in_use(backend, domain))
    trimmed = await backend.archive.trim(domain, await backend.registry.versions(domain)) if settings.archive else 0
    swept = await asyncio.to_thread(backend.artifacts.sweep, domain)
    if unpurged is not None:
        raise unpurged
    await backend.redis.set(DomainKeys(domain).upkeep, state)
    log.info("upkeep_done", domain=domain, dropped=dropped, trimmed=trimmed, swept=swept)


async def _purge(backend: Backend, domain: DomainId) -> Unavailable | OSError | None:
    """What has stopped it: pruning and trimming, which free space, must not wait for that."""
    try:
        await backend.eraser.purge(domain)
    except (Unavailable, OSError) as error:
        return error
    return None


async def after_run(backend: Backend, domain: DomainId) -> None:
    """The upkeep that a run has made due. Its failure is not the run's: the tick tries again."""
    try:
        if await due(backend, domain):
            await upkeep(backend, domain)
    except Exception:
        log.exception("upkeep_failed", domain=domain)


async def tick(backend: Backend, enqueue: EnqueueUpkeep) -> list[DomainId]:
    """Enqueue the upkeep of every domain that needs one and has no evolution under way; those domains."""
    enqueued: list[DomainId] = []
    for domain in await backend.catalog.domains():
        try:
            if await backend.evolutions.active(domain) is None and await due(backend, domain):
                claim = DomainKeys(domain).upkeep_enqueued
                if await backend.redis.set(claim, "1", nx=True, ex=REQUEUE_S):
                    enqueue(domain)
                    enqueued.append(domain)
        except (EvorecError, RedisError, OSError, OperationalError) as error:
            log.warning("upkeep_not_enqueued", domain=domain, error=repr(error))
    return enqueued


async def _state(backend: Backend, domain: DomainId) -> str:
    """What an upkeep depends on: the newest version, the catalog, the settings."""
    names = texts(await backend.redis.hkeys(DomainKeys(domain).versions))
    newest = max((split_adapter_name(name)[1] for name in names), default=0)
    settings = backend.settings
    return f"{newest} {await backend.catalog.version(domain)} {settings.archive} {settings.kept_versions}"


async def _in_use(backend: Backend, domain: DomainId) -> frozenset[AdapterName]:
    """What aliased versions descend from: a rollback goes there."""
    aliased = set((await backend.registry.aliases(domain)).values())
    parents = {version.parent for version in await backend.registry.versions(domain) if version.name in aliased}
    return frozenset(parent for parent in parents if parent is not None)
