"""How many interactions one service process takes, and what that costs the recommendations beside it:
`python -m tests.load.ingestion`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.progress import Progress

from shared.types import ItemId
from tests.load.results import Entry, compared, save
from tests.load.serving import closed_loop
from tests.load.stack import DOMAIN, LoadStack, load_stack

COMMAND = "python -m tests.load.ingestion"
BATCH = 500
BATCHES = 40
SINGLES = 1500
BACKGROUND_RATE = 2000
ASKING = 4  # clients that ask for recommendations beside the ingestion
ASK_S = 12.0


class Events:
    """Bodies of requests with events that were never sent before."""

    def __init__(self, stack: LoadStack) -> None:
        self._users = stack.users
        self._items: list[ItemId] = [item.item_id for item in stack.store.items]
        self._numbers = itertools.count()
        self._rng = random.Random(0)

    def body(self, n: int) -> bytes:
        events = [
            {
                "event_id": f"load-{number}",
                "user_id": self._rng.choice(self._users),
                "item_id": self._rng.choice(self._items),
                "timestamp": 1_760_000_000 + number,
            }
            for number in itertools.islice(self._numbers, n)
        ]
        return json.dumps({"domain": DOMAIN, "interactions": events}).encode()


async def send(stack: LoadStack, bodies: list[bytes], n_each: int, connections: int) -> float:
    """Seconds until all are accepted."""
    waiting: Iterator[bytes] = iter(bodies)

    async def client() -> None:
        connection = await stack.connect()
        for body in waiting:
            status, answer = await connection.post("/interactions", body)
            assert status == 202, answer
            assert json.loads(answer)["accepted"] == n_each, answer
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    return time.perf_counter() - began


async def ingest_steadily(stack: LoadStack, events: Events, stop: asyncio.Event) -> int:
    """`BACKGROUND_RATE` interactions a second until told to stop; how many were accepted."""
    sent, began = 0, time.perf_counter()
    while not stop.is_set():
        await send(stack, [events.body(BATCH)], BATCH, 1)
        sent += BATCH
        await asyncio.sleep(max(0.0, began + sent / BACKGROUND_RATE - time.perf_counter()))
    return sent


async def p99(stack: LoadStack, events: Events | None) -> float:
    """Of recommendations, in milliseconds, with or without ingestion beside them."""
    stop = asyncio.Event()
    async with closed_loop(stack, ASKING) as seen:
        if events is None:
            await asyncio.sleep(ASK_S)
        else:
            ingesting = asyncio.create_task(ingest_steadily(stack, events, stop))
            await asyncio.sleep(ASK_S)
            stop.set()
            assert await ingesting >= 0.9 * BACKGROUND_RATE * ASK_S, "the service does not keep up"
    assert not seen.failures, seen.failures[:3]
    return seen.percentile(0.99)


async def bytes_per_interaction(stack: LoadStack, events: Events) -> float:
    """What Redis keeps for one more interaction of a known user: stream, history, popularity, event id."""
    before = int((await stack.redis.info("memory"))["used_memory"])
    n = 20_000
    await send(stack, [events.body(BATCH) for _ in range(n // BATCH)], BATCH, 4)
    return (int((await stack.redis.info("memory"))["used_memory"]) - before) / n


async def measure(rounds: int) -> None:
    async with load_stack() as stack:
        events = Events(stack)
        batches, singles, quiet, busy = [], [], [], []
        with Progress() as progress:
            for _ in progress.track(range(rounds), description="Ingestion: rounds"):
                bodies = [events.body(BATCH) for _ in range(BATCHES)]
                batches.append(BATCH * BATCHES / await send(stack, bodies, BATCH, 4))
                singles.append(SINGLES / await send(stack, [events.body(1) for _ in range(SINGLES)], 1, 16))
                quiet.append(await p99(stack, None))
                busy.append(await p99(stack, events))
        kept = await bytes_per_interaction(stack, events)
    save("ingestion", _entries(batches, singles, quiet, busy, kept))


def _entries(
    batches: list[float], singles: list[float], quiet: list[float], busy: list[float], kept: float
) -> list[Entry]:
    return [
        compared(f"POST /interactions, batches of {BATCH}", "interactions/s", batches, COMMAND, target=10_000),
        compared("POST /interactions, one event each, 16 connections", "requests/s", singles, COMMAND, target=500),
        compared(f"POST /recommend, {ASKING} clients, p99", "ms", quiet, COMMAND),
        compared(
            f"the same beside {BACKGROUND_RATE} interactions/s, p99",
            "ms",
            busy,
            COMMAND,
            baseline=f"POST /recommend, {ASKING} clients, p99",
            against=quiet,
            target=2.0,
        ),
        compared("Redis memory for an interaction", "bytes", [kept], COMMAND),
    ]


def main(rounds: Annotated[int, typer.Option(min=1)] = 5) -> None:
    """Measure and write docs/results/performance.json."""
    asyncio.run(measure(rounds))


if __name__ == "__main__":
    typer.run(main)
