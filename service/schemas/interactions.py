"""What `POST /interactions` takes and answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, FiniteFloat

from service.schemas.common import MAX_BATCH, DomainName, EventType, Identifier, Rejected, Request, Timestamp, example


class InteractionEvent(Request):
    """One event; an array of them is validated event by event."""

    model_config = example(user_id="u-42", item_id="B00ABC", event_type="purchase", timestamp="2026-01-31T12:00:00Z")

    event_id: Identifier | None = Field(
        None, description="Events with the same id count once within EVOREC_EVENT_ID_TTL_S, 7 days unless set otherwise"
    )
    user_id: Identifier
    item_id: Identifier
    event_type: EventType = "purchase"
    value: FiniteFloat | None = None
    timestamp: Timestamp = Field(description="ISO 8601 with a zone, or unix seconds")
    recommendation_id: Identifier | None = None


class InteractionsRequest(Request):
    model_config = example(
        domain="beauty",
        interactions=[{"user_id": "u-42", "item_id": "B00ABC", "timestamp": "2026-01-31T12:00:00Z"}],
    )

    domain: DomainName | None = None
    interactions: list[Any] = Field(
        min_length=1,
        max_length=MAX_BATCH,
        json_schema_extra={"items": {"$ref": "#/components/schemas/InteractionEvent"}},
    )


class InteractionsAnswer(BaseModel):
    accepted: int
    duplicates: int
    rejected: list[Rejected]
