"""What is known of a user, and what was erased."""

from __future__ import annotations

from pydantic import BaseModel, Field


class HistoryEntry(BaseModel):
    event_id: str
    item_id: str
    title: str | None = Field(description="null where the item has left the catalog")
    event_type: str
    value: float | None
    timestamp: float = Field(description="Unix seconds")
    recommendation_id: str | None
    forgotten: bool = Field(description="The champion has forgotten it: prompts leave it out")


class HistoryAnswer(BaseModel):
    user_id: str
    domain: str
    interactions: list[HistoryEntry] = Field(description="Oldest first")


class ErasureAnswer(BaseModel):
    user_id: str
    domain: str
    erased: int = Field(
        description="Interactions removed from history, stream and archive, now and by erasures of the last 24 hours"
    )
    learned_by: list[str] = Field(
        description="Adapter versions whose window contained any of them, and heirs; of a user of the panel too, who "
        "may have helped to choose the blend"
    )
