"""Promise 2: data that nobody can read or learn from never block a domain."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Final

import pytest
from redis.asyncio import Redis

from shared.interaction_codec import encode
from shared.redis_keys import DomainKeys, PartitionKeys
from shared.types import Interaction, UserId
from tests.faults.conftest import Tell
from tests.faults.evolution_line import ITEMS, SHOP, Line, open_line

KEYS: Final = PartitionKeys(SHOP, 0)
STREAM: Final[tuple[str | bytes, ...]] = (
    "{broken",
    b"\xff\xfe\x00",
    "[" * 100_000,
    '{"id":"e1","user":"user-1","item":"item-1","at":NaN,"type":"purchase"}',
    '{"id":"e2","user":"\\ud800","item":"item-1","at":1700000000,"type":"purchase"}',
    '{"id":"e3","user":7,"item":null,"at":"yesterday","type":[]}',
)
HISTORY: Final[tuple[str | bytes, ...]] = (
    "garbage",
    b"0000000000000000-0000000001|\xff",
    '0001700000000000-0000000001|{"id":"e4","user":"user-1","item":"item-1","at":NaN,"type":"purchase"}',
)
CATALOG: Final[dict[str, str | bytes]] = {
    "broken": "{",
    "half": '{"title":"\\ud800 cream","category":"soap","brand":"","available":true}',
    "numbers": '{"title":7}',
    "bytes": b'{"title":"\xff"}',
}
N_EVENTS: Final = 100_000  # of one user


@pytest.fixture
async def line(tmp_path_factory: pytest.TempPathFactory, rng: random.Random) -> AsyncIterator[Line]:
    async with open_line(tmp_path_factory.mktemp("line"), rng) as line:
        yield line


async def test_a_domain_with_poison_evolves_and_says_what_it_left_out(line: Line, full: bool, outcome: Tell) -> None:
    redis = line.backend.redis
    await redis.hset(DomainKeys(SHOP).items, mapping=CATALOG)  # type: ignore[arg-type]
    line.worker.start()
    poisoned, checked = 0, await line.check([], await line.published(await line.begun()))
    for number in range(2 if full else 1):
        known = await line.backend.registry.versions(SHOP)
        poisoned += await poison(redis, UserId(f"user-{number}"))
        await line.interact()
        checked += await line.check(known, await line.published(await line.begun()))
        await asyncio.to_thread(line.worker.kill)
        line.worker.start()

    letters = await line.backend.dead_letters.newest(SHOP, 1000)
    reasons = [letter.reason.partition(":")[0] for letter in letters]
    assert reasons.count("catalog entry") == len(CATALOG)
    assert reasons.count("stream entry") + reasons.count("history entry") == poisoned
    assert all(letter.reason and letter.raw for letter in letters)
    outcome(
        2,
        "data that cannot be read become dead letters with their reason, and the domain evolves",
        faults={
            "unreadable stream or history entry": poisoned,
            "unreadable item": len(CATALOG),
            "user with 100,000 events, or one who has seen everything": 2,
        },
        cases=checked + len(letters),
    )


async def poison(redis: Redis, user: UserId) -> int:
    """Bad entries in the stream and the user's history, a giant and one who has seen it all; how many are bad."""
    for payload in STREAM:
        await redis.xadd(KEYS.stream, {"e": payload, "of": user})
    await redis.zadd(KEYS.history(user), dict.fromkeys(HISTORY, 1.0))  # type: ignore[type-var]
    await give_history(redis, UserId("giant"), N_EVENTS)
    await give_history(redis, UserId("collector"), len(ITEMS))
    return len(STREAM) + len(HISTORY)


async def give_history(redis: Redis, user: UserId, n: int) -> None:
    """A history written by hand, with an event in the stream so that its user is active."""
    events = [
        Interaction(f"{user}-{i}", user, ITEMS[i % len(ITEMS)].item_id, 1_600_000_000.0 + i, "purchase")
        for i in range(n)
    ]
    for start in range(0, n, 10_000):
        members = {
            f"{i:016d}-{0:010d}|{encode(event)}": event.timestamp
            for i, event in enumerate(events[start : start + 10_000], start)
        }
        await redis.zadd(KEYS.history(user), members)
    await redis.zadd(KEYS.users, {user: events[-1].timestamp})
    await redis.xadd(KEYS.stream, {"e": encode(events[-1])})
