"""What is taken of a batch of items or interactions; bad ones are rejected one by one, with the reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from service.batches import parse_each
from service.schemas.common import Rejected
from service.schemas.interactions import InteractionEvent
from service.schemas.items import CatalogItem
from shared.catalog import clean_text
from shared.interaction_codec import event_id_of
from shared.types import DomainId, Interaction, Item, ItemId, UserId

MILLISECONDS = 1e11

KnownItems = Callable[[Sequence[ItemId]], Awaitable[Collection[ItemId]]]
"""Those of the ids that the domain's catalog has."""


def sift_items(parts: Sequence[Any]) -> tuple[list[Item], list[Rejected]]:
    """The good ones, of which each id's last, and the others in their order."""
    parsed, rejected = parse_each(CatalogItem, parts)
    good: dict[str, Item] = {}
    for index, item in parsed.items():
        if clean_text(item.title):
            good[item.item_id] = Item(ItemId(item.item_id), item.title, item.category, item.brand, item.available)
        else:
            rejected.append(Rejected(index=index, reason="title: nothing is left of it without control characters"))
    return list(good.values()), _in_order(rejected)


async def sift_interactions(
    parts: Sequence[Any], domain: DomainId, known_items: KnownItems, latest: float
) -> tuple[list[Interaction], list[Rejected]]:
    """The good ones and the others, both in their order. `latest`: in unix seconds, may not be exceeded."""
    events, rejected = parse_each(InteractionEvent, parts)
    known = await known_items([ItemId(event.item_id) for event in events.values()])
    good: list[Interaction] = []
    for index, event in events.items():
        reason = _refusal(event, domain, known, latest)
        if reason is not None:
            rejected.append(Rejected(index=index, reason=reason))
        else:
            good.append(_interaction(event))
    return good, _in_order(rejected)


def _refusal(event: InteractionEvent, domain: DomainId, known: Collection[ItemId], latest: float) -> str | None:
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


def _in_order(rejected: Sequence[Rejected]) -> list[Rejected]:
    return sorted(rejected, key=lambda each: each.index)
