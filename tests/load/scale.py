"""Latency and memory as the work grows, and where the knee is: `python -m tests.load.scale [--only catalog,users]`.

Catalogs of 1,000 to a million items, their popularity, histories of 5 to 500 interactions, 1 to 16 adapters in a batch,
a thousand to a million users in Redis.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import psutil
import typer
from rich.progress import Progress, track

from service.engine import LORA_MODULES
from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.history import HistoryStore
from shared.popularity import PopularityStore, Shares
from shared.precision import cpu_dtype
from shared.redis_client import connect
from shared.redis_keys import PartitionKeys
from shared.redis_urls import socket_url
from shared.stream import InteractionLog
from shared.types import DomainId, Interaction, Item, ItemId, UserId
from tests.load.engine_process import Batch, EngineProcess
from tests.load.kernels import RANK, tiny_model
from tests.load.results import Entry, compared, save
from tests.load.stack import DOMAIN, LoadStack, load_stack

COMMAND = "python -m tests.load.scale"
CATALOGS = (1_000, 10_000, 100_000, 1_000_000)
HISTORIES = (5, 50, 200, 500)
ADAPTERS = (1, 2, 4, 8, 16)
USERS = (1_000, 10_000, 100_000, 1_000_000)
PER_USER = 3
QUERIES = 20
BATCH = 500

T = TypeVar("T")


def grown(name: str, unit: str, sizes: Sequence[int], values: dict[int, list[float]], what: str) -> list[Entry]:
    """One entry for each size, compared with the smallest."""
    first = f"{what}, {sizes[0]:,} {name}"
    return [
        compared(f"{what}, {size:,} {name}", unit, values[size], COMMAND)
        if size == sizes[0]
        else compared(f"{what}, {size:,} {name}", unit, values[size], COMMAND, baseline=first, against=values[sizes[0]])
        for size in sizes
    ]


def in_own_process(work: Callable[[], T]) -> T:
    """What `work` takes of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


# -- catalog --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Retrieval:
    """Seconds to index a catalog that is new, and one of which a hundredth has changed; MiB that index and catalog
    take; a retrieval's p50 in ms in each round.
    """

    new_s: float
    changed_s: float
    mib: float
    p50_ms: list[float]


def retrieval(n_items: int, rounds: int) -> Retrieval:
    """What grows with the catalog."""
    import torch

    from shared.item_words import ItemWords
    from shared.retriever import Retriever, RetrieverIndex
    from shared.sasrec import RetrieverConfig

    torch.set_num_threads(1)  # as in the service
    before = psutil.Process().memory_info().rss
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 20_000, (n_items, 6), generator=generator).tolist()
    items = [
        Item(ItemId(f"item-{number}"), " ".join(f"w{word}" for word in each), f"Store > Shelf {number % 200}")
        for number, each in enumerate(numbers)
    ]
    config = RetrieverConfig(members=Settings().retriever_members)
    retriever = Retriever([item.item_id for item in items], config)
    began = time.perf_counter()
    words = ItemWords.of(items, retriever.config.word_buckets)
    index = RetrieverIndex(retriever, items, words)
    new_s = time.perf_counter() - began
    mib = (psutil.Process().memory_info().rss - before) / 2**20
    history = [item.item_id for item in items[:10]]
    p50 = []
    for _ in range(rounds):
        taken = []
        for _ in range(QUERIES):
            began = time.perf_counter()
            index.candidates(history, 20, exclude=set(history))
            taken.append(1000 * (time.perf_counter() - began))
        p50.append(statistics.median(taken))
    del index
    for row in range(0, n_items, 100):
        items[row] = replace(items[row], title=f"{items[row].title} again")
    began = time.perf_counter()
    RetrieverIndex(retriever, items, ItemWords.of(items, retriever.config.word_buckets, words))
    return Retrieval(new_s, time.perf_counter() - began, mib, p50)


def catalogs(rounds: int) -> None:
    """Retrieval, the part of a request that grows with the catalog."""
    found = {n: in_own_process(partial(retrieval, n, rounds)) for n in track(CATALOGS, description="Scale: catalog")}
    save(
        "scale-catalog",
        [
            *grown("items", "ms", CATALOGS, {n: each.p50_ms for n, each in found.items()}, "retrieval, p50"),
            *grown("items", "s", CATALOGS, {n: [each.new_s] for n, each in found.items()}, "index over a new catalog"),
            *grown(
                "items",
                "s",
                CATALOGS,
                {n: [each.changed_s] for n, each in found.items()},
                "index, 1 % of items changed",
            ),
            *grown(
                "items", "MiB", CATALOGS, {n: [each.mib] for n, each in found.items()}, "memory of catalog and index"
            ),
        ],
    )


# -- popularity -----------------------------------------------------------------------------------
async def popularity(rounds: int) -> None:
    """What counting up popularity takes, how long the event loop, which serves requests, stands still meanwhile, and
    how long others wait for an answer of Redis.
    """
    taken: dict[int, list[float]] = {n: [] for n in CATALOGS}
    waited: dict[int, list[float]] = {n: [] for n in CATALOGS}
    answered: dict[int, list[float]] = {n: [] for n in CATALOGS}
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(_env_file=None, state_dir=Path(folder))
        with EmbeddedRedis(settings):
            settings = settings.model_copy(update={"redis_url": socket_url(settings)})
            async with connect(settings) as redis, connect(settings) as other:
                key = PartitionKeys(DOMAIN, 0).popularity
                for done, n in track([*zip((0, *CATALOGS), CATALOGS, strict=False)], description="Scale: popularity"):
                    for start in range(done, n, BATCH):
                        numbers = range(start, min(n, start + BATCH))
                        await redis.zadd(key, {f"item-{i:07d}": 300 + i * 7919 % n / n for i in numbers})
                    for _ in range(rounds):
                        store = PopularityStore(redis, settings)
                        began = time.perf_counter()
                        waited[n].append(
                            1000 * await _longest_wait(store.counted(DOMAIN), partial(asyncio.sleep, 0.001))
                        )
                        taken[n].append(1000 * (time.perf_counter() - began))
                        store = PopularityStore(redis, settings)
                        answered[n].append(1000 * await _longest_wait(store.counted(DOMAIN), other.ping))
    save(
        "scale-popularity",
        [
            *grown("items", "ms", CATALOGS, taken, "counting up popularity"),
            *grown("items", "ms", CATALOGS, waited, "longest wait of others meanwhile"),
            *grown("items", "ms", CATALOGS, answered, "longest wait of others for Redis"),
        ],
    )


async def _longest_wait(work: Awaitable[Shares], other: Callable[[], Awaitable[object]]) -> float:
    """The longest time that `other` took while the work went on, in seconds."""
    task, longest = asyncio.ensure_future(work), 0.0
    while not task.done():
        began = time.perf_counter()
        await other()
        longest = max(longest, time.perf_counter() - began)
    await task
    return longest


# -- histories ------------------------------------------------------------------------------------
async def histories(rounds: int) -> None:
    """`POST /recommend` of one client for users with longer and longer histories."""
    p50: dict[int, list[float]] = {n: [] for n in HISTORIES}
    async with load_stack() as stack:
        log = InteractionLog(stack.redis, stack.settings)
        items = [item.item_id for item in stack.store.items]
        for n in HISTORIES:
            events = [
                Interaction("", UserId(f"h{n}-{user}"), items[(7 * user + k) % len(items)], 1e9 + k)
                for user in range(QUERIES)
                for k in range(n)
            ]
            await log.append(DOMAIN, events)
        with Progress() as progress:
            for _ in progress.track(range(rounds), description="Scale: histories"):
                for n in HISTORIES:
                    p50[n].append(await _p50(stack, [UserId(f"h{n}-{user}") for user in range(QUERIES)]))
    save("scale-history", grown("interactions", "ms", HISTORIES, p50, "POST /recommend, p50, history"))


async def _p50(stack: LoadStack, users: Sequence[UserId]) -> float:
    connection = await stack.connect()
    taken = []
    for user in users:
        began = time.perf_counter()
        status, answer = await connection.post("/recommend", stack.recommend_body(0, user_id=user, exclude_seen=False))
        assert status == 200, answer
        taken.append(1000 * (time.perf_counter() - began))
    connection.close()
    return statistics.median(taken)


# -- adapters -------------------------------------------------------------------------------------
def adapters(rounds: int) -> None:
    """Prompts per second of one engine with room for 16 adapters, as its batches mix more of them."""
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder), n_adapters=ADAPTERS[-1])
        engine = {
            "model": str(model.folder),
            "dtype": cpu_dtype(Settings().dtype),
            "max_model_len": 1024,
            "max_num_batched_tokens": 2048,
            "enable_lora": True,
            "max_loras": ADAPTERS[-1],
            "max_lora_rank": RANK,
            "lora_target_modules": list(LORA_MODULES),
        }
        rates: dict[int, list[float]] = {n: [] for n in ADAPTERS}
        memory: dict[int, list[float]] = {}
        with EngineProcess(Path(folder) / "engine.log", engine, model.adapters) as running:
            for n in ADAPTERS:
                running.seconds(Batch(model.n_prompts, 250, n))
                memory[n] = [running.memory_mib()]
            for _ in track(range(rounds), description="Scale: adapters"):
                for n in ADAPTERS:
                    rates[n].append(model.n_prompts / running.seconds(Batch(model.n_prompts, 250, n)))
    save(
        "scale-adapters",
        [
            *grown("adapters", "prompts/s", ADAPTERS, rates, "prefill of 250 tokens, mixed"),
            *grown("adapters", "MiB", ADAPTERS, memory, "memory of the engine"),
        ],
    )


# -- users ----------------------------------------------------------------------------------------
async def users(rounds: int) -> None:
    """Redis as users come in, `PER_USER` interactions each."""
    domain = DomainId("scale")
    memory: dict[int, list[float]] = {}
    reads: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(_env_file=None, state_dir=Path(folder))
        with EmbeddedRedis(settings):
            async with connect(settings.model_copy(update={"redis_url": socket_url(settings)})) as redis:
                log, store = InteractionLog(redis, settings), HistoryStore(redis, settings)
                empty = int((await redis.info("memory"))["used_memory"])
                done = 0
                with Progress() as progress:
                    task = progress.add_task("Scale: users", total=USERS[-1])
                    for n in USERS:
                        while done < n:
                            batch = range(done, min(n, done + BATCH))
                            await log.append(domain, [_event(user, k) for user in batch for k in range(PER_USER)])
                            done = batch.stop
                            progress.update(task, completed=done)
                        used = int((await redis.info("memory"))["used_memory"]) - empty
                        memory[n] = [used / n]
                        reads[n] = [await _read_ms(store, domain, n) for _ in range(rounds)]
    save(
        "scale-users",
        [
            *grown("users", "bytes", USERS, memory, f"Redis memory for a user with {PER_USER} interactions"),
            *grown("users", "ms", USERS, reads, "reading a history, p50"),
        ],
    )


def _event(user: int, k: int) -> Interaction:
    return Interaction("", UserId(f"user-{user:07d}"), ItemId(f"item-{(user + k) % 5000:05d}"), 1.7e9 + 60 * k)


async def _read_ms(store: HistoryStore, domain: DomainId, n_users: int) -> float:
    taken = []
    for query in range(200):
        began = time.perf_counter()
        assert await store.get(domain, UserId(f"user-{query * 7919 % n_users:07d}"))
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5, only: str = "catalog,popularity,history,adapters,users"
) -> None:
    """Measure and write docs/results/performance.json."""
    work: dict[str, Callable[[], None]] = {
        "catalog": lambda: catalogs(rounds),
        "popularity": lambda: asyncio.run(popularity(rounds)),
        "history": lambda: asyncio.run(histories(rounds)),
        "adapters": lambda: adapters(rounds),
        "users": lambda: asyncio.run(users(rounds)),
    }
    for name in only.split(","):
        work[name]()


if __name__ == "__main__":
    typer.run(main)
