"""When an evolution is due, and the tick that starts those that are and revives those whose worker died."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from evolver import lease
from evolver.backend import Backend
from shared.config import Settings
from shared.errors import EvolutionRunning
from shared.evolutions import Evolution, EvolutionStatus, refusal_by_route
from shared.telemetry import described
from shared.types import DomainId, EvolutionId

log = structlog.get_logger(__name__)

Enqueue = Callable[[EvolutionId, DomainId], None]
"""Puts the task `evolver.evolve` into the broker's queue."""

FIRST_RETRY_S: Final = 60.0
LONGEST_RETRY_S: Final = 3600.0
_REMEMBERED_RUNS: Final = 10
_UNSUCCESSFUL: Final = frozenset({EvolutionStatus.failed, EvolutionStatus.cancelled})


@dataclass(frozen=True, slots=True)
class DomainState:
    """What the decision looks at.  `oldest_age_s`: seconds since the oldest new interaction arrived."""

    new_interactions: int
    oldest_age_s: float | None = None
    paused: bool = False
    challenger: str | None = None
    retry_in_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an evolution is due, and why (not)."""

    due: bool
    reason: str


def decide(state: DomainState, settings: Settings) -> Decision:
    """Whether a domain without a running evolution is due for one."""
    if state.paused:
        return Decision(False, "evolutions of this domain are paused")
    if state.challenger:
        return Decision(False, f"challenger {state.challenger} is on trial")
    if state.new_interactions == 0:
        return Decision(False, "no new interactions")
    if state.retry_in_s > 0:
        return Decision(False, f"the last run did not finish; the next one may start in {state.retry_in_s:.0f} s")
    enough = settings.evolve_min_interactions
    if state.new_interactions >= enough:
        return Decision(True, f"{state.new_interactions} new interactions (at least {enough})")
    if state.oldest_age_s is not None and state.oldest_age_s >= settings.evolve_max_age_s:
        return Decision(True, f"the oldest new interaction waits for {state.oldest_age_s:.0f} s")
    return Decision(False, f"{state.new_interactions} of {enough} new interactions")


def refusal(state: DomainState, *, force: bool) -> str | None:
    """Why an evolution that was asked for must not start now; None when it may.

    Asking is a trigger in itself, so neither count nor age matter; what a finished run has looked at already yields to
    `force`.
    """
    by_route = refusal_by_route(state.challenger, state.paused, force=force)
    if by_route is not None:
        return by_route
    if state.new_interactions == 0 and not force:
        return "no new interactions since the last finished run; `force` looks at its window again"
    return None


def retry_in_s(newest_first: Sequence[Evolution], now: float) -> float:
    """Seconds until triggers may fire again after runs that failed or were cancelled.

    Such runs do not move `considered` (nothing was looked at to the end), so without a pause that doubles with every
    failure in a row the same window would fire again with the next tick.
    """
    failures = 0
    for evolution in newest_first:
        if evolution.status not in _UNSUCCESSFUL:
            break
        failures += 1
    if not failures or newest_first[0].finished_at is None:
        return 0.0
    pause = min(FIRST_RETRY_S * 2.0 ** (failures - 1), LONGEST_RETRY_S)
    return max(0.0, newest_first[0].finished_at + pause - now)


async def observe(backend: Backend, domain: DomainId, now: float) -> DomainState:
    """Read what `decide` looks at."""
    considered = await backend.registry.considered(domain)
    route = await backend.registry.route(domain)
    enough = backend.settings.evolve_min_interactions
    oldest = await backend.log.first_timestamp(domain, considered)
    return DomainState(
        new_interactions=await backend.log.count(domain, considered, at_most=enough),
        oldest_age_s=None if oldest is None else max(0.0, now - oldest),
        paused=route.paused,
        challenger=route.challenger,
        retry_in_s=retry_in_s(await backend.evolutions.list(domain, _REMEMBERED_RUNS), now),
    )


async def tick(backend: Backend, enqueue: Enqueue, clock: Callable[[], float] = time.time) -> list[EvolutionId]:
    """Start what is due and revive what has died, domain by domain; the evolutions put into the queue.

    A domain that cannot be looked at is logged and does not stop the others.
    """
    enqueued: list[EvolutionId] = []
    for domain in await backend.catalog.domains():
        try:
            await backend.registry.record_moves(domain)  # what a full disk or a crash has left unrecorded
            evolution = await _next_evolution(backend, domain, clock())
            if evolution is None:
                continue
            # Every worker has a tick, and a queue behind a long run keeps its messages: each would add one.
            async with backend.evolutions.enqueueing(evolution) as is_ours:
                if is_ours:
                    enqueue(evolution.id, domain)
                    log.info("evolution_enqueued", domain=domain, evolution=evolution.id, status=evolution.status)
                    enqueued.append(evolution.id)
        except Exception as error:
            log.warning("tick_failed", domain=domain, error=described(error))
    return enqueued


async def _next_evolution(backend: Backend, domain: DomainId, now: float) -> Evolution | None:
    """The evolution that needs a worker: one without a lease (never started, or its worker died), or a due one."""
    active = await backend.evolutions.active(domain)
    if active is not None:
        return None if await lease.is_held(backend.redis, domain) else active
    decision = decide(await observe(backend, domain, now), backend.settings)
    if not decision.due:
        return None
    log.info("evolution_due", domain=domain, reason=decision.reason)
    try:
        return await backend.evolutions.create(domain, force=False, dry_run=False)
    except EvolutionRunning:
        return None
