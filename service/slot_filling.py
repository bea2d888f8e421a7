"""Makes a version servable in this process: files fetched and verified, index built, LoRA in the engine and warmed."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import suppress

import structlog
from redis.exceptions import RedisError

from service.catalogs import Catalogs
from service.engine_host import EngineHost
from service.loading import VersionFiles, VersionLoader
from service.metrics import Metrics
from service.ports import EngineFull, EngineUnavailable, LoraHandle, RankingEngine, ServingVersion
from service.refusals import RefusalStore
from service.slots import Slot, SlotState
from shared.errors import InvalidArtifact
from shared.local_files import intact
from shared.registry import Registry
from shared.types import AdapterName

log = structlog.get_logger(__name__)

# Every vocabulary has these ids; the answer does not matter.
WARM_PROMPT = tuple(range(16))
WARM_LABELS = (0, 1)
FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 60.0


class SlotFiller:
    """Fills slots, and takes their LoRA out of the engine again; the caller holds the domain's lock."""

    def __init__(
        self,
        registry: Registry,
        catalogs: Catalogs,
        host: EngineHost,
        load: VersionLoader,
        metrics: Metrics,
        refusals: RefusalStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._catalogs = catalogs
        self._host = host
        self._load = load
        self._metrics = metrics
        self._refusals = refusals
        self._clock = clock
        self._lora_ids: dict[AdapterName, int] = {}
        self._next_id = itertools.count(1)

    async def fill(self, slot: Slot) -> None:
        """Brings the slot as far as it gets; whatever fails refuses it, and is tried again after a pause."""
        if slot.state is SlotState.refused and self._clock() < slot.retry_at:
            return
        try:
            if slot.version is None or not await self._still_intact(slot):
                await self._load_files(slot)
            await self._load_lora(slot)
        except Exception as error:
            await self._refuse(slot, error)

    async def _still_intact(self, slot: Slot) -> bool:
        """Whether the files that a new engine is to read are as they were verified."""
        if slot.files is None or slot.generation in (0, self._host.generation):
            return True
        return await asyncio.to_thread(intact, slot.files.folder, slot.files.manifest)

    async def empty(self, slot: Slot) -> None:
        """Takes the drained version out of the engine."""
        engine = self._host.current
        if engine is not None and slot.version is not None:
            await engine.remove_adapter(slot.version.lora)
        with suppress(KeyError):
            self._metrics.adapter_loaded.remove(slot.domain, slot.name)

    async def _load_files(self, slot: Slot) -> None:
        slot.state = SlotState.fetching
        files = await asyncio.to_thread(self._load, slot.domain, slot.name)
        if files.manifest != await self._registry.manifest(slot.domain, slot.name):
            raise InvalidArtifact(f"adapter {slot.name}: its manifest is not the one that was published")
        async with self._catalogs.unchanging(slot.domain) as catalog:
            index = await asyncio.to_thread(files.make_index, list(catalog.items.values()))
            slot.files = files
            slot.version = ServingVersion(
                name=slot.name,
                domain=slot.domain,
                lora=self._handle(slot.name, files),
                blend=files.manifest.blend,
                forgotten=files.forgotten,
                catalog=catalog,
                index=index,
            )

    def _handle(self, name: AdapterName, files: VersionFiles) -> LoraHandle:
        """A version keeps its id: the same name under two ids in one batch kills the engine."""
        if name not in self._lora_ids:
            self._lora_ids[name] = next(self._next_id)
        return LoraHandle(self._lora_ids[name], name, files.folder)

    async def _load_lora(self, slot: Slot) -> None:
        engine, generation = self._host.current, self._host.generation
        if engine is None or slot.version is None:
            slot.state = SlotState.waiting
            return
        if slot.generation != generation:
            try:
                await self._add_and_warm(engine, slot, slot.version.lora)
            except EngineUnavailable:
                slot.state = SlotState.waiting
                return
            slot.generation = generation
            loaded = self._metrics.adapter_loaded.labels(slot.domain, slot.name)
            loaded.set_function(lambda: self._held(slot))  # an engine that dies unloads nothing
            with suppress(RedisError, OSError):  # a process before this one may have refused it as well
                await self._refusals.clear(slot.domain, slot.name)
        slot.state, slot.refusal, slot.failures = SlotState.serving, None, 0

    def _held(self, slot: Slot) -> bool:
        """Whether the engine that runs now holds the version."""
        return self._host.current is not None and slot.generation == self._host.generation

    async def _add_and_warm(self, engine: RankingEngine, slot: Slot, lora: LoraHandle) -> None:
        slot.state = SlotState.loading
        try:
            await engine.add_adapter(lora)
            slot.state = SlotState.warming
            await engine.rank(WARM_PROMPT, WARM_LABELS, lora)
        except BaseException:
            await engine.remove_adapter(lora)
            raise

    async def _refuse(self, slot: Slot, error: Exception) -> None:
        slot.state, slot.refusal = SlotState.refused, str(error) or repr(error)
        slot.crowded_out = isinstance(error, EngineFull)
        slot.retry_at = self._clock() + min(FIRST_RETRY_S * 2**slot.failures, LONGEST_RETRY_S)
        slot.failures += 1
        self._metrics.adapter_refusals.labels(slot.domain, type(error).__name__).inc()
        log.error("adapter_refused", domain=slot.domain, adapter=slot.name, reason=slot.refusal)
        with suppress(RedisError, OSError):  # the log and the metric have it
            await self._refusals.note(slot.domain, slot.name, slot.refusal)
