"""What is asked of `POST /recommend`, and its answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from service.schemas.common import MAX_BATCH, DomainName, Identifier, Request, example
from shared.config import MAX_CANDIDATES


class RecommendRequest(Request):
    """Whom to recommend to, and what may be recommended."""

    model_config = example(user_id="u-42", domain="beauty", count=5)

    user_id: Identifier | None = Field(None, description="Optional where `history` is given")
    domain: DomainName | None = Field(None, description="Unset: the default domain")
    count: int = Field(10, ge=1, le=100)
    candidates: list[Identifier] | None = Field(
        None,
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="Rank exactly these items; unknown ones are an error that names them. Unset: the retriever chooses",
    )
    exclude_item_ids: list[Identifier] = Field([], max_length=MAX_BATCH)
    exclude_seen: bool = Field(
        True,
        description="Leave out what the user has interacted with; named `candidates` are kept unless set explicitly",
    )
    categories: list[Annotated[str, StringConstraints(min_length=1, max_length=512)]] | None = Field(
        None, min_length=1, max_length=100, description="Only items of these categories"
    )
    history: list[Identifier] | None = Field(
        None,
        max_length=MAX_BATCH,
        description="Item ids, oldest first; replaces the stored history for this call alone",
    )
    explain: bool = False

    @model_validator(mode="after")
    def _somebody_or_something(self) -> RecommendRequest:
        if self.user_id is None and self.history is None:
            raise ValueError("user_id is required unless history is given")
        return self


class Influence(BaseModel):
    item_id: str
    title: str
    weight: float = Field(description="Contribution of this history item to the retriever's score; larger is stronger")


class Reason(BaseModel):
    """Why an item stands where it stands (`explain`)."""

    llm_log_probability: float | None = Field(description="null where the LLM did not rank the item")
    retriever_score: float | None = Field(description="Log-probability over the catalog; null without a retriever")
    popularity_share: float
    history: list[Influence] = Field(description="The history items that weighed most, strongest first")


class RecommendedItem(BaseModel):
    item_id: str
    rank: int = Field(ge=1)
    score: float = Field(description="The probability that ranks")
    title: str
    reason: Reason | None = None


class Recommendation(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "recommendation_id": "0b7e1d3c5a6f4c1c9b0c9c6b8f3d2a11",
                    "user_id": "u-42",
                    "domain": "beauty",
                    "items": [{"item_id": "B00ABC", "rank": 1, "score": 0.31, "title": "Rose Day Cream"}],
                    "adapter": "beauty-v000007",
                    "degraded": False,
                    "took_ms": 38.2,
                }
            ]
        }
    )

    recommendation_id: str
    user_id: str | None
    domain: str
    items: list[RecommendedItem]
    adapter: str | None = Field(description="The adapter version that answered; null: popularity did")
    degraded: Literal[False] | str = Field(
        description="false, or why the LLM did not rank: no_adapter, no_history, engine_unavailable, engine_failed, "
        "rank_timeout, saturated, adapter_unavailable; or store_unavailable: the history is the last one this process "
        "knew, or none"
    )
    took_ms: float
