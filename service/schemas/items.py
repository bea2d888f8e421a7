"""The catalog's items, as they come and as they are shown."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from service.schemas.common import MAX_BATCH, DomainName, Identifier, Rejected, Request, example

MAX_TITLE = 4096


class CatalogItem(Request):
    model_config = example(item_id="B00ABC", title="Rose Day Cream", category="Skin Care", brand="Flora")

    item_id: Identifier
    title: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TITLE)]
    category: Annotated[str, StringConstraints(max_length=512)] = ""
    brand: Annotated[str, StringConstraints(max_length=512)] = ""
    available: bool = Field(True, description="An unavailable item is never recommended")


class ItemsRequest(Request):
    model_config = example(domain="beauty", items=[{"item_id": "B00ABC", "title": "Rose Day Cream"}])

    domain: DomainName | None = None
    items: list[Any] = Field(
        min_length=1, max_length=MAX_BATCH, json_schema_extra={"items": {"$ref": "#/components/schemas/CatalogItem"}}
    )


class ItemsAnswer(BaseModel):
    upserted: int
    rejected: list[Rejected]


class ItemAnswer(BaseModel):
    item_id: str
    domain: str
    title: str
    category: str
    brand: str
    available: bool
