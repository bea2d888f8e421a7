"""The catalog: PUT /items, GET and DELETE /items/{item_id}"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from service.audit import decided
from service.auth import Forbidden, Scope
from service.deps import DomainQuery, PrincipalDep, ServicesDep, requires
from service.intake import sift_items
from service.problems import responses
from service.schemas.common import Identifier
from service.schemas.items import ItemAnswer, ItemsAnswer, ItemsRequest
from shared.errors import NotFound
from shared.types import DomainId, ItemId

router = APIRouter(tags=["items"])

ItemPath = Annotated[Identifier, Path(examples=["B00ABC"])]
MAY_WRITE = Depends(requires(Scope.ingest, Scope.admin))
MAY_READ = Depends(requires(Scope.recommend, Scope.ingest, Scope.admin))


@router.put("/items", dependencies=[MAY_WRITE], responses=responses(400, 401, 403, 408, 413, 422, 503))
async def put_items(
    body: ItemsRequest, request: Request, services: ServicesDep, principal: PrincipalDep
) -> ItemsAnswer:
    """Inserts or replaces 1 to 1000 items; bad ones are rejected one by one. The admin scope creates the domain."""
    domain = services.domain(body.domain)
    new = not await services.catalog.exists(domain)
    if new and not principal.has(Scope.admin):
        decided(request.state, domain=domain, created_domain=True)
        raise Forbidden(f"there is no domain {domain!r}, and creating one takes the scope admin")
    good, rejected = sift_items(body.items)
    if good and new:
        decided(request.state, domain=domain, created_domain=True)  # beforehand: what fails half way is recorded too
    upserted = await services.catalog.put(domain, good) if good else 0
    if good:
        services.adapters.schedule(domain)
    return ItemsAnswer(upserted=upserted, rejected=rejected)


@router.get("/items/{item_id:path}", dependencies=[MAY_READ], responses=responses(401, 403, 404, 422, 503))
async def get_item(item_id: ItemPath, services: ServicesDep, domain: DomainQuery = None) -> ItemAnswer:
    """One item of the catalog."""
    name = await services.known_domain(domain)
    item = await services.catalog.get(name, ItemId(item_id))
    if item is None:
        raise _unknown(name, item_id)
    return ItemAnswer(
        item_id=item.item_id,
        domain=name,
        title=item.title,
        category=item.category,
        brand=item.brand,
        available=item.available,
    )


@router.delete(
    "/items/{item_id:path}", status_code=204, dependencies=[MAY_WRITE], responses=responses(401, 403, 404, 422, 503)
)
async def delete_item(item_id: ItemPath, request: Request, services: ServicesDep, domain: DomainQuery = None) -> None:
    """Takes an item out of the catalog. Past interactions with it stay."""
    decided(request.state, domain=services.domain(domain), deleted_item=item_id)
    name = await services.known_domain(domain)
    if not await services.catalog.delete(name, ItemId(item_id)):
        raise _unknown(name, item_id)
    # Whoever deletes an item must not see it recommended afterwards.
    await services.catalogs.refresh(name)


def _unknown(domain: DomainId, item_id: str) -> NotFound:
    return NotFound(f"there is no item {item_id!r} in domain {domain!r}")
