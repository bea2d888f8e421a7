"""POST /interactions"""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import APIRouter, Depends

from service.auth import Scope
from service.batches import parse_each
from service.deps import Services, ServicesDep, requires
from service.problems import responses
from service.schemas.common import Rejected
from service.schemas.interactions import InteractionEvent, InteractionsAnswer, InteractionsRequest
from shared.interaction_codec import event_id_of
from shared.types import DomainId, Interaction, ItemId, UserId

router = APIRouter(tags=["interactions"], dependencies=[Depends(requires(Scope.ingest))])

MILLISECONDS = 1e11


@router.post("/interactions", status_code=202, responses=responses(400, 401, 403, 404, 408, 413, 422, 503))
async def add_interactions(body: InteractionsRequest, services: ServicesDep) -> InteractionsAnswer:
    """Adds 1 to 1000 events to the log. Bad ones are rejected one by one; the rest is taken.

    The very next recommendation sees them. Sending a batch again is safe: events count once.
    """
    domain = await services.known_domain(body.domain)
    events, rejected = parse_each(InteractionEvent, body.interactions)
    known = await _known_items(services, domain, [ItemId(event.item_id) for event in events.values()])
    latest = time.time() + services.settings.max_clock_skew_s
    good: list[Interaction] = []
    for index, event in events.items():
        reason = _refusal(event, domain, known, latest)
        if reason is not None:
            rejected.append(Rejected(index=index, reason=reason))
        else:
            good.append(_interaction(event))
    appended = await services.log.append(domain, good)
    answer = InteractionsAnswer(
        accepted=appended.accepted,
        duplicates=appended.duplicates,
        rejected=sorted(rejected, key=lambda each: each.index),
    )
    _count(services, domain, answer)
    return answer


async def _known_items(services: Services, domain: DomainId, item_ids: Sequence[ItemId]) -> set[ItemId]:
    """The replica's catalog knows nearly all of them; the store is asked for the others alone."""
    catalog = await services.adapters.catalog(domain)
    known = {item_id for item_id in item_ids if item_id in catalog.items}
    return known | set(await services.catalog.get_many(domain, sorted(set(item_ids) - known)))


def _refusal(event: InteractionEvent, domain: DomainId, known: set[ItemId], latest: float) -> str | None:
    if event.item_id not in known:
        return f"item_id: there is no item {event.item_id[:100]!r} in domain {domain!r}"
    if event.timestamp > latest:
        hint = "; it looks like milliseconds" if event.timestamp > MILLISECONDS else ""
        return f"timestamp: {event.timestamp:.0f} lies too far in the future{hint}"
    return None


def _interaction(event: InteractionEvent) -> Interaction:
    user_id, item_id = UserId(event.user_id), ItemId(event.item_id)
    return Interaction(
        event_id=event.event_id or event_id_of(user_id, item_id, event.event_type, event.timestamp),
        user_id=user_id,
        item_id=item_id,
        timestamp=event.timestamp,
        event_type=event.event_type,
        value=event.value,
        recommendation_id=event.recommendation_id,
    )


def _count(services: Services, domain: DomainId, answer: InteractionsAnswer) -> None:
    counter = services.metrics.interactions
    counter.labels(domain, "accepted").inc(answer.accepted)
    counter.labels(domain, "duplicate").inc(answer.duplicates)
    counter.labels(domain, "rejected").inc(len(answer.rejected))
