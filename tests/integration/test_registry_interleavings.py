"""At most one champion, whatever publishes, promotes and rolls back at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from shared.artifacts import ArtifactStore
from shared.config import Settings
from shared.errors import EvorecError
from shared.manifest import adapter_name
from shared.redis_keys import DomainKeys
from shared.registry import CHAMPION, Registry
from shared.types import AdapterName
from tests.factories import BEAUTY, commit, manifest

# (what, which version, how long it waits between reading the champion and acting on it)
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["publish", "promote", "rollback", "take lease"]), st.integers(1, 5), st.integers(0, 3)),
    min_size=2,
    max_size=12,
)


class Actors:
    """Each operation as an independent process would do it: look, think, act."""

    def __init__(self, redis: Redis, artifacts: ArtifactStore) -> None:
        self.redis = redis
        self.artifacts = artifacts
        self.registry = Registry(redis, artifacts)
        self.promoted: set[tuple[AdapterName | None, AdapterName]] = set()

    async def publish(self, pause: int) -> None:
        token = int(await self.redis.get(DomainKeys(BEAUTY).fence) or 0)
        parent = await self.registry.champion(BEAUTY)
        name = await self.registry.reserve_name(BEAUTY)
        version = commit(self.artifacts, manifest(int(name[-6:]), parent=parent))
        await _think(pause)
        newest = int(await self.redis.get(DomainKeys(BEAUTY).fence) or 0)
        await self.registry.publish(version, expected=parent, fencing_token=token)
        assert newest == token, "an old token has published"

    async def promote(self, number: int, pause: int) -> None:
        expected = await self.registry.champion(BEAUTY)
        to = adapter_name(BEAUTY, number)
        await _think(pause)
        await self.registry.move_alias(BEAUTY, CHAMPION, to, expected=expected)
        self.promoted.add((expected, to))

    async def rollback(self, pause: int) -> None:
        await _think(pause)
        await self.registry.rollback(BEAUTY)

    async def take_lease(self, pause: int) -> None:
        await _think(pause)
        await self.redis.incr(DomainKeys(BEAUTY).fence)

    def start(self, operation: tuple[str, int, int]) -> Awaitable[None]:
        what, number, pause = operation
        match what:
            case "publish":
                return self.publish(pause)
            case "promote":
                return self.promote(number, pause)
            case "rollback":
                return self.rollback(pause)
        return self.take_lease(pause)


async def _think(pause: int) -> None:
    for _ in range(pause):
        await asyncio.sleep(0.001)


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
async def test_moves_form_one_line(
    redis: Redis, redis_settings: Settings, operations: list[tuple[str, int, int]]
) -> None:
    await redis.flushdb()
    artifacts = ArtifactStore(redis_settings.model_copy(update={"state_dir": _fresh(redis_settings.state_dir)}))
    actors = Actors(redis, artifacts)
    for _ in range(3):
        await actors.publish(pause=0)
    ended = await asyncio.gather(*map(actors.start, operations), return_exceptions=True)

    # Whoever lost was told so, by an error made for it.
    assert all(result is None or isinstance(result, EvorecError) for result in ended)

    # Every move starts where the one before it ended: nobody's move was overwritten unseen.
    moves = artifacts.alias_moves(BEAUTY)
    champion: AdapterName | None = None
    for sequence, move in enumerate(moves, start=1):
        assert (move.sequence, move.before) == (sequence, champion)
        champion = move.to
    assert await actors.registry.champion(BEAUTY) == champion

    # And it starts where its author believed the champion to be.
    for move in moves:
        assert move.to is not None
        if move.reason == "publish":
            assert artifacts.manifest(BEAUTY, move.to).parent == move.before
        if move.reason == "promote":
            assert (move.before, move.to) in actors.promoted

    # Exactly what was published is registered, and the champion is one of it, whole.
    published = {move.to for move in moves if move.reason == "publish"}
    assert {version.name for version in await actors.registry.versions(BEAUTY)} == published
    if champion is not None:
        artifacts.fetch(BEAUTY, champion)


def _fresh(parent: Path) -> Path:
    number = sum(1 for _ in parent.iterdir()) if parent.exists() else 0
    path = parent / f"example-{number}"
    path.mkdir(parents=True)
    return path
