"""A running evolution as others see it: its record is kept up to date, and wishes to stop are heard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Final

import structlog
from redis.exceptions import RedisError

from evolver.backend import Backend
from evolver.inputs import Cancelled
from evolver.lease import Lease, end_of
from shared.errors import EvolutionEnded, EvorecError, LeaseLost
from shared.evolutions import Evolution, EvolutionStatus

log = structlog.get_logger(__name__)

WATCH_S: Final = 0.5
MAX_RUN_S: Final = 6 * 3600.0

# Where each stage lies in the whole, 0..1: (start, length), from runs of the tiny model on 2 cores.
STAGES: Final = {
    "window": (0.0, 0.03),
    "evaluate before": (0.03, 0.05),
    "locate": (0.08, 0.07),
    "forget": (0.15, 0.15),
    "update": (0.30, 0.50),
    "evaluate": (0.80, 0.15),
    "publish": (0.95, 0.05),
}


class StopReason(StrEnum):
    """Why a run should end before its end."""

    cancelled = "cancelled"
    lease_lost = "lease_lost"
    ended = "ended"
    interrupted = "interrupted"
    too_long = "too_long"


def never() -> bool:
    """Nobody wants this process to stop."""
    return False


class Monitor:
    """Writes progress to the evolution's record (throttled) and tells the pipeline's thread when to stop.

    `progress` and `should_stop` are called from the pipeline's thread, everything else from the event loop.
    """

    def __init__(
        self,
        backend: Backend,
        evolution: Evolution,
        lease: Lease,
        *,
        interrupted: Callable[[], bool] = never,
        max_run_s: float = MAX_RUN_S,
    ) -> None:
        self.evolution = evolution
        self._backend = backend
        self._lease = lease
        self._interrupted = interrupted
        self._deadline = time.monotonic() + max_run_s
        self._stop: StopReason | None = None
        self._reported = (evolution.stage, evolution.progress)
        self._writing = asyncio.Lock()

    def progress(self, stage: str, share: float) -> None:
        """Note that `stage` is done to `share`, 0..1."""
        start, length = STAGES.get(stage, (0.0, 0.0))
        done = round(start + length * min(max(share, 0.0), 1.0), 4)
        self._reported = (stage, max(done, self._reported[1]))

    def stop(self, reason: StopReason) -> None:
        """Ask the run to end; the first reason counts."""
        if self._stop is None:
            log.info("evolution_stopping", evolution=self.evolution.id, reason=reason)
            self._stop = reason

    def should_stop(self) -> bool:
        """Whether the run should end now; cheap enough to ask between training steps."""
        return self.stop_reason is not None

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the run should end now, if it should."""
        if self._stop is None:
            if self._lease.lost:
                self.stop(StopReason.lease_lost)
            elif self._interrupted():
                self.stop(StopReason.interrupted)
            elif time.monotonic() > self._deadline:
                self.stop(StopReason.too_long)
        return self._stop

    def check(self) -> None:
        """Raise `Cancelled` when the run should end now, `LeaseLost` when it is no longer ours to end."""
        self._lease.check()
        if self.should_stop():
            raise Cancelled(self._stop)

    async def save(self, **changes: object) -> Evolution:
        """Change the evolution's record; raise `LeaseLost` when it is no longer ours to write, `EvolutionEnded` when
        somebody else has ended it.
        """
        async with self._writing:
            await self._write(changes)
            self._reported = (self.evolution.stage, self.evolution.progress)
        return self.evolution

    async def finish(self, status: EvolutionStatus, **changes: object) -> Evolution:
        """`save` how the run ended; raise `LeaseLost` when it is no longer ours to write."""
        log.info("evolution_finished", evolution=self.evolution.id, status=status, **changes)
        return await self.save(status=status, finished_at=time.time(), **changes)

    async def _write(self, changes: Mapping[str, object]) -> None:
        self._lease.check()
        self.evolution = self.evolution.model_copy(update=changes)
        try:
            await self._backend.evolutions.update(self.evolution, self._lease.token)
        except LeaseLost:
            self._lease.lost = True
            raise
        except EvolutionEnded:  # nobody waits for the run, and its lease keeps the domain's next one waiting
            self.stop(StopReason.ended)
            raise

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Keep the record current and listen for a cancellation during the block."""
        watch = asyncio.create_task(self._watch(), name=f"monitor-{self.evolution.id}")
        try:
            yield
        finally:
            await end_of(watch)

    async def _watch(self) -> None:
        while not self.should_stop():
            # Redis being away for a while must not end hours of training: the lease decides that.
            try:
                await self._look()
            except (RedisError, OSError, EvorecError) as error:
                log.warning("progress_not_written", evolution=self.evolution.id, error=str(error))
            await asyncio.sleep(WATCH_S)

    async def _look(self) -> None:
        if await self._backend.evolutions.cancel_requested(self.evolution.id):
            self.stop(StopReason.cancelled)
            return
        async with self._writing:  # the run itself may have written meanwhile, its end included
            stage, progress = self._reported
            known = (self.evolution.stage, self.evolution.progress)
            if (stage, progress) != known and not self.evolution.status.final:
                await self._write({"stage": stage, "progress": progress})
