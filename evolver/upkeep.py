"""Upkeep after a publication: archive what was learned, drop old versions, trim the streams behind the kept ones.

Every step may be cut off and repeated. A run's worker does it at the run's end; where it died, the tick has it done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from evolver.backend import Backend
from shared.errors import Unavailable
from shared.manifest import split_adapter_name
from shared.redis_client import maybe_text, texts
from shared.redis_keys import DomainKeys
from shared.telemetry import described
from shared.types import AdapterName, DomainId

log = structlog.get_logger(__name__)

EnqueueUpkeep = Callable[[DomainId], None]
"""Puts the task `evolver.upkeep` into the broker's queue."""

CLAIM_S: Final = 24 * 3600
"""How long a message counts as waiting: behind runs of other domains it does for hours, and another would only pile up.
One that the broker has lost is replaced after that."""
RETRY_S: Final = 60
"""At least, from the beginning of an upkeep to the next message: one that fails would keep the worker busy."""
CATALOG_REST_S: Final = 300
"""At least, between copies of the catalog alone: each is of all its items, while a shop may put some every second.
Where Redis is lost, so are the puts since the last copy."""


async def due(backend: Backend, domain: DomainId) -> bool:
    """Whether there is anything to do."""
    return await _changed(backend, domain) or await _catalog_due(backend, domain)


async def upkeep(backend: Backend, domain: DomainId) -> None:
    """Archive, prune, trim and sweep. A lost registry is left alone: its artifacts and archive are all there is."""
    if await _lost(backend, domain):
        return
    state = await _state(backend, domain)
    settings = backend.settings
    if settings.archive:
        archived = await backend.archive.extend(domain, await backend.registry.versions(domain))
        log.info("archived", domain=domain, interactions=archived)
        await _copy_catalog(backend, domain)
    unpurged = await _purge(backend, domain)
    dropped = await backend.retention.prune(domain, settings.kept_versions, await _in_use(backend, domain))
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


async def _copy_catalog(backend: Backend, domain: DomainId) -> None:
    keys, version = DomainKeys(domain), await backend.catalog.version(domain)
    items = await backend.catalog.all(domain)
    await asyncio.to_thread(backend.archive_files.put_items, domain, items)
    await backend.redis.set(keys.catalog_copy_rests, "1", ex=CATALOG_REST_S)
    await backend.redis.set(keys.catalog_copied, version)
    log.info("catalog_copied", domain=domain, items=len(items))


async def after_run(backend: Backend, domain: DomainId) -> None:
    """The upkeep that a run has made due. Its failure is not the run's: the tick tries again."""
    try:
        if await _changed(backend, domain):
            await upkeep(backend, domain)
        elif await _catalog_due(backend, domain) and not await _lost(backend, domain):
            await _copy_catalog(backend, domain)
    except Exception:
        log.exception("upkeep_failed", domain=domain)


async def from_queue(backend: Backend, domain: DomainId) -> None:
    """The upkeep that a message asks for; from now on, what changes may put another one into the queue."""
    await backend.redis.set(DomainKeys(domain).upkeep_enqueued, "1", ex=RETRY_S)
    await after_run(backend, domain)


async def tick(backend: Backend, enqueue: EnqueueUpkeep) -> list[DomainId]:
    """Enqueue the upkeep of every domain that needs one and has no evolution under way; those domains."""
    enqueued: list[DomainId] = []
    for domain in await backend.catalog.domains():
        try:
            idle = await backend.evolutions.active(domain) is None
            if idle and await due(backend, domain) and await _enqueue(backend, domain, enqueue):
                enqueued.append(domain)
        except Exception as error:  # a domain that cannot be looked at does not stop the others
            log.warning("upkeep_not_enqueued", domain=domain, error=described(error))
    return enqueued


async def _enqueue(backend: Backend, domain: DomainId, enqueue: EnqueueUpkeep) -> bool:
    """False where a message waits already."""
    claim = DomainKeys(domain).upkeep_enqueued
    if not await backend.redis.set(claim, "1", nx=True, ex=CLAIM_S):
        return False
    try:
        enqueue(domain)
    except Exception:
        await backend.redis.delete(claim)
        raise
    return True


async def _lost(backend: Backend, domain: DomainId) -> bool:
    lost = await backend.registry.lost(domain)
    if lost:
        log.warning("registry_lost", domain=domain, remedy="evorec registry rebuild")
    return lost


async def _changed(backend: Backend, domain: DomainId) -> bool:
    """Whether anything but the catalog has changed since the last upkeep."""
    return maybe_text(await backend.redis.get(DomainKeys(domain).upkeep)) != await _state(backend, domain)


async def _catalog_due(backend: Backend, domain: DomainId) -> bool:
    keys = DomainKeys(domain)
    if not backend.settings.archive or await backend.redis.exists(keys.catalog_copy_rests):
        return False
    copied = maybe_text(await backend.redis.get(keys.catalog_copied))
    return copied != str(await backend.catalog.version(domain))


async def _state(backend: Backend, domain: DomainId) -> str:
    """What an upkeep depends on: the newest version, the settings."""
    names = texts(await backend.redis.hkeys(DomainKeys(domain).versions))
    newest = max((split_adapter_name(name)[1] for name in names), default=0)
    return f"{newest} {backend.settings.archive} {backend.settings.kept_versions}"


async def _in_use(backend: Backend, domain: DomainId) -> frozenset[AdapterName]:
    """What aliased versions descend from: a rollback goes there."""
    aliased = set((await backend.registry.aliases(domain)).values())
    parents = {version.parent for version in await backend.registry.versions(domain) if version.name in aliased}
    return frozenset(parent for parent in parents if parent is not None)
