"""What routes ask for: the services of this process, the caller's rights, the domain."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from fastapi import Depends, Query, Request, Security
from fastapi.security import APIKeyHeader
from redis.asyncio import Redis

from service.adapters import AdapterManager
from service.auth import KeyRing, Principal, Scope, check_scope
from service.engine_host import EngineHost
from service.queue import EvolutionQueue
from service.recommend import Recommender
from service.schemas import DomainName
from shared.catalog import CatalogStore
from shared.config import Settings
from shared.dead_letters import DeadLetters
from shared.errors import UnknownDomain
from shared.evolutions import EvolutionStore
from shared.history import HistoryStore
from shared.metrics import Metrics
from shared.registry import Registry
from shared.stream import InteractionLog
from shared.types import DomainId

API_KEY = APIKeyHeader(name="X-API-Key", auto_error=False, description="Scopes: recommend, ingest, admin")


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a request may use; opened and closed by the lifespan."""

    settings: Settings
    redis: Redis
    keys: KeyRing
    metrics: Metrics
    log: InteractionLog
    histories: HistoryStore
    catalog: CatalogStore
    registry: Registry
    evolutions: EvolutionStore
    dead_letters: DeadLetters
    queue: EvolutionQueue
    host: EngineHost
    adapters: AdapterManager
    recommender: Recommender

    def domain(self, named: str | None) -> DomainId:
        return DomainId(named or self.settings.default_domain)

    async def known_domain(self, named: str | None) -> DomainId:
        """UnknownDomain where nobody has put items there."""
        domain = self.domain(named)
        if not await self.catalog.exists(domain):
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


async def get_principal(
    request: Request, services: ServicesDep, key: Annotated[str | None, Security(API_KEY)]
) -> Principal:
    host = request.client.host if request.client is not None else None
    forwarded = "x-forwarded-for" in request.headers or "forwarded" in request.headers
    return services.keys.authenticate(key, host, forwarded=forwarded)


PrincipalDep = Annotated[Principal, Depends(get_principal)]


def requires(*scopes: Scope) -> Callable[..., Coroutine[Any, Any, None]]:
    """A dependency: the caller has one of `scopes` (admin has them all)."""

    async def check(principal: PrincipalDep) -> None:
        check_scope(principal, scopes)

    return check
