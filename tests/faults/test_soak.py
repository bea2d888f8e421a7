"""Promise 5: hours of mixed load leave memory, file descriptors, threads and connections where they were.

Under FAULTS=full for SOAK_MINUTES (5 unless the environment says otherwise; 60 is the form of a release).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import pytest
from redis.asyncio import Redis

from shared.redis_keys import CHANGES_CHANNEL
from tests.faults.conftest import Tell
from tests.faults.saturable import ASK, Stack, saturable
from tests.load.http_client import Connection
from tests.service_support import ITEMS, SHOP, Publisher

SHORT_S: Final = 15.0
SOAK_MINUTES: Final = float(os.environ.get("SOAK_MINUTES", "5"))
ASKING, INGESTING = 3, 2
KEPT_VERSIONS: Final = 3
# How much each may grow from the warm-up's end to the end, however long that takes.
GROWTH: Final = {"memory": 24 * 2**20, "descriptors": 6.0, "threads": 3.0}
MAX_CONNECTIONS: Final = 40


@dataclass
class Samples:
    """(seconds since the start, value) by what was looked at."""

    seen: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, at: float, **values: float) -> None:
        for name, value in values.items():
            self.seen.setdefault(name, []).append((at, value))

    def growth(self, name: str, since: float) -> float:
        """Theil and Sen's slope (the median of those between all pairs) times the time: outliers do not bend it."""
        points = [point for point in self.seen[name] if point[0] >= since]
        points = points[:: max(1, len(points) // 200)]
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2)]
        return statistics.median(slopes) * (points[-1][0] - points[0][0])

    def most(self, name: str) -> float:
        return max(value for _, value in self.seen[name])


class Soak:
    """Everything at once, until `ends`."""

    def __init__(self, stack: Stack, seconds: float) -> None:
        self.stack = stack
        self.samples = Samples()
        self.statuses: Counter[int] = Counter()
        self.done: Counter[str] = Counter()
        self._began = time.monotonic()
        self._seconds = seconds
        self._publisher = Publisher(stack.client, stack.settings)
        self._numbers = itertools.count()

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self._began + self._seconds

    async def run(self) -> None:
        work = [self._calls("/recommend", lambda: ASK) for _ in range(ASKING)]
        work += [self._calls("/interactions", self._batch) for _ in range(INGESTING)]
        every = self._seconds / 60 if self._seconds > 60 else self._seconds / 6
        work += [self._sample(), self._periodically(every, self._swap), self._periodically(every, self._cut)]
        work += [self._periodically(every, self._change_catalog)]
        await asyncio.gather(*work)

    async def _calls(self, path: str, body: Callable[[], bytes]) -> None:
        connection = await self.stack.service.connect()
        while self.goes_on:
            status, answer = await connection.post(path, body())
            assert status in (200, 202, 503), answer
            if status == 503:
                assert "retry-after" in connection.headers
            self.statuses[status] += 1
        connection.close()

    def _batch(self) -> bytes:
        """Of ever new events of users who come back."""
        events = [
            {"user_id": f"u{n % 500}", "item_id": ITEMS[n % len(ITEMS)].item_id, "timestamp": 1_600_000_000 + n}
            for n in itertools.islice(self._numbers, 20)
        ]
        return json.dumps({"interactions": events}).encode()

    async def _periodically(self, every_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while self.goes_on:
            await work()
            await asyncio.sleep(every_s)

    async def _swap(self) -> None:
        name = await self._publisher.publish()
        await self._until(self._is_served, name, "the new champion answers")
        await self._publisher.retention.prune(SHOP, KEPT_VERSIONS)
        self.done["champions swapped"] += 1

    async def _is_served(self, name: str) -> bool:
        connection = await self.stack.service.connect()
        status, answer = await connection.post("/recommend", ASK)
        connection.close()
        return status == 200 and json.loads(answer)["adapter"] == name

    async def _cut(self) -> None:
        """The subscription's connection, killed by Redis, comes back by itself."""
        killed = await self.stack.client.client_kill_filter(_type="pubsub")
        await self._until(_is_subscribed, self.stack.client, "the service has subscribed again")
        self.done["subscriptions cut"] += int(killed)

    async def _until(self, holds: Callable[..., Awaitable[bool]], of: object, what: str) -> None:
        deadline = time.monotonic() + 60
        while not await holds(of):
            assert time.monotonic() < deadline, f"not within a minute: {what}"
            await asyncio.sleep(0.1)

    async def _change_catalog(self) -> None:
        changed = [{"item_id": item.item_id, "title": f"{item.title} {next(self._numbers)}"} for item in ITEMS]
        connection: Connection = await self.stack.service.connect()
        status, answer = await connection.put("/items", json.dumps({"items": changed}).encode())
        connection.close()
        assert status in (200, 503), answer
        self.done["catalogs changed"] += 1

    async def _sample(self) -> None:
        process = self.stack.service.process
        while self.goes_on:
            self.samples.add(
                time.monotonic() - self._began,
                memory=process.memory_info().rss,
                descriptors=process.num_fds(),
                threads=process.num_threads(),
                connections=len(await self.stack.client.client_list()),
            )
            await asyncio.sleep(0.25)


async def _is_subscribed(client: Redis) -> bool:
    ((_, subscribers),) = await client.pubsub_numsub(CHANGES_CHANNEL)
    return int(subscribers) > 0


@pytest.mark.timeout(2 * 3600)
async def test_a_soak_leaves_no_trace(full: bool, outcome: Tell) -> None:
    seconds = 60 * SOAK_MINUTES if full else SHORT_S
    async with saturable() as stack:
        soak = Soak(stack, seconds)
        await soak.run()
        grown = {name: soak.samples.growth(name, since=0.4 * seconds) for name in GROWTH}
    assert soak.statuses[200] > 0
    assert soak.statuses[202] > 0
    assert soak.done["champions swapped"] > 0
    assert soak.done["subscriptions cut"] > 0
    for name, most in GROWTH.items():
        assert grown[name] <= most, f"{name} grew by {grown[name]:,.0f}"
    assert soak.samples.most("connections") <= MAX_CONNECTIONS
    outcome(
        5,
        f"{seconds / 60:.1f} minutes of mixed load leave memory, descriptors, threads and connections where they were",
        faults={**soak.done, "requests shed": soak.statuses[503]},
        cases=soak.statuses.total(),
    )
