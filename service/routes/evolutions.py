"""Evolutions: start, watch, cancel; and what they could not learn from."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from service.audit import decided
from service.auth import Scope
from service.deps import DomainQuery, Services, ServicesDep, requires
from service.problems import responses
from service.schemas.evolutions import DeadLettersAnswer, EvolutionsAnswer, EvolveAnswer, EvolveRequest
from shared.errors import Conflict, Unavailable
from shared.evolutions import Evolution, EvolutionStatus, refusal_by_route
from shared.types import DomainId

router = APIRouter(prefix="/admin", tags=["evolutions"], dependencies=[Depends(requires(Scope.admin))])


@router.post("/evolve", status_code=202, responses=responses(400, 401, 403, 404, 409, 422, 503))
async def evolve(body: EvolveRequest, request: Request, services: ServicesDep) -> EvolveAnswer:
    """Asks a worker to learn from what arrived since the champion. One evolution per domain at a time."""
    decided(request.state, domain=services.domain(body.domain), force=body.force, dry_run=body.dry_run)
    domain = await services.known_domain(body.domain)
    await _refuse_where_it_cannot_start(services, domain, force=body.force)
    evolution = await services.evolutions.create(domain, body.force, body.dry_run)
    async with services.evolutions.enqueueing(evolution) as is_ours:
        if is_ours:  # or a worker's tick has been faster
            await _enqueue(services, evolution)
    return EvolveAnswer(evolution_id=evolution.id)


async def _enqueue(services: Services, evolution: Evolution) -> None:
    try:
        await services.queue.enqueue(evolution.id, evolution.domain)
    except Unavailable as error:
        failed = {"status": EvolutionStatus.failed, "finished_at": time.time(), "error": str(error)}
        await services.evolutions.update(evolution.model_copy(update=failed))
        raise


async def _refuse_where_it_cannot_start(services: Services, domain: DomainId, *, force: bool) -> None:
    route = await services.registry.route(domain)
    refusal = refusal_by_route(route.challenger, route.paused, force=force)
    if refusal is not None:
        raise Conflict(refusal)


@router.get("/evolutions", responses=responses(401, 403, 404, 422, 503))
async def list_evolutions(
    services: ServicesDep, domain: DomainQuery = None, limit: Annotated[int, Query(ge=1, le=1000)] = 50
) -> EvolutionsAnswer:
    """Runs, newest first; of all domains where none is named."""
    name = None if domain is None else await services.known_domain(domain)
    return EvolutionsAnswer(evolutions=await services.evolutions.list(name, limit))


@router.get("/evolutions/{evolution_id}", responses=responses(401, 403, 404, 422, 503))
async def get_evolution(evolution_id: str, services: ServicesDep) -> Evolution:
    """Stage, progress, what was located and forgotten, metrics before and after, why (not) published."""
    return await services.evolutions.get(evolution_id)


@router.get("/dead-letters", responses=responses(401, 403, 404, 422, 503))
async def list_dead_letters(
    services: ServicesDep, domain: DomainQuery = None, limit: Annotated[int, Query(ge=1, le=1000)] = 50
) -> DeadLettersAnswer:
    """What could not be read or learned from, and why: stream, history and catalog entries, users. Newest first."""
    name = await services.known_domain(domain)
    return DeadLettersAnswer(domain=name, dead_letters=list(await services.dead_letters.newest(name, limit)))


@router.delete("/evolutions/{evolution_id}", status_code=202, responses=responses(401, 403, 404, 409, 422, 503))
async def cancel_evolution(evolution_id: str, request: Request, services: ServicesDep) -> Evolution:
    """Asks a run to stop; it publishes nothing. 409 where it has ended."""
    await services.evolutions.request_cancel(evolution_id)
    evolution = await services.evolutions.get(evolution_id)
    decided(request.state, domain=evolution.domain, cancelled=evolution_id)
    return evolution
