"""The application: what the process opens, in which order, and how it lets go of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import structlog
from fastapi import FastAPI

from service import problems
from service.adapters import AdapterManager
from service.admission import Admission
from service.audit import AuditLog, AuditTrail
from service.auth import Keys
from service.body import BodyGuard
from service.callers import Callers
from service.catalogs import Catalogs
from service.deps import Services, State
from service.engine import start_engine
from service.engine_host import EngineHost
from service.loading import ArtifactLoader, VersionLoader
from service.metrics import Metrics
from service.middleware import RequestContext
from service.openapi import describe
from service.ports import EngineFactory
from service.queue import CeleryQueue, EvolutionQueue
from service.rate_limits import RateLimits
from service.recommend import Recommender
from service.redis_watch import RedisWatch
from service.refusals import RefusalStore
from service.remembered import RememberedHistories
from service.routes import adapters, audit, evolutions, health, interactions, items, metrics, recommend, users
from service.slot_filling import SlotFiller
from service.slots import Slots
from service.store_guard import StoreGuard
from shared.artifacts import ArtifactStore
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.dead_letters import DeadLetters
from shared.domains import validate_domain
from shared.erasure import Eraser
from shared.evolutions import EvolutionStore
from shared.history import HistoryStore
from shared.popularity import PopularityStore
from shared.prompt import PromptBuilder
from shared.redis_client import connect
from shared.registry import Registry
from shared.retention import Retention
from shared.stream import InteractionLog

log = structlog.get_logger(__name__)

# How long a command of a request waits for Redis before the call is answered with 503.
ANSWER_WITHIN_S = 3.0
THREADS = 256  # at most; `service.adapters.SYNCED_AT_ONCE` of them may wait for the artifact store

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[State]]


def create_app(
    settings: Settings,
    *,
    engine: EngineFactory = start_engine,
    load: VersionLoader | None = None,
    queue: EvolutionQueue | None = None,
) -> FastAPI:
    """The service. `engine`, `load` and `queue` are vLLM, the artifact store and Celery unless a test says otherwise.

    InvalidInput where the API keys or the rate limit cannot be read, or for an impossible default domain.
    """
    validate_domain(settings.default_domain)
    keys = Keys(settings)
    counters = Metrics()
    app = FastAPI(
        title="evorec",
        # A redirect would lead to whatever the Host header says.
        redirect_slashes=False,
        lifespan=_lifespan(settings, keys, counters, engine, load, queue),
    )
    app.state.draining = False
    for module in (recommend, interactions, items, users, evolutions, adapters, audit, health, metrics):
        app.include_router(module.router)
    problems.install(app)
    # The last one is the outermost: who calls is settled before the body is read, and that is before it is parsed.
    batches = Admission(settings.max_concurrent_batches, "batches are being taken in")
    app.add_middleware(BodyGuard, timeout_s=settings.receive_timeout_s, batches=batches)
    app.add_middleware(Callers, keys=keys, limits=RateLimits(settings.rate_limit), metrics=counters)
    app.add_middleware(AuditTrail)
    app.add_middleware(RequestContext, metrics=counters)
    describe(app)
    return app


def _lifespan(
    settings: Settings,
    keys: Keys,
    counters: Metrics,
    engine: EngineFactory,
    load: VersionLoader | None,
    queue: EvolutionQueue | None,
) -> Lifespan:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        keys.tell()
        # Python's own few would all wait where an artifact store stalls for as many domains, and the engine, which is
        # built and closed in threads as well, with them.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="service"))
        host = EngineHost(engine, settings)
        prompts = _Prompts(settings)
        services = _open(settings, counters, host, prompts, load, queue)
        tasks = [
            _background(host.run(), "engine"),
            _background(services.adapters.run(), "adapters"),
            _background(prompts.load(), "prompts"),
            _background(services.redis_watch.run(), "redis-watch"),
            _background(services.guard.look_while_away(services.catalog.domains), "store-guard"),
        ]
        try:
            yield {"services": services}
        finally:
            # The server has drained its requests. The followers go before the engine that they talk to.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await host.close()
            services.recommender.close()
            await services.redis.aclose()
            await services.patient.aclose()
            if isinstance(services.queue, CeleryQueue):
                services.queue.close()

    return lifespan


class _Prompts:
    """The prompt builder, loaded in a thread: a hub tokenizer may have to be fetched first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.builder: PromptBuilder | None = None

    async def load(self) -> None:
        while self.builder is None:
            try:
                self.builder = await asyncio.to_thread(PromptBuilder.load, self._settings)
            except Exception as error:
                log.error("no_prompt_builder", base_model=self._settings.base_model, error=repr(error))
                await asyncio.sleep(5)


def _open(
    settings: Settings,
    counters: Metrics,
    host: EngineHost,
    prompts: _Prompts,
    load: VersionLoader | None,
    queue: EvolutionQueue | None,
) -> Services:
    counters.prompt_tokens.set_function(lambda: host.prompt_tokens.asked)
    counters.cached_prompt_tokens.set_function(lambda: host.prompt_tokens.cached)
    redis = connect(settings, answer_within_s=ANSWER_WITHIN_S)
    # For what no caller waits for: a large catalog takes longer than a request may.
    patient = connect(settings)
    guard = StoreGuard(settings.store_timeout_ms / 1000, counters)
    artifacts = ArtifactStore(settings)
    catalog = CatalogStore(redis)
    registry = Registry(redis, artifacts)
    histories = HistoryStore(redis, settings)
    remembered = RememberedHistories(histories, guard, settings.remembered_interactions)
    patient_registry, patient_catalog = Registry(patient, artifacts), CatalogStore(patient)
    slots = Slots()
    catalogs = Catalogs(patient_catalog, guard, settings.store_timeout_ms / 1000, prepare=slots.reindexed)
    load = load or ArtifactLoader(settings, artifacts)
    filler = SlotFiller(patient_registry, catalogs, host, load, counters, RefusalStore(patient))
    manager = AdapterManager(
        settings,
        patient,
        patient_registry,
        Retention(patient, artifacts),
        patient_catalog,
        catalogs,
        slots,
        filler,
        host,
        counters,
    )
    return Services(
        settings=settings,
        redis=redis,
        patient=patient,
        metrics=counters,
        guard=guard,
        log=InteractionLog(redis, settings),
        histories=histories,
        remembered=remembered,
        eraser=Eraser(redis, settings, artifacts),
        catalog=catalog,
        catalogs=catalogs,
        registry=registry,
        refusals=RefusalStore(redis),
        evolutions=EvolutionStore(redis),
        audit=AuditLog(redis),
        dead_letters=DeadLetters(redis),
        queue=queue or CeleryQueue(settings),
        host=host,
        slots=slots,
        adapters=manager,
        redis_watch=RedisWatch(redis, settings),
        recommender=Recommender(
            settings,
            catalogs,
            manager,
            remembered,
            PopularityStore(redis, settings, read=guard.read),
            engine=lambda: host.current,
            prompts=lambda: prompts.builder,
            metrics=counters,
        ),
    )


def _background(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    async def watched() -> None:
        with suppress(asyncio.CancelledError):
            try:
                await work
            except Exception as error:
                log.critical("background_task_died", task=name, exc_info=error)
                raise

    return asyncio.create_task(watched(), name=name)
