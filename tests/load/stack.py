"""A real service under load: embedded Redis, `evorec serve` in a process of its own, versions with random weights."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from redis.asyncio import Redis

from deploy.demo.state import free_port
from evolver.stores import Store, make_store
from shared.artifacts import ArtifactStore
from shared.base_model import base_model_hash
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.forgotten import ForgottenSet
from shared.ranking import Blends, BlendWeights
from shared.redis_client import connect
from shared.redis_urls import socket_url
from shared.registry import Registry
from shared.retriever import Retriever
from shared.sasrec import RetrieverConfig
from shared.stream import InteractionLog
from shared.types import AdapterName, DomainId, UserId
from tests import factories
from tests.load.http_client import Connection

DOMAIN = DomainId("load")
START_S = 300
LORA_STD = 0.3  # of lora_B: versions must differ by far more than an answer may err


@dataclass
class LoadStack:
    """What runs, and how to reach it."""

    settings: Settings
    redis: Redis
    store: Store
    process: subprocess.Popen[bytes]
    users: tuple[UserId, ...]
    adapters: dict[AdapterName, Path] = field(default_factory=dict)

    def user(self, number: int) -> UserId:
        """The store's n-th user, over and over."""
        return self.users[number % len(self.users)]

    def recommend_body(self, number: int, **more: object) -> bytes:
        """A request of the n-th user."""
        return json.dumps({"domain": DOMAIN, "user_id": self.user(number), "count": 10, **more}).encode()

    async def connect(self) -> Connection:
        return await Connection.open(self.settings.host, self.settings.port)

    async def publish(self, seed: int) -> AdapterName:
        """The next champion, with random weights."""
        name = await self.make_version(seed, await Registry(self.redis, ArtifactStore(self.settings)).champion(DOMAIN))
        await self.promote(name)
        return name

    async def make_version(self, seed: int, parent: AdapterName | None) -> AdapterName:
        """A version with random weights in the artifact store; nobody is told of it. Takes both cores for a while."""
        artifacts = ArtifactStore(self.settings)
        name = await Registry(self.redis, artifacts).reserve_name(DOMAIN)
        manifest = factories.manifest(
            int(name.rpartition("-v")[2]),
            domain=DOMAIN,
            parent=parent,
            base_model_hash=base_model_hash(self.settings.base_model),
            blend=Blends.alike(BlendWeights(llm=1.0)),
        )

        retriever = RetrieverConfig(members=self.settings.retriever_members)

        def write() -> None:
            with artifacts.stage(DOMAIN, name) as staged:
                write_random_lora(self.settings, staged.path, seed)
                Retriever([item.item_id for item in self.store.items], retriever).save(staged.path)
                ForgottenSet().save(staged.path)
                staged.commit(manifest)

        await asyncio.to_thread(write)
        self.adapters[name] = artifacts.fetch(DOMAIN, name)
        return name

    async def promote(self, name: AdapterName) -> None:
        """Publish a version that was made from the present champion."""
        artifacts = ArtifactStore(self.settings)
        manifest = artifacts.manifest(DOMAIN, name)
        await Registry(self.redis, artifacts).publish(manifest, expected=manifest.parent, fencing_token=0)

    async def answered_by(self, name: AdapterName, timeout_s: float = 60.0) -> None:
        """Returns once the engine ranks with this version."""
        connection = await self.connect()
        body = self.recommend_body(0)
        async with asyncio.timeout(timeout_s):
            while True:
                answer = json.loads((await connection.post("/recommend", body))[1])
                if (answer.get("adapter"), answer.get("degraded")) == (name, False):
                    break
                await asyncio.sleep(0.05)
        connection.close()

    def memory_bytes(self) -> int:
        """Resident memory of the service and its engine processes, shared pages counted once (PSS)."""
        main = psutil.Process(self.process.pid)
        return sum(each.memory_full_info().pss for each in (main, *main.children(recursive=True)))


def write_random_lora(settings: Settings, folder: Path, seed: int) -> None:
    """A LoRA on all layers whose answers differ clearly from every other seed's."""
    import torch

    from evolver.lora import load_with_lora, lora_parameters, save_lora

    model = load_with_lora(settings, None, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, name, parameter in lora_parameters(model):
            if "lora_B" in name:
                parameter.normal_(0.0, LORA_STD, generator=generator)
    save_lora(model, folder)


@asynccontextmanager
async def load_stack() -> AsyncIterator[LoadStack]:
    """Ready to answer, with version 1 as champion."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(_env_file=None, state_dir=Path(folder), port=free_port())
        with EmbeddedRedis(settings):
            settings = settings.model_copy(update={"redis_url": socket_url(settings)})
            redis = connect(settings)
            store = make_store(7, n_users=1500)
            await CatalogStore(redis).put(DOMAIN, store.items)
            await InteractionLog(redis, settings).append(DOMAIN, store.first_period)
            process = start_service(settings)
            try:
                stack = LoadStack(settings, redis, store, process, tuple(sorted(store.future)))
                await _listening(stack)
                await stack.answered_by(await stack.publish(1), START_S)
                yield stack
            finally:
                process.terminate()
                process.wait(60)
                await redis.aclose()


def start_service(settings: Settings) -> subprocess.Popen[bytes]:
    """`evorec serve` with these settings; its log lies in the state directory."""
    passed = settings.model_dump(include={"state_dir", "redis_url", "port"}, mode="json")
    env = {**os.environ, **{f"EVOREC_{name.upper()}": str(value) for name, value in passed.items()}}
    with (settings.state_dir / "serve.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "deploy.cli.main", "serve"], env=env, stdout=log, stderr=log)


async def _listening(stack: LoadStack) -> None:
    """Returns once the service listens. RuntimeError with its log where it ended."""
    async with asyncio.timeout(START_S):
        while True:
            if stack.process.poll() is not None:
                raise RuntimeError((stack.settings.state_dir / "serve.log").read_text()[-3000:])
            try:
                (await stack.connect()).close()
            except OSError:
                await asyncio.sleep(0.2)
            else:
                return
