"""What of a domain's versions is removed, and what stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.artifacts import MANIFEST, STAGING_KEPT_S, ArtifactStore
from shared.config import Settings
from shared.errors import Unavailable
from shared.manifest import adapter_name
from shared.redis_keys import DomainKeys
from shared.registry import Registry
from shared.retention import Retention
from shared.types import AdapterName
from tests.factories import BEAUTY, commit, manifest, register

V1, V2, V3 = (adapter_name(BEAUTY, n) for n in (1, 2, 3))


async def test_prune_keeps_the_newest_and_the_needed(redis: Redis, redis_settings: Settings) -> None:
    artifacts = ArtifactStore(redis_settings)
    registry, retention = Registry(redis, artifacts), Retention(redis, artifacts)
    for number in range(1, 7):
        await register(redis, commit(artifacts, manifest(number)))
    await registry.promote(BEAUTY, V1, expected=None)
    assert await retention.prune(BEAUTY, keep=2, in_use=frozenset([V2])) == [V3, adapter_name(BEAUTY, 4)]
    kept = [V1, V2, adapter_name(BEAUTY, 5), adapter_name(BEAUTY, 6)]
    assert [version.name for version in await registry.versions(BEAUTY)] == artifacts.names(BEAUTY) == kept
    assert await retention.prune(BEAUTY, keep=10) == []


async def test_copies_of_what_is_registered_or_in_use_stay_and_all_where_redis_is_lost(
    redis: Redis, redis_settings: Settings, tmp_path: Path
) -> None:
    """A rebuild reads the copies before it registers the versions."""
    artifacts = ArtifactStore(redis_settings.model_copy(update={"artifacts_url": f"memory://{tmp_path.name}"}))
    retention = Retention(redis, artifacts)
    for version in (manifest(1), manifest(2), manifest(3)):
        artifacts.fetch(BEAUTY, commit(artifacts, version).name)
    await retention.drop_copies(BEAUTY, frozenset())
    assert artifacts.copies(BEAUTY) == [V1, V2, V3]
    await register(redis, artifacts.manifest(BEAUTY, V1))
    await retention.drop_copies(BEAUTY, frozenset([V2]))
    assert artifacts.copies(BEAUTY) == [V1, V2]


async def test_half_a_copy_that_a_killed_process_left_goes_with_the_copies(redis: Redis, either: ArtifactStore) -> None:
    commit(either, manifest(1))
    folder = either.place / BEAUTY if either.place.name == "artifacts" else either.place
    dead, fetching = [folder / f".staging-{name}" for name in ("dead", "fetching")]
    for half in (dead, fetching):
        (half / V1).mkdir(parents=True)
    long_ago = time.time() - STAGING_KEPT_S - 60
    os.utime(dead, (long_ago, long_ago))
    await Retention(redis, either).drop_copies(BEAUTY, frozenset())
    assert (dead.exists(), fetching.exists()) == (False, True)


@pytest.fixture(params=["local", "remote"])
def either(redis_settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> ArtifactStore:
    url = None if request.param == "local" else f"memory://{tmp_path.name}"
    return ArtifactStore(redis_settings.model_copy(update={"artifacts_url": url}))


def lose_manifest(artifacts: ArtifactStore, name: AdapterName) -> None:
    """As where an upload, or a deletion, was cut off."""
    artifacts.delete_file(BEAUTY, name, MANIFEST)


async def test_unfinished_versions_are_dropped_and_no_others(either: ArtifactStore, redis: Redis) -> None:
    retention = Retention(redis, either)
    for number in range(1, 6):
        commit(either, manifest(number))
    await register(redis, either.manifest(BEAUTY, V2))
    await redis.set(DomainKeys(BEAUTY).version_counter, 4)
    for number in (1, 2, 5):
        lose_manifest(either, adapter_name(BEAUTY, number))
    # The second is registered, of the third and fourth nothing is missing, the fifth is above the counter.
    assert await retention.drop_unfinished(BEAUTY) == [V1]
    assert either.folders(BEAUTY) == [adapter_name(BEAUTY, number) for number in range(2, 6)]
    assert await retention.drop_unfinished(BEAUTY) == []


async def test_nothing_is_dropped_where_redis_is_lost_or_the_store_does_not_answer(
    either: ArtifactStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    retention = Retention(redis, either)
    for number in (1, 2):
        commit(either, manifest(number))
    lose_manifest(either, V1)
    assert await retention.drop_unfinished(BEAUTY) == []
    await redis.set(DomainKeys(BEAUTY).version_counter, 2)
    look = either._client.fs.ls

    def fail_below(path: str, **options: bool) -> list[str]:
        if path.endswith((V1, V2)):
            raise OSError("slow down")
        found: list[str] = look(path, **options)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(either._client.fs, "ls", fail_below)
        with pytest.raises(Unavailable, match="slow down"):
            await retention.drop_unfinished(BEAUTY)
    assert either.folders(BEAUTY) == [V1, V2]
    assert await retention.drop_unfinished(BEAUTY) == [V1]
