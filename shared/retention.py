"""What goes of a domain's versions: old ones, what was never finished, this machine's copies."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from shared.artifacts import ArtifactStore
from shared.manifest import split_adapter_name
from shared.redis_client import texts
from shared.redis_keys import DomainKeys
from shared.registry import Registry
from shared.registry_scripts import REMOVE
from shared.types import AdapterName, DomainId


class Retention:
    """Nothing that an alias points at, or that somebody says is in use, is removed."""

    def __init__(self, redis: Redis, artifacts: ArtifactStore) -> None:
        self._redis = redis
        self._artifacts = artifacts
        self._registry = Registry(redis, artifacts)
        self._remove = redis.register_script(REMOVE)

    async def prune(
        self, domain: DomainId, keep: int, in_use: frozenset[AdapterName] = frozenset()
    ) -> list[AdapterName]:
        """Drops all but the newest `keep` versions and those aliased or in use; returns what it dropped.

        A version that an earlier call has dropped, and not deleted because it died, is deleted now.
        """
        keys = DomainKeys(domain)
        for manifest in (await self._registry.versions(domain))[: -keep or None]:
            if manifest.name not in in_use:
                await self._remove(keys=[keys.aliases, keys.versions, keys.pruned], args=[manifest.name])
        dropped = sorted(map(AdapterName, texts(await self._redis.smembers(keys.pruned))))
        for name in dropped:
            await asyncio.to_thread(self._artifacts.delete, domain, name)
            await self._redis.hdel(keys.refusals, name)
            await self._redis.srem(keys.pruned, name)
        return dropped

    async def drop_copies(self, domain: DomainId, in_use: frozenset[AdapterName]) -> None:
        """Removes this machine's copies of versions that are registered no longer, but for those in use, and what dead
        processes have left of copies, and of all else that they staged.
        """
        await asyncio.to_thread(self._artifacts.sweep, domain)
        # Looked up before the registry is: what another process fetches meanwhile stays.
        copies = await asyncio.to_thread(self._artifacts.copies, domain)
        registered = {manifest.name for manifest in await self._registry.versions(domain)}
        if not registered:
            return  # an emptied Redis knows no version, and `shared.rebuild` reads the copies
        for name in copies:
            if name not in registered | in_use:
                await asyncio.to_thread(self._artifacts.drop_copy, domain, name)

    async def drop_unfinished(self, domain: DomainId) -> list[AdapterName]:
        """Deletes what cut-off uploads and deletions have left in the artifact store; returns what it dropped.

        Under the domain's lease, and before its holder stores anything: whoever uploads then has lost it and cannot
        publish any more. What it still uploads becomes a version that lacks files, which `ArtifactStore.fetch` refuses.
        """
        unfinished = await asyncio.to_thread(self._artifacts.unfinished, domain)
        registered = {manifest.name for manifest in await self._registry.versions(domain)}
        counter = int(await self._redis.get(DomainKeys(domain).version_counter) or 0)
        # A registered one is damaged, and may be mended. Above the counter of a Redis that was restored from an older
        # state, the folder is what keeps its name from being given again.
        dropped = [name for name in unfinished if name not in registered and split_adapter_name(name)[1] <= counter]
        for name in dropped:
            await asyncio.to_thread(self._artifacts.delete, domain, name)
        return dropped
