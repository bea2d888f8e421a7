"""POST /interactions"""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import APIRouter, Depends

from service.auth import Scope
from service.deps import Services, ServicesDep, requires
from service.intake import sift_interactions
from service.problems import responses
from service.schemas.interactions import InteractionsAnswer, InteractionsRequest
from shared.types import DomainId, ItemId

router = APIRouter(tags=["interactions"], dependencies=[Depends(requires(Scope.ingest))])


@router.post("/interactions", status_code=202, responses=responses(400, 401, 403, 404, 408, 413, 422, 503))
async def add_interactions(body: InteractionsRequest, services: ServicesDep) -> InteractionsAnswer:
    """Adds 1 to 1000 events to the log. Bad ones are rejected one by one; the rest is taken.

    The very next recommendation sees them. Sending a batch again is safe: events count once.
    """
    domain = await services.known_domain(body.domain)
    latest = time.time() + services.settings.max_clock_skew_s
    good, rejected = await sift_interactions(
        body.interactions, domain, lambda ids: _known_items(services, domain, ids), latest
    )
    appended = await services.log.append(domain, good)
    answer = InteractionsAnswer(accepted=appended.accepted, duplicates=appended.duplicates, rejected=rejected)
    _count(services, domain, answer)
    return answer


async def _known_items(services: Services, domain: DomainId, item_ids: Sequence[ItemId]) -> set[ItemId]:
    """The replica's catalog knows nearly all of them; the store is asked for the others alone."""
    catalog = await services.catalogs.get(domain)
    known = {item_id for item_id in item_ids if item_id in catalog.items}
    return known | set(await services.catalog.get_many(domain, sorted(set(item_ids) - known)))


def _count(services: Services, domain: DomainId, answer: InteractionsAnswer) -> None:
    counter = services.metrics.interactions
    counter.labels(domain, "accepted").inc(answer.accepted)
    counter.labels(domain, "duplicate").inc(answer.duplicates)
    counter.labels(domain, "rejected").inc(len(answer.rejected))
