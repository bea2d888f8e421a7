"""A service process that a test can saturate."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

from shared.catalog import CatalogStore
from shared.config import Settings
from shared.redis_client import connect
from tests.faults.processes import RedisProcess, ServiceProcess, machine
from tests.service_support import ITEMS, SHOP, Publisher

# The engine ranks PARALLEL requests at once, each in DELAY_S; PLACES requests may be with the service.
PARALLEL, DELAY_S, PLACES = 2, 0.1, 12
BATCH_PLACES = 6
ASK: Final = json.dumps({"domain": SHOP, "user_id": "u1", "history": ["i1", "i2"], "count": 10}).encode()


@dataclass
class Stack:
    """A service process that can be saturated, its Redis, and a client of that."""

    settings: Settings
    redis: RedisProcess
    service: ServiceProcess
    client: Redis

    async def memory(self) -> float:
        """Bytes of the service."""
        return float(self.service.process.memory_info().rss)

    async def rankings(self) -> float:
        """How many are in the engine, or wait for it."""
        with closing(await self.service.connect()) as connection:  # whoever samples may be cancelled here
            text = (await connection.get("/metrics"))[1].decode()
        (value,) = re.findall(r"^evorec_rankings_running (\S+)$", text, re.MULTILINE)
        return float(value)


@asynccontextmanager
async def saturable(*, rank_timeout_ms: int = 10_000, **env: str) -> AsyncIterator[Stack]:
    """Served by a version. `env`: the engine's, see `tests.faults.service_worker`."""
    limits = {"max_concurrent_requests": PLACES, "max_concurrent_batches": BATCH_PLACES}
    with machine(**limits, rank_timeout_ms=rank_timeout_ms) as settings:
        redis = RedisProcess(settings)
        engine = {"FAKE_DELAY_S": str(DELAY_S), "FAKE_PARALLEL": str(PARALLEL), **env}
        service = ServiceProcess(settings, **engine)
        try:
            redis.start()
            async with connect(settings) as client:
                await CatalogStore(client).put(SHOP, ITEMS)
                name = await Publisher(client, settings).publish()
                service.start()
                await service.listening()
                stack = Stack(settings, redis, service, client)
                await _served_by(stack, name)
                yield stack
        finally:
            service.kill()
            redis.kill()


async def _served_by(stack: Stack, name: str) -> None:
    with closing(await stack.service.connect()) as connection:
        async with asyncio.timeout(60):
            while True:
                answer = json.loads((await connection.post("/recommend", ASK))[1])
                if (answer["adapter"], answer["degraded"]) == (name, False):
                    break
                await asyncio.sleep(0.05)
