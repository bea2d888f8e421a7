"""What Redis holds of a domain's interactions, read as readers do, and whether its parts agree."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.config import Settings
from shared.history import HistoryStore
from shared.popularity import log2_weight
from shared.redis_keys import PartitionKeys
from shared.stream import InteractionLog
from shared.types import DomainId, Interaction, UserId, order_of
from tests.faults.numbered import NumberedStream
from tests.log_reader import read_all
from tests.service_support import SHOP


@dataclass(frozen=True)
class Kept:
    """What Redis holds of the stream, as its readers see it, and how many raw entries that are."""

    stream: list[Interaction]
    entries: int
    histories: dict[UserId, tuple[Interaction, ...]]
    newest: dict[str, float]
    masses: dict[str, float]


async def read_back(client: Redis, settings: Settings, domain: DomainId = SHOP) -> Kept:
    log, histories = InteractionLog(client, settings), HistoryStore(client, settings)
    newest: dict[str, float] = {}
    masses: defaultdict[str, float] = defaultdict(float)
    for keys in (PartitionKeys(domain, partition) for partition in range(settings.partitions)):
        newest |= await _scores(client, keys.users)
        for item, mass in (await _scores(client, keys.popularity)).items():
            masses[item] += 2 ** (mass - _reference(settings))
    return Kept(
        stream=await read_all(log, domain),
        entries=await log.count(domain, {}),
        histories=await histories.get_many(domain, await histories.users(domain)),
        newest=newest,
        masses=masses,
    )


async def _scores(client: Redis, key: str) -> dict[str, float]:
    found: Any = await client.zrange(key, 0, -1, withscores=True)
    return dict(found)


def _reference(settings: Settings) -> float:
    return log2_weight(1_600_000_000, settings.popularity_half_life_days)


def check_consistent(kept: Kept, settings: Settings) -> None:
    """History, users and popularity say what the stream says, each event once, in time order."""
    assert kept.entries == len(kept.stream), "an event was appended twice"
    by_user: defaultdict[str, list[Interaction]] = defaultdict(list)
    expected: defaultdict[str, float] = defaultdict(float)
    for event in kept.stream:
        by_user[event.user_id].append(event)
        expected[event.item_id] += 2 ** (
            log2_weight(event.timestamp, settings.popularity_half_life_days) - _reference(settings)
        )
    assert kept.histories == {
        user: tuple(sorted(events, key=lambda event: (event.timestamp, order_of(event.stream_id))))
        for user, events in by_user.items()
    }
    assert kept.newest == {user: max(event.timestamp for event in events) for user, events in by_user.items()}
    assert kept.masses.keys() == expected.keys()
    for item, mass in expected.items():
        assert math.isclose(kept.masses[item], mass, rel_tol=1e-7), f"popularity of {item} counts an event twice"


def lost_or_doubled(kept: Kept, stream: NumberedStream) -> int:
    """How many interactions are not there exactly once (accepted), or there more than once or invented (the others)."""
    found = Counter(stream.number_of(event.timestamp) for event in kept.stream)
    wrong = sum(found[number] != 1 for number in stream.sent.answered)
    return wrong + sum(count > 1 for number, count in found.items() if number in stream.sent.abandoned)
