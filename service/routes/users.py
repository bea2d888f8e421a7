"""What is known of a user, and its erasure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path, Request

from service.audit import decided
from service.auth import Scope
from service.deps import DomainQuery, ServicesDep, requires
from service.problems import responses
from service.schemas.common import Identifier
from service.schemas.users import ErasureAnswer, HistoryAnswer, HistoryEntry
from shared.errors import NotFound
from shared.manifest import Manifest
from shared.redis_keys import partition_of
from shared.types import STREAM_START, AdapterName, DomainId, UserId, order_of

router = APIRouter(tags=["users"])

UserPath = Annotated[Identifier, Path(examples=["u-42"])]


@router.get(
    "/users/{user_id:path}/history",
    dependencies=[Depends(requires(Scope.ingest, Scope.admin))],
    responses=responses(401, 403, 404, 422, 503),
)
async def get_history(user_id: UserPath, services: ServicesDep, domain: DomainQuery = None) -> HistoryAnswer:
    """The user's interactions, oldest first, and which of them the serving adapter has forgotten."""
    name = await services.known_domain(domain)
    events = await services.histories.get(name, UserId(user_id))
    if not events:
        raise _unknown(name, user_id)
    catalog = await services.catalogs.get(name)
    champion = services.adapters.champion(name)
    kept = events if champion is None else champion.forgotten.filter(UserId(user_id), events)
    kept_ids = {event.event_id for event in kept}
    entries = [
        HistoryEntry(
            event_id=event.event_id,
            item_id=event.item_id,
            title=item.title if (item := catalog.items.get(event.item_id)) else None,
            event_type=event.event_type,
            value=event.value,
            timestamp=event.timestamp,
            recommendation_id=event.recommendation_id,
            forgotten=event.event_id not in kept_ids,
        )
        for event in events
    ]
    return HistoryAnswer(user_id=user_id, domain=name, interactions=entries)


@router.delete(
    "/users/{user_id:path}",
    dependencies=[Depends(requires(Scope.admin))],
    responses=responses(401, 403, 404, 422, 503),
)
async def erase_user(
    user_id: UserPath, request: Request, services: ServicesDep, domain: DomainQuery = None
) -> ErasureAnswer:
    """Erases the user from history, log and archive, and names the adapter versions that learned from them."""
    if user_id.endswith("/history") and request.scope["raw_path"].endswith(b"/history"):
        # A user id with a slash comes with %2F; this is the history's own path, which has no DELETE.
        raise HTTPException(405)
    asked = services.domain(domain)
    decided(request.state, domain=asked, erased_user=user_id)
    # Nothing is erased then: who asks again once it is back learns of all versions, however much later that is.
    await services.registry.refuse_where_lost(asked)
    name = await services.known_domain(asked)
    try:
        erased = await services.eraser.erase(name, UserId(user_id))
    finally:
        services.remembered.forget(name, UserId(user_id))  # the history may be gone where the archive failed
    if not erased:
        raise _unknown(name, user_id)
    partition = partition_of(UserId(user_id), services.settings.partitions)
    # Read last: an evolution asks who was erased before it publishes, and what it published before is here.
    learned = learned_by(await services.registry.versions(name), partition, erased)
    return ErasureAnswer(user_id=user_id, domain=name, erased=len(erased), learned_by=list(learned))


def learned_by(oldest_first: Sequence[Manifest], partition: int, stream_ids: Collection[str]) -> list[AdapterName]:
    """Versions that learned from any of the ids, or descend from one that did: weights are inherited.

    A window starts where the parent's ends: with its ancestors, pruned ones too, a version has learned from everything
    up to its range's end. From the panel it takes no targets for its weights, but its blend may rest on one, and its
    forgotten set names them.
    """
    earliest = min(map(order_of, stream_ids))
    return [
        manifest.name
        for manifest in oldest_first
        if earliest <= order_of(manifest.range_end.get(partition, STREAM_START))
    ]


def _unknown(domain: DomainId, user_id: str) -> NotFound:
    return NotFound(f"nothing is known of user {user_id!r} in domain {domain!r}")
