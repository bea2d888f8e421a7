"""How an evolution ends, and what it leaves: over real stores, with the fast pipeline."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Set
from pathlib import Path

import pytest
from redis.asyncio import Redis

from evolver import lease, publish
from evolver.attempt import MAX_POISON_USERS
from evolver.backend import Backend
from evolver.inputs import (
    Cancelled,
    EvolutionInputs,
    PoisonUser,
    working_on,
)
from evolver.trigger import tick
from shared.evolutions import EvolutionStatus
from shared.forgotten import ForgottenSet
from shared.manifest import Manifest
from shared.types import AdapterName, EvolutionId, UserId
from tests.integration.evolver_support import DOMAIN, USERS, base_model_stub, fill, nothing_published, run
from tests.integration.fake_pipeline import STAGES, FakePipeline, Looking, meddling

pytest_plugins = ("tests.integration.evolver_fixtures",)


async def test_bootstrap_then_evolution(backend: Backend) -> None:
    await fill(backend)
    first = await run(backend)
    await fill(backend, USERS[:7], start=5_000.0)
    second = await run(backend)

    assert (first.status, first.adapter, first.error) == (EvolutionStatus.published, "shop-v000001", None)
    assert (second.status, second.adapter, second.progress) == (EvolutionStatus.published, "shop-v000002", 1.0)
    assert await backend.registry.champion(DOMAIN) == second.adapter
    manifest = await backend.registry.manifest(DOMAIN, AdapterName("shop-v000002"))
    assert (manifest.parent, manifest.reason, manifest.evolution_id) == ("shop-v000001", "evolution", second.id)
    assert (manifest.n_interactions, manifest.n_active_users, manifest.trained_share) == (14, 7, 0.3)
    assert (
        manifest.stream_ranges[0][0]
        == (await backend.registry.manifest(DOMAIN, AdapterName("shop-v000001"))).range_end[0]
    )
    assert set(manifest.checksums) == {
        "adapter_config.json", "adapter_model.safetensors", "forgotten.json.gz", "retriever.safetensors",
    }  # fmt: skip
    assert {"window", *STAGES} <= set(manifest.stage_seconds)
    assert await backend.registry.considered(DOMAIN) == await backend.log.tail(DOMAIN)
    assert not list((backend.settings.state_dir / "work").iterdir())


async def test_a_champion_of_another_base_is_nothing_to_go_on_from(
    redis: Redis, backend: Backend, tmp_path: Path
) -> None:
    await fill(backend)
    await run(backend)
    await fill(backend, start=5_000.0)
    other = base_model_stub(tmp_path / "other")
    (other / "tokenizer.json").write_text("[]")
    evolution = await run(Backend.over(redis, backend.settings.model_copy(update={"base_model": str(other)})))

    assert evolution.status is EvolutionStatus.failed
    assert f"made on the base {backend.settings.base_model!r}" in (evolution.error or "")
    assert f"EVOREC_BASE_MODEL={str(other)!r} is another" in (evolution.error or "")
    assert await backend.registry.champion(DOMAIN) == "shop-v000001"


async def test_a_failing_gate_is_recorded_and_said_but_does_not_stop_the_publication(backend: Backend) -> None:
    await fill(backend)
    evolution = await run(backend, FakePipeline(gate_reasons=("HR@1 of U_I fell",)))

    assert evolution.status is EvolutionStatus.published
    assert evolution.gate is not None
    assert not evolution.gate.passed
    assert "HR@1 of U_I fell" in (evolution.message or "")


async def test_an_enforced_gate_stops_the_publication_of_a_version_that_has_a_parent(
    redis: Redis, backend: Backend
) -> None:
    backend = Backend.over(redis, backend.settings.model_copy(update={"enforce_gate": True}))
    await fill(backend)
    worse = FakePipeline(gate_reasons=("HR@1 of U_I fell",))
    first = await run(backend, worse)
    assert first.status is EvolutionStatus.published
    await fill(backend, start=2_000.0)
    end = await backend.log.tail(DOMAIN)
    second = await run(backend, worse, force=True)

    assert (second.status, second.message) == (EvolutionStatus.rejected, "the gate failed: HR@1 of U_I fell")
    assert second.gate is not None
    assert backend.artifacts.names(DOMAIN) == [first.adapter]
    assert await backend.registry.champion(DOMAIN) == first.adapter
    assert await backend.registry.considered(DOMAIN) == end
    third = await run(backend, force=True)
    assert (third.status, third.adapter) == (EvolutionStatus.published, "shop-v000002")


async def test_metrics_that_are_no_numbers_do_not_break_the_record(backend: Backend) -> None:
    await fill(backend)
    evolution = await run(backend)

    assert evolution.metrics == {"after": {"U": {"n": 1.0, "hr@1": 0.5}}}
    assert (await backend.evolutions.get(evolution.id)).metrics == evolution.metrics


async def test_dry_run_publishes_nothing_and_is_considered(backend: Backend) -> None:
    await fill(backend)
    evolution = await run(backend, dry_run=True)

    assert evolution.status is EvolutionStatus.dry
    assert evolution.located_layers == (1, 4, 7)
    assert await nothing_published(backend)
    assert await backend.registry.considered(DOMAIN) == await backend.log.tail(DOMAIN)


async def test_no_training_examples_reject(backend: Backend) -> None:
    await fill(backend)
    evolution = await run(backend, FakePipeline(train_examples=0))

    assert evolution.status is EvolutionStatus.rejected
    assert "no training examples" in (evolution.message or "")
    assert await nothing_published(backend)


async def test_an_empty_window_rejects_and_force_does_not_change_that(backend: Backend) -> None:
    await fill(backend)
    await run(backend)

    assert "no new interactions" in ((await run(backend)).message or "")
    forced = await run(backend, force=True)

    assert forced.status is EvolutionStatus.rejected
    assert "no new positive interactions" in (forced.message or "")


async def test_nothing_starts_while_a_challenger_is_on_trial(backend: Backend) -> None:
    await fill(backend)
    await run(backend)
    await fill(backend, start=3_000.0)
    second = await run(backend)
    await backend.registry.rollback(DOMAIN)
    await backend.registry.set_trial(DOMAIN, second.adapter, 0.1)
    await fill(backend, start=5_000.0)

    evolution = await run(backend, force=True)

    assert evolution.status is EvolutionStatus.rejected
    assert "on trial" in (evolution.message or "")


async def test_an_unknown_domain_fails_with_a_readable_error(backend: Backend) -> None:
    evolution = await run(backend)

    assert evolution.status is EvolutionStatus.failed
    assert evolution.error == "domain 'shop' has no items; PUT /items creates it"


async def test_a_failure_in_the_pipeline_is_recorded_and_leaves_nothing(backend: Backend) -> None:
    def out_of_memory() -> None:
        raise MemoryError("cannot allocate 12 GiB")

    await fill(backend)
    evolution = await run(backend, meddling(out_of_memory))

    assert evolution.status is EvolutionStatus.failed
    assert evolution.error == "window: MemoryError: cannot allocate 12 GiB"
    assert await nothing_published(backend)
    assert not await lease.is_held(backend.redis, DOMAIN)


@pytest.mark.parametrize("archive", [True, False])
async def test_a_user_erased_meanwhile_is_not_learned_from(redis: Redis, backend: Backend, archive: bool) -> None:
    backend = Backend.over(redis, backend.settings.model_copy(update={"archive": archive}))
    await fill(backend)
    gone = [USERS[3], USERS[11]]
    loop = asyncio.get_running_loop()

    def erase() -> None:
        if gone:
            asyncio.run_coroutine_threadsafe(backend.eraser.erase(DOMAIN, gone.pop()), loop).result()

    evolution = await run(backend, meddling(erase))

    assert evolution.status is EvolutionStatus.published
    assert backend.artifacts.names(DOMAIN) == [evolution.adapter]
    assert not {USERS[3], USERS[11]} & learned_from(backend, AdapterName(str(evolution.adapter)))


@pytest.mark.parametrize("archive", [True, False])
async def test_a_user_erased_meanwhile_and_back_is_not_learned_from_as_they_were(
    redis: Redis, backend: Backend, archive: bool
) -> None:
    backend = Backend.over(redis, backend.settings.model_copy(update={"archive": archive}))
    await fill(backend)
    loop, meddled = asyncio.get_running_loop(), list[UserId]()

    async def erase_and_return() -> None:
        await backend.eraser.erase(DOMAIN, USERS[3])
        await fill(backend, USERS[3:4], start=9_000.0)

    def meddle() -> None:
        if not meddled:
            meddled.append(USERS[3])
            asyncio.run_coroutine_threadsafe(erase_and_return(), loop).result()

    evolution = await run(backend, meddling(meddle))

    (version,) = await backend.registry.versions(DOMAIN)
    assert (evolution.adapter, version.range_end) == (version.name, await backend.log.tail(DOMAIN))


def forgetting_unread(unread: list[UserId], meddle: Callable[[UserId], object] = lambda _: None) -> Looking:
    """Of two users whose histories it was not given, as the parent's set may name them, something is forgotten: of
    those in `unread`. Something happens meanwhile to the first of them.
    """

    def choose(inputs: EvolutionInputs) -> FakePipeline:
        assert inputs.known is not None
        unread[:] = sorted(inputs.known - inputs.histories.keys())[:2]
        meddle(unread[0])
        return FakePipeline(forgotten=ForgottenSet({user: frozenset([f"event of {user}"]) for user in unread}))

    return Looking(choose)


def forgotten_users(backend: Backend, name: str | None) -> set[UserId]:
    return set(ForgottenSet.load(backend.artifacts.fetch(DOMAIN, AdapterName(str(name)))).users)


async def test_a_user_erased_meanwhile_is_not_named_though_nobody_had_read_them(redis: Redis, backend: Backend) -> None:
    backend = Backend.over(redis, backend.settings.model_copy(update={"max_evaluated_users": 1}))
    await fill(backend)
    await run(backend)
    await fill(backend, USERS[:2], start=9_000.0)
    loop = asyncio.get_running_loop()

    def erase(user: UserId) -> None:
        asyncio.run_coroutine_threadsafe(backend.eraser.erase(DOMAIN, user), loop).result()

    unread = list[UserId]()
    evolution = await run(backend, forgetting_unread(unread, erase))
    assert forgotten_users(backend, evolution.adapter) == {unread[1]}


async def test_a_user_erased_while_a_version_is_stored_makes_the_run_start_over(
    redis: Redis, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend.over(redis, backend.settings.model_copy(update={"max_evaluated_users": 1}))
    await fill(backend)
    await run(backend)
    await fill(backend, USERS[:2], start=9_000.0)
    unread, store, stored = list[UserId](), publish.store, list[Manifest]()

    async def store_and_erase(opened: Backend, manifest: Manifest, folder: Path) -> Manifest:
        stored.append(await store(opened, manifest, folder))
        if len(stored) == 1:
            await backend.eraser.erase(DOMAIN, unread[0])
        return stored[-1]

    monkeypatch.setattr(publish, "store", store_and_erase)
    evolution = await run(backend, forgetting_unread(unread))
    assert evolution.adapter == stored[1].name
    assert stored[0].name not in backend.artifacts.names(DOMAIN)
    assert forgotten_users(backend, evolution.adapter) == set(unread)


async def test_no_dead_letter_names_a_user_who_was_erased_meanwhile(backend: Backend) -> None:
    await fill(backend)
    loop, erased = asyncio.get_running_loop(), list[UserId]()

    def erase_and_choke() -> None:
        if not erased:
            erased.append(USERS[3])
            asyncio.run_coroutine_threadsafe(backend.eraser.erase(DOMAIN, USERS[3]), loop).result()
            raise PoisonUser(USERS[3], "x")

    evolution = await run(backend, meddling(erase_and_choke))
    assert evolution.status is EvolutionStatus.published
    assert await backend.dead_letters.newest(DOMAIN, 10) == []


async def test_a_run_whose_users_are_erased_each_time_is_given_up(backend: Backend) -> None:
    await fill(backend)
    users, loop = iter(USERS), asyncio.get_running_loop()

    def erase() -> None:
        asyncio.run_coroutine_threadsafe(backend.eraser.erase(DOMAIN, next(users)), loop).result()

    evolution = await run(backend, meddling(erase))

    assert evolution.status is EvolutionStatus.failed
    assert "erased meanwhile" in (evolution.error or "")
    assert await nothing_published(backend)


async def test_a_user_whose_data_make_a_step_fail_is_left_out(backend: Backend) -> None:
    await fill(backend)
    poison = {USERS[3], USERS[11]}
    evolution = await run(backend, choking(poison))

    assert evolution.status is EvolutionStatus.published
    manifest = (await backend.registry.versions(DOMAIN))[0]
    assert (manifest.n_active_users, manifest.n_interactions) == (len(USERS) - 2, 2 * len(USERS) - 4)
    assert manifest.range_end == await backend.log.tail(DOMAIN)
    letters = await backend.dead_letters.newest(DOMAIN, 10)
    assert {letter.user_id for letter in letters} == poison
    assert {letter.evolution_id for letter in letters} == {evolution.id}
    assert all("ZeroDivisionError: division by zero" in letter.reason for letter in letters)
    assert not poison & learned_from(backend, manifest.name)


async def test_too_many_such_users_fail_the_run(backend: Backend) -> None:
    await fill(backend)
    evolution = await run(backend, choking(set(USERS)))

    assert evolution.status is EvolutionStatus.failed
    assert f"gave up after leaving out {MAX_POISON_USERS} users" in (evolution.error or "")
    assert "division by zero" in (evolution.error or "")
    assert await nothing_published(backend)


def learned_from(backend: Backend, name: AdapterName) -> set[UserId]:
    """Whom the fast pipeline was given to learn from."""
    adapter = backend.artifacts.fetch(DOMAIN, name) / "adapter_model.safetensors"
    return set(json.loads(adapter.read_text())["learned"])


def test_what_is_no_users_fault_is_not_laid_at_their_door() -> None:
    for error in (Cancelled, MemoryError, OSError):
        with pytest.raises(error), working_on(USERS[0]):
            raise error
    with pytest.raises(PoisonUser, match="user 'user-0': KeyError: 'x'"), working_on(USERS[0]):
        raise KeyError("x")


def choking(on: Set[UserId]) -> Looking:
    """The fast pipeline, which chokes on some users."""

    def choose(inputs: EvolutionInputs) -> FakePipeline:
        for user in inputs.histories:
            with working_on(user):
                assert 1 / (user not in on)
        return FakePipeline()

    return Looking(choose)


async def test_what_waits_too_long_starts_an_evolution_however_little_it_is(backend: Backend) -> None:
    await fill(backend, USERS[:1])
    enqueued: list[EvolutionId] = []

    async def tick_in(seconds: float) -> list[EvolutionId]:
        return await tick(backend, lambda evolution, _: enqueued.append(evolution), lambda: time.time() + seconds)

    assert await tick_in(0) == enqueued == []
    assert await tick_in(backend.settings.evolve_max_age_s) == enqueued == ["shop-e000001"]
