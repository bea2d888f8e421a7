"""One attempt at an evolution, step by step: window, Locate, Forget, Update, Evaluate, publish."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from evolver import publish, trigger, window
from evolver.backend import Backend
from evolver.disk import room_in
from evolver.inputs import ParentVersion, Pipeline, PipelineResult, PoisonUser
from evolver.lease import Lease
from evolver.monitor import Monitor, never
from evolver.window import Window
from shared.base_model import base_model_hash
from shared.config import Settings
from shared.dead_letters import DeadLetter
from shared.errors import EvorecError, UnknownDomain
from shared.evolutions import Evolution, EvolutionStatus
from shared.forgotten import ForgottenSet
from shared.manifest import Manifest
from shared.redis_keys import DomainKeys
from shared.types import EvolutionId, UserId

log = structlog.get_logger(__name__)

MAX_ATTEMPTS: Final = 3
MAX_POISON_USERS: Final = 20
"""Users that one run leaves out at most."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run is given besides its data; the tests put a fast pipeline here."""

    pipeline: Pipeline | None = None
    interrupted: Callable[[], bool] = never


class Run:
    """The steps of one attempt; each ends the run by returning its record, or hands on."""

    def __init__(self, backend: Backend, monitor: Monitor, held: Lease, surroundings: Surroundings) -> None:
        self._backend = backend
        self._monitor = monitor
        self._lease = held
        self._surroundings = surroundings

    @property
    def _evolution(self) -> Evolution:
        return self._monitor.evolution

    async def execute(self) -> Evolution:
        """The whole run."""
        # A first version must not be made of what is left of a domain, nor one of its old versions be taken for it.
        await self._backend.registry.refuse_where_lost(self._evolution.domain)
        earlier = await publish.finish_earlier_attempt(self._backend, self._evolution, self._lease)
        if earlier is not None:
            return await self._published(earlier)
        await self._count_attempt()
        refusal = await self._refusal()
        if refusal is not None:
            return await self._monitor.finish(EvolutionStatus.rejected, message=refusal)
        await self._monitor.save(
            status=EvolutionStatus.running, started_at=time.time(), stage="window", progress=0.0, error=None
        )
        for _ in range(MAX_ATTEMPTS):
            ended = await self._learn()
            if ended is not None:
                return ended
        raise EvorecError(f"gave up after {MAX_ATTEMPTS} windows, of each of which users were erased meanwhile")

    async def _learn(self) -> Evolution | None:
        """From the window to the verdict; None where users of the window were erased meanwhile."""
        started = time.monotonic()
        parent = await self._parent()
        read = await window.load_window(self._backend, self._evolution.domain, self._backend.settings.seed)
        seconds = {"window": time.monotonic() - started}
        if not read.n_interactions:
            return await self._rejected(read, "nothing to learn: no new positive interactions since the last version")
        self._monitor.check()
        read, result, folder = await self._train_without_poison(read, parent)
        self._monitor.check()
        return await self._conclude(read, parent, result, folder, {**seconds, **result.stage_seconds})

    async def _count_attempt(self) -> None:
        """Raise `EvorecError` for a run whose worker has died too often; a crash loop must not block the domain."""
        key = DomainKeys(self._evolution.domain).attempts(self._evolution.id)
        attempts = int(await self._backend.redis.incr(key))
        await self._backend.redis.expire(key, 7 * 24 * 3600)
        if attempts > MAX_ATTEMPTS:
            raise EvorecError(
                f"gave up after {MAX_ATTEMPTS} attempts: the worker died in each (out of memory?); "
                f"the last stage was {self._evolution.stage or 'the start'}"
            )

    async def _refusal(self) -> str | None:
        """Why this evolution must not start, if so. `force` skips the triggers, but nothing runs during a trial."""
        domain = self._evolution.domain
        if not await self._backend.catalog.exists(domain):
            raise UnknownDomain(f"domain {domain!r} has no items; PUT /items creates it")
        state = await trigger.observe(self._backend, domain, time.time())
        return trigger.refusal(state, force=self._evolution.force)

    async def _parent(self) -> ParentVersion | None:
        domain = self._evolution.domain
        champion = await self._backend.registry.champion(domain)
        if champion is None:
            return None
        folder = await asyncio.to_thread(self._backend.artifacts.fetch, domain, champion)
        parent = ParentVersion(folder, await asyncio.to_thread(self._backend.artifacts.manifest, domain, champion))
        await asyncio.to_thread(_require_base_of, parent.manifest, self._backend.settings)
        return parent

    async def _train_without_poison(
        self, read: Window, parent: ParentVersion | None
    ) -> tuple[Window, PipelineResult, Path]:
        """Train, again from the start without each user whose data make a step fail.

        Raises `EvorecError` where there are too many of those: then it is hardly the users' fault.
        """
        for _ in range(MAX_POISON_USERS + 1):
            try:
                return read, *await self._train(read, parent)
            except PoisonUser as error:
                await self._tell_of(error, read)
                read, last = read.without(error.user_id), error
        raise EvorecError(
            f"gave up after leaving out {MAX_POISON_USERS} users whose data make a step fail; the last one: {last}"
        )

    async def _tell_of(self, error: PoisonUser, read: Window) -> None:
        """A dead letter, unless the user was erased meanwhile: nothing is to be said of them any more."""
        domain, history = self._evolution.domain, read.inputs.histories.get(error.user_id, ())
        if await self._backend.eraser.erased_of(domain, {error.user_id: history}):
            log.warning("erased_user_left_out", evolution=self._evolution.id)
            return
        log.exception("user_left_out", evolution=self._evolution.id, user=error.user_id)
        letter = DeadLetter(reason=str(error), user_id=error.user_id, evolution_id=self._evolution.id)
        await self._backend.dead_letters.add(domain, letter)

    async def _train(self, read: Window, parent: ParentVersion | None) -> tuple[PipelineResult, Path]:
        clear_work(self._backend.settings, self._evolution.id)  # what dead attempts left
        folder = work_folder(self._backend.settings, self._evolution.id, self._lease.token)
        pipeline = self._surroundings.pipeline
        if pipeline is None:  # imported in a thread as well: half a minute without renewals would cost the lease
            pipeline = await asyncio.to_thread(load_pipeline)
        with room_in(folder.parent):
            folder.mkdir(parents=True)
            result = await asyncio.to_thread(
                pipeline,
                read.inputs,
                parent,
                folder,
                self._backend.settings,
                self._monitor.progress,
                self._monitor.should_stop,
            )
        return result, folder

    async def _conclude(
        self,
        read: Window,
        parent: ParentVersion | None,
        result: PipelineResult,
        folder: Path,
        stage_seconds: Mapping[str, float],
    ) -> Evolution | None:
        """Record what was found; then publish, or say why not. None where users of the window were erased meanwhile."""
        result = publish.storable(result)
        await self._monitor.save(
            located_layers=result.located_layers,
            layer_votes=result.layer_votes,
            forgotten_share=result.forgotten_share,
            metrics=result.metrics,
            gate=result.gate,
        )
        if not result.train_examples:
            return await self._rejected(read, "nothing to learn: the window gave no training examples")
        if self._evolution.dry_run:
            await self._consider(read)
            return await self._monitor.finish(EvolutionStatus.dry, message="dry run: nothing was published")
        # A first version has no parent to be worse than, and the domain nothing else to be served by.
        if self._backend.settings.enforce_gate and parent is not None and not result.gate.passed:
            return await self._rejected(read, f"the gate failed: {'; '.join(result.gate.reasons)}")
        self._monitor.progress("publish", 0.0)
        named = await self._named(folder)
        name = await self._backend.registry.reserve_name(self._evolution.domain)
        # At a bootstrap it reads all of the base model's weights, and the lease has to be renewed meanwhile.
        manifest = await asyncio.to_thread(
            publish.build_manifest,
            name,
            self._evolution,
            read,
            parent,
            result,
            self._backend.settings,
            stage_seconds=stage_seconds,
        )
        return await self._publish(read, await publish.store(self._backend, manifest, folder), named)

    async def _named(self, folder: Path) -> frozenset[UserId]:
        """Whom the version's files name: users of whom something is forgotten, without those who were erased while this
        ran and whose histories it had not read (of the others it starts over).
        """
        forgotten = await asyncio.to_thread(ForgottenSet.load, folder)
        kept = forgotten.among(await self._known(forgotten.users))
        if kept != forgotten:
            await asyncio.to_thread(kept.save, folder)
        return kept.users

    async def _known(self, users: frozenset[UserId]) -> frozenset[UserId]:
        """Those whom the domain still knows: all, where the archive has yet to say whom it knows."""
        domain = self._evolution.domain
        if not users or not await self._backend.history.complete(domain):
            return users
        return users & frozenset(await self._backend.history.users(domain))

    async def _publish(self, read: Window, stored: Manifest, named: frozenset[UserId]) -> Evolution | None:
        """Move the alias. A version that may not be published goes once the record says how the run ended.

        None where users of the window, or those that the files name, were erased meanwhile: their erasure's answer
        could not name this version. It goes at once, or the next attempt would take it for a complete one.
        """
        erased = await self._backend.eraser.erased_of(stored.domain, read.inputs.histories)
        erased |= named - await self._known(named)
        self._monitor.check()
        if erased:
            log.info("evolution_starts_over", evolution=self._evolution.id, users_erased_meanwhile=len(erased))
            await asyncio.to_thread(self._backend.artifacts.delete, stored.domain, stored.name)
            return None
        await publish.publish(self._backend, stored, self._lease)
        return await self._published(stored)

    async def _published(self, manifest: Manifest) -> Evolution:
        message = f"published as {manifest.name}"
        if not manifest.gate.passed:
            message += f", though the gate failed: {'; '.join(manifest.gate.reasons)}"
        return await self._monitor.finish(
            EvolutionStatus.published,
            adapter=manifest.name,
            stage="publish",
            progress=1.0,
            message=message,
        )

    async def _rejected(self, read: Window, message: str) -> Evolution:
        await self._consider(read)
        return await self._monitor.finish(EvolutionStatus.rejected, message=message)

    async def _consider(self, read: Window) -> None:
        """The window was looked at: triggers count from its end, so that it does not fire again at once."""
        await self._backend.registry.set_considered(self._evolution.domain, read.until, self._lease.token)


def _require_base_of(parent: Manifest, settings: Settings) -> None:
    """A LoRA says nothing on another base than its own, even one of the same shape."""
    if (found := base_model_hash(settings.base_model)) != parent.base_model_hash:
        raise EvorecError(
            f"{parent.name} was made on the base {parent.base_model!r} ({parent.base_model_hash[:12]}), and "
            f"EVOREC_BASE_MODEL={settings.base_model!r} is another ({found[:12]}): set the old one again, or start "
            "anew on the new one, with a Redis and an EVOREC_STATE_DIR of its own"
        )


def work_folder(settings: Settings, evolution_id: EvolutionId, token: int) -> Path:
    """Where the attempt writes its files: a folder of its own, because a paused one may wake up beside its redo."""
    return settings.state_dir / "work" / f"{evolution_id}.{token}"


def clear_work(settings: Settings, evolution_id: EvolutionId, token: int | None = None) -> None:
    """Remove the attempt's files; without a token those of every attempt."""
    for folder in (settings.state_dir / "work").glob(f"{evolution_id}.{token or '*'}"):
        shutil.rmtree(folder, ignore_errors=True)


def load_pipeline() -> Pipeline:
    """The real one, imported when first needed: torch and transformers take seconds and hundreds of megabytes."""
    import peft  # noqa: F401 - the pipeline asks for it only when it loads the model

    from evolver.pipeline import run_pipeline

    return run_pipeline
