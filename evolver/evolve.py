"""An evolution, from the lease to the verdict: it is attempted, and every way an attempt can end is written down.

An attempt may die at any point. Nothing it did is visible before the registry's one atomic step, and the next attempt
(same evolution id) starts over, or ends at once where that step, or all before it, has been done.
"""

from __future__ import annotations

from contextlib import suppress

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from evolver import lease, publish, upkeep
from evolver.attempt import Run, Surroundings, clear_work
from evolver.backend import Backend, open_backend
from evolver.inputs import Cancelled
from evolver.lease import Lease, LeaseHeld
from evolver.monitor import Monitor, StopReason
from shared.config import Settings
from shared.errors import EvolutionEnded, EvorecError, LeaseLost, Unavailable
from shared.evolutions import Evolution, EvolutionStatus
from shared.redis_keys import DomainKeys
from shared.telemetry import described
from shared.types import DomainId, EvolutionId

log = structlog.get_logger(__name__)


async def evolve(
    settings: Settings, evolution_id: EvolutionId, domain: DomainId, surroundings: Surroundings | None = None
) -> Evolution:
    """Run an evolution that was put into the queue, once: one that is finished or runs elsewhere is left alone."""
    async with open_backend(settings) as backend:
        await backend.evolutions.taken(evolution_id, domain)
        evolution = await backend.evolutions.get(evolution_id)
        if evolution.status.final:
            log.info("evolution_already_finished", evolution=evolution_id, status=evolution.status)
            return evolution
        try:
            async with lease.hold(backend.redis, domain, evolution_id, settings.lease_s) as held:
                evolution = await backend.evolutions.get(evolution_id)
                if evolution.status.final:
                    return evolution
                return await _attempt_with_upkeep(backend, evolution, held, surroundings or Surroundings())
        except LeaseHeld as error:
            log.info("evolution_runs_elsewhere", evolution=evolution_id, domain=domain, reason=str(error))
            return evolution


async def _attempt_with_upkeep(
    backend: Backend, evolution: Evolution, held: Lease, surroundings: Surroundings
) -> Evolution:
    """An attempt and, where it has published, the upkeep; the record does not wait for that."""
    ended = await _attempt(backend, evolution, held, surroundings)
    if ended.status is EvolutionStatus.published:
        await upkeep.after_run(backend, ended.domain)
    return ended


async def _attempt(backend: Backend, evolution: Evolution, held: Lease, surroundings: Surroundings) -> Evolution:
    """One attempt at the evolution, and what it leaves behind put away."""
    try:
        ended = await _to_its_end(backend, evolution, held, surroundings)
    except (LeaseLost, EvolutionEnded) as error:
        log.warning("evolution_taken_over", evolution=evolution.id, error=str(error))
        ended = await backend.evolutions.get(evolution.id)
    finally:
        clear_work(backend.settings, evolution.id, held.token)
    if ended.status.final:
        clear_work(backend.settings, evolution.id)
        try:
            await publish.discard_unpublished(backend, ended)
            # Here too: the upkeep that prunes drops the copies of its own machine alone.
            await backend.retention.drop_copies(ended.domain, in_use=frozenset())
        except (RedisError, OSError, Unavailable) as error:
            log.warning("evolution_not_cleaned_up", evolution=evolution.id, error=described(error))
    return ended


async def _to_its_end(backend: Backend, evolution: Evolution, held: Lease, surroundings: Surroundings) -> Evolution:
    """The attempt, with every way it can end written to its record.

    LeaseLost when that is no longer ours to write, EvolutionEnded when somebody else has ended it.
    """
    monitor = Monitor(backend, evolution, held, interrupted=surroundings.interrupted)
    try:
        async with monitor.watching():
            return await Run(backend, monitor, held, surroundings).execute()
    except Cancelled:
        return await _stopped(backend, monitor)
    except (LeaseLost, EvolutionEnded):
        raise
    except (RedisConnectionError, RedisTimeoutError):
        with suppress(RedisError, OSError):  # Redis' outage is no failure of the run
            await backend.redis.decr(DomainKeys(evolution.domain).attempts(evolution.id))
        raise  # no record can be written now; the lease expires and the tick starts the run again
    except Exception as error:
        log.exception("evolution_failed", evolution=evolution.id, domain=evolution.domain)
        return await monitor.finish(EvolutionStatus.failed, error=describe(error, monitor.evolution.stage))


async def _stopped(backend: Backend, monitor: Monitor) -> Evolution:
    """The end of an attempt that was asked to stop, by the reason it was given."""
    if monitor.stop_reason is StopReason.interrupted:
        # The worker shuts down: the next one redoes the run, and this was no failed attempt.
        await backend.redis.delete(DomainKeys(monitor.evolution.domain).attempts(monitor.evolution.id))
        return await monitor.save(status=EvolutionStatus.queued, stage=None, progress=0.0)
    if monitor.stop_reason is StopReason.too_long:
        return await monitor.finish(EvolutionStatus.failed, error="the evolution took too long and was stopped")
    if monitor.stop_reason in (StopReason.lease_lost, StopReason.ended):
        return await backend.evolutions.get(monitor.evolution.id)
    return await monitor.finish(EvolutionStatus.cancelled, message="cancelled on request; nothing was published")


def describe(error: Exception, stage: str | None) -> str:
    """An error as people read it: our own errors speak for themselves, others name their type and the stage."""
    if isinstance(error, EvorecError):
        return str(error)
    return f"{stage or 'start'}: {type(error).__name__}: {error}"
