"""Promise 5: ten times what the service sustains is shed with 503, within bounds, and forgotten when it ends."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest

from shared.config import Settings
from tests.faults.conftest import Tell
from tests.faults.kept import check_consistent, lost_or_doubled, read_back
from tests.faults.numbered import NumberedStream, RetryingClient
from tests.faults.saturable import ASK, BATCH_PLACES, PARALLEL, PLACES, Stack, saturable
from tests.load.http_client import Connection
from tests.service_support import Running

pytest_plugins = ["tests.service_fixtures"]

ROOM: Final = 128 * 2**20


@dataclass
class Load:
    """What came of the requests. Seconds are per request."""

    answered: list[float] = field(default_factory=list)
    shed: list[float] = field(default_factory=list)
    degraded: Counter[object] = field(default_factory=Counter)

    async def ask(self, connection: Connection) -> None:
        began = time.perf_counter()
        status, body = await connection.post("/recommend", ASK)
        took = time.perf_counter() - began
        if status == 503:
            assert connection.headers["retry-after"] == "1"
            self.shed.append(took)
            return
        assert status == 200, body
        self.answered.append(took)
        self.degraded[json.loads(body)["degraded"]] += 1


async def closed_loop(stack: Stack, clients: int, seconds: float) -> Load:
    """So many clients, each with one request at a time."""
    load, end = Load(), time.monotonic() + seconds

    async def client() -> None:
        connection = await stack.service.connect()
        while time.monotonic() < end:
            await load.ask(connection)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return load


async def open_loop(stack: Stack, rate: float, seconds: float) -> Load:
    """`rate` requests a second, each on a connection of its own, whatever becomes of those before."""
    load, began = Load(), time.monotonic()

    async def request(at: float) -> None:
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        connection = await stack.service.connect()
        await load.ask(connection)
        connection.close()

    await asyncio.gather(*(request(n / rate) for n in range(round(rate * seconds))))
    return load


@asynccontextmanager
async def sampled(read: Callable[[], Awaitable[float]]) -> AsyncIterator[list[float]]:
    """What `read` gave every 0.2 s within the block."""
    found = [await read()]

    async def sample() -> None:
        while True:
            found.append(await read())
            await asyncio.sleep(0.2)

    sampling = asyncio.create_task(sample())
    try:
        yield found
        assert len(found) > 1, "nothing was sampled"
    finally:
        assert sampling.cancel(), sampling.exception()


async def test_ten_times_the_load_is_shed_and_forgotten(full: bool, outcome: Tell) -> None:
    async with saturable() as stack:
        process = stack.service.process
        before = await closed_loop(stack, PARALLEL, seconds=5 if full else 2)
        sustained = len(before.answered) / (5 if full else 2)
        async with sampled(stack.memory) as memory, sampled(stack.rankings) as rankings:
            load = await open_loop(stack, 10 * sustained, seconds=60 if full else 5)
        after = await closed_loop(stack, PARALLEL, seconds=2)
        assert stack.service.process == process, "it was restarted"

    assert (before.shed, after.shed) == ([], [])
    assert set(before.degraded) == set(load.degraded) == set(after.degraded) == {False}
    assert len(load.shed) > len(load.answered) > 0
    assert max(rankings) <= PLACES
    assert max(memory) < memory[0] + ROOM
    outcome(
        5,
        "At ten times the sustained rate each request is answered or shed with 503, Retry-After; then all is as before",
        faults={"requests shed": len(load.shed)},
        cases=len(load.shed) + len(load.answered) + len(after.answered),
    )


async def test_a_flood_of_batches_is_shed_and_none_is_lost(full: bool, rng: random.Random, outcome: Tell) -> None:
    clients, batch = (400 if full else 60), 1000
    async with saturable() as stack:
        stream = NumberedStream(clients * batch, users=2000, rng=rng)
        stack.redis.signal(signal.SIGSTOP)
        async with sampled(stack.memory) as memory:
            flood = [asyncio.create_task(_send(stack, stream, n, batch)) for n in range(clients)]
            try:
                async with asyncio.timeout(60):
                    while stream.sent.shed < clients - BATCH_PLACES:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            finally:
                stack.redis.signal(signal.SIGCONT)
            await asyncio.gather(*flood)
        kept = await read_back(stack.client, stack.settings)
    check_consistent(kept, stack.settings)
    assert max(memory) < memory[0] + ROOM
    outcome(
        5,
        f"Of {clients} batches at once over a stopped Redis, {BATCH_PLACES} wait and the others are shed unread",
        faults={"Redis stopped": 1, "batches shed": stream.sent.shed},
        cases=len(stream.sent.answered),
        lost=lost_or_doubled(kept, stream),
    )


async def _send(stack: Stack, stream: NumberedStream, number: int, batch: int) -> None:
    client = RetryingClient(stack.service.connect, stream.sent)
    numbers = range(number * batch, (number + 1) * batch)
    await client.post_until_accepted(stream.body(numbers))
    client.hang_up()
    stream.sent.answered.update(numbers)


@pytest.fixture
def service_settings(service_settings: Settings) -> Settings:
    return service_settings.model_copy(update={"receive_timeout_s": 3.0})


async def test_callers_that_send_slowly_keep_nobody_out(running: Running, full: bool, outcome: Tell) -> None:
    places = running.settings.max_concurrent_batches
    body = json.dumps({"interactions": [{"user_id": "u", "item_id": "i1", "timestamp": 1}]}).encode()
    url = running.http.base_url

    async def post() -> int:
        headers = {"Content-Type": "application/json"}
        return (await running.http.post("/interactions", content=body, headers=headers)).status_code

    async def open_one() -> Connection:
        return await Connection.open(url.host, url.port or 0)

    rounds = 20 if full else 1
    for _ in range(rounds):
        slow = [await open_one() for _ in range(places)]
        for connection in slow:
            connection.send_part("/interactions", body[:10], len(body))
        async with asyncio.timeout(30):
            # Out of places: shed before the body.
            while await post() != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            # One sends the rest in time.
            slow[0].send_rest(body[10:])
            assert (await slow[0].answer())[0] == 202
            for connection in slow[1:]:
                assert (await connection.answer())[0] == 408
        for connection in slow:
            connection.close()
        assert await post() == 202
    outcome(
        5,
        "Callers that trickle their batches hold every place for a moment only, and lose it with 408",
        faults={"bodies that stop half way": rounds * (places - 1)},
        cases=rounds * places,
    )
