"""What routes ask for: the services of this process, the caller's rights, the domain."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from fastapi import Depends, Query, Request, Security
from fastapi.security import APIKeyHeader
from redis.asyncio import Redis

from service.adapters import AdapterManager
from service.audit import AuditLog
from service.auth import Principal, Scope, Unauthorized, check_scope
from service.callers import API_KEY
from service.catalogs import Catalogs
from service.engine_host import EngineHost
from service.metrics import Metrics
from service.queue import EvolutionQueue
from service.recommend import Recommender
from service.redis_watch import RedisWatch
from service.refusals import RefusalStore
from service.remembered import RememberedHistories
from service.schemas.common import DomainName
from service.slots import Slots
from service.store_guard import StoreGuard
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.dead_letters import DeadLetters
from shared.erasure import Eraser
from shared.errors import UnknownDomain
from shared.evolutions import EvolutionStore
from shared.history import HistoryStore
from shared.registry import Registry
from shared.stream import InteractionLog
from shared.types import DomainId

API_KEY_HEADER = APIKeyHeader(name=API_KEY, auto_error=False, description="Scopes: recommend, ingest, admin")


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a request may use; opened and closed by the lifespan."""

    settings: Settings
    redis: Redis
    patient: Redis
    metrics: Metrics
    guard: StoreGuard
    log: InteractionLog
    histories: HistoryStore
    remembered: RememberedHistories
    eraser: Eraser
    catalog: CatalogStore
    catalogs: Catalogs
    registry: Registry
    refusals: RefusalStore
    evolutions: EvolutionStore
    audit: AuditLog
    dead_letters: DeadLetters
    queue: EvolutionQueue
    host: EngineHost
    slots: Slots
    adapters: AdapterManager
    redis_watch: RedisWatch
    recommender: Recommender

    def domain(self, named: str | None) -> DomainId:
        return DomainId(named or self.settings.default_domain)

    async def known_domain(self, named: str | None) -> DomainId:
        """UnknownDomain where nobody has put items there, Unavailable where Redis has lost what it knew of it."""
        domain = self.domain(named)
        if not await self.catalog.exists(domain):
            await self.registry.refuse_where_lost(domain)
            raise UnknownDomain(f"there is no domain {domain!r}; PUT /items creates it")
        return domain


class State(TypedDict):
    """What the lifespan yields; a request finds it in `request.state`."""

    services: Services


def get_services(request: Request) -> Services:
    services: Services = request.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]
DomainQuery = Annotated[DomainName | None, Query(description="Unset: the default domain")]


async def get_principal(request: Request, _: Annotated[str | None, Security(API_KEY_HEADER)]) -> Principal:
    """Whom `service.callers.Callers` has admitted; the header is named here for the OpenAPI document."""
    principal: Principal | None = request.scope["state"].get("principal")
    if principal is None:
        raise Unauthorized("this call is not public")
    return principal


PrincipalDep = Annotated[Principal, Depends(get_principal)]


def requires(*scopes: Scope) -> Callable[..., Coroutine[Any, Any, None]]:
    """A dependency: the caller has one of `scopes` (admin has them all)."""

    async def check(principal: PrincipalDep) -> None:
        check_scope(principal, scopes)

    return check
