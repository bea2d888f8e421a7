"""What the service adds to its engine, and what a swap costs: `python -m tests.load.serving`."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from shared.config import Settings
from shared.history import HistoryStore
from shared.prompt import Prompt, PromptBuilder, candidate_order
from shared.retriever import Retriever, RetrieverIndex
from shared.types import AdapterName, ItemId, UserId
from tests.load.engine_only import EngineOnly, engine_only
from tests.load.http_client import Connection
from tests.load.results import Entry, compared, save
from tests.load.stack import DOMAIN, LoadStack, load_stack

COMMAND = "python -m tests.load.serving"
CLIENTS = 16
REQUESTS = 160
ALONE = 30
WARM_UP = 20
MORE_SWAPS = 200  # after those under load, to see whether memory stays where it is
BETWEEN_SWAPS_S = 2.0  # no evolver is that fast; without a pause a round has too few requests for a p99
SAMPLE_EVERY = 10  # of the answers under swaps; explaining costs the service some passes of the retriever


@dataclass
class Seen:
    """What the clients of a load got. `samples`: (user, answer) of requests that asked for an explanation."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    adapters: set[str] = field(default_factory=set)
    samples: list[tuple[UserId, dict[str, Any]]] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Of the latencies, in milliseconds."""
        return 1000 * float(np.quantile(self.latencies, share))


async def ask(connection: Connection, stack: LoadStack, number: int, seen: Seen, *, explain: bool = False) -> None:
    """One request; one that explains itself has scores that can be checked."""
    began = time.perf_counter()
    status, raw = await connection.post("/recommend", stack.recommend_body(number, explain=explain, count=20))
    seen.latencies.append(time.perf_counter() - began)
    answer = json.loads(raw)
    if status != 200 or answer["degraded"] is not False:
        seen.failures.append(f"{status}, degraded {answer.get('degraded')}: {raw[:200]!r}")
        return
    seen.adapters.add(answer["adapter"])
    if explain:
        seen.samples.append((UserId(answer["user_id"]), answer))


async def burst(stack: LoadStack, first: int, n: int, clients: int) -> tuple[float, Seen]:
    """`n` requests by `clients` at a time; the seconds they took."""
    seen, numbers = Seen(), iter(range(first, first + n))

    async def client() -> None:
        connection = await stack.connect()
        for number in numbers:
            await ask(connection, stack, number, seen)
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - began, seen


class Prompts:
    """The prompts that the service builds for the store's users."""

    def __init__(self, stack: LoadStack, folder: Path) -> None:
        self._stack = stack
        self._builder = PromptBuilder.load(stack.settings)
        self._items = {item.item_id: item for item in stack.store.items}
        self._index = RetrieverIndex(Retriever.load(folder), stack.store.items)
        self._histories = HistoryStore(stack.redis, stack.settings)

    async def of_user(self, user: UserId, ranked: Sequence[ItemId] | None = None) -> tuple[Prompt, list[ItemId]]:
        """The prompt, and its candidates in label order. `ranked`: what was answered, in any order."""
        history = [event.item_id for event in await self._histories.get(DOMAIN, user)]
        k = self._stack.settings.rank_candidates
        found = ranked or [item for item, _ in self._index.candidates(history, k, exclude=set(history))]
        order = candidate_order(found, user)
        return self._builder.build([self._items[i] for i in history], [self._items[i] for i in order]), order

    async def of_numbers(self, numbers: Sequence[int]) -> list[Prompt]:
        return [(await self.of_user(self._stack.user(number)))[0] for number in numbers]


async def request_path(stack: LoadStack, engine: EngineOnly, rounds: int, progress: Progress) -> list[Entry]:
    """`/recommend` against the bare engine, with the same prompts and the same adapter."""
    name, folder = next(iter(stack.adapters.items()))
    prompts = Prompts(stack, folder)
    rates: dict[str, list[float]] = {"service": [], "engine": []}
    alone: dict[str, list[float]] = {"service": [], "engine": []}
    numbers = itertools.count(WARM_UP, REQUESTS + ALONE)
    await burst(stack, 0, WARM_UP, CLIENTS)
    await engine.rank(await prompts.of_numbers(range(WARM_UP)), [folder] * WARM_UP, CLIENTS)
    for _ in progress.track(range(rounds), description="Request path: rounds"):
        first = next(numbers)
        built = await prompts.of_numbers(range(first, first + REQUESTS + ALONE))
        seconds, seen = await burst(stack, first, REQUESTS, CLIENTS)
        assert not seen.failures, seen.failures[:3]
        assert seen.adapters == {name}
        rates["service"].append(REQUESTS / seconds)
        rates["engine"].append(REQUESTS / (await engine.rank(built[:REQUESTS], [folder] * REQUESTS, CLIENTS)).seconds)
        _, single = await burst(stack, first + REQUESTS, ALONE, 1)
        alone["service"].append(single.percentile(0.5))
        bare = await engine.rank(built[REQUESTS:], [folder] * ALONE, 1)
        alone["engine"].append(1000 * statistics.median(bare.latencies))
    return [
        compared(f"engine alone, {CLIENTS} at once", "rankings/s", rates["engine"], COMMAND),
        compared(
            f"POST /recommend, {CLIENTS} clients",
            "requests/s",
            rates["service"],
            COMMAND,
            baseline=f"engine alone, {CLIENTS} at once",
            against=rates["engine"],
            target=0.80,
        ),
        compared("engine alone, one at a time, p50", "ms", alone["engine"], COMMAND),
        compared(
            "POST /recommend, one client, p50",
            "ms",
            alone["service"],
            COMMAND,
            baseline="engine alone, one at a time, p50",
            against=alone["engine"],
            target=1.5,
        ),
    ]


@asynccontextmanager
async def closed_loop(stack: LoadStack, clients: int = CLIENTS) -> AsyncIterator[Seen]:
    """Clients that ask as fast as they are answered, for the length of the block."""
    seen, stop, numbers = Seen(), asyncio.Event(), itertools.count()

    async def client() -> None:
        connection = await stack.connect()
        while not stop.is_set():
            number = next(numbers)
            await ask(connection, stack, number, seen, explain=number % SAMPLE_EVERY == 0)
        connection.close()

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield seen
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def swaps(
    stack: LoadStack, engine: EngineOnly, n_swaps: int, rounds: int, progress: Progress
) -> tuple[list[Entry], list[Entry]]:
    """Versions published one after the other under a closed loop; entries of the swaps, and of memory.

    They are made before each loop begins: making one takes both cores for seconds, and is no part of a swap.
    """
    per_round = n_swaps // rounds
    quiet, busy, samples = [], [], []
    requests = failures = 0
    seeds = itertools.count(1000)
    memory = [stack.memory_bytes() / 2**20]
    task = progress.add_task("Swaps under load", total=per_round * rounds)
    for _ in range(rounds):
        names = [next(reversed(stack.adapters))]
        for _ in range(per_round):
            names.append(await stack.make_version(next(seeds), parent=names[-1]))
        began = time.perf_counter()
        async with closed_loop(stack) as seen:
            for name in names[1:]:
                await stack.promote(name)
                await stack.answered_by(name)
                await asyncio.sleep(BETWEEN_SWAPS_S)
                progress.advance(task)
        took = time.perf_counter() - began
        async with closed_loop(stack) as still:
            await asyncio.sleep(took)
        busy.append(seen.percentile(0.99))
        quiet.append(still.percentile(0.99))
        requests += len(seen.latencies)
        failures += len(seen.failures) + len(still.failures)
        samples += seen.samples
        memory.append(stack.memory_bytes() / 2**20)
    worst, apart = await _against_fresh_engine(stack, engine, samples)
    done = per_round * rounds
    settled = {done: memory[-1]} | await more_swaps(stack, done, seeds, progress)
    label = f"{per_round * rounds} swaps, {CLIENTS} clients: "
    return [
        compared(f"{label}requests answered meanwhile", "requests", [requests], COMMAND),
        compared(f"{label}failed or degraded requests", "requests", [failures], COMMAND, target=0),
        compared("same load without swaps, p99", "ms", quiet, COMMAND),
        compared(
            f"{label}p99", "ms", busy, COMMAND, baseline="same load without swaps, p99", against=quiet, target=1.5
        ),
        compared(f"{label}answers checked", "answers", [len(samples)], COMMAND),
        compared(f"{label}largest error against a fresh engine", "log-probability", [worst], COMMAND, target=0.03),
        compared(f"{label}smallest difference between versions", "log-probability", [apart], COMMAND, target=0.3),
    ], [
        compared("memory (PSS) of the service and its engine, at the start", "MiB", memory[:1], COMMAND),
        *(compared(f"the same after {n:,} swaps", "MiB", [mib], COMMAND) for n, mib in settled.items()),
    ]


async def more_swaps(stack: LoadStack, done: int, seeds: Iterator[int], progress: Progress) -> dict[int, float]:
    """Number of swaps -> MiB, for swaps one after the other without other load."""
    memory = {}
    for n in progress.track(range(done + 1, done + MORE_SWAPS + 1), description="Swaps for memory"):
        await stack.answered_by(await stack.publish(next(seeds)))
        if (n - done) % (MORE_SWAPS // 4) == 0:
            memory[n] = stack.memory_bytes() / 2**20
    return memory


async def _against_fresh_engine(
    stack: LoadStack, engine: EngineOnly, samples: Sequence[tuple[UserId, dict[str, Any]]]
) -> tuple[float, float]:
    """The largest difference between what was answered and what a fresh engine says of the version that the answer
    names; and the smallest between two neighbouring versions on one prompt.
    """
    prompts = Prompts(stack, next(iter(stack.adapters.values())))
    built, folders, answered = [], [], []
    for user, answer in samples:
        scores = {
            ItemId(item["item_id"]): item["reason"]["llm_log_probability"]
            for item in answer["items"]
            if item["reason"]["llm_log_probability"] is not None
        }
        prompt, order = await prompts.of_user(user, list(scores))
        built.append(prompt)
        folders.append(stack.adapters[AdapterName(answer["adapter"])])
        answered.append([scores[item] for item in order])
    fresh = (await engine.rank(built, folders, 4)).logprobs
    worst = max(float(np.abs(np.subtract(a, f)).max()) for a, f in zip(answered, fresh, strict=True))
    names = list(stack.adapters.values())
    one = (await engine.rank([built[0]] * len(names), names, 4)).logprobs
    apart = min(float(np.abs(np.subtract(a, b)).max()) for a, b in itertools.pairwise(one))
    return worst, apart


async def measure(rounds: int, n_swaps: int) -> None:
    async with load_stack() as stack, engine_only(_alike(stack.settings, n_swaps)) as engine:
        with Progress() as progress:
            save("request-path", await request_path(stack, engine, rounds, progress))
            entries, memory = await swaps(stack, engine, n_swaps, rounds, progress)
            save("swaps", entries)
            save("swap-memory", memory)


def _alike(settings: Settings, n_swaps: int) -> Settings:
    """The same engine, with room for every version that the check asks about."""
    return settings.model_copy(update={"max_cpu_loras": n_swaps + 8})


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5, n_swaps: Annotated[int, typer.Option("--swaps", min=1)] = 50
) -> None:
    """Measure and write docs/results/performance.json."""
    asyncio.run(measure(rounds, n_swaps))


if __name__ == "__main__":
    typer.run(main)
