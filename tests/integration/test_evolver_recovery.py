"""Runs that meet, are stopped, or die: one version at most, and never somebody else's record."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from evolver import lease, publish
from evolver.attempt import MAX_ATTEMPTS, Surroundings
from evolver.backend import Backend
from evolver.evolve import evolve
from evolver.lease import Lease
from evolver.window import load_window
from shared.artifacts import MANIFEST, ArtifactStore
from shared.errors import EvolutionRunning, LeaseLost, Unavailable
from shared.evolutions import Evolution, EvolutionStatus
from shared.manifest import Manifest
from shared.redis_keys import DomainKeys
from shared.types import AdapterName, DomainId
from tests.integration.evolver_support import (
    DOMAIN,
    USERS,
    deliver,
    fill,
    finished,
    in_stage,
    nothing_published,
    run,
    until,
)
from tests.integration.fake_pipeline import STAGES, FakePipeline, meddling

pytest_plugins = ("tests.integration.evolver_fixtures",)


async def test_one_at_a_time(backend: Backend) -> None:
    await fill(backend)
    running = asyncio.create_task(run(backend, FakePipeline(stage_s=1.0)))
    await until(lambda: lease.is_held(backend.redis, DOMAIN), "the lease")

    with pytest.raises(EvolutionRunning):
        await run(backend)

    assert (await running).status is EvolutionStatus.published


async def test_cancel_ends_a_run_and_publishes_nothing(backend: Backend) -> None:
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    running = asyncio.create_task(deliver(backend, evolution, FakePipeline(stage_s=20)))
    await in_stage(backend, evolution.id, "evaluate before")

    await backend.evolutions.request_cancel(evolution.id)

    assert (await asyncio.wait_for(running, 30)).status is EvolutionStatus.cancelled
    assert await nothing_published(backend)
    assert not await lease.is_held(backend.redis, DOMAIN)


async def test_a_run_cancelled_while_queued_never_trains(backend: Backend) -> None:
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    await backend.evolutions.request_cancel(evolution.id)

    def must_not_run() -> None:
        raise AssertionError("the pipeline ran")

    assert (await deliver(backend, evolution, meddling(must_not_run))).status is EvolutionStatus.cancelled


async def test_a_run_cancelled_as_it_is_about_to_publish_publishes_nothing(backend: Backend) -> None:
    """The monitor has not heard of it yet."""
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        asyncio.run_coroutine_threadsafe(backend.evolutions.request_cancel(evolution.id), loop).result()

    assert (await deliver(backend, evolution, meddling(cancel))).status is EvolutionStatus.cancelled
    assert await nothing_published(backend)


async def test_a_run_whose_record_somebody_else_has_ended_stops(backend: Backend, tmp_path: Path) -> None:
    """As the service does where the message seemed not to reach the broker."""
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    pipeline = FakePipeline(stage_s=1, trace=tmp_path / "trace")
    running = asyncio.create_task(deliver(backend, evolution, pipeline))
    await in_stage(backend, evolution.id, "evaluate before")
    failed = evolution.model_copy(update={"status": EvolutionStatus.failed})

    await backend.evolutions.update(failed)

    assert await running == failed
    assert f" {STAGES[-1]}\n" not in (tmp_path / "trace").read_text()
    assert not await lease.is_held(backend.redis, DOMAIN)
    assert await nothing_published(backend)


async def test_a_redelivered_task_does_nothing_twice(backend: Backend) -> None:
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    first = await deliver(backend, evolution)
    again = await deliver(backend, evolution)

    assert again == first
    assert [manifest.name for manifest in await backend.registry.versions(DOMAIN)] == ["shop-v000001"]


async def test_two_deliveries_at_once_make_one_version(backend: Backend) -> None:
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)

    await asyncio.gather(*(deliver(backend, evolution, FakePipeline(stage_s=0.2)) for _ in range(4)))

    assert (await backend.evolutions.get(evolution.id)).status is EvolutionStatus.published
    assert len(await backend.registry.versions(DOMAIN)) == len(backend.artifacts.names(DOMAIN)) == 1


async def test_a_run_that_lost_its_lease_publishes_nothing_and_writes_nothing(backend: Backend) -> None:
    """As after a pause of the whole process: another run has the lease, and this one does not know yet."""
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    other: list[Lease] = []
    loop = asyncio.get_running_loop()

    async def take_over() -> None:
        await backend.redis.delete(DomainKeys(DOMAIN).lease)
        other.append(await lease.acquire(backend.redis, DOMAIN, "other", 30))

    def meddle() -> None:
        asyncio.run_coroutine_threadsafe(take_over(), loop).result()

    late = await deliver(backend, evolution, meddling(meddle))

    assert not late.status.final
    assert await nothing_published(backend)
    await other[0].renew()
    await other[0].release()
    assert (await deliver(backend, evolution)).adapter  # the one who took over goes on; the name may have been burnt
    assert len(await backend.registry.versions(DOMAIN)) == len(backend.artifacts.names(DOMAIN)) == 1


async def test_the_registry_refuses_an_old_fencing_token(backend: Backend) -> None:
    await fill(backend)
    await run(backend, dry_run=True)
    old = await lease.acquire(backend.redis, DOMAIN, "old", 30)
    await old.release()
    async with lease.hold(backend.redis, DOMAIN, "new", 30):
        name = await backend.registry.reserve_name(DOMAIN)
        with backend.artifacts.stage(DOMAIN, name) as staged:
            manifest = staged.commit((await manifest_like(backend)).model_copy(update={"name": name}))
        with pytest.raises(LeaseLost):
            await publish.publish(backend, manifest, old)
    assert await backend.registry.champion(DOMAIN) is None


async def test_a_champion_that_moved_meanwhile_fails_the_run_and_leaves_no_artifact(backend: Backend) -> None:
    await fill(backend)
    await run(backend)
    await fill(backend, start=3_000.0)
    await run(backend)
    await fill(backend, start=5_000.0)
    loop = asyncio.get_running_loop()

    def roll_back() -> None:
        asyncio.run_coroutine_threadsafe(backend.registry.rollback(DOMAIN), loop).result()

    evolution = await run(backend, meddling(roll_back))

    assert evolution.status is EvolutionStatus.failed
    assert "points at shop-v000001" in (evolution.error or "")
    assert backend.artifacts.names(DOMAIN) == ["shop-v000001", "shop-v000002"]


async def test_an_artifact_that_was_stored_but_not_published_is_published_as_it_is(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    await die_when_publishing(backend, evolution, monkeypatch)
    assert backend.artifacts.names(DOMAIN) == ["shop-v000001"]

    def must_not_run() -> None:
        raise AssertionError("the pipeline ran again")

    again = await deliver(backend, evolution, meddling(must_not_run))

    assert (again.status, again.adapter) == (EvolutionStatus.published, "shop-v000001")
    assert backend.artifacts.names(DOMAIN) == ["shop-v000001"]


async def test_an_artifact_that_was_stored_before_a_cancellation_goes(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    await die_when_publishing(backend, evolution, monkeypatch)
    await backend.evolutions.request_cancel(evolution.id)

    assert (await deliver(backend, evolution)).status is EvolutionStatus.cancelled
    assert await backend.registry.champion(DOMAIN) is None
    assert await nothing_published(backend)


@pytest.mark.parametrize("archive", [True, False])
async def test_an_artifact_that_was_stored_before_an_erasure_is_not_published(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, archive: bool
) -> None:
    backend = Backend.over(backend.redis, backend.settings.model_copy(update={"archive": archive}))
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    await die_when_publishing(backend, evolution, monkeypatch)
    await backend.eraser.erase(DOMAIN, USERS[3])

    again = await deliver(backend, evolution)

    assert (again.status, again.adapter) == (EvolutionStatus.published, "shop-v000002")
    assert backend.artifacts.names(DOMAIN) == ["shop-v000002"]


async def test_a_run_that_died_after_the_publication_is_only_marked(backend: Backend) -> None:
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    published = await deliver(backend, evolution)
    await backend.redis.set(DomainKeys(DOMAIN).active_evolution, evolution.id)
    await backend.evolutions.update(evolution)  # as it was before the last write

    assert (await deliver(backend, evolution)).adapter == published.adapter
    assert len(await backend.registry.versions(DOMAIN)) == 1


async def test_a_sleeper_writes_neither_the_record_nor_the_files_of_its_successor(backend: Backend) -> None:
    """It wakes up while its successor trains, knows nothing of it yet, and fails."""
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    loop = asyncio.get_running_loop()
    successor: list[asyncio.Task[Evolution]] = []

    async def take_over() -> None:
        await backend.redis.delete(DomainKeys(DOMAIN).lease)
        successor.append(asyncio.create_task(deliver(backend, evolution, FakePipeline(stage_s=0.3))))
        await until(lambda: lease.is_held(backend.redis, DOMAIN), "the successor's lease")
        await in_stage(backend, evolution.id, "locate")

    def fall_asleep() -> None:
        asyncio.run_coroutine_threadsafe(take_over(), loop).result()
        raise ValueError("what woke it up broke it")

    await deliver(backend, evolution, meddling(fall_asleep))

    assert not successor[0].done()
    done = await successor[0]
    assert (done.status, done.error) == (EvolutionStatus.published, None)
    assert await backend.evolutions.get(evolution.id) == done
    assert len(await backend.registry.versions(DOMAIN)) == len(backend.artifacts.names(DOMAIN)) == 1


async def test_what_dead_attempts_left_goes(backend: Backend) -> None:
    dead = backend.artifacts.stage(DOMAIN, AdapterName("shop-v000002"))
    other = backend.artifacts.stage(DomainId("shop-2"), AdapterName("shop-2-v000001"))
    await fill(backend)
    await run(backend)
    assert not dead.path.exists()
    assert other.path.exists()


@pytest.mark.parametrize("remote", [False, True])
async def test_half_a_version_that_a_dead_attempt_left_goes(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, remote: bool
) -> None:
    """Killed before the manifest was there, or when a deletion had taken it already."""
    url = f"memory://{tmp_path.name}" if remote else None
    backend = Backend.over(backend.redis, backend.settings.model_copy(update={"artifacts_url": url}))
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    await die_when_publishing(backend, evolution, monkeypatch)
    backend.artifacts.delete_file(DOMAIN, "shop-v000001", MANIFEST)
    assert backend.artifacts.folders(DOMAIN) == ["shop-v000001"]

    assert (await deliver(backend, evolution)).adapter == "shop-v000002"
    assert backend.artifacts.folders(DOMAIN) == backend.artifacts.names(DOMAIN) == ["shop-v000002"]


async def test_a_run_goes_on_where_half_versions_cannot_be_looked_for(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Unavailable("slow down")

    monkeypatch.setattr(ArtifactStore, "unfinished", fail)
    await fill(backend)
    assert (await run(backend)).status is EvolutionStatus.published


async def test_no_run_starts_over_a_lost_registry(backend: Backend) -> None:
    """Evolution ids begin anew where Redis has lost everything, and the artifacts wait for `registry rebuild`."""
    await fill(backend)
    await run(backend)
    await backend.redis.flushall()
    await fill(backend)

    refused = await run(backend)

    assert refused.status is EvolutionStatus.failed
    assert "evorec registry rebuild" in (refused.error or "")
    assert backend.artifacts.names(DOMAIN) == ["shop-v000001"]


async def test_a_run_whose_worker_dies_every_time_is_given_up(backend: Backend) -> None:
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    await backend.redis.set(DomainKeys(DOMAIN).attempts(evolution.id), MAX_ATTEMPTS)

    given_up = await deliver(backend, evolution)

    assert given_up.status is EvolutionStatus.failed
    assert "gave up after 3 attempts" in (given_up.error or "")


async def test_shutdowns_put_the_run_back_into_the_queue_however_many(backend: Backend) -> None:
    """None of them is a failed attempt, of which there may be few."""
    await fill(backend)
    evolution = await backend.evolutions.create(DOMAIN)
    for _ in range(MAX_ATTEMPTS):
        stop = asyncio.Event()
        surroundings = Surroundings(pipeline=FakePipeline(stage_s=20), interrupted=stop.is_set)
        running = asyncio.create_task(evolve(backend.settings, evolution.id, DOMAIN, surroundings))
        await in_stage(backend, evolution.id, "evaluate before")

        stop.set()

        assert (await asyncio.wait_for(running, 30)).status is EvolutionStatus.queued
        assert not await lease.is_held(backend.redis, DOMAIN)
    assert (await deliver(backend, evolution)).status is EvolutionStatus.published
    assert (await finished(backend, evolution.id)).adapter == "shop-v000001"


async def manifest_like(backend: Backend) -> Manifest:
    """Any valid manifest of the domain."""
    evolution = (await backend.evolutions.list(DOMAIN, 1))[0]
    window = await load_window(backend, DOMAIN, seed=0)
    out = backend.settings.state_dir / "any"
    out.mkdir()
    result = FakePipeline()(window.inputs, None, out, backend.settings, lambda *_: None, lambda: False)
    return publish.build_manifest(
        await backend.registry.reserve_name(DOMAIN),
        evolution,
        window,
        None,
        publish.storable(result),
        backend.settings,
        stage_seconds={},
    )


async def die_when_publishing(backend: Backend, evolution: Evolution, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that ends between the artifact and the registry, as if its process were gone."""

    class Gone(BaseException):
        pass

    async def gone(*_: object) -> Manifest:
        raise Gone

    with monkeypatch.context() as patch:
        patch.setattr(publish, "publish", gone)
        with pytest.raises(Gone):
            await deliver(backend, evolution)
