"""Adapter versions: what there is, what serves, and moving the aliases."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from service.audit import decided
from service.auth import Scope
from service.deps import DomainQuery, Services, ServicesDep, requires
from service.problems import responses
from service.schemas.adapters import (
    AdaptersAnswer,
    AliasAnswer,
    DomainAdapters,
    ReplicaAdapter,
    RollbackRequest,
    RouteAnswer,
    RouteRequest,
)
from shared.errors import Conflict, InvalidInput
from shared.manifest import split_adapter_name
from shared.types import AdapterName, DomainId

router = APIRouter(prefix="/admin", tags=["adapters"], dependencies=[Depends(requires(Scope.admin))])


@router.get("/adapters", responses=responses(401, 403, 404, 422, 503))
async def list_adapters(services: ServicesDep, domain: DomainQuery = None) -> AdaptersAnswer:
    """Versions with their manifests, aliases, and what this process has loaded or refused, and why."""
    names = await services.catalog.domains() if domain is None else [await services.known_domain(domain)]
    return AdaptersAnswer(domains=[await _describe(services, name) for name in names])


async def _describe(services: Services, domain: DomainId) -> DomainAdapters:
    route = await services.registry.route(domain)
    aliases = await services.registry.aliases(domain)
    slots = services.slots.of(domain)
    return DomainAdapters(
        domain=domain,
        aliases=dict(aliases),
        challenger_share=route.share,
        paused=route.paused,
        versions=list(reversed(await services.registry.versions(domain))),
        replica=[
            ReplicaAdapter(name=slot.name, state=slot.state, refusal=slot.refusal, in_flight=slot.in_flight)
            for slot in slots
        ],
        refusals=dict(await services.refusals.all(domain)),
    )


@router.post("/adapters/{name}/promote", responses=responses(401, 403, 404, 409, 422, 503))
async def promote(name: str, request: Request, services: ServicesDep) -> AliasAnswer:
    """Makes a version the champion; every replica loads it before it answers with it."""
    domain = split_adapter_name(name)[0]
    decided(request.state, domain=domain, champion=name)
    await services.known_domain(domain)
    before = await services.registry.champion(domain)
    await services.registry.promote(domain, AdapterName(name), expected=before)
    services.adapters.schedule(domain)
    return AliasAnswer(domain=domain, champion=name)


@router.post("/rollback", responses=responses(400, 401, 403, 404, 409, 422, 503))
async def rollback(request: Request, services: ServicesDep, body: RollbackRequest | None = None) -> AliasAnswer:
    """Back to the champion's parent. The window it learned from is new again."""
    body = body or RollbackRequest()
    leaving = AdapterName(body.leaving) if body.leaving is not None else None
    decided(request.state, **({"from": leaving} if leaving else {}), domain=services.domain(body.domain))
    domain = await services.known_domain(body.domain)
    champion = await services.registry.rollback(domain, leaving)
    services.adapters.schedule(domain)
    return AliasAnswer(domain=domain, champion=champion)


@router.put("/routes", responses=responses(400, 401, 403, 404, 409, 422, 503))
async def put_route(body: RouteRequest, request: Request, services: ServicesDep) -> RouteAnswer:
    """Puts a challenger on trial for a sticky share of the users, ends the trial (null), or pauses evolutions."""
    named = services.domain(body.domain)
    decided(request.state, **body.model_dump(exclude_unset=True, exclude={"domain"}), domain=named)
    domain = await services.known_domain(named)
    given = body.model_fields_set & {"challenger", "share", "paused"}
    if not given:
        raise InvalidInput("give challenger and share, or paused")
    current = await services.registry.route(domain)
    challenger = AdapterName(body.challenger) if body.challenger is not None else None
    if "challenger" not in given:
        challenger = current.challenger
    if body.share is not None and challenger is None:
        raise InvalidInput("share: there is no challenger to give a share to")
    if challenger is not None and challenger == await services.registry.champion(domain):
        raise Conflict(f"{challenger} is the champion already")
    if challenger not in (None, current.challenger) and body.share is None:
        raise InvalidInput("share: say which share of the users, such as 0.1, the new challenger is to answer")
    if given & {"challenger", "share"}:
        await services.registry.set_trial(domain, challenger, current.share if body.share is None else body.share)
    if body.paused is not None:
        await services.registry.set_paused(domain, body.paused)
    route = await services.registry.route(domain)
    services.adapters.schedule(domain)
    return RouteAnswer(domain=domain, challenger=route.challenger, share=route.share, paused=route.paused)
