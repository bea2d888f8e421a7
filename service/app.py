"""The application: what the process opens, in which order, and how it lets go of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import structlog
from fastapi import FastAPI

from service import problems
from service.adapters import AdapterManager
from service.auth import KeyRing, log_open_access
from service.deps import Services, State
from service.engine import start_engine
from service.engine_host import EngineHost
from service.loading import ArtifactLoader, VersionLoader
from service.middleware import BodyLimit, RequestContext
from service.openapi import describe
from service.ports import EngineFactory
from service.queue import CeleryQueue, EvolutionQueue
from service.recommend import Recommender
from service.routes import adapters, evolutions, health, interactions, items, metrics, recommend, users
from shared.artifacts import ArtifactStore
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.dead_letters import DeadLetters
from shared.evolutions import EvolutionStore
from shared.history import HistoryStore
from shared.metrics import Metrics
from shared.popularity import PopularityStore
from shared.prompt import PromptBuilder
from shared.redis_client import connect
from shared.redis_keys import validate_domain
from shared.registry import Registry
from shared.stream import InteractionLog

log = structlog.get_logger(__name__)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[State]]


def create_app(
    settings: Settings,
    *,
    engine: EngineFactory = start_engine,
    load: VersionLoader | None = None,
    queue: EvolutionQueue | None = None,
) -> FastAPI:
    """The service. `engine`, `load` and `queue` are vLLM, the artifact store and Celery unless a test says otherwise.

    ValueError where the API keys cannot be read, InvalidInput for an impossible default domain.
    """
    validate_domain(settings.default_domain)
    keys = KeyRing.parse(settings.api_keys)
    counters = Metrics()
    app = FastAPI(title="evorec", lifespan=_lifespan(settings, keys, counters, engine, load, queue))
    app.state.draining = False
    for module in (recommend, interactions, items, users, evolutions, adapters, health, metrics):
        app.include_router(module.router)
    problems.install(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestContext, metrics=counters)
    describe(app)
    return app


def _lifespan(
    settings: Settings,
    keys: KeyRing,
    counters: Metrics,
    engine: EngineFactory,
    load: VersionLoader | None,
    queue: EvolutionQueue | None,
) -> Lifespan:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        log_open_access(keys)
        host = EngineHost(engine, settings)
        prompts = _Prompts(settings)
        services = _open(settings, keys, counters, host, prompts, load, queue)
        tasks = [
            _background(host.run(), "engine"),
            _background(services.adapters.run(), "adapters"),
            _background(prompts.load(), "prompts"),
        ]
        try:
            yield {"services": services}
        finally:
            # The server has drained its requests. The followers go before the engine that they talk to.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await host.close()
            await services.redis.aclose()
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
    keys: KeyRing,
    counters: Metrics,
    host: EngineHost,
    prompts: _Prompts,
    load: VersionLoader | None,
    queue: EvolutionQueue | None,
) -> Services:
    redis = connect(settings)
    artifacts = ArtifactStore(settings)
    catalog = CatalogStore(redis)
    registry = Registry(redis, artifacts)
    histories = HistoryStore(redis, settings)
    manager = AdapterManager(settings, registry, catalog, host, load or ArtifactLoader(settings, artifacts), counters)
    return Services(
        settings=settings,
        redis=redis,
        keys=keys,
        metrics=counters,
        log=InteractionLog(redis, settings),
        histories=histories,
        catalog=catalog,
        registry=registry,
        evolutions=EvolutionStore(redis),
        dead_letters=DeadLetters(redis),
        queue=queue or CeleryQueue(settings),
        host=host,
        adapters=manager,
        recommender=Recommender(
            settings,
            manager,
            histories,
            PopularityStore(redis, settings),
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
