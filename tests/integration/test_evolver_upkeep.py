"""What follows a publication: archive, pruning, trimming. Over real stores, with the fast pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from evolver import upkeep
from evolver.backend import Backend
from evolver.inputs import event_key
from evolver.window import load_window
from shared.evolutions import EvolutionStatus
from shared.manifest import adapter_name
from shared.redis_keys import DomainKeys
from shared.types import DomainId, Interaction, order_of
from tests.integration.evolver_support import DOMAIN, ITEMS, USERS, WorkerProcess, fill, run, until
from tests.log_reader import read_all

pytest_plugins = ("tests.integration.evolver_fixtures",)


@pytest.fixture
def frugal(backend: Backend) -> Backend:
    """Keeps two versions."""
    return Backend.over(backend.redis, backend.settings.model_copy(update={"kept_versions": 2}))


async def streamed(backend: Backend) -> list[Interaction]:
    return await read_all(backend.log, DOMAIN)


def archived(backend: Backend) -> list[Interaction]:
    spans = backend.archive_files.spans(DOMAIN, 0)
    return [event for span in spans for batch in backend.archive_files.read(DOMAIN, 0, span) for event in batch]


async def test_a_publication_archives_prunes_and_trims(frugal: Backend) -> None:
    events: list[Interaction] = []
    for number in range(4):
        await fill(frugal, start=1_000.0 * (number + 1))
        events += [event for event in await streamed(frugal) if event not in events]
        assert (await run(frugal)).status is EvolutionStatus.published

    assert archived(frugal) == events
    assert frugal.archive_files.items(DOMAIN) == list(await frugal.catalog.all(DOMAIN)) == list(ITEMS)
    kept = [adapter_name(DOMAIN, 3), adapter_name(DOMAIN, 4)]
    assert [version.name for version in await frugal.registry.versions(DOMAIN)] == kept
    assert frugal.artifacts.names(DOMAIN) == kept
    assert await streamed(frugal) == events[120:]  # of four equal windows, two
    assert not await upkeep.due(frugal, DOMAIN)


async def test_a_rollback_to_any_kept_version_finds_its_window(frugal: Backend) -> None:
    for number in range(4):
        await fill(frugal, start=1_000.0 * (number + 1))
        await run(frugal)
    await fill(frugal, start=9_000.0)
    everything = archived(frugal)
    everything += [event for event in await streamed(frugal) if event not in everything]

    while True:
        reached = (await frugal.registry.watermark(DOMAIN))[0]
        window = await load_window(frugal, DOMAIN, seed=0)
        expected = {event_key(event) for event in everything if order_of(event.stream_id) > order_of(reached)}
        assert window.inputs.window == expected
        if await frugal.registry.champion(DOMAIN) == adapter_name(DOMAIN, 3):
            break
        await frugal.registry.rollback(DOMAIN)


async def test_without_an_archive_nothing_is_trimmed(backend: Backend) -> None:
    settings = backend.settings.model_copy(update={"kept_versions": 1, "archive": False})
    backend = Backend.over(backend.redis, settings)
    for number in range(3):
        await fill(backend, start=1_000.0 * (number + 1))
        await run(backend)
    assert len(backend.artifacts.names(DOMAIN)) == 2  # the champion, and where a rollback goes
    assert len(await streamed(backend)) == 180
    assert not (backend.settings.state_dir / "artifacts" / DOMAIN / "archive").exists()


async def test_copies_of_versions_that_another_machine_has_pruned_go(backend: Backend, tmp_path: Path) -> None:
    settings = backend.settings.model_copy(update={"artifacts_url": f"memory://{tmp_path.name}"})
    keeping = Backend.over(backend.redis, settings)
    other = settings.model_copy(update={"state_dir": tmp_path / "other", "kept_versions": 1})
    for number in range(4):
        await fill(backend, start=1_000.0 * (number + 1))
        assert (await run(keeping)).status is EvolutionStatus.published
    learned_from = [adapter_name(DOMAIN, number) for number in (1, 2, 3)]
    assert keeping.artifacts.copies(DOMAIN) == learned_from

    await upkeep.upkeep(Backend.over(backend.redis, other), DOMAIN)
    assert (await run(keeping)).status is EvolutionStatus.rejected

    assert keeping.artifacts.copies(DOMAIN) == learned_from[-1:]  # where a rollback goes


async def test_a_rejected_run_archives_nothing(backend: Backend) -> None:
    await fill(backend, event_type="click")
    assert (await run(backend)).status is EvolutionStatus.rejected
    assert archived(backend) == []


async def test_the_tick_has_done_what_a_dead_worker_left(backend: Backend, worker: WorkerProcess) -> None:
    await fill(backend)
    await run(backend)
    for span in backend.archive_files.spans(DOMAIN, 0):
        backend.artifacts.delete_file(DOMAIN, "archive", "0", span.file)
    await backend.redis.delete(DomainKeys(DOMAIN).upkeep)
    worker.start()

    async def done() -> bool:
        return not await upkeep.due(backend, DOMAIN)

    await until(done, "upkeep")
    assert archived(backend) == await streamed(backend)


async def test_a_catalog_alone_is_copied_as_well(backend: Backend) -> None:
    enqueued: list[str] = []
    await backend.catalog.put(DOMAIN, ITEMS)
    assert await upkeep.tick(backend, enqueued.append) == [DOMAIN]
    assert await upkeep.tick(backend, enqueued.append) == []  # it waits in the queue
    await upkeep.upkeep(backend, DOMAIN)
    await backend.redis.delete(DomainKeys(DOMAIN).upkeep_enqueued)
    assert await upkeep.tick(backend, enqueued.append) == []
    assert enqueued == [DOMAIN]
    assert backend.archive_files.items(DOMAIN) == list(ITEMS)


async def test_one_message_waits_however_long_the_queue_is(backend: Backend) -> None:
    enqueued: list[str] = []
    claim = DomainKeys(DOMAIN).upkeep_enqueued
    await backend.catalog.put(DOMAIN, ITEMS)
    await upkeep.tick(backend, enqueued.append)
    assert await backend.redis.ttl(claim) > 12 * 3600
    await backend.catalog.put(DOMAIN, ITEMS)
    assert await upkeep.tick(backend, enqueued.append) == []

    await upkeep.from_queue(backend, DOMAIN)
    assert 0 < await backend.redis.ttl(claim) <= upkeep.RETRY_S
    assert not await upkeep.due(backend, DOMAIN)


async def test_a_message_that_could_not_be_sent_does_not_count(backend: Backend) -> None:
    def refuse(_: DomainId) -> None:
        raise OperationalError("no broker")

    await backend.catalog.put(DOMAIN, ITEMS)
    assert await upkeep.tick(backend, refuse) == []
    assert await upkeep.tick(backend, lambda _: None) == [DOMAIN]


async def test_a_changed_catalog_makes_nothing_else_due_and_not_every_time(backend: Backend) -> None:
    await fill(backend)
    await run(backend)
    for span in backend.archive_files.spans(DOMAIN, 0):
        backend.artifacts.delete_file(DOMAIN, "archive", "0", span.file)
    for n in range(3):
        await backend.catalog.put(DOMAIN, ITEMS[:n])
        assert await upkeep.tick(backend, lambda _: None) == []  # it was copied just now
    await backend.catalog.put(DOMAIN, [replace(ITEMS[0], title="Newer")])
    await backend.redis.delete(DomainKeys(DOMAIN).catalog_copy_rests)  # as time does
    assert await upkeep.tick(backend, lambda _: None) == [DOMAIN]
    await upkeep.from_queue(backend, DOMAIN)

    assert backend.archive_files.items(DOMAIN) == await backend.catalog.all(DOMAIN)
    assert archived(backend) == []
    assert not await upkeep.due(backend, DOMAIN)


async def test_a_lost_registry_is_left_alone(frugal: Backend) -> None:
    for number in range(3):
        await fill(frugal, start=1_000.0 * (number + 1))
        await run(frugal)
    names, kept = frugal.artifacts.names(DOMAIN), archived(frugal)
    await frugal.redis.flushdb()
    await fill(frugal, start=9_000.0)
    await frugal.catalog.put(DOMAIN, ITEMS[:1])

    refused = await run(frugal, force=True)
    await upkeep.upkeep(frugal, DOMAIN)

    assert refused.status is EvolutionStatus.failed
    assert "registry rebuild" in (refused.error or "")
    assert await frugal.registry.versions(DOMAIN) == []
    assert (frugal.artifacts.names(DOMAIN), archived(frugal)) == (names, kept)
    assert frugal.archive_files.items(DOMAIN) == list(ITEMS)


async def test_pruning_goes_on_where_it_died(frugal: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        await fill(frugal, start=1_000.0 * (number + 1))
        await run(Backend.over(frugal.redis, frugal.settings.model_copy(update={"kept_versions": 9})))
    with monkeypatch.context() as patched:
        patched.setattr(frugal.artifacts, "delete", lambda *_: (_ for _ in ()).throw(OSError("dead")))
        with pytest.raises(OSError, match="dead"):
            await frugal.retention.prune(DOMAIN, 2)
    assert len(frugal.artifacts.names(DOMAIN)) == 4
    assert await frugal.retention.prune(DOMAIN, 2) == [adapter_name(DOMAIN, 1), adapter_name(DOMAIN, 2)]
    assert frugal.artifacts.names(DOMAIN) == [adapter_name(DOMAIN, 3), adapter_name(DOMAIN, 4)]


async def test_an_emptied_stream_does_not_move_the_watermark_back(frugal: Backend) -> None:
    await fill(frugal)
    await run(frugal)
    reached = await frugal.registry.watermark(DOMAIN)
    for user in USERS:
        await frugal.eraser.erase(DOMAIN, user)
    assert await streamed(frugal) == []
    window = await load_window(frugal, DOMAIN, seed=0)
    assert window.ranges == {0: (reached[0], reached[0])}
