"""The service over real HTTP, with a fake engine, and what tests need around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from redis.asyncio import Redis

from service.app import create_app
from service.http_server import server_config
from service.ports import EngineFactory, RankingEngine
from shared.artifacts import ArtifactStore
from shared.base_model import base_model_hash
from shared.config import Settings
from shared.forgotten import ForgottenSet
from shared.manifest import Manifest
from shared.registry import Registry
from shared.retention import Retention
from shared.retriever import Retriever
from shared.types import AdapterName, DomainId, EvolutionId, Item, ItemId, UserId
from tests import factories
from tests.fake_engine import FakeEngine
from tests.tiny_base import CONFIG, write_adapter

SHOP = DomainId("shop")
START_S = 400  # some 25 s on two idle cores
ITEMS = tuple(
    Item(ItemId(f"i{n}"), f"{('red', 'blue', 'green')[n % 3]} cream {n}", category="Care" if n % 2 else "Hair")
    for n in range(30)
)


@dataclass
class FakeQueue:
    """Remembers what was enqueued."""

    enqueued: list[tuple[EvolutionId, DomainId]] = field(default_factory=list)
    error: Exception | None = None

    async def enqueue(self, evolution_id: EvolutionId, domain: DomainId) -> None:
        if self.error is not None:
            raise self.error
        self.enqueued.append((evolution_id, domain))


@dataclass
class Engines:
    """Builds fake engines, or fails where told to; `built` has them all."""

    built: list[FakeEngine] = field(default_factory=list)
    error: Exception | None = None
    gate: asyncio.Event | None = None

    async def __call__(self, settings: Settings) -> RankingEngine:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.built.append(FakeEngine(CONFIG["vocab_size"], settings.max_model_len))
        return self.built[-1]

    @property
    def last(self) -> FakeEngine:
        return self.built[-1]


class Publisher:
    """Makes versions as the evolver does, with random weights."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.artifacts = ArtifactStore(settings)
        self.registry = Registry(redis, self.artifacts)
        self.retention = Retention(redis, self.artifacts)
        self.redis = redis
        self._settings = settings

    async def publish(
        self,
        domain: DomainId = SHOP,
        *,
        forgotten: dict[UserId, frozenset[str]] | None = None,
        champion: bool = True,
        **changes: Any,
    ) -> AdapterName:
        """The next version, made champion unless told otherwise."""
        name = await self.registry.reserve_name(domain)
        before = await self.registry.champion(domain)
        manifest = self._manifest(name, domain, before, changes)
        with self.artifacts.stage(domain, name) as staged:
            write_adapter(staged.path, manifest.number, Path(self._settings.base_model))
            Retriever([item.item_id for item in ITEMS]).save(staged.path)
            ForgottenSet(forgotten).save(staged.path)
            manifest = staged.commit(manifest)
        if champion:
            await self.registry.publish(manifest, expected=before, fencing_token=0)
        else:
            await factories.register(self.redis, manifest)
        return name

    def _manifest(
        self, name: AdapterName, domain: DomainId, before: AdapterName | None, changes: dict[str, Any]
    ) -> Manifest:
        number = int(name.rpartition("-v")[2])
        fields = {"base_model_hash": base_model_hash(self._settings.base_model), **changes}
        return factories.manifest(number, domain=domain, parent=before, **fields)


@dataclass
class Running:
    """A service that answers at `http`."""

    http: httpx.AsyncClient
    settings: Settings
    engines: Engines
    queue: FakeQueue
    publisher: Publisher

    async def ready(self, timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while (await self.http.get("/health/ready")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def served_by(self, name: AdapterName, domain: DomainId = SHOP, timeout_s: float = 20.0) -> None:
        """Returns once answers come from `name`."""
        async with asyncio.timeout(timeout_s):
            while (await self.recommend(domain=domain)).json().get("adapter") != name:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def recommend(self, **body: Any) -> httpx.Response:
        full = {"domain": SHOP, "history": ["i1", "i2"], "user_id": "u1", **body}
        return await self.http.post("/recommend", json={key: value for key, value in full.items() if value is not None})


async def until_ready(http: httpx.AsyncClient) -> None:
    """Returns once the process is ready; as soon as it lives it goes on answering, while the engine starts."""
    lived = False
    async with asyncio.timeout(START_S):
        while True:
            try:
                lived = (await http.get("/health/live")).status_code == 200
                if (await http.get("/health/ready")).status_code == 200:
                    return
            except httpx.ConnectError:
                assert not lived
            await asyncio.sleep(0.1)


@asynccontextmanager
async def serving(
    settings: Settings, redis: Redis, *, engines: Engines | None = None, factory: EngineFactory | None = None
) -> AsyncIterator[Running]:
    """The service behind a real socket, in this event loop."""
    engines, queue = engines or Engines(), FakeQueue()
    app = create_app(settings, engine=factory or engines, queue=queue)
    server = uvicorn.Server(server_config(app, receive_timeout_s=settings.receive_timeout_s, port=0))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            yield Running(http, settings, engines, queue, Publisher(redis, settings))
    finally:
        server.should_exit = True
        await task
